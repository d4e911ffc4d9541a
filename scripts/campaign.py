"""Try to break it, and count: what docs/reliability.md reports.

    python scripts/campaign.py kills 100    kill -9 at random moments; weights compared bit for bit
                                            (of some commands only: kills 20 table)
    python scripts/campaign.py caches       four processes on one empty cache
    python scripts/campaign.py disks        a full disk, a read-only cache, a folder that vanishes
    python scripts/campaign.py meshes 300   generated defective meshes in ten formats
    python scripts/campaign.py many 10000   that many tiny shapes in a folder
    python scripts/campaign.py splits       the same geometry in two splits of a data set
    python scripts/campaign.py mutants 40   small faults put into the code: do the tests notice

Each prints its counts, and exits with 1 where something was wrong. Minutes to an hour; not in CI.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GEODL = [sys.executable, "-m", "geodl"]
sys.path[0] = str(ROOT / "tests")  # this folder has a profile.py, which torch would import
TINY = ["data.size=tiny", "encoder.points=64", "batch_size=5"]


def geodl(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """One command line to its end."""
    env = os.environ | environment
    return subprocess.run(
        [*GEODL, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=1800
    )


def in_a_sentence(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command failed as it should: exit code 1 or 2, a sentence, no traceback."""
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return (
        done.returncode in (1, 2) and last.startswith("geodl: ") and "Traceback" not in done.stderr
    )


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# ---- kills ----


