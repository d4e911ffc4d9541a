"""``mode=train``: train, or resume, or only evaluate what is missing."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from filelock import FileLock, Timeout
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from geodl.atomic import atomic
from geodl.data.loaders import Loaders
from geodl.data.source import Source
from geodl.errors import Stopped, UserError
from geodl.runs import ranks, record
from geodl.runs.build import (
    Parts,
    allow,
    build_data,
    build_many,
    build_task,
    device,
    make,
)
from geodl.runs.checkpoint import initialise, load_checkpoint, load_weights, not_finite
from geodl.runs.evaluate import evaluate_run
from geodl.runs.history import History, Saver
from geodl.runs.mistakes import near
from geodl.tasks.base import NotFinite, Task

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> str:
    """Train, or resume, or only evaluate what is missing; then write figures and result.json."""
    folder = record.run_folder(cfg)
    if ranks.rank(cfg):  # the first process has the folder
        logging.getLogger("geodl").setLevel(logging.ERROR)
        return _follow(cfg, folder)
    fresh = not folder.exists()
    record.make_folder(folder)
    with _alone(folder):
        result = record.read_result(folder)
        if cfg.force or not (result and result.get("status") == "done"):
            try:
                _train(cfg, folder)
            except UserError as error:
                # A mistake leaves nothing behind; a divergence is worth a record.
                if fresh and not isinstance(error, NotFinite) and not list(folder.glob("*.ckpt")):
                    _remove(folder, Path(cfg.paths.outputs).expanduser())
                raise
        try:
            return evaluate_run(cfg, folder)
        except Exception:  # the training is done; what its evaluation died of stays on record
            result = record.read_result(folder) or {}
            record.write_json(
                folder / "result.json", result | {"traceback": traceback.format_exc()}
            )
            raise


def _follow(cfg: DictConfig, folder: Path) -> str:
    """Train as one of several processes, and write nothing."""
    result = record.read_result(folder)
    if result and result.get("status") == "done" and not cfg.force:
        return ""
    parts, loaders = _data_and_task(cfg)
    loaders.prepare(_open_now(cfg, parts.data))
    _start(cfg, parts.task)
    _fit(cfg, parts.task, loaders, folder, History(folder, {}, cfg.select))
    return ""


def _remove(folder: Path, outputs: Path) -> None:
    """A run folder, and those above it that are empty then, up to ``outputs``."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        for above in folder.parents:
            if above == outputs.parent:
                break
            above.rmdir()


