"""Shapes as the model sees them: samples, operators, augmentation, test changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from geodl.augment import Augmentation
from geodl.carry import sampled
from geodl.data.memory import Memory
from geodl.data.source import Source
from geodl.errors import UserError
from geodl.ops.cache import Arrays, Cache, digest
from geodl.ops.geometry import Backend, Geometry, vertex_normals
from geodl.perturb import Perturbation
from geodl.shape import Shape
from geodl.spec import LABELS, MESH, Field, Item, Need, Needs, Normals, Points, item_seed

# The surface that a registered model's input was taken from, in the model's coordinates.
SCAN = {
    "scan": Field("scan", turns=True, scale=1),
    "scan_face": Field("scan_face", "index", into="scan"),
}


def attach(shape: Shape, needs: Needs, backend: Backend, cache: Cache) -> Shape:
    """The shape with the operators and normals that are asked for."""
    shape = computed(shape, needs.computed, backend, cache)
    if needs.find(Normals) and shape.normal is None:
        geometry = Geometry.of(shape.pos.numpy(), shape.face.numpy(), backend)
        shape = shape.replace(normal=torch.from_numpy(vertex_normals(geometry)).float())
    return shape


def computed(shape: Shape, needs: Sequence[Need], backend: Backend, cache: Cache) -> Shape:
    """The shape with what these requests add to it."""
    if not needs:
        return shape
    geometry = Geometry.of(shape.pos.numpy(), shape.face.numpy(), backend)
    values: dict[str, Tensor] = {}
    fields: dict[str, Field] = {}
    for need in needs:
        if need.on_meshes and shape.is_cloud:
            raise UserError(
                f"{shape.name or 'a shape'} is a point cloud, but this encoder follows the edges "
                "of meshes: give meshes, or take encoder=dgcnn."
            )
        arrays = cache.need(need, geometry)
        fields |= need.fields
        for name, f in need.fields.items():
            if f.kind == "matrix":
                values[name] = torch.sparse_coo_tensor(
                    torch.from_numpy(arrays[f"{name}.index"]).long(),
                    torch.from_numpy(arrays[f"{name}.value"]),
                    tuple(arrays[f"{name}.shape"].tolist()),
                    is_coalesced=True,
                    check_invariants=False,
                )
            else:
                value = torch.from_numpy(arrays[name])
                values[name] = value.long() if f.kind == "index" else value
    return shape.replace(ops=shape.ops.added(values, fields))


@dataclass(frozen=True)
class Wishes:
    """What the model and the run ask of a data set.

    needs: of features, encoder and task | augment: of training shapes | copies: prepared ones of
    each shape, for augmentations that change geometry (``breaking``) | seed: of everything drawn

    Raises:
        UserError: an augmentation would make cached operators wrong, and no copies are asked.
    """

    needs: Needs = field(default_factory=Needs)
    augment: tuple[Augmentation, ...] = ()
    copies: int = 0
    seed: int = 0
    breaking: tuple[Augmentation, ...] = field(init=False)

    def __post_init__(self) -> None:
        spoilt = (a for a in self.augment if "operators" not in a.keeps)
        # Without operators only other meshes take copies: points may be moved anew in every epoch.
        computed = self.needs.computed
        breaking = tuple(a for a in spoilt if computed or isinstance(a, Perturbation))
        if breaking and computed and not self.copies:
            names = ", ".join(type(a).__name__ for a in breaking)
            asked = ", ".join(n.family for n in computed)
            raise UserError(
                f"augmentation {names} changes the geometry that {asked} was computed from: set "
                "augment.copies=n for n prepared copies of each shape, or leave it out."
            )
        object.__setattr__(self, "breaking", breaking)
        object.__setattr__(self, "copies", self.copies if breaking else 0)


class View(Dataset[Shape]):
    """Shapes of one split as the model sees them; indexed by (epoch, index).

    ``memory`` keeps shapes with their operators for this view, and without them for all views of
    the source, which change the same shapes.
    """

    def __init__(
        self,
        source: Source,
        items: list[Item],
        wishes: Wishes,
        train: bool = False,
        perturb: Sequence[Perturbation] = (),
        memory: Memory | None = None,
    ) -> None:
        self.source = source
        self.items = items
        self.wishes = wishes
        self.train = train
        self.perturb = list(perturb)
        self.memory = memory or Memory(0)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Shape:
        epoch, index = key
        item, wishes, spec = self.items[index], self.wishes, self.source.spec
        rng = np.random.default_rng([wishes.seed, epoch, item_seed(item.name)])
        copy = int(rng.integers(wishes.copies)) if self.train and wishes.copies else 0

        def make() -> Shape:
            return self.with_operators(self.changed(item), item, copy)

        shape = self.memory.get(self, (copy, index), make)
        points = wishes.needs.find(Points)
        if points and not wishes.needs.computed:
            drawn = rng if self.train else None
            shape = sampled(shape, points.n, spec.label_on, drawn, self.source.shuffled)
        if self.train:
            for augment in wishes.augment:
                if augment not in wishes.breaking or not wishes.copies:
                    shape = augment(shape, rng, spec)
        return shape

    def changed(self, item: Item) -> Shape:
        """What the test set makes of a preprocessed shape; a training set leaves it as it is."""
        shape = self.memory.get(self.source, item.name, lambda: self.source.load(item))
        source, truth = self.source, self.wishes.needs.truth
        shape = computed(shape, truth, source.preprocess.backend, source.cache)
        for perturb in self.perturb:
            shape = self._perturbed(perturb, shape, 0)
        return shape

    def _perturbed(self, perturb: Perturbation, shape: Shape, copy: int) -> Shape:
        words = [perturb.seed, item_seed(shape.name), *([copy] if copy else [])]
        rng = np.random.default_rng(words)
        spec, made = self.source.spec, ("label", "landmark")
        if not perturb.cached:
            return perturb(shape, rng, spec)

        def make() -> Arrays:
            new = perturb(shape, rng, spec)
            arrays = {"pos": new.pos.numpy(), "face": new.face.numpy()}
            return arrays | {n: x.numpy() for n in made if (x := getattr(new, n)) is not None}

        given = [x.numpy() for n in made if (x := getattr(shape, n)) is not None]
        key = digest(
            shape.pos.numpy(),
            shape.face.numpy(),
            *given,
            spec.label_on,
            type(perturb).__name__,
            sorted(vars(perturb).items()),
            words,
        )
        arrays = self.source.cache.get("perturbed", key, make)
        return Shape(
            **{n: torch.from_numpy(x) for n, x in arrays.items()},
            category=shape.category,
            name=shape.name,
            ops=shape.ops.without(*MESH, *LABELS),
        )

    def with_operators(self, shape: Shape, item: Item, copy: int) -> Shape:
        """One prepared copy: other meshes of the same surface first, points drawn once where
        operators are needed, augmentations that would spoil operators before these are computed."""
        wishes, spec = self.wishes, self.source.spec
        points = wishes.needs.find(Points)
        spoiling = wishes.breaking if self.train and wishes.copies else ()
        rng = np.random.default_rng([wishes.seed, copy, item_seed(item.name)])
        for augment in spoiling:
            if isinstance(augment, Perturbation):
                shape = self._perturbed(augment, shape, copy)
        if spec.template is not None:
            surface = {"scan": shape.pos, "scan_face": shape.face}
            shape = shape.replace(ops=shape.ops.added(surface, SCAN))
        if points and wishes.needs.computed:
            shape = sampled(shape, points.n, spec.label_on, None, self.source.shuffled)
        for augment in spoiling:
            if not isinstance(augment, Perturbation):
                shape = augment(shape, rng, spec)
        return attach(shape, wishes.needs, self.source.preprocess.backend, self.source.cache)


class GroupView(Dataset[dict[str, Shape]]):
    """Groups of the shapes of one view, by the names that a task gives them; indexed by (epoch,
    index)."""

    def __init__(
        self, shapes: View, groups: list[tuple[Item, ...]], names: tuple[str, ...]
    ) -> None:
        if not groups:
            raise UserError(
                f"{shapes.source.name} has no {'pairs' if len(names) == 2 else 'ways'} in this "
                "split: it takes two shapes of one class, or person."
            )
        self.shapes = shapes
        self.groups = groups
        self.names = names
        self.place = {item.name: i for i, item in enumerate(shapes.items)}

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Shape]:
        epoch, index = key
        items = self.groups[index]
        # A shape is in many groups of an epoch: every group augments it anew.
        words = (epoch * len(self) + index + 1) if self.shapes.train else epoch
        members = tuple(self.shapes[words, self.place[item.name]] for item in items)
        members = self.shapes.source.together(items, members)
        return dict(zip(self.names, members, strict=True))
