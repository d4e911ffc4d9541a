"""The entry point: ``geodl`` = ``python -m geodl``.

    geodl task=segmentation data=human_seg encoder=diffusionnet features=hks seed=0
    geodl -m encoder=pointnet,diffusionnet seed=0,1,2

Composing, listing, skipping and refusing happen here, without torch; the work is in
``geodl.runs`` and ``geodl.results``.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import traceback
from typing import Any

import geodl
from geodl.cli import help, listing
from geodl.cli.words import prepared
from geodl.errors import Stopped, UserError
from geodl.runs import record
from geodl.runs.compose import config_dir
from geodl.runs.mistakes import explain, validate, with_source
from geodl.runs.sweep import sweep

# The function of every mode.
MODES = {
    "train": "geodl.runs.train:train",
    "eval": "geodl.runs.evaluate:evaluate",
    "predict": "geodl.runs.predict:predict",
    "fit": "geodl.runs.fit:fit",
    "sample": "geodl.runs.sample:sample",
    "interpolate": "geodl.runs.interpolate:interpolate",
    "prepare": "geodl.runs.prepare:prepare",
    "table": "geodl.results.tables:table",
    "report": "geodl.results.report:report",
}


def main() -> None:
    """Run one command line; exit code 0, 1 (a fault of ours), 2 (a mistake of the user's), 130
    (interrupted) or 143 (stopped; another with stop_code)."""
    _log_to_stderr()
    words = sys.argv[1:]
    trace = "debug=trace" in words
    signal.signal(signal.SIGTERM, _stop)
    try:
        if words == ["--version"]:
            sys.stdout.write(f"geodl {geodl.__version__}\n")
            return
        if not words or {"-h", "--help"} & set(words):
            sys.stdout.write(help.text(config_dir(), options=bool(words)))
            return
        if "mode=list" in words:
            sys.stdout.write(listing.show(config_dir()))
            return
        sys.argv[1:] = prepared(words)
        sys.exit(_hydra(sys.argv[1:]))
    except Stopped:
        sys.stderr.write("geodl: stopped (SIGTERM); the same command goes on from here.\n")
        codes = [w.partition("=")[2] for w in words if w.startswith("stop_code=")]
        sys.exit(int(codes[-1]) if codes and codes[-1].isdecimal() else 143)
    except KeyboardInterrupt:
        sys.stderr.write("geodl: interrupted; the same command resumes.\n")
        sys.exit(130)
    except Exception as error:
        sentence = explain(error)
        if trace or sentence is None:
            traceback.print_exc()
        sys.stderr.write(f"geodl: {sentence or f'{type(error).__name__}: {error}'}\n")
        sys.exit(2 if sentence else 1)


def _stop(signum: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; what follows writes
    raise Stopped


def _hydra(words: list[str]) -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed
    if {"-m", "--multirun"} & set(words):
        return 1 if sweep(words) else 0
    import hydra

    faults: list[BaseException] = []

    def one(cfg: Any) -> None:
        try:
            run(cfg)
        except UserError as error:
            named = UserError(with_source(str(error)))
            named.__cause__ = error
            faults.append(named)
        except Exception as error:  # raised again below: Hydra would print lines of its own
            faults.append(error)

    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="run")(one)()
    for fault in faults:
        raise fault
    return 0


def run(cfg: Any) -> None:
    """One composed config, in this process."""
    validate(cfg)
    logging.getLogger("geodl").setLevel(logging.INFO)
    if cfg.mode == "train" and not cfg.force and record.skipped(cfg):
        return
    module, name = MODES[cfg.mode].split(":")
    outcome = getattr(importlib.import_module(module), name)(cfg)
    if outcome:
        sys.stdout.write(outcome if outcome.endswith("\n") else f"{outcome}\n")
    if cfg.mode == "train":
        from geodl.results.reference import compared

        sys.stdout.write(compared(cfg))


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
