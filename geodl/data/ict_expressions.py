"""People of ICT-FaceKit at rest and with expressions: additive ones, so every transfer is known."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree

from geodl.data.fetch import Paths
from geodl.data.ict_faces import ICTFaces
from geodl.errors import UserError
from geodl.ops.geometry import Backend
from geodl.shape import Shape
from geodl.spec import DataSpec, Item, item_seed

AT_ONCE = 3  # expressions of a face


class ICTExpressions(ICTFaces):
    """People (all 100 identity modes with normal weights), each at rest and with expressions: three
    of the model's 53 at once, with weights in [0, 1]. Landmarks are the model's 68.

    An expression is the same displacement on everybody, which no scan has: it makes transfer
    exact, and 53 dimensions enough for a linear model.

    Source: as ``data=ict_faces``.

    Args:
        region, vertices: as in ``data=ict_faces``.
        train, test: numbers of people.
        expressions: of each, beside the face at rest.
        sample_seed: another seed, other faces.
    """

    key: ClassVar[tuple[Any, ...]] = ("ict expressions", 1)

    def __init__(
        self,
        paths: Paths,
        region: Literal["narrow", "face", "head"] = "narrow",
        vertices: int | None = 1500,
        train: int = 50,
        test: int = 20,
        expressions: int = 8,
        sample_seed: int = 0,
        backend: Backend = "cotan",
    ) -> None:
        super().__init__(paths, "jaw", region, vertices, train, test, backend=backend)
        if expressions < 1:
            raise UserError(f"data.expressions={expressions} must be 1 or more.")
        self.sample_seed, self.expressions = sample_seed, expressions
        size = f"{vertices or 'all'}v"
        seed = f"-{sample_seed}" if sample_seed else ""
        self.protocol = f"ict-expressions-{region}-{size}-{train}/{test}x{expressions}{seed}"

    def chosen(self, moved: dict[str, NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        return list(moved.values())

    def splits(self) -> dict[str, list[Item]]:
        numbers = range(self.expressions + 1)  # the first one: at rest
        return {
            split: [Item(f"{split}-{i:04d}-{k:02d}") for i in range(n) for k in numbers]
            for split, n in self.counts.items()
        }

    def person(self, item: Item) -> str:
        return item.name.rsplit("-", 1)[0]

    def vertices_of(self, item: Item) -> NDArray[np.floating]:
        model = self.model
        rng = np.random.default_rng([self.sample_seed, item_seed(self.person(item))])
        pos = model["neutral"] + np.tensordot(rng.standard_normal(100), model["identity"], 1)
        return pos + self._expression(item)

    def _expression(self, item: Item) -> NDArray[np.float64]:
        """The displacement (v 3) of an item from the same person at rest."""
        expressions = self.model["expression"]
        total = np.zeros(expressions.shape[1:])
        if int(item.name.rsplit("-", 1)[1]):
            rng = np.random.default_rng([self.sample_seed, item_seed(item.name)])
            for one in rng.choice(len(expressions), AT_ONCE, replace=False):
                total += rng.uniform() * expressions[one]
        return total

    def between(self, first: Item, second: Item, share: float) -> NDArray[np.float64]:
        """Weights change evenly, so it is the straight line: nothing shows here which path is
        good."""
        ends = [np.asarray(self.vertices_of(item), np.float64) for item in (first, second)]
        return (1 - share) * ends[0] + share * ends[1]

    def carried(self, shape: Item, rest: Item) -> NDArray[np.float64]:
        """An expression is the same displacement on everybody."""
        return np.asarray(self.vertices_of(rest), np.float64) + self._expression(shape)

    @cached_property
    def _landmarks(self) -> NDArray[np.int64]:
        """The kept vertices (68) nearest to the model's landmarks."""
        named = json.loads((self.root / "vertex_indices.json").read_text())["idx_to_landmark_verts"]
        places = self.mesh()[0][np.array(named)]
        return np.asarray(KDTree(self.selected[2]).query(places)[1], np.int64)

    @cached_property
    def spec(self) -> DataSpec:  # pyright: ignore[reportIncompatibleVariableOverride]
        return replace(super().spec, landmarks=len(self._landmarks))

    def read(self, item: Item) -> Shape:
        return super().read(item).replace(landmark=torch.from_numpy(self._landmarks))
