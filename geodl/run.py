"""The entry point: ``geodl`` = ``python -m geodl``.

    geodl task=segmentation data=human_seg encoder=diffusionnet features=hks seed=0
    geodl -m encoder=pointnet,diffusionnet seed=0,1,2

Composing, listing, skipping and refusing happen here, without torch; the work is in
``geodl.modes``.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

from geodl import record
from geodl.errors import UserError

MODES = ("train", "eval", "predict", "prepare", "list", "table", "report")
log = logging.getLogger("geodl")


def config_dir() -> Path:
    """The folder of YAML groups: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "configs"
    return inside if inside.is_dir() else here.parent / "configs"


def main() -> None:
    """Run one command line; exit code 0, 1 (a fault of ours) or 2 (a mistake of the user's)."""
    _log_to_stderr()
    words = sys.argv[1:]
    trace = "debug=trace" in words
    try:
        if "mode=list" in words:
            from geodl.listing import show

            sys.stdout.write(show(config_dir()))
            return
        sys.exit(_hydra(words))
    except KeyboardInterrupt:
        sys.stderr.write("geodl: interrupted; the same command resumes.\n")
        sys.exit(130)
    except Exception as error:
        sentence = explain(error)
        if trace or sentence is None:
            traceback.print_exc()
        sys.stderr.write(f"geodl: {sentence or f'{type(error).__name__}: {error}'}\n")
        sys.exit(2 if sentence else 1)


def _hydra(words: list[str]) -> int:
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed
    sweeping = "-m" in words or "--multirun" in words
    job = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="run")
    if not sweeping:
        faults: list[BaseException] = []

        def one(cfg: Any) -> None:
            try:
                run(cfg)
            except Exception as error:  # raised again below: Hydra would print lines of its own
                faults.append(error)

        job(one)()
        for fault in faults:
            raise fault
        return 0
    outputs = next(
        (w.partition("=")[2] for w in words if w.startswith("paths.outputs=")), "outputs"
    )
    with _board(Path(outputs)) as entries:
        job(sweep_job)()
    return 1 if summary(entries) else 0


@contextlib.contextmanager
def _board(outputs: Path) -> Generator[list[dict[str, Any]]]:
    """What becomes of a sweep's jobs: each leaves one line in a file, in whatever process or on
    whatever machine it runs; the list is filled at the end. A launcher that gives up on a job (out
    of time, say) takes nothing from the others."""
    board = outputs.expanduser().resolve() / ".hydra" / f"sweep-{os.getpid()}.jsonl"
    board.unlink(missing_ok=True)
    os.environ["GEODL_SWEEP"] = str(board)
    entries: list[dict[str, Any]] = []
    try:
        yield entries
    except Exception as error:
        if explain(error) is not None or not board.is_file():
            raise
        log.error("the launcher gave up: %s: %s", type(error).__name__, error)
        entries.append({"job": "the launcher", "status": "failed"})
    finally:
        if board.is_file():
            entries[:0] = [json.loads(line) for line in board.read_text().splitlines()]
        board.unlink(missing_ok=True)