@contextlib.contextmanager
def _alone(folder: Path) -> Generator[None]:
    """The folder for this process alone, when another one is through with it."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s is being trained by another process: waiting for it", folder)
        lock.acquire()
    try:
        for part in folder.rglob(".*.part"):  # of a process that was killed while it wrote
            part.unlink()
        yield
    finally:
        lock.release()


def _train(cfg: DictConfig, folder: Path) -> None:
    started = time.time()
    config = cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
    before = record.read_result(folder) or {}
    if before.get("status") == "diverged" and not cfg.force:
        log.warning("this run diverged before, and going on will do so again: %s", before["why"])
    if cfg.force:
        for name in ("last.ckpt", "best.ckpt", "metrics.csv", "result.json"):
            (folder / name).unlink(missing_ok=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    result: dict[str, Any] = {
        "format": record.FORMAT,
        "status": "running",
        "hash": record.run_hash(cfg),
        "seed": cfg.seed,
        "config": record.identity(cfg),
        **record.provenance(),
    }
    record.write_json(folder / "result.json", result)
    history: History | None = None
    try:
        _trainer_options(cfg)  # better known before the data are made ready
        parts, loaders = _data_and_task(cfg)
        source, task = parts.data, parts.task
        found = source.found()
        log.info(found)
        (folder / "data.txt").write_text(found + "\n")
        tests = parts.tests(list(cfg.test))
        if cfg.select == "val" and not loaders.has("val"):
            raise UserError(f"select=val, but {source.name} has no val split: use select=last.")
        if cfg.epochs and any(p.requires_grad for p in task.parameters()):
            _apart(source)
        report = loaders.prepare(_open_now(cfg, source))
        log.info("%s", report)
        _log_mended(report.mended)
        for chosen in tests.values():  # a change that cannot be is better known now
            loaders.try_change("train", chosen)
        result |= {
            "protocol": source.spec.protocol,
            "split_checksum": source.split_checksum(),
            "metrics": {n: asdict(m) for n, m in task.metrics.items()},
            "shapes": {s: len(loaders.items(s)) for s in source.all_splits()},
            "mended": len(report.mended),
            "dropped": report.dropped,
            "parameters": sum(p.numel() for p in task.parameters()),
        }
        _start(cfg, task)
        meta = {
            "format": record.FORMAT,
            "config": config,
            "spec": source.spec.to_plain(),
            "preprocess": source.preprocess.to_plain(),
        }
        history = History(folder, meta, cfg.select)
        _fit(cfg, task, loaders, folder, history)
        if broken := not_finite(task.state_dict()):
            raise NotFinite(f"the weights are not finite ({broken}): nothing was trained.")
        epochs = len(history.rows)
        last = history.rows[-1] if history.rows else {}
        result |= {
            "status": "done",
            "epochs": epochs,
            "seconds": round(history.seconds, 2),
            "seconds_per_epoch": round(history.seconds / max(1, epochs), 3),
            "peak_memory_mb": record.peak_memory_mb(),
            "select": cfg.select,
            "best_epoch": history.best_epoch if cfg.select != "last" else None,
            "device": str(device(cfg)),
            "devices": ranks.world(cfg),
            "threads": torch.get_num_threads(),
            "train": {k: v for k, v in last.items() if k.startswith("train/")},
            "val": {k: v for k, v in last.items() if k.startswith("val/")},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "eval": {},
        }
        record.write_json(folder / "result.json", result)
    except BaseException as error:
        status = "failed"
        if isinstance(error, (KeyboardInterrupt, Stopped)):
            status = "interrupted"
        elif isinstance(error, NotFinite):
            status = "diverged"
        result |= {
            "status": status,
            "why": str(error),
            "seconds": round(time.time() - started, 2),
            "traceback": traceback.format_exc(),
        }
        with contextlib.suppress(OSError):  # a full disk, a folder that is gone: not the news here
            record.write_json(folder / "result.json", result)
        raise


def _data_and_task(cfg: DictConfig) -> tuple[Parts, Loaders]:
    source = build_data(cfg)
    source.all_splits()
    parts = Parts(cfg, source, build_task(cfg, source.spec))
    return parts, parts.loaders()


def _open_now(cfg: DictConfig, source: Source) -> list[str]:
    """The splits that training reads: the test split stays closed until it is evaluated, unless it
    selects the epoch."""
    return sorted({"train", "test" if cfg.select == "test" else "val"} & set(source.all_splits()))


def _apart(source: Source) -> None:
    """Refuse to train on test shapes.

    Raises:
        UserError: the data set has the same shapes in both splits.
    """
    splits = source.all_splits()
    train, test = ({(i.name, str(i.source)) for i in splits.get(s, ())} for s in ("train", "test"))
    if both := train & test:
        raise UserError(
            f"{source.name} is a set for testing: {len(both)} of its {len(test)} test shapes are "
            "training shapes as well. Train on another one (data=faust_r, say), and then evaluate "
            "here with epochs=0 init=<its checkpoint>."
        )


def _start(cfg: DictConfig, task: Task) -> None:
    """Weights to begin with, where some are given."""
    if cfg.weights:
        task.load_strict(task.translate(load_weights(cfg.weights)), cfg.weights)
    if cfg.init:
        start = record.start_of(cfg)
        if start is None:
            initialise(task, cfg.init)
        elif (file := record.weights_of(start)) is None:
            threads = "" if cfg.threads == 1 else f" threads={cfg.threads}"
            raise UserError(
                f"init={cfg.init}: this run is not there yet: geodl {cfg.init} "
                f"seed={cfg.seed}{threads}"
            )
        else:
            initialise(task, str(file))


def _fit(cfg: DictConfig, task: Task, loaders: Loaders, folder: Path, history: History) -> None:
    device(cfg)
    if "lr_monitor" in cfg.callbacks and not cfg.logger:
        raise UserError("callbacks=lr_monitor needs logger=wandb or tensorboard.")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("OMP_NUM_THREADS", str(cfg.threads))  # else Lightning sets threads
    trainer = _trainer(
        _trainer_options(cfg),
        plugins=ranks.plugins(cfg),
        max_epochs=cfg.epochs,
        default_root_dir=folder,
        callbacks=[
            history,
            *_progress(),
            *build_many("callbacks", cfg.callbacks, allow(cfg)),
            Saver(history),
        ],
        logger=make("logger", cfg.logger, allow=allow(cfg))() if cfg.logger else False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty() and not ranks.rank(cfg),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=1,
    )
    last = folder / "last.ckpt"
    resume = _good(folder, task)
    if resume:
        log.info("resuming %s", resume)
        if resume != last and not ranks.rank(
            cfg
        ):  # it may have nothing left to train, and last.ckpt is evaluated
            with atomic(last) as part:
                shutil.copyfile(resume, part)
    else:
        task.fit(loaders.batches("train"))
    if cfg.epochs == 0 or not any(p.requires_grad for p in task.parameters()):
        if ranks.rank(cfg):
            return
        with atomic(last) as part:  # nothing to train, but a checkpoint all the same
            torch.save({"state_dict": task.state_dict(), "geodl": history.meta}, part)
        history.write_csv()
        return
    with warnings.catch_warnings():
        # Facts about loaders and loggers that are choices here.
        for text in (
            ".*num_workers.*",
            ".*does not have many workers.*",
            ".*no `val.*",
            ".*litlogger.*",
            ".*is not compiled.*",
            ".*tensorboardX.*",
            ".*`isinstance\\(treespec.*",
            ".*sync_dist=True.*",
        ):
            warnings.filterwarnings("ignore", message=text)
        warnings.filterwarnings("ignore", message=".*Sparse.*", category=UserWarning)
        try:
            trainer.fit(task, datamodule=loaders, ckpt_path=resume, weights_only=True)
        except SystemExit:  # what Lightning makes of Ctrl-C
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        except (ValueError, RuntimeError) as error:
            raise _explained(error) from error
        finally:  # what follows is for one process alone
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    if not ranks.rank(cfg):
        history.write_csv()


def _trainer_options(cfg: DictConfig) -> dict[str, Any]:
    """Raises UserError where Lightning's trainer has no such option."""
    options = {str(k): v for k, v in cfg.trainer.items()}
    known = inspect.signature(L.Trainer).parameters
    if odd := next((k for k in options if k not in known), None):
        raise UserError(f"trainer.{odd} is no option of Lightning's Trainer{near(odd, known)}.")
    return options


