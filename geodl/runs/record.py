"""The identity and memory of runs: config hash, run folder, result.json, provenance.

Nothing here imports torch, so that a finished run is skipped in a blink.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import logging
import math
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from geodl.atomic import atomic
from geodl.data.layout import files_of
from geodl.errors import UserError

log = logging.getLogger(__name__)

# What does not change what is trained. Everything else is part of a run's identity.
NOT_HASHED = [
    "seed",
    "mode",
    "debug",
    "figures",
    "logger",
    "workers",
    "test",
    "paths",
    "force",
    "ckpt",
    "input",
    "output",
    "times",
    "up",
    "metric",
    "clean",
    "category",
    "code",
    "mask",
    "amount",
    "words",
    "count",
    "allow",
    "table",
    "budget",
    "launch",
    "stop_code",
]
# Modules that every training goes through. Their version is part of a run's name, as is that of
# every component, once it is later than the first one.
SHARED = (
    *("ops", "nn", "carry", "shape", "tasks.base"),
    *("data.preprocess", "data.views", "data.loaders"),
)
FIRST = {"ops": 4, "data.creatures": 3}  # others began with 1
NOT_HASHED_TRAINER = ("accelerator", "devices", "num_nodes", "strategy", "deterministic")
WEIGHTS = (".ckpt", ".pth", ".pt")
FORMAT = 2  # of checkpoints and result.json


def identity(cfg: DictConfig) -> dict[str, Any]:
    """The part of a config that the hash covers, resolved, without empty values.

    Components enter by name, wherever their module lies. Empty values, and one thread, are left out
    so that a new option that is off by default does not rename old runs. Files and folders that the
    user names enter by content.
    """
    given = cfg
    cfg = cast(DictConfig, OmegaConf.create(OmegaConf.to_container(cfg, resolve=False)))
    outputs_folder = str(cfg.paths.outputs)
    cfg.paths = {key: f"<{key}>" for key in cfg.paths}
    plain = cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
    for key in NOT_HASHED:
        plain.pop(key, None)
    (plain.get("data") or {}).pop("memory", None)
    trainer = plain.get("trainer") or {}
    plain["trainer"] = {k: v for k, v in trainer.items() if k not in NOT_HASHED_TRAINER}
    for key in ("weights", "init"):
        if plain.get(key):
            start = start_of(given) if key == "init" else None
            plain[key] = run_hash(start) if start is not None else fingerprint(Path(plain[key]))
    for slot, key in (("decoder", "model"), ("data", "template")):
        if (plain.get(slot) or {}).get(key):
            plain[slot][key] = fingerprint(Path(plain[slot][key]))
    folder = (plain.get("data") or {}).get("folder")
    if folder:
        outputs = Path(outputs_folder).expanduser().resolve()
        if outputs.is_relative_to(Path(folder).expanduser().resolve()):
            raise UserError(
                f"paths.outputs={outputs_folder} lies inside data.folder={folder}: give the "
                "shapes a folder of their own."
            )
        plain["data"]["folder"] = fingerprint(Path(folder))
    if plain.get("threads") == 1:
        del plain["threads"]
    plain["code"] = {module: v for module in SHARED if (v := later_version(module))}
    return _dense(plain)


def start_of(cfg: DictConfig) -> DictConfig | None:
    """The run that ``init`` names by the words of its command, of the same seed; None if it names
    a file."""
    words = str(cfg.init or "").split()
    file = Path(str(cfg.init)).expanduser()
    if not any("=" in word for word in words) or file.exists() or file.suffix in WEIGHTS:
        return None
    start = copy.deepcopy(_composed(*words, f"seed={cfg.seed}"))
    start.paths, start.threads = cfg.paths, cfg.threads
    return start


@functools.cache
def _composed(*words: str) -> DictConfig:
    """Composed once, though the name of a run that begins with it is asked for often."""
    from geodl.runs.compose import compose

    return compose(words)


def weights_of(cfg: DictConfig) -> Path | None:
    """The last checkpoint of a finished run; None if it is not there (an entry of a ledger has
    none)."""
    folder = run_folder(cfg)
    done = (read_result(folder) or {}).get("status") == "done"
    return folder / "last.ckpt" if done and (folder / "last.ckpt").is_file() else None


@functools.cache
def later_version(module: str) -> int | None:
    """``VERSION`` of a module of geodl ("encoders.dgcnn"), read without importing it, if it is
    later than the first. It is raised when what is trained with the module comes out otherwise."""
    place = Path(__file__).resolve().parent.parent.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    found = re.search(r"^VERSION = (\d+)", file.read_text(), re.M) if file.is_file() else None
    number = int(found[1]) if found else 1
    return number if number > FIRST.get(module, 1) else None


def _dense(value: Any) -> Any:
    if isinstance(value, Mapping):
        inner = {k: _dense(v) for k, v in cast("Mapping[str, Any]", value).items()}
        if str(inner.get("_target_", "")).startswith("geodl."):
            module, _, inner["_target_"] = inner["_target_"].removeprefix("geodl.").rpartition(".")
            if number := later_version(module):
                inner["_version_"] = number
        return {k: v for k, v in inner.items() if v is not None and v != {} and v != []}
    if isinstance(value, list):
        return [_dense(v) for v in cast("list[Any]", value)]
    return value


def run_hash(cfg: DictConfig) -> str:
    """Eight hex digits of the identity."""
    return hash_of(identity(cfg))


def hash_of(identity: Mapping[str, Any]) -> str:
    """Eight hex digits of what ``identity`` returned."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def fingerprint(path: Path) -> str:
    """blake2b of a file, or of the names and contents of a folder's files (see ``files_of``)."""
    path = path.expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist: give an existing file or folder.")
    state = hashlib.blake2b(digest_size=16)
    files = [path] if path.is_file() else files_of(path)
    for file in files:
        if path.is_dir():
            state.update(os.fsencode(file.relative_to(path)) + b"\0")
        with file.open("rb") as stream:
            state.update(hashlib.file_digest(stream, "blake2b").digest())
    return state.hexdigest()


