"""Sweeps: jobs by Hydra's launchers, each in a process of its own, and what became of them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

from geodl.errors import Stopped, UserError
from geodl.runs import record
from geodl.runs.compose import composer
from geodl.runs.mistakes import explain, validate

log = logging.getLogger("geodl")
STATUS = ("done", "skipped", "resumed", "stopped", "failed")


def sweep(words: list[str]) -> int:
    """``geodl -m``: the jobs that words with several values stand for, each composed once. What is
    finished is skipped right here; Hydra's launcher gets the others. How many failed.

    Raises:
        UserError: a flag, or a sweeper of Hydra's, that a sweep does not take.
        HydraException: a job cannot be composed; nothing was launched.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    flags = [w for w in words if w.startswith("-") and w not in ("-m", "--multirun")]
    if flags:
        raise UserError(f"{flags[0]} cannot be given with a sweep: leave it or -m out.")
    words = [w for w in words if not w.startswith("-")]
    entries: list[dict[str, Any]] = []
    with composer() as compose:
        master = _master(words)
        if not str(master.hydra.sweeper._target_).endswith(".BasicSweeper"):
            raise UserError("hydra/sweeper: geodl -m takes grids only; scripts/search.py searches.")
        given = [f"{k}={v}" for k, v in (master.hydra.sweeper.params or {}).items()]
        parsed = OverridesParser.create().parse_overrides([*given, *master.hydra.overrides.task])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
        todo: list[list[str]] = []
        for job, cfg in [(job, compose(job)) for job in jobs]:
            entry: dict[str, Any] = {"job": " ".join(job)}
            try:
                validate(cfg)
                train = cfg.mode == "train" and not cfg.force
                if not train or (done := record.skipped(cfg)) is None:
                    todo.append(job)
                    continue
                scores = record.headlines(done[1])
                entries.append(entry | {"status": "skipped", "where": str(done[0]), "eval": scores})
            except UserError as error:
                sys.stderr.write(f"geodl: {entry['job']}: {error}\n")
                entries.append(entry | {"status": "failed"})
        try:
            launch(todo, words, entries)
        finally:
            failed = summary(entries)
    return failed


def launch(jobs: list[list[str]], words: list[str], entries: list[dict[str, Any]]) -> None:
    """Run jobs, each a list of overrides, by Hydra's launcher (whichever ``words`` choose); what
    became of them is added to ``entries``. Only inside a session of Hydra."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    if not jobs:
        return
    master = _master(words)
    _ask(master)
    context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=sweep_job, config=master
    )
    with board(Path(master.paths.outputs), entries):
        launcher.launch(jobs, 0)


def _ask(cfg: Any) -> None:
    """What SLURM is asked for, where its config leaves that to the jobs."""
    launcher, devices = cfg.hydra.launcher, cfg.trainer.devices
    if not str(launcher._target_).endswith(".SlurmLauncher"):
        return
    if launcher.cpus_per_task is None:
        launcher.cpus_per_task = devices * (cfg.threads + cfg.workers)
    if launcher.gpus_per_node is None:
        launcher.gpus_per_node = 0 if cfg.trainer.accelerator == "cpu" else devices


def _master(words: list[str]) -> Any:
    """What Hydra calls the config of a sweep, its own part included."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra.compose_config("run", overrides=words, run_mode=RunMode.MULTIRUN)


@contextlib.contextmanager
def board(outputs: Path, entries: list[dict[str, Any]]) -> Generator[None]:
    """What becomes of a sweep's jobs: each leaves one line in a file, in whatever process or on
    whatever machine it runs; the list is filled at the end. A launcher that gives up on a job (out
    of time, say) takes nothing from the others."""
    board = outputs.expanduser().resolve() / ".hydra" / f"sweep-{os.getpid()}.jsonl"
    board.unlink(missing_ok=True)
    os.environ["GEODL_SWEEP"] = str(board)
    try:
        yield
    except Stopped:
        log.error("stopped (SIGTERM): the same command goes on from here")
        raise
    except Exception as error:
        if explain(error) is not None or not board.is_file():
            raise
        log.error("the launcher gave up: %s: %s", type(error).__name__, error)
        entries.append({"job": "the launcher", "status": "failed"})
    finally:
        if board.is_file():
            entries += [json.loads(line) for line in board.read_text().splitlines()]
        board.unlink(missing_ok=True)


