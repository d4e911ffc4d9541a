"""What every data set has in common: items and splits, and how one is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from geodl.data.fetch import Paths
from geodl.data.preprocess import BadShape, Preprocess
from geodl.errors import UserError
from geodl.ops.cache import Cache
from geodl.shape import Shape
from geodl.spec import DataSpec, Field, Item

SPLITS = Path(__file__).parent / "splits"
PATH = ("rest", "first", "second")  # somebody at rest, and the ends of a way between shapes
TRANSFER = ("source", "rest", "target")  # somebody at rest; another one at rest, and changed
TEMPLATE = Field("template", turns=True, scale=1)  # the true vertices of a registered shape


class Source:
    """Base of all data sets: they know files, and nothing of what a model wants.

    A subclass sets ``spec`` and ``preprocess`` in ``__init__`` and answers ``splits`` and ``read``.
    """

    clouds: ClassVar[bool] = False  # whether shapes may come without faces
    shuffled: ClassVar[bool] = True  # whether the first points of a cloud are a sample of it
    spec: DataSpec
    preprocess: Preprocess

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.cache = Cache(paths.cache)
        self._splits: dict[str, list[Item]] | None = None

    # ---- what a subclass answers ----

    def splits(self) -> dict[str, list[Item]]:
        """The items of "train", "test" and, if the protocol has it, "val"; fetches the data."""
        raise NotImplementedError

    def read(self, item: Item) -> Shape:
        """A shape as its file has it: pos, face, label, category."""
        raise NotImplementedError

    # ---- the same for all ----

    @property
    def name(self) -> str:
        return type(self).__name__

    def all_splits(self) -> dict[str, list[Item]]:
        """``splits``, asked for once."""
        if self._splits is None:
            self._splits = self.splits()
        return self._splits

    def items(self, split: str) -> list[Item]:
        """The items of a split.

        Raises:
            UserError: no such split.
        """
        splits = self.all_splits()
        if split not in splits:
            raise UserError(
                f"data set {self.name} has no split {split!r}: it has {', '.join(splits)}."
            )
        return splits[split]

    def person(self, item: Item) -> str | None:
        """Whose shape it is, in data sets where everybody has several; the first one is at rest."""
        return None

    def pairs(self, items: Sequence[Item], split: str) -> list[tuple[Item, Item]]:
        """Source and target of every matching problem among the items of a split.

        Training takes all ordered pairs, evaluation all unordered ones (source first in the list);
        where shapes have classes, both of a pair are of one class.
        """
        return [
            (a, b)
            for i, a in enumerate(items)
            for j, b in enumerate(items)
            if (i < j or (split == "train" and i != j)) and a.category == b.category
        ]

    def ways(self, items: Sequence[Item]) -> list[tuple[Item, Item, Item]]:
        """Somebody at rest, and the first and the last shape of a way from one to another.

        Raises:
            UserError: this data set does not know whose its shapes are.
        """
        raise UserError(
            f"data set {self.name} does not say which shapes are the same person's: choose "
            "data=poses, bodies or ict_expressions."
        )

    def transfers(self, items: Sequence[Item]) -> list[tuple[Item, Item, Item]]:
        """Somebody at rest, and how another one is changed, at rest first.

        Raises:
            UserError: this data set does not know what a change looks like on somebody else.
        """
        raise UserError(
            f"data set {self.name} does not know what a shape of somebody looks like on another "
            "one: choose data=poses or ict_expressions."
        )

    def together(self, items: Sequence[Item], shapes: Sequence[Shape]) -> Sequence[Shape]:
        """The shapes of a group, with what only the group knows."""
        return shapes

    def found(self) -> str:
        """What the data set holds, for its user to read before training."""
        splits, spec = self.all_splits(), self.spec
        counts = ", ".join(f"{len(items)} {split}" for split, items in splits.items())
        labels = f"{len(spec.classes)} classes" if spec.classes else ""
        if spec.parts:
            labels = f"{len(spec.parts)} parts, labels on {spec.label_on}"
        return f"{self.name} ({spec.protocol}): {counts}" + (f"; {labels}" if labels else "")

    def split_checksum(self) -> str:
        """Checksum of the names in every split, as the results store it."""
        names = {k: sorted(i.name for i in v) for k, v in sorted(self.all_splits().items())}
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]

    def load(self, item: Item) -> Shape:
        """A preprocessed shape, without operators.

        Raises:
            BadShape: see ``Preprocess``.
        """
        return self.load_mended(item)[0]

    def load_mended(self, item: Item) -> tuple[Shape, list[str]]:
        """``load``, and what was mended."""
        shape = self.read(item)
        if shape.is_cloud and not self.clouds:
            raise BadShape("zero faces")
        shape.name = item.name
        if item.category is not None:
            shape.category = torch.tensor(item.category)
        done = self.preprocess(shape, self.spec.label_on, self.cache)
        if self.spec.template is not None:
            ops = done.shape.ops.added({"target": done.shape.pos}, {"target": TEMPLATE})
            return done.shape.replace(ops=ops), done.mended
        return done.shape, done.mended


def chosen_classes(names: tuple[str, ...], only: list[str] | None) -> tuple[str, ...]:
    """The names of classes that are wanted.

    Raises:
        UserError: one that there is not, or none.
    """
    if only is None:
        return names
    if not only or (set(only) - set(names)):
        raise UserError(f"data.only={only} must name classes: choose among {', '.join(names)}.")
    return tuple(n for n in names if n in only)


# ---- splits ----


def checked_in_split(name: str) -> dict[str, list[str]]:
    """A split list of ``geodl/data/splits``, verified against the checksum it carries."""
    path = SPLITS / f"{name}.json"
    stored = json.loads(path.read_text())
    lists: dict[str, list[str]] = stored["splits"]
    if list_checksum(lists) != stored["sha256"]:
        raise UserError(f"{path} does not match its own checksum: restore the file.")
    return lists


def list_checksum(lists: dict[str, list[str]]) -> str:
    return hashlib.sha256(json.dumps(lists, sort_keys=True).encode()).hexdigest()


def split_by_class(
    names: dict[str, list[str]], train: int, seed: int
) -> dict[str, list[tuple[str, str]]]:
    """``train`` names of every class for training, the rest for testing: (class, name) pairs."""
    rng = np.random.default_rng(seed)
    result: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for cls in sorted(names):
        pool = sorted(names[cls])
        order = rng.permutation(len(pool))
        for rank, i in enumerate(order):
            result["train" if rank < train else "test"].append((cls, pool[i]))
    return {k: sorted(v) for k, v in result.items()}