def component(cfg: DictConfig, slot: str) -> str:
    """Name of the class in a slot, in lower case."""
    return str(cfg[slot]["_target_"]).rsplit(".", 1)[-1].lower()


def run_folder(cfg: DictConfig) -> Path:
    """outputs/<task>/<data>/<encoder>/<hash8>-s<seed>"""
    names = [component(cfg, slot) for slot in ("task", "data", "encoder")]
    return Path(cfg.paths.outputs, *names, f"{run_hash(cfg)}-s{cfg.seed}").expanduser()


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all."""
    with atomic(path) as part:
        part.write_text(json.dumps(content, indent=1, allow_nan=True) + "\n")


def read_result(folder: Path) -> dict[str, Any] | None:
    """A run's result.json, or None if there is none that can be read."""
    return read_entry(folder / "result.json")


def read_entry(file: Path) -> dict[str, Any] | None:
    """The result of a run, or None if there is none that can be used; a damaged one is named."""
    result: Any = read_json(file)
    if result is None:
        return None
    whole = isinstance(result, dict) and isinstance(result.get("status"), str)
    if whole and result["status"] == "done" and result.get("format", FORMAT) == FORMAT:
        whole = all(isinstance(result.get(k), dict) for k in ("eval", "metrics", "config"))
        whole = whole and isinstance(result.get("finished"), str)
        whole = whole and all(_scores(result, e) for e in result["eval"].values())
    if not whole:
        log.warning("%s is no result of a run: taken as absent", file)
        return None
    return cast("dict[str, Any]", result)


def _scores(result: Any, entry: Any) -> bool:
    """Whether an evaluation has numbers, the headline among them."""
    scores: Any = entry.get("scores") if isinstance(entry, dict) else None
    if not isinstance(scores, dict):
        return False
    heads = [n for n, m in result["metrics"].items() if isinstance(m, dict) and m.get("headline")]
    found = [cast("dict[str, Any]", scores).get(n) for n in heads]
    return any(isinstance(x, (int, float)) and math.isfinite(x) for x in found)