def launch(jobs: list[list[str]], words: list[str], outputs: Path) -> list[dict[str, Any]]:
    """Run jobs, each a list of overrides, by Hydra's launcher (whichever ``words`` choose); what
    became of them. Only inside a command line of geodl."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    config = hydra.compose_config("run", overrides=words, run_mode=RunMode.MULTIRUN)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=sweep_job, config=config
    )
    with _board(outputs) as entries:
        launcher.launch(jobs, 0)
    return entries


def run(cfg: Any) -> None:
    """One composed config, in this process."""
    _validate(cfg)
    logging.getLogger("geodl").setLevel(logging.INFO)
    if cfg.mode == "train" and not cfg.force and _skip(cfg):
        return
    module = {"table": "tables", "report": "report"}.get(cfg.mode, "modes")
    outcome = getattr(importlib.import_module(f"geodl.{module}"), cfg.mode)(cfg)
    if outcome:
        sys.stdout.write(outcome if outcome.endswith("\n") else f"{outcome}\n")


def _skip(cfg: Any) -> bool:
    """Whether a finished run makes this one needless; says so."""
    done = record.finished(cfg)
    if done is None:
        return False
    where, result = done
    missing = record.missing_tests(cfg, result)
    if missing:
        if where.is_file():
            tests = ",".join(missing)
            log.info("the ledger has no test=%s for this run, and not its weights: training", tests)
        return False
    scores = ", ".join(f"{k} {v:.4f}" for k, v in headline(result).items())
    sys.stdout.write(f"skipped, finished before: {where} ({scores})\n")
    return True


def headline(result: dict[str, Any]) -> dict[str, float]:
    """One metric of every test set of a result: an accuracy, or an error between surfaces."""

    entries = result.get("eval", {}).items()
    return {name: entry["scores"][main_metric(entry["scores"])] for name, entry in entries}


def main_metric(scores: dict[str, float]) -> str:
    order = [*(k for k in scores if k.endswith("acc")), "surface", "error", *scores]
    return next(k for k in order if k in scores)


# ---- sweeps ----


def sweep_job(cfg: Any) -> None:
    """One job of a sweep: skipped here, or run in a process of its own, so that a crash stays its
    own. It never raises: the sweep goes on, and the summary tells."""
    from hydra.core.hydra_config import HydraConfig

    overrides = list(HydraConfig.get().overrides.task)
    entry: dict[str, Any] = {"job": " ".join(overrides)}
    try:
        _validate(cfg)
        folder = record.run_folder(cfg) if cfg.mode == "train" else None
        if cfg.mode == "train" and not cfg.force and _skip(cfg):
            done = record.finished(cfg)
            assert done is not None
            entry |= {"status": "skipped", "where": str(done[0]), "eval": headline(done[1])}
        else:
            resumed = folder is not None and (folder / "last.ckpt").is_file() and not cfg.force
            sys.stderr.write(f"\n== {entry['job']}\n")
            command = [sys.executable, "-m", "geodl", *overrides]
            with _device(cfg) as device:
                environment = {k: v for k, v in os.environ.items() if k != "GEODL_SWEEP"}
                done = subprocess.run(command, env=environment | device, preexec_fn=die_along)
                code = done.returncode
            if code in (-2, 130):
                raise KeyboardInterrupt
            entry["status"] = "failed" if code else "resumed" if resumed else "done"
            result = record.read_result(folder) if folder else None
            if result:
                entry |= {"where": str(folder), "eval": headline(result)}
    except Exception as error:
        entry |= {"status": "failed"}
        sys.stderr.write(f"geodl: {explain(error) or traceback.format_exc()}\n")
    board = Path(os.environ["GEODL_SWEEP"])
    board.parent.mkdir(parents=True, exist_ok=True)
    with board.open("a") as stream:
        stream.write(json.dumps(entry) + "\n")


def die_along() -> None:
    """In a new process: to be killed with the one that started it (Linux)."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