def sweep_job(cfg: Any) -> None:
    """One job of a sweep, run in a process of its own, so that a crash stays its own. It never
    raises: the sweep goes on, and the summary tells."""
    from hydra.core.hydra_config import HydraConfig

    overrides = list(HydraConfig.get().overrides.task)
    entry: dict[str, Any] = {"job": " ".join(overrides)}
    try:
        folder = record.run_folder(cfg) if cfg.mode == "train" else None
        resumed = folder is not None and (folder / "last.ckpt").is_file() and not cfg.force
        sys.stderr.write(f"\n== {entry['job']}\n")
        with gpu(cfg) as device:
            environment = {k: v for k, v in os.environ.items() if k != "GEODL_SWEEP"}
            code = _run([sys.executable, "-m", "geodl", *overrides], environment | device)
        if code in (-2, 130):
            raise KeyboardInterrupt
        entry["status"] = "failed" if code else "resumed" if resumed else "done"
        result = record.read_result(folder) if folder else None
        if result:
            entry |= {"where": str(folder), "eval": record.headlines(result)}
    except (KeyboardInterrupt, Stopped):
        _note(entry | {"status": "stopped"})
        raise
    except Exception as error:
        entry |= {"status": "failed"}
        sys.stderr.write(f"geodl: {explain(error) or traceback.format_exc()}\n")
    _note(entry)


def _run(command: list[str], environment: dict[str, str]) -> int:
    """The exit code of a job's process, which is asked to stop where this one is."""
    job = subprocess.Popen(command, env=environment, preexec_fn=die_along)
    try:
        return job.wait()
    except BaseException:
        job.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(timeout=20)
        job.kill()
        raise


def _note(entry: dict[str, Any]) -> None:
    """One line on the sweep's board."""
    board = Path(os.environ["GEODL_SWEEP"])
    board.parent.mkdir(parents=True, exist_ok=True)
    with board.open("a") as stream:
        stream.write(json.dumps(entry) + "\n")


def die_along() -> None:
    """In a new process: to be killed with the one that started it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


@contextlib.contextmanager
def gpu(cfg: Any) -> Generator[dict[str, str]]:
    """A GPU that no other job of this machine has, as environment; waits for one to be free. A job
    on several devices takes them all."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        count = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
        shown = ",".join(map(str, range(count)))
    devices = [d for d in shown.split(",") if d]
    wants = str(cfg.trainer.accelerator) in ("gpu", "cuda", "auto") and cfg.trainer.devices == 1
    if not wants or len(devices) < 2:
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
    from rich.markup import escape
    from rich.table import Table

    tests = list(dict.fromkeys(name for e in entries for name in e.get("eval", {})))
    table = Table(title=None)
    for column in ("job", "status", *tests):
        table.add_column(column, justify="left" if column in ("job", "status") else "right")
    for e in sorted(entries, key=lambda e: STATUS.index(e["status"])):  # failures stand last
        scores = [f"{e['eval'][t]:.3f}" if t in e.get("eval", {}) else "" for t in tests]
        table.add_row(escape(e["job"]), e["status"], *scores)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    places = list(dict.fromkeys(e["where"] for e in entries if "where" in e))
    drawn = [p for p in places if Path(p, "figures").is_dir()]
    for what, members in (("pictures", drawn), ("results", [p for p in places if p not in drawn])):
        if members:
            console.print(f"{what}:", highlight=False)
        for place in members:
            inside = f"{place}/figures" if what == "pictures" else place
            console.print(f"  {inside}", highlight=False, soft_wrap=True, markup=False)
    counts = {s: sum(e["status"] == s for e in entries) for s in STATUS}
    console.print(", ".join(f"{n} {s}" for s, n in counts.items() if n or s != "stopped"))
    return counts["failed"]