def read_json(file: Path) -> Any:
    """What a file holds, or None if there is none; one that cannot be read is named."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError, RecursionError) as error:  # no JSON, no text, no file
        log.warning("%s cannot be read (%s): taken as absent", file, error)
        return None


def run_name(cfg: DictConfig) -> str:
    return f"{run_hash(cfg)}-s{cfg.seed}"


def finished(cfg: DictConfig) -> tuple[Path, dict[str, Any]] | None:
    """Where a finished run of this user with this identity and seed is recorded, and its result:
    the run folder, or an entry of ``paths.ledger``, which other machines may have filled, if that
    has more of the test sets that are asked for."""
    found: list[tuple[Path, dict[str, Any]]] = []
    folder = run_folder(cfg)
    result = read_result(folder)
    if result is not None and result.get("status") == "done":
        found.append((folder, result))
    if cfg.paths.ledger:
        entry = Path(cfg.paths.ledger, f"{folder.name}.json").expanduser()
        if (known := read_entry(entry)) is not None and known["status"] == "done":
            found.append((entry, known))
    return min(found, key=lambda f: len(missing_tests(cfg, f[1])), default=None)


def skipped(cfg: DictConfig) -> tuple[Path, dict[str, Any]] | None:
    """The finished run that makes this one needless, as ``finished`` gives it; says so."""
    done = finished(cfg)
    if done is None:
        return None
    where, result = done
    if missing := missing_tests(cfg, result):
        if where.is_file() and not (run_folder(cfg) / "last.ckpt").is_file():
            tests = ",".join(missing)
            log.info("the ledger has no test=%s for this run, and not its weights: training", tests)
        return None
    scores = ", ".join(f"{k} {v:.4f}" for k, v in headlines(result).items())
    sys.stdout.write(f"skipped, finished before: {where} ({scores})\n")
    if cfg.logger:
        name = str(cfg.logger.get("_target_", "logger")).rpartition(".")[2]
        log.info("%s logs nothing: the run is finished (force=true trains it again)", name)
    if other := other_versions(result):
        log.info("made with %s", other)
    return done


def other_versions(result: Mapping[str, Any]) -> str:
    """Packages of which a result was made with another version than is installed, in words."""
    then, now = result.get("versions"), versions()
    if not isinstance(then, dict):
        return ""
    changed = [f"{n} {v} (here {now[n]})" for n, v in then.items() if now.get(n, v) != v]
    return ", ".join(changed)


def headlines(result: Mapping[str, Any]) -> dict[str, float]:
    """The headline metric of every test set of a result."""
    entries = result.get("eval", {}).items()
    return {test: e["scores"][headline(result, e["scores"])] for test, e in entries}


def headline(result: Mapping[str, Any], scores: Mapping[str, float]) -> str:
    """The metric that a result's scores are named by, as its task declared."""
    return next(n for n, m in result["metrics"].items() if m["headline"] and n in scores)


def to_ledger(folder: Path, ledger: Path) -> Path | None:
    """Copy a finished run's result, with its evaluations, to a ledger; None if not finished.

    The numbers of an entry come from one training: test sets of the same training are joined, of
    two trainings the later one stays.
    """
    result = read_result(folder)
    if result is None or result.get("status") != "done":
        return None
    result.pop("traceback", None)
    ledger.mkdir(parents=True, exist_ok=True)
    entry = ledger / f"{folder.name}.json"
    known = read_entry(entry) or {}
    if known.get("finished") == result["finished"]:
        result["eval"] = {**known["eval"], **result["eval"]}
    if known.get("finished", "") <= result["finished"] and known != result:
        write_json(entry, result)
    return entry


def missing_tests(cfg: DictConfig, result: Mapping[str, Any]) -> list[str]:
    """Test sets that are asked for and not in the result, or there with other options."""
    have = {name: entry.get("options") for name, entry in result.get("eval", {}).items()}
    return [name for name in cfg.test if have.get(name) != test_options(cfg, name)]


def test_options(cfg: DictConfig, name: str) -> dict[str, Any]:
    """A named test set as plain data: its results belong to these options."""
    return cast("dict[str, Any]", OmegaConf.to_container(cfg.test[name], resolve=True))


@contextlib.contextmanager
def whole(target: Path, first: str) -> Generator[Path]:
    """A folder to write to. Its files take their places in ``target``, beside whatever else is
    there, only if all went well: ``first`` ahead of the others, since it says what they are."""
    part = target.resolve().with_name(f".{target.resolve().name}.part")
    shutil.rmtree(part, ignore_errors=True)
    make_folder(part)
    try:
        yield part
        make_folder(target)
        for one in sorted(part.iterdir(), key=lambda file: file.name != first):
            if one.is_dir():
                shutil.rmtree(target / one.name, ignore_errors=True)
            one.replace(target / one.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Create a folder and see that it can be written to.

    Raises:
        UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}): set paths.outputs to a folder of "
            "yours."
        ) from error


def provenance() -> dict[str, Any]:
    """Versions, commit and machine, as results store them."""
    return {"versions": versions(), **commit()}


def versions() -> dict[str, str]:
    """Of Python, geodl and the packages that numbers depend on."""
    packages = ("geodl", "torch", "lightning", "hydra-core", "numpy", "scipy", "potpourri3d")
    found: dict[str, str] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, Any]:
    """Commit of the checkout that this module runs from, and whether it is modified."""
    here = Path(__file__).resolve().parent
    package = here.parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD") if git("ls-files", "record.py") else ""
        dirty = bool(
            git("status", "--porcelain", "--", str(package), str(package.parent / "configs"))
        )
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}
    return {"commit": head or None, "dirty": dirty if head else None}


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


def valid_name(text: str) -> str:
    """Text as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[-80:] or "unnamed"
