"""Preparation in parallel, and batches."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from geodl.data.memory import Memory, available
from geodl.data.preprocess import BadShape
from geodl.data.source import PATH, TRANSFER, Source
from geodl.data.views import GroupView, View, Wishes, computed
from geodl.errors import UserError
from geodl.perturb import Perturbation
from geodl.progress import track
from geodl.shape import GroupBatch, ShapeBatch
from geodl.spec import Item

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What ``prepare`` found: counts, and shapes by name."""

    shapes: int = 0
    hits: int = 0
    misses: int = 0
    mended: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def add(
        self, name: str, hits: int, misses: int, mended: list[str], dropped: str | None
    ) -> None:
        self.shapes += 1
        self.hits += hits
        self.misses += misses
        if mended:
            self.mended[name] = "; ".join(mended)
        if dropped:
            self.dropped[name] = dropped

    def __str__(self) -> str:
        repaired = sum("removed" in text for text in self.mended.values())
        return (
            f"{self.shapes} shapes: {self.hits} cache hits, {self.misses} computed, {repaired} "
            f"repaired, {len(self.dropped)} dropped, {self.seconds:.1f} s"
        )


class Loaders(L.LightningDataModule):
    """Batches of a data set, as the model and the run wish them.

    Args:
        source: the data set.
        wishes: needs, augmentation, copies, seed.
        batch_size: the global one.
        workers: processes that load data.
        inputs: names of the shapes of a group, where a batch is one of groups.
        memory: what keeps shapes that were loaded; by default up to half of what is free.
    """

    def __init__(
        self,
        source: Source,
        wishes: Wishes | None = None,
        batch_size: int = 1,
        workers: int = 0,
        inputs: tuple[str, ...] = ("shape",),
        memory: Memory | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.wishes = wishes or Wishes()
        self.batch_size = batch_size
        self.workers = workers
        self.inputs = inputs
        self.dropped: dict[str, str] = {}
        self.memory = memory or Memory(available() // 2)
        self._train: View | GroupView | None = None

    def items(self, split: str) -> list[Item]:
        """The items of a split, without those that ``prepare`` dropped."""
        return [i for i in self.source.items(split) if i.name not in self.dropped]

    def pairs(self, split: str) -> list[tuple[Item, Item]]:
        return self.source.pairs(self.items(split), split)

    def groups(self, split: str, inputs: tuple[str, ...] | None = None) -> list[tuple[Item, ...]]:
        """What is evaluated on a split, in the order of the names of ``inputs``."""
        inputs = inputs or self.inputs
        if inputs == PATH:
            return [*self.source.ways(self.items(split))]
        if inputs == TRANSFER:
            return [*self.source.transfers(self.items(split))]
        if len(inputs) == 2:
            return [*self.pairs(split)]
        return [(item,) for item in self.items(split)]

    def count(self, split: str, inputs: tuple[str, ...] | None = None) -> int:
        """How many shapes, or groups, are evaluated on a split."""
        return len(self.groups(split, inputs))

    def has(self, split: str) -> bool:
        return split in self.source.all_splits() and self.count(split) > 0

    def dataset(
        self,
        split: str,
        train: bool = False,
        perturb: Sequence[Perturbation] = (),
        inputs: tuple[str, ...] | None = None,
    ) -> View | GroupView:
        items, inputs = self.items(split), inputs or self.inputs
        view = View(self.source, items, self.wishes, train, perturb, self.memory)
        if len(inputs) == 1:
            return view
        return GroupView(view, self.groups(split, inputs), inputs)

    def try_change(self, split: str, perturb: Sequence[Perturbation]) -> None:
        """Change the first shape of a split as a test set does.

        Raises:
            UserError: it cannot be changed so.
        """
        if perturb and (items := self.items(split)):
            View(self.source, items, self.wishes, False, perturb, self.memory).changed(items[0])

    # ---- preparation ----

    def prepare(self, splits: Sequence[str] | None = None) -> Report:
        """Check every shape and compute what is needed, in parallel, into the cache.

        Raises:
            UserError: a defective shape where ``on_defect`` is "raise", or nothing is left.
        """
        everything = self.source.all_splits()
        work = [
            (item, split == "train")
            for split, items in everything.items()
            if splits is None or split in splits
            for item in items
        ]
        start = time.perf_counter()
        report = Report()
        for (item, _), result in zip(work, self._prepared(work), strict=True):
            report.add(item.name, *result)
            if result[3] and self.source.preprocess.on_defect == "raise":
                raise UserError(
                    f"shape {item.name} of {self.source.name}: {result[3]}; mend the file, or set "
                    "data.preprocess.on_defect=drop or repair."
                )
        report.seconds = time.perf_counter() - start
        self.dropped = dict(report.dropped)
        self._train = None
        for name, reason in report.dropped.items():
            log.warning("dropped %s: %s", name, reason)
        if work and len(report.dropped) == len({item.name for item, _ in work}):
            raise UserError(
                f"no usable shape in {self.source.name}: every one was dropped (first: "
                f"{next(iter(report.dropped.items()), ('', ''))[1]})."
            )
        return report

    def _prepared(self, work: list[tuple[Item, bool]]) -> Iterator[Any]:
        # Starting processes costs seconds: they are started when the rest would take longer here.
        start, done = time.perf_counter(), 0
        given = self.source, self.wishes
        jobs = track((prepare_item(*given, *w, self.memory) for w in work), len(work), "prepare")
        for result in jobs:
            yield result
            done += 1
            spent = time.perf_counter() - start
            if spent > 3.0 and spent / done * (len(work) - done) > 20.0 and _cores() > 1:
                break
        rest = work[done:]
        if not rest:
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(_cores(), context, _start_worker, given) as pool:
            try:
                jobs = pool.map(_worker_item, rest, chunksize=4)
                yield from track(jobs, len(rest), "prepare")
            except BaseException:  # a mistake, or the wish to stop: not after all the others
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    # ---- batches ----

    def train_batches(self, epoch: int = 0, rank: int = 0, world: int = 1) -> DataLoader[Any]:
        """The augmented, shuffled batches of one epoch."""
        if self._train is None:
            self._train = self.dataset("train", train=True)
        seed = self.wishes.seed
        order = EpochBatches(len(self._train), self.batch_size, seed, epoch, rank, world)
        return self._loader(self._train, order)

    def train_dataloader(self) -> DataLoader[Any]:
        # Asked for anew in every epoch: Lightning draws the first batch before any hook in which
        # the epoch could be set.
        trainer = self.trainer
        assert trainer is not None
        return self.train_batches(trainer.current_epoch, trainer.global_rank, trainer.world_size)

    def batches(
        self,
        split: str,
        perturb: Sequence[Perturbation] = (),
        rank: int = 0,
        world: int = 1,
        inputs: tuple[str, ...] | None = None,
    ) -> DataLoader[Any]:
        """Evaluation batches, in order, without augmentation; of several processes, each has its
        share, and no shape is in two. ``inputs``: other groups than those of the task."""
        dataset = self.dataset(split, perturb=perturb, inputs=inputs)
        order = EpochBatches(len(dataset), self.batch_size, rank=rank, world=world)
        return self._loader(dataset, order)

    def _loader(self, dataset: Dataset[Any], batches: EpochBatches) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=ShapeBatch.pack if isinstance(dataset, View) else GroupBatch.pack,
            num_workers=self.workers,
            generator=torch.Generator(),  # leaves torch's own generator alone
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_given: tuple[Source, Wishes]


def _start_worker(source: Source, wishes: Wishes) -> None:
    global _given
    _given = source, wishes
    torch.set_num_threads(1)
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _worker_item(work: tuple[Item, bool]) -> Any:
    return prepare_item(*_given, *work)


def prepare_item(
    source: Source, wishes: Wishes, item: Item, train: bool, memory: Memory | None = None
) -> tuple[int, int, list[str], str | None]:
    """Hits, misses, what was mended, and why the shape was dropped (or None)."""
    hits, misses = source.cache.hits, source.cache.misses
    mended: list[str] = []
    try:
        shape, mended = source.load_mended(item)
        if memory is not None:  # it is wanted again soon
            shape = memory.get(source, item.name, lambda: shape)
        view = View(source, [item], wishes, train)
        copies = range(wishes.copies) if train and wishes.copies else [0]
        computed(shape, wishes.needs.truth, source.preprocess.backend, source.cache)
        if wishes.needs.computed or wishes.copies:
            for copy in copies:
                view.with_operators(shape, item, copy)
    except (BadShape, ValueError) as error:
        return 0, 0, mended, str(error)
    except UserError as error:  # a file that cannot be read, or does not fit its labels
        if source.preprocess.on_defect != "drop":
            raise
        return 0, 0, mended, str(error)
    return source.cache.hits - hits, source.cache.misses - misses, mended, None


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index): in order, or shuffled by (seed, epoch) alone if there is an epoch.

    ``batch_size`` is the global one; each of ``world`` processes takes its share. A last training
    batch of a single shape joins the one before: BatchNorm cannot take it.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int = 0,
        epoch: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        size = max(1, batch_size // world)
        order = np.arange(n)
        if epoch is not None:
            order = np.random.default_rng([seed, epoch]).permutation(n)
            order = np.resize(order, -(-n // world) * world)
        mine = [(epoch or 0, int(i)) for i in order[rank::world]]
        self.batches = [mine[i : i + size] for i in range(0, len(mine), size)]
        if epoch is not None and size > 1 and len(self.batches) > 1 and len(self.batches[-1]) == 1:
            single = self.batches.pop()
            self.batches[-1] += single

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
