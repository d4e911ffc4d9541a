"""The callbacks that write a run down: metrics.csv, last.ckpt, best.ckpt, lines of progress."""

from __future__ import annotations

import csv
import errno
import io
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from geodl.atomic import atomic
from geodl.data.loaders import Loaders
from geodl.errors import UserError
from geodl.runs.checkpoint import not_finite
from geodl.tasks.base import NotFinite, Task, headline

log = logging.getLogger(__name__)


class History(L.Callback):
    """After every epoch: evaluate the selection split and keep a row of metrics.

    The rows are part of the checkpoint, so metrics.csv is cut back to the epoch that is resumed
    from. best.ckpt exists where selection is on "val" or "test".
    """

    def __init__(self, folder: Path, meta: dict[str, Any], select: str) -> None:
        self.folder = folder
        self.meta = meta
        self.select = select
        self.best: float | None = None
        self.best_epoch = -1
        self.value: float | None = None  # the headline of the epoch that just ended; more is better
        self.better = False  # whether the epoch that just ended is the best so far
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self.clock = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "rows": self.rows,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        self.best_epoch = state_dict["best_epoch"]
        self.rows = state_dict["rows"]
        self.seconds = state_dict["seconds"]

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["geodl"] = self.meta

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        task = cast(Task, pl_module)
        data = cast(Loaders, cast(Any, trainer).datamodule)
        row: dict[str, float] = {"epoch": float(trainer.current_epoch)}
        row |= {f"train/{k}": v for k, v in task.epoch_scores().items()}
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        if optimizer is not None:
            row["lr"] = float(optimizer.param_groups[0]["lr"])
        split = "test" if self.select == "test" else "val"
        self.better, self.value = False, None
        if (split == "val" and data.has("val")) or self.select == "test":
            context = cast(Any, trainer.strategy.precision_plugin).forward_context
            share = trainer.global_rank, trainer.world_size
            scores = task.evaluate(data.batches(split, (), *share), context, brief=True).scores
            row |= {f"{split}/{k}": v for k, v in scores.items()}
            name = headline(task.metrics, scores)
            more = task.metrics[name].better == "more"
            self.value = scores[name] if more else -scores[name]
            if self.select == split:
                best = self.best if more or self.best is None else -self.best
                self.better = best is None or self.value > best
                if self.better:
                    self.best, self.best_epoch = scores[name], trainer.current_epoch
        if broken := self._broken(row, task):
            raise NotFinite(
                f"training diverged: {broken} at the end of epoch {trainer.current_epoch + 1}; "
                "lower optim.lr, or look at the data; last.ckpt holds the epoch before."
            )
        row["seconds"] = time.perf_counter() - self.clock
        self.seconds += row["seconds"]
        self.rows.append(row)
        pl_module.log_dict({k: v for k, v in row.items() if k != "epoch"}, rank_zero_only=True)
        if not sys.stderr.isatty():
            log.info(self.line(task, trainer.max_epochs or 0))

    def _broken(self, row: dict[str, float], task: Task) -> str | None:
        """What is NaN or infinite after an epoch: a loss or headline, or weights."""
        heads = ("loss", *(n for n, m in task.metrics.items() if m.headline))
        shown = [f"{split}/{n}" for split in ("train", "val", "test") for n in heads]
        bad = next((f"{k} is {row[k]}" for k in shown if not math.isfinite(row.get(k, 0.0))), None)
        name = not_finite(task.state_dict())
        return bad or (f"{name} has numbers that are not finite" if name else None)

    def line(self, task: Task, epochs: int) -> str:
        """The last epoch in one line that is as wide as the others, with the time left."""
        row = self.rows[-1]
        shown = ("loss", *(n for n, m in task.metrics.items() if m.headline))
        words = [
            f"{key} {row[key]:<9.4g}"
            for split in ("train", "val", "test")
            for name in shown
            if (key := f"{split}/{name}") in row
        ]
        done, width = int(row["epoch"]) + 1, len(str(epochs))
        left = round(self.seconds / len(self.rows) * (epochs - done))
        words += [
            f"{row['seconds']:.1f} s".rjust(8),
            f"{left // 60}:{left % 60:02d} left".rjust(11),
        ]
        return "  ".join([f"epoch {done:>{width}}/{epochs}", *words])

    def write_csv(self) -> None:
        """All epochs so far; columns in order of first appearance."""
        columns = list(dict.fromkeys(k for row in self.rows for k in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: int(v) if k == "epoch" else f"{v:.6g}" for k, v in row.items()} for row in self.rows
        )
        with atomic(self.folder / "metrics.csv") as part:
            part.write_text(text.getvalue())


class EarlyStopping(L.Callback):
    """Stops when the headline metric on the val split has not become better for a while.

    Args:
        patience: epochs.
        min_delta: by how much better counts.
    """

    def __init__(self, patience: int = 20, min_delta: float = 0.0) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.best: float | None = None
        self.waited = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = self.waited >= self.patience  # resumed after it had stopped

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        callbacks = cast(Any, trainer).callbacks
        value = next(c for c in callbacks if isinstance(c, History)).value
        if value is None:
            raise UserError(
                "callbacks=early_stopping watches the val split, but this data set has none: leave "
                "it out."
            )
        self.waited += 1
        if self.best is None or value > self.best + self.min_delta:
            self.best, self.waited = value, 0
        if self.waited >= self.patience:
            trainer.should_stop = True


class Saver(Checkpoint):
    """Writes best.ckpt, last.ckpt and metrics.csv after every epoch, in this order: the best one
    exists when the last one says so. Lightning runs checkpoint callbacks after all others, so the
    state of an early stopping is that of the epoch."""

    def __init__(self, history: History) -> None:
        self.history = history

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = self.history.folder
        if trainer.global_rank:  # of several processes the first one writes; the others wait
            for _ in range(2 if self.history.better else 1):
                trainer.save_checkpoint(folder / "last.ckpt")
            return
        if not folder.is_dir():  # Lightning would make a new one, without what lay in it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        if self.history.better:
            self._save(trainer, "best.ckpt")
        self._save(trainer, "last.ckpt")
        self.history.write_csv()

    def _save(self, trainer: L.Trainer, name: str) -> None:
        with atomic(self.history.folder / name) as part:
            trainer.save_checkpoint(part)