def weights(outputs: Path) -> dict[str, str]:
    """Checksum of the weights of every finished run."""
    import torch

    found: dict[str, str] = {}
    for file in sorted(outputs.rglob("last.ckpt")):
        state = torch.load(file, weights_only=True)["state_dict"]
        digest = hashlib.sha256()
        for name, tensor in sorted(state.items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        found[file.parent.name] = digest.hexdigest()[:16]
    return found


def scores(outputs: Path) -> dict[str, Any]:
    """Scores of all evaluations of every finished run."""
    return {
        file.parent.name: {t: e["scores"] for t, e in json.loads(file.read_text())["eval"].items()}
        for file in sorted(outputs.rglob("result.json"))
    }


def kills(count: int = 100, *names: str) -> bool:
    """Commands killed at random moments until they are through, against the same ones in peace."""
    rng = random.Random(0)
    short = [*TINY, "figures=false"]
    commands = {
        "training": [*short, "epochs=40"],
        "evaluation": [*TINY, "epochs=1", "test=[clean,rotated,noisy,remeshed,simplified]"],
        "prepare": ["mode=prepare", "data.size=small", "encoder=diffusionnet", "encoder.k_eig=64"],
        "sweep": ["-m", *short, "epochs=15", "seed=0,1,2"],
        "table": ["mode=table", "table=demo", "budget=smoke"],
    }
    commands = {name: commands[name] for name in names or commands}
    share = -(-count // len(commands))
    fine = True
    for name, words in commands.items():
        wrong: Counter[str] = Counter()
        with folder() as there:
            quiet, loud = there / "quiet", there / "loud"
            quiet.mkdir(), loud.mkdir()
            cache = {
                "GEODL_CACHE": str(there / "cache" / "quiet"),
                "GEODL_DATA": str(there / "data"),
            }
            start = time.perf_counter()
            first = geodl(*words, cwd=quiet, **cache)
            took = time.perf_counter() - start
            wrong["failed in peace"] += first.returncode != 0
            cache["GEODL_CACHE"] = str(there / "cache" / "loud")
            left = share
            rounds = 0
            while left and rounds < 4 * share:  # begun anew where it came through
                rounds += 1
                process = subprocess.Popen(
                    [*GEODL, *words],
                    cwd=loud,
                    env=os.environ | cache,
                    start_new_session=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                try:
                    process.wait(timeout=rng.uniform(0.1, 0.9) * took)
                    shutil.rmtree(loud / "outputs", ignore_errors=True)
                    shutil.rmtree(there / "cache" / "loud", ignore_errors=True)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    left -= 1
                time.sleep(0.05)
            done = geodl(*words, cwd=loud, **cache)
            wrong["failed afterwards"] += done.returncode != 0
            wrong["other weights"] += weights(loud) != weights(quiet)
            wrong["other scores"] += scores(loud) != scores(quiet)
            parts = [
                p for p in (*loud.rglob("*"), *(there / "cache").rglob("*")) if ".part" in p.name
            ]
            wrong["half-written files"] += len([p for p in parts if loud in p.parents])
            print(
                f"{name}: {share - left} kills in {took:.0f} s of work, {len(weights(loud))} runs, "
                f"{len(parts)} files of killed writers left in the cache"
            )
            fine &= report(wrong)
    return fine


def report(wrong: Counter[str]) -> bool:
    bad = {k: n for k, n in wrong.items() if n}
    print(f"wrong: {bad or 'nothing'}", flush=True)
    return not bad


# ---- caches and disks ----


def caches(processes: int = 4) -> bool:
    """Several processes that need the same geometry at once; then one that needs nothing more."""
    words = ["mode=prepare", "data.size=small", "encoder=diffusionnet", "encoder.k_eig=64"]
    wrong: Counter[str] = Counter()
    with folder() as there:
        cache = {"GEODL_CACHE": str(there / "cache"), "GEODL_DATA": str(there / "data")}
        started = [
            subprocess.Popen(
                [*GEODL, *words],
                cwd=there,
                env=os.environ | cache,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(processes)
        ]
        outputs = [p.communicate()[0] for p in started]
        wrong["failed"] += sum(p.returncode != 0 for p in started)
        after = geodl(*words, cwd=there, **cache)
        wrong["computed again"] += ", 0 computed" not in after.stdout
        files = list((there / "cache").rglob("*"))
        wrong["locks or parts left"] += sum(f.suffix in (".lock", ".part") for f in files)
        computed = [int(o.split(" cache hits, ")[1].split(" computed")[0]) for o in outputs]
        arrays = sum(f.suffix == ".safetensors" for f in files)
        print(f"{processes} processes computed {computed} of {arrays} files")
        wrong["computed twice"] += sum(computed) - arrays
    return report(wrong)


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own (Linux, as root)."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def disks() -> bool:
    """Training, sweep and predictions on a disk that fills up, with a read-only cache, and in a
    folder that is taken away."""
    wrong: Counter[str] = Counter()
    words = [*TINY, "figures=false", "epochs=30"]
    with folder() as there:
        base = {"GEODL_CACHE": str(there / "cache"), "GEODL_DATA": str(there / "data")}
        wrong["failed in peace"] += geodl(*words, cwd=there, **base).returncode != 0
        (quiet,) = weights(there / "outputs").values()
        tried = 0
        for size in ("200k", "3m", "9m", "9900k", "10m", "11m", "14m", "18m", "21m", "24m"):
            with small_disk(there / f"disk{size}", size) as disk:
                done = geodl(*words, f"paths.outputs={disk}", cwd=there, **base)
                tried += 1
                if done.returncode:
                    wrong["a full disk without a sentence"] += not in_a_sentence(done)
                    wrong["a full disk is not named"] += "No space left" not in done.stderr
                    for file in disk.rglob("last.ckpt"):
                        import torch

                        torch.load(file, weights_only=True)  # whole, whatever happened
                    subprocess.run(["mount", "-o", "remount,size=99m", disk], check=True)
                    again = geodl(*words, f"paths.outputs={disk}", cwd=there, **base)
                    wrong["not resumed with more room"] += again.returncode != 0
                wrong["other weights"] += [*weights(disk).values()] != [quiet]
        print(f"full disks: {tried} sizes")
        with small_disk(there / "small_cache", "200k") as disk:
            done = geodl(
                "mode=prepare",
                *TINY[:1],
                "encoder=diffusionnet",
                cwd=there,
                **base | {"GEODL_CACHE": str(disk)},
            )
            wrong["a full cache without a sentence"] += not in_a_sentence(done)
        with small_disk(there / "ro", "50m") as disk:
            warm = base | {"GEODL_CACHE": str(disk)}
            spectral = ["encoder=diffusionnet", "encoder.k_eig=32", "encoder.width=8", "epochs=1"]
            geodl("mode=prepare", *TINY[:1], *spectral, cwd=there, **warm)
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            done = geodl(*TINY[:1], *spectral, "figures=false", cwd=there, **warm)
            wrong["a warm read-only cache is not enough"] += done.returncode != 0
            spectral[1] = "encoder.k_eig=48"
            done = geodl(*TINY[:1], *spectral, "figures=false", cwd=there, **warm)
            wrong["a cold read-only cache without a sentence"] += not in_a_sentence(done)
        for what in ("outputs", "outputs/classification/creatures/pointnet"):
            shutil.rmtree(there / "outputs", ignore_errors=True)
            process = subprocess.Popen(
                [*GEODL, *TINY, "figures=false", "epochs=3000"],
                cwd=there,
                env=os.environ | base,
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
            while not list(there.rglob("last.ckpt")):
                time.sleep(0.1)
            shutil.rmtree(there / what)
            error = process.communicate(timeout=120)[1]
            done = subprocess.CompletedProcess([], process.returncode, "", error)
            wrong["a folder that vanished without a sentence"] += not in_a_sentence(done)
    return report(wrong)


# ---- meshes ----


def meshes(count: int = 300) -> bool:
    """Generated meshes with every kind of defect, written in ten formats: each is refused in a
    sentence, dropped by name, or gives finite numbers all the way through a network; and a folder
    of them all is prepared to its end."""
    import defective
    from hypothesis import HealthCheck, given, settings

    wrong: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    with folder() as there:
        kept = there / "set"

        @settings(
            max_examples=count,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(defective.files())
        def one(file: Any) -> None:
            number = sum(formats.values())
            formats[file.suffix] += 1
            for cls in ("a", "b"):
                path = kept / cls / f"{number}{file.suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.content)
            outcome = defective.through_a_network(path, there / "cache")
            outcomes[outcome] += 1
            wrong[outcome] += outcome.startswith("wrong")

        one()
        print(f"{sum(formats.values())} meshes: {dict(formats)}")
        print(f"outcomes: {dict(outcomes)}")
        done = geodl(
            "mode=prepare",
            "data=folder",
            f"data.folder={kept}",
            "encoder=diffusionnet",
            "data.preprocess.on_defect=drop",
            "encoder.k_eig=16",
            cwd=there,
            GEODL_CACHE=str(there / "cache"),
        )
        wrong["the set was not processed"] += done.returncode != 0
        print("\n".join(done.stdout.splitlines()[:1]) or done.stderr[-500:])
    return report(wrong)


def many(count: int = 10_000) -> bool:
    """That many tetrahedra in a folder: prepare, start again, memory."""
    wrong: Counter[str] = Counter()
    with folder() as there:
        rng = random.Random(0)
        for i in range(count):
            file = there / "set" / ("cat", "dog")[i % 2] / f"{i}.off"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = "".join(f"{rng.random()} {rng.random()} {rng.random()}\n" for _ in range(4))
            file.write_text(f"OFF\n4 4 6\n{rows}3 0 2 1\n3 0 1 3\n3 1 2 3\n3 0 3 2\n")
        words = [
            "data=folder",
            f"data.folder={there / 'set'}",
            "encoder=diffusionnet",
            "encoder.k_eig=4",
            "encoder.width=8",
            "encoder.blocks=1",
            "figures=false",
        ]
        env = {"GEODL_CACHE": str(there / "cache")}
        for what, asked in (
            ("prepare", ["mode=prepare"]),
            ("prepare, warm", ["mode=prepare"]),
            ("one epoch", ["epochs=1", "batch_size=64"]),
            ("skipped", ["epochs=1", "batch_size=64"]),
        ):
            start = time.perf_counter()
            done = geodl(*words, *asked, cwd=there, **env)
            took = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            print(f"{what}: {took:.1f} s, largest process so far {peak:.0f} MB")
            wrong[what] += done.returncode != 0
    return report(wrong)


# ---- splits ----


def splits() -> bool:
    """Every data set at hand: is the same geometry in two of its splits?"""
    import numpy as np

    from geodl.errors import UserError
    from geodl.ops.cache import digest
    from geodl.runs.build import build_data
    from geodl.runs.compose import compose

    apart = True
    for name in (
        "creatures",
        "heads",
        "ellipsoids",
        "human_seg",
        "princeton",
        "modelnet10",
        "rna",
        "faust_r",
        "ict_faces",
    ):
        try:
            source = build_data(compose([f"data={name}"]))
            found = source.all_splits()
        except UserError as error:
            print(f"{name}: not at hand ({str(error)[:60]})")
            continue
        seen: dict[str, list[str]] = {}
        for split, items in found.items():
            for item in items:
                shape = source.read(item)
                pos = shape.pos.double().numpy()
                pos = (pos - pos.mean(0)) / np.ptp(pos, axis=0).max()
                key = digest(np.round(pos, 5) + 0.0, shape.face.numpy())
                seen.setdefault(key, []).append(f"{split}/{item.name}")
        twice = [w for w in seen.values() if len({x.split("/")[0] for x in w}) > 1]
        count = sum(map(len, found.values()))
        print(f"{name}: {count} shapes, {len(twice)} in two splits {twice[:6]}")
        apart &= not twice
    return apart


# ---- mutants ----

# What is changed -> the tests that should notice, the likely ones first.
WATCHED = {
    "geodl/ops/geometry.py": ["test_ops.py", "test_versions.py"],
    "geodl/ops/gradient.py": ["test_ops.py", "test_versions.py"],
    "geodl/ops/laplacian.py": ["test_ops.py", "test_versions.py"],
    "geodl/ops/spectrum.py": ["test_ops.py", "test_versions.py"],
    "geodl/ops/check.py": ["test_ops.py", "test_data.py"],
    "geodl/ops/neighbors.py": ["test_ops.py", "test_matching.py"],
    "geodl/shape.py": ["test_shape.py", "test_fields.py", "test_tasks.py"],
    "geodl/runs/record.py": ["test_safety.py", "test_configs.py", "test_runs.py"],
    "geodl/metrics.py": ["test_tasks.py", "test_matching.py", "test_real.py"],
    "geodl/tasks/classification.py": ["test_tasks.py", "test_versions.py", "test_runs.py"],
    "geodl/tasks/segmentation.py": ["test_tasks.py", "test_versions.py", "test_runs.py"],
    "geodl/tasks/base.py": ["test_tasks.py", "test_versions.py", "test_runs.py"],
    "geodl/tasks/matching.py": ["test_matching.py"],
    "geodl/tasks/reconstruction.py": ["test_faces.py"],
}
COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
}
COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


def changes(tree: ast.AST) -> list[tuple[ast.AST, str]]:
    """Places where a small fault can be put, outside of raise statements and annotations."""
    found: list[tuple[ast.AST, str]] = []
    aside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.AnnAssign)):
            aside |= {id(x) for x in ast.walk(node)}
        if id(node) in aside:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
            found.append((node, "comparison"))
        elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
            found.append((node, "arithmetic"))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            found.append((node, "constant"))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            found.append((node, "sign"))
        elif isinstance(node, ast.BoolOp):
            found.append((node, "and/or"))
    return found


def spoil(node: Any, kind: str) -> None:
    if kind == "comparison":
        node.ops[0] = COMPARED[type(node.ops[0])]()
    elif kind == "arithmetic":
        node.op = COMPUTED[type(node.op)]()
    elif kind == "constant":
        node.value = node.value + 1 if isinstance(node.value, int) else node.value * 2 + 0.5
    elif kind == "sign":
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    else:
        node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()


def mutants(count: int = 40) -> bool:
    """Faults in a copy of the working tree, one at a time."""
    rng = random.Random(0)
    alive: list[str] = []
    killed = 0
    with folder() as there:
        copy = there / "copy"
        skip = shutil.ignore_patterns(".venv", ".git", "outputs", "build", ".pytest_cache")
        shutil.copytree(ROOT, copy, ignore=skip)
        names = list(WATCHED)
        for number in range(count):
            name = names[number % len(names)]
            text = (ROOT / name).read_text()
            tree = ast.parse(text)
            node, kind = rng.choice(changes(tree))
            spoil(node, kind)
            where = f"{name}:{node.lineno} {kind}: {text.splitlines()[node.lineno - 1].strip()}"
            (copy / name).write_text(ast.unparse(tree))
            noticed = False
            for tests in WATCHED[name]:
                done = subprocess.run(
                    [
                        sys.executable,
                        "-m",
                        "pytest",
                        "-x",
                        "-q",
                        "-p",
                        "no:cacheprovider",
                        f"tests/{tests}",
                    ],
                    cwd=copy,
                    env=os.environ | {"PYTHONPATH": str(copy)},
                    capture_output=True,
                    timeout=3600,
                )
                if done.returncode == 1:
                    noticed = True
                    break
            killed += noticed
            alive += [] if noticed else [where]
            print(f"{number + 1}: {'killed' if noticed else 'ALIVE'} {where}", flush=True)
            (copy / name).write_text(text)
    print(f"{killed} of {count} noticed")
    return killed >= 0.9 * count


if __name__ == "__main__":
    campaigns = {f.__name__: f for f in (kills, caches, disks, meshes, many, splits, mutants)}
    if len(sys.argv) < 2 or sys.argv[1] not in campaigns:
        sys.exit(__doc__)
    ok = campaigns[sys.argv[1]](*(int(w) if w.isdigit() else w for w in sys.argv[2:]))
    sys.exit(0 if ok else 1)