def _trainer(options: dict[str, Any], **ours: Any) -> L.Trainer:
    """Raises UserError where an option is refused, or one of ours."""
    try:
        return L.Trainer(**options, **ours)
    except (TypeError, ValueError, MisconfigurationException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"trainer= cannot be built: {reason}.") from error


# What a checkpoint needs for going on from it, beside config and weights.
STATE = ("epoch", "loops", "optimizer_states", "lr_schedulers", "pytorch-lightning_version")


def _good(folder: Path, task: Task) -> Path | None:
    """The checkpoint to go on from: last.ckpt or, if that is damaged, best.ckpt, which has the
    state of an earlier epoch."""
    for name in ("last.ckpt", "best.ckpt"):
        if (path := folder / name).is_file():
            try:
                saved = load_checkpoint(path)
                if lacking := [k for k in STATE if k not in saved]:
                    raise UserError(f"{path} lacks {', '.join(lacking)}.")
                if broken := not_finite(saved["state_dict"]):
                    raise UserError(f"{path} has weights that are not finite ({broken}).")
                if saved["state_dict"].keys() != task.state_dict().keys():
                    raise UserError(f"{path} has the weights of another model.")
            except UserError as error:
                log.warning("%s It is left aside.", error)
            else:
                return path
    return None


def _explained(error: Exception) -> Exception:
    """Faults of a configuration that only training shows, in the user's words."""
    text = str(error)
    if "Expected to have finished reduction" in text:
        return UserError(
            "this model has weights that take no part in a step: give "
            "trainer.strategy=ddp_find_unused_parameters_true."
        )
    if "Expected more than 1 value per channel" in text:
        return UserError(
            "BatchNorm needs two shapes in a training batch: set batch_size=2 or more, or add "
            "shapes."
        )
    return error


def _progress() -> list[L.Callback]:
    if not sys.stderr.isatty():
        return []
    from lightning.pytorch.callbacks import RichProgressBar

    return [RichProgressBar(leave=False)]


def _log_mended(mended: dict[str, str]) -> None:
    removed = {k: v for k, v in mended.items() if "removed" in v}
    if removed:
        name, what = next(iter(removed.items()))
        log.info("repaired %d meshes, e.g. %s: %s (all: mode=prepare)", len(removed), name, what)