@contextlib.contextmanager
def _device(cfg: Any) -> Generator[dict[str, str]]:
    """A GPU that no other job of this machine has, as environment; waits for one to be free."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        count = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
        shown = ",".join(map(str, range(count)))
    devices = [d for d in shown.split(",") if d]
    if str(cfg.trainer.accelerator) not in ("gpu", "cuda", "auto") or len(devices) < 2:
        yield {}
        return
    from filelock import FileLock, Timeout

    folder = Path(cfg.paths.outputs).expanduser() / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for device in devices:
            lock = FileLock(folder / f"device-{device}-{platform.node()}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield {"CUDA_VISIBLE_DEVICES": device}
            finally:
                lock.release()
            return
        time.sleep(1.0)


def summary(entries: list[dict[str, Any]]) -> int:
    """Print what became of the jobs; how many failed."""
    if not entries:
        return 0
    from rich.console import Console
    from rich.table import Table

    tests = list(dict.fromkeys(name for e in entries for name in e.get("eval", {})))
    table = Table(title=None)
    for column in ("job", "status", *tests):
        table.add_column(column, justify="left" if column in ("job", "status") else "right")
    for e in entries:
        scores = [f"{e['eval'][t]:.3f}" if t in e.get("eval", {}) else "" for t in tests]
        table.add_row(e["job"], e["status"], *scores)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    places = [e["where"] for e in entries if "where" in e]
    if places:
        console.print("results and pictures:", highlight=False)
        for place in dict.fromkeys(places):
            inside = Path(place, "figures")
            console.print(
                f"  {inside if inside.is_dir() else place}", highlight=False, soft_wrap=True
            )
    counts = {
        s: sum(e["status"] == s for e in entries) for s in ("done", "skipped", "resumed", "failed")
    }
    console.print(", ".join(f"{n} {s}" for s, n in counts.items()))
    return counts["failed"]


# ---- mistakes ----


def _validate(cfg: Any) -> None:
    """Scalars that pass composition whatever they are."""

    def integer(key: str, low: int) -> None:
        value = cfg[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise UserError(f"{key}={value} must be a whole number of {low} or more.")

    if cfg.mode not in MODES:
        raise UserError(f"mode={cfg.mode} is not known{_near(str(cfg.mode), MODES)}.")
    for key, low in (("seed", 0), ("epochs", 0), ("batch_size", 1), ("workers", 0)):
        integer(key, low)
    if cfg.select not in ("last", "val", "test"):
        raise UserError(f"select={cfg.select} is not known: choose last, val or test.")
    for key in ("force", "figures"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key}={cfg[key]} must be true or false.")
    if (cfg.mode == "table") != bool(cfg.get("table")):
        raise UserError(
            "mode=table and table=<name> go together: geodl mode=list shows the tables, and "
            "budget=smoke | short | paper says how long the runs are."
        )
    if cfg.mode == "predict" and not (cfg.ckpt and cfg.input):
        raise UserError("mode=predict needs ckpt=<a .ckpt file> and input=<a file or folder>.")
    if cfg.mode == "eval" and not (cfg.ckpt or cfg.weights):
        raise UserError(
            "mode=eval needs ckpt=<a .ckpt file>, or experiment=... and weights=<file>."
        )
    if cfg.ckpt and cfg.mode == "train":
        raise UserError("ckpt= is for mode=eval and mode=predict: to go on from it, give init=.")
    if cfg.ckpt:
        _refuse_overrides()
    if cfg.trainer.devices != 1:
        raise UserError(f"trainer.devices={cfg.trainer.devices}: one device is supported so far.")
    if cfg.trainer.precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"trainer.precision={cfg.trainer.precision}: choose 32-true or bf16-mixed.")
    copies = cfg.augment.copies
    if not isinstance(copies, int) or isinstance(copies, bool) or copies < 0:
        raise UserError(f"augment.copies={copies} must be a whole number of 0 or more.")


# With a checkpoint, the config is the checkpoint's; only these may be given beside it.
BESIDE_CKPT = (
    *("mode", "ckpt", "input", "output", "category", "test", "trainer", "paths", "debug"),
    *("figures", "workers", "batch_size", "allow"),
)


def _refuse_overrides() -> None:
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return
    for override in HydraConfig.get().overrides.task:
        key = re.split(r"[.=@]", override.lstrip("+~"), maxsplit=1)[0]
        if key.split("/")[0] not in BESIDE_CKPT:
            raise UserError(
                f"{override} cannot be given together with ckpt=: the checkpoint has its own "
                f"{key}; leave it out, or train again with it."
            )


def _near(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1, 0.6)
    choices = ", ".join(sorted(known))
    return (
        f": did you mean {close[0]}? (one of {choices})" if close else f": choose one of {choices}"
    )


def explain(error: BaseException) -> str | None:
    """One sentence for a user's mistake; None for a fault of ours."""
    import hydra
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, UserError):
        return str(error)
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and len(chain) < 8:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        inside = traceback.extract_tb(error.__traceback__)
        home = str(Path(hydra.__file__).parent)
        if inside and inside[-1].filename.startswith(home):  # a word that it did not foresee
            return f"the command line cannot be understood: {' '.join(str(error).split())}."
        return None
    if isinstance(error, MissingConfigException):
        missing = str(error.missing_cfg_file or "")
        if missing.startswith("hydra/launcher/"):
            return f"the launcher {missing[15:]} is not there: pip install geodl[launchers]."
        group, _, name = missing.partition("/")
        options: list[str] = []
        if group:
            folder = config_dir() / group
            found = folder.rglob("*.yaml")
            options = sorted(str(p.relative_to(folder).with_suffix("")) for p in found)
        if options:
            return f"{group or 'config'}={name} does not exist{_near(name, options)}."
        return f"{group or 'config'}={name} does not exist: see geodl mode=list."
    texts = [" ".join(str(link).split()) for link in chain]
    for text in texts:
        if match := re.search(r"Key '([^']+)' (?:is )?not in (?:struct|')", text):
            key = match.group(1)
            full = re.search(r"full_key: (\S+)", text)
            where = full.group(1) if full else key
            return (
                f"{where} is not an option{_suggest(where)}; the listing in configs/ has them all."
            )
        if match := re.search(r"Could not override '([^']+)'", text):
            return f"{match.group(1)} is not an option{_suggest(match.group(1))}."
        if match := re.search(r"Could not find '([^']+)'", text):
            return f"{match.group(1)} does not exist: see geodl mode=list."
    return next((t for t in texts if t), type(error).__name__).split(" full_key:")[0]


def _suggest(key: str) -> str:
    """The closest key of the default config."""
    try:
        import yaml

        *parents, last = key.split(".")
        known: set[str] = set()
        if parents:
            for path in (config_dir() / parents[0]).glob("*.yaml"):
                known |= set(cast("dict[str, Any]", yaml.safe_load(path.read_text()) or {}))
        else:
            known = set(yaml.safe_load((config_dir() / "run.yaml").read_text()))
            known |= {p.name for p in config_dir().iterdir() if p.is_dir()}
        close = difflib.get_close_matches(last, [str(k) for k in known], 1, 0.6)
        return f": did you mean {'.'.join([*parents, close[0]])}?" if close else ""
    except OSError:
        return ""


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("geodl")
    if not logger.handlers:
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    main()
