"""What every data set has in common: items and splits, preprocessing, geometry, loaders."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from geodl.augment import Augmentation
from geodl.data.fetch import Paths
from geodl.errors import UserError
from geodl.ops import check as checks
from geodl.ops.cache import Arrays, Cache, digest
from geodl.ops.geometry import (
    Backend,
    Geometry,
    face_areas,
    face_vectors,
    unique_edges,
    unit,
    vertex_normals,
)
from geodl.ops.remesh import nearest, simplify, surface_nearest
from geodl.perturb import Perturbation
from geodl.shape import PairBatch, Shape, ShapeBatch
from geodl.spec import DataSpec, Item, Kind, Needs, Normals, Points

log = logging.getLogger(__name__)
SPLITS = Path(__file__).parent / "splits"


class BadShape(Exception):
    """A shape that cannot be used; the message names its defects."""


class Preprocessed(NamedTuple):
    """A shape as the model sees it; what was mended; the centre (3) that was taken off and the
    size that it was divided by."""

    shape: Shape
    mended: list[str]
    center: Tensor
    size: float


@dataclass(frozen=True)
class Preprocess:
    """From a file's coordinates to the model's. Plain data: it is stored in the checkpoint.

    center     "mean" of the vertices, middle of the "bbox", or null
    scale      largest distance from the centre ("max_radius") or the root of the "area" becomes
               one, or null
    vertices   simplify larger meshes to about this number, or null
    on_defect  what to do with a defective mesh: "raise" an error, "drop" it or "repair" it
    backend    Laplacian of meshes: "cotan" or "robust" (clouds always take the latter)
    fixed      one centre (x, y, z) and size for all shapes, in place of center and scale:
               registered shapes keep their sizes, places and vertices
    """

    center: Literal["mean", "bbox"] | None = "mean"
    scale: Literal["max_radius", "area"] | None = "max_radius"
    vertices: int | None = None
    on_defect: Literal["raise", "drop", "repair"] = "repair"
    backend: Backend = "cotan"
    fixed: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("center", ("mean", "bbox", None)),
            ("scale", ("max_radius", "area", None)),
            ("on_defect", ("raise", "drop", "repair")),
            ("backend", ("cotan", "robust")),
        ):
            if getattr(self, name) not in allowed:
                known = ", ".join("null" if a is None else a for a in allowed)
                raise UserError(
                    f"data.{name}={getattr(self, name)} is not known: choose one of {known}."
                )

    def __call__(self, shape: Shape, label_on: str, cache: Cache) -> Preprocessed:
        """The shape as the model sees it.

        Raises:
            BadShape: a defect that cannot be mended or, by ``on_defect``, may not be.
        """
        if self.fixed is not None:
            return self._place(shape, *self.fixed)
        mended: list[str] = []
        shape = self._mend(shape, label_on, mended, "")
        if self.vertices and not shape.is_cloud and shape.pos.shape[0] > self.vertices:
            pos = shape.pos.double().numpy()
            face = shape.face.numpy()

            def make() -> Arrays:
                small, triangles = simplify(pos, face, cast(int, self.vertices))
                return {"pos": small, "face": triangles}

            key = digest(pos.astype(np.float32), face.astype(np.int32), self.vertices)
            small = cache.get("simplify", key, make)
            shape = carried(shape, small["pos"], small["face"], label_on)
            shape = self._mend(shape, label_on, mended, " after simplification")
        points = shape.pos.double()
        center = torch.zeros(3, dtype=torch.float64)
        if self.center == "mean":
            center = points.mean(0)
        elif self.center == "bbox":
            center = (points.amin(0) + points.amax(0)) / 2
        points = points - center
        if self.scale == "area" and shape.is_cloud:
            raise BadShape("a cloud has no area: set data.scale=max_radius")
        if self.scale == "max_radius":
            size = float(points.norm(dim=1).max())
        elif self.scale == "area":
            size = float(face_areas(points.numpy(), shape.face.numpy()).sum() ** 0.5)
        else:
            size = 1.0
        if not size > 0:
            raise BadShape("all its points are the same")
        return Preprocessed(shape.replace(pos=(points / size).float()), mended, center, size)

    def _place(self, shape: Shape, x: float, y: float, z: float, size: float) -> Preprocessed:
        defects = checks.check(shape.pos.double().numpy(), shape.face.numpy(), cloud=shape.is_cloud)
        if defects.fatal:
            raise BadShape(str(checks.Defects(defects.fatal)))
        center = torch.tensor([x, y, z], dtype=torch.float64)
        pos = ((shape.pos.double() - center) / size).float()
        return Preprocessed(shape.replace(pos=pos), [], center, size)

    def _mend(self, shape: Shape, label_on: str, mended: list[str], when: str) -> Shape:
        pos: NDArray[Any] = shape.pos.double().numpy()
        face: NDArray[Any] = shape.face.numpy()
        defects = checks.check(pos, face, cloud=shape.is_cloud)
        if defects.fatal:
            raise BadShape(str(checks.Defects(defects.fatal)))
        if shape.is_cloud or not defects.mendable:
            if defects and not shape.is_cloud:
                mended.append(f"kept {defects}{when}")
            return shape
        if self.on_defect != "repair":
            raise BadShape(str(defects))
        try:
            fixed = checks.repair(pos, face)
        except ValueError as error:
            raise BadShape(str(error)) from error
        mended.append(f"removed {checks.Defects(defects.mendable)}{when}")
        left = {k: n for k, n in defects.count.items() if k in checks.KEPT}
        if left:
            mended.append(f"kept {checks.Defects(left)}{when}")
        label = shape.label
        if any(name in shape.ops for name in ("edge", *LABEL_OPS)):
            raise BadShape(f"{defects}; a mesh with labels on edges is not repaired")
        if label is not None and label_on in ("vertex", "face"):
            label = label[
                torch.from_numpy(fixed.vertex if label_on == "vertex" else fixed.face_index)
            ]
        landmark = shape.landmark
        if landmark is not None:
            landmark = torch.from_numpy(nearest(fixed.pos, pos[landmark.numpy()]))
        normal = None if shape.normal is None else shape.normal[torch.from_numpy(fixed.vertex)]
        return shape.replace(
            pos=torch.from_numpy(fixed.pos),
            face=torch.from_numpy(fixed.face),
            label=label,
            landmark=landmark,
            normal=normal,
        )


def carried(shape: Shape, pos: NDArray[Any], face: NDArray[Any], label_on: str) -> Shape:
    """Another triangulation of the shape. Labels come from the nearest point on the old surface:
    that of its face, or of the nearest corner of its face; landmarks go to the nearest vertex. A
    benchmark's edge labels beside those of faces stay behind.

    Raises:
        UserError: the labels are those of edges.
    """
    if label_on == "edge":
        raise UserError(
            f"shape {shape.name} has labels on edges, which no re-meshing carries over: use the "
            "meshes as they are."
        )
    label, landmark = shape.label, shape.landmark
    old = shape.pos.double().numpy()
    if label is not None and label_on in ("vertex", "face"):
        triangles = shape.face.numpy()
        on, at = surface_nearest(old, triangles, pos if label_on == "vertex" else pos[face].mean(1))
        if label_on == "vertex":
            corners = triangles[on]
            gap = np.linalg.norm(old[corners] - at[:, None], axis=2)
            on = corners[np.arange(len(on)), gap.argmin(1)]
        label = label[torch.from_numpy(on)]
    if landmark is not None:
        landmark = torch.from_numpy(nearest(pos, old[landmark.numpy()]))
    return Shape(
        pos=torch.from_numpy(np.asarray(pos, np.float64)),
        face=torch.from_numpy(np.asarray(face, np.int64)),
        label=label,
        category=shape.category,
        landmark=landmark,
        name=shape.name,
        ops=shape.ops.only("target"),
    )


# ---- geometry that needs ask for ----


def item_seed(name: str) -> int:
    """A number that belongs to an item's name, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def attach(shape: Shape, needs: Needs, backend: Backend, cache: Cache) -> Shape:
    """The shape with the operators and normals that are asked for."""
    geometry = Geometry.of(shape.pos.numpy(), shape.face.numpy(), backend)
    values: dict[str, Tensor] = {}
    kinds: dict[str, Kind] = {}
    for need in needs.computed:
        arrays = cache.need(need, geometry)
        for name, kind in need.fields.items():
            kinds[name] = kind
            if kind == "matrix":
                n = shape.pos.shape[0]
                values[name] = torch.sparse_coo_tensor(
                    torch.from_numpy(arrays[f"{name}.index"]).long(),
                    torch.from_numpy(arrays[f"{name}.value"]),
                    (n, n),
                    is_coalesced=True,
                    check_invariants=False,
                )
            else:
                values[name] = torch.from_numpy(arrays[name])
    normal = shape.normal
    if needs.find(Normals) and normal is None:
        normal = torch.from_numpy(vertex_normals(geometry)).float()
    return shape.replace(ops=shape.ops.added(values, kinds), normal=normal)


def elements(shape: Shape, label_on: str) -> NDArray[np.float32]:
    """Positions of the elements that carry labels; of a cloud that stands for a mesh, those of the
    points that answer for them."""
    pos = shape.pos.numpy()
    if "carry" in shape.ops:
        return pos[shape.ops.carry.numpy()]
    if label_on == "face":
        return pos[shape.face.numpy()].mean(1)
    if label_on == "edge":
        return pos[shape.ops.edge.numpy()].mean(1)
    return pos


def sampled(shape: Shape, n: int, label_on: str, rng: np.random.Generator | None) -> Shape:
    """n points in place of the vertices; ``ops.carry``: labelled element -> nearest point.

    A mesh is sampled uniformly by area. Of a cloud, n points are drawn, or the first n taken where
    ``rng`` is None; a smaller cloud repeats points.
    """
    fixed = rng if rng is not None else np.random.default_rng(item_seed(shape.name))
    if shape.is_cloud:
        v = shape.pos.shape[0]
        if v <= n:
            index = np.concatenate([np.arange(v), fixed.integers(0, v, n - v)])
        elif rng is None:
            index = np.arange(n)
        else:
            index = rng.permutation(v)[:n]
        pos = shape.pos[torch.from_numpy(index)]
        normal = None if shape.normal is None else shape.normal[torch.from_numpy(index)]
    else:
        vertices, face = shape.pos.double().numpy(), shape.face.numpy()
        vectors = face_vectors(vertices, face)
        area = np.cumsum(np.linalg.norm(vectors, axis=1))
        chosen = np.searchsorted(area, fixed.random(n) * area[-1]).clip(max=len(face) - 1)
        u, v = np.sqrt(fixed.random(n)), fixed.random(n)
        weights = np.stack([1 - u, u * (1 - v), u * v], axis=1)
        points = np.einsum("nc,ncd->nd", weights, vertices[face[chosen]])
        pos = torch.from_numpy(points).float()
        normal = torch.from_numpy(unit(vectors[chosen])).float()
    ops = shape.ops.only(*LABEL_OPS, *SURFACE_OPS)
    if shape.label is not None:
        carry = torch.from_numpy(nearest(pos.numpy(), elements(shape, label_on)))
        ops = ops.added({"carry": carry}, {"carry": "index"})
    return Shape(
        pos=pos, normal=normal, ops=ops, label=shape.label, category=shape.category, name=shape.name
    )


# Fields about labelled elements, which stay when points stand in for vertices.
LABEL_OPS = ("edge_face", "edge_label", "edge_soft", "edge_area")
# Registered data: the vertices of the template (target), and the surface that the model's input was
# taken from (scan, scan_face with indices of its own), in the model's coordinates.
SURFACE_OPS = ("target", "scan", "scan_face")


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


class ShapeData(L.LightningDataModule):
    """Base of all data sets.

    A subclass sets ``spec`` and ``process`` in ``__init__`` and answers ``splits`` and ``read``.
    """

    clouds: ClassVar[bool] = False  # whether shapes may come without faces
    spec: DataSpec
    process: Preprocess

    def __init__(self, paths: Paths) -> None:
        super().__init__()
        self.paths = paths
        self.cache = Cache(paths.cache)
        self.needs = Needs()
        self.augment: list[Augmentation] = []
        self.copies = 0
        self.batch_size = 1
        self.workers = 0
        self.seed = 0
        self.paired = False
        self.dropped: dict[str, str] = {}
        self._splits: dict[str, list[Item]] | None = None
        self._shapes: dict[str, Shape] = {}
        self._train: ShapeDataset | PairDataset | None = None

    # ---- what a subclass answers ----

    def splits(self) -> dict[str, list[Item]]:
        """The items of "train", "test" and, if the protocol has it, "val"; fetches the data."""
        raise NotImplementedError

    def read(self, item: Item) -> Shape:
        """A shape as its file has it: pos, face, label, category."""
        raise NotImplementedError

    # ---- the same for all ----

    def items(self, split: str) -> list[Item]:
        """The items of a split, without those that ``prepare`` dropped.

        Raises:
            UserError: no such split.
        """
        if self._splits is None:
            self._splits = self.splits()
        if split not in self._splits:
            raise UserError(
                f"data set {type(self).__name__} has no split {split!r}: it has "
                f"{', '.join(self._splits)}."
            )
        return [i for i in self._splits[split] if i.name not in self.dropped]

    def has(self, split: str) -> bool:
        try:
            return bool(self.items(split))
        except UserError:
            return False

    def pairs(self, split: str) -> list[tuple[Item, Item]]:
        """Source and target of every matching problem of a split.

        Training takes all ordered pairs, evaluation all unordered ones (source first in the list);
        where shapes have classes, both of a pair are of one class.
        """
        items = self.items(split)
        return [
            (a, b)
            for i, a in enumerate(items)
            for j, b in enumerate(items)
            if (i < j or (split == "train" and i != j)) and a.category == b.category
        ]

    def correspond(self, a: Item, b: Item, source: Shape, target: Shape) -> tuple[Shape, Shape]:
        """Both shapes of a pair with landmarks that correspond; most sets have them already."""
        return source, target

    def split_checksum(self) -> str:
        """Checksum of the names in every split, as the results store it."""
        self.items("train")
        assert self._splits is not None
        names = {k: sorted(i.name for i in v) for k, v in sorted(self._splits.items())}
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]

    def load(self, item: Item) -> Shape:
        """A preprocessed shape, without operators.

        Raises:
            BadShape: see ``Preprocess``.
        """
        return self._load(item)[0]

    def remembered(self, item: Item) -> Shape:
        """``load``, once for all test sets: they change the same shapes."""
        if item.name not in self._shapes:
            self._shapes[item.name] = self.load(item)
        return self._shapes[item.name]

    def _load(self, item: Item) -> tuple[Shape, list[str]]:
        shape = self.read(item)
        if shape.is_cloud and not self.clouds:
            raise BadShape("zero faces")
        shape.name = item.name
        if item.category is not None:
            shape.category = torch.tensor(item.category)
        done = self.process(shape, self.spec.label_on, self.cache)
        if self.spec.template is not None:
            ops = done.shape.ops.added({"target": done.shape.pos}, {"target": "row"})
            return done.shape.replace(ops=ops), done.mended
        return done.shape, done.mended

    def configure(
        self,
        needs: Needs,
        augment: Sequence[Augmentation] = (),
        copies: int = 0,
        batch_size: int = 1,
        workers: int = 0,
        seed: int = 0,
        paired: bool = False,
    ) -> None:
        """What the model and the run ask for; ``paired``: batches of pairs of shapes.

        Raises:
            UserError: an augmentation would make cached operators wrong, and no copies are asked.
        """
        breaking = [a for a in augment if "operators" not in a.keeps]
        if breaking and needs.computed and not copies:
            names = ", ".join(type(a).__name__ for a in breaking)
            asked = ", ".join(n.family for n in needs.computed)
            raise UserError(
                f"augmentation {names} changes the geometry that {asked} was computed from: set "
                "augment.copies=n for n prepared copies of each shape, or leave it out."
            )
        self.needs = needs
        self.augment = list(augment)
        self.copies = copies if breaking else 0
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.paired = paired
        self._shapes = {}
        self._train = None

    def dataset(
        self, split: str, train: bool = False, perturb: Sequence[Any] = ()
    ) -> ShapeDataset | PairDataset:
        shapes = ShapeDataset(self, self.items(split), train, perturb)
        return PairDataset(shapes, self.pairs(split)) if self.paired else shapes

    def try_change(self, split: str, perturb: Sequence[Perturbation]) -> None:
        """Change the first shape of a split as a test set does.

        Raises:
            UserError: it cannot be changed so.
        """
        if perturb and (items := self.items(split)):
            ShapeDataset(self, items, False, perturb).changed(self.remembered(items[0]))

    def prepare(self, needs: Needs | None = None, splits: Sequence[str] | None = None) -> Report:
        """Check every shape and compute what is needed, in parallel, into the cache.

        Raises:
            UserError: a defective shape where ``on_defect`` is "raise", or nothing is left.
        """
        if needs is not None:
            self.needs = needs
        self.items("train")
        assert self._splits is not None
        work = [
            (item, split == "train")
            for split, items in self._splits.items()
            if splits is None or split in splits
            for item in items
        ]
        start = time.perf_counter()
        report = Report()
        for (item, _), result in zip(work, self._prepared(work), strict=True):
            report.add(item.name, *result)
            if result[3] and self.process.on_defect == "raise":
                raise UserError(
                    f"shape {item.name} of {type(self).__name__}: {result[3]}; mend the file, or "
                    "set data.on_defect=drop or repair."
                )
        report.seconds = time.perf_counter() - start
        self.dropped = dict(report.dropped)
        self._train = None
        for name, reason in report.dropped.items():
            log.warning("dropped %s: %s", name, reason)
        if self._splits and not any(self.items(s) for s in self._splits):
            raise UserError(
                f"no usable shape in {type(self).__name__}: every one was dropped (first: "
                f"{next(iter(report.dropped.items()), ('', ''))[1]})."
            )
        return report

    def _prepared(self, work: list[tuple[Item, bool]]) -> Iterator[Any]:
        from geodl.progress import track

        # Starting processes costs seconds: they are started when the rest would take longer here.
        start, done = time.perf_counter(), 0
        jobs = track((prepare_item(self, *w) for w in work), len(work), "prepare")
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
        trainer, self.trainer = self.trainer, None
        try:
            with ProcessPoolExecutor(_cores(), context, _start_worker, (self,)) as pool:
                jobs = pool.map(_worker_item, rest, chunksize=4)
                yield from track(jobs, len(rest), "prepare")
        finally:
            self.trainer = trainer

    # ---- loaders ----

    def train_batches(self, epoch: int = 0, rank: int = 0, world: int = 1) -> DataLoader[Any]:
        """The augmented, shuffled batches of one epoch."""
        if self._train is None:
            self._train = self.dataset("train", train=True)
        order = EpochBatches(len(self._train), self.batch_size, self.seed, epoch, rank, world)
        return self._loader(self._train, order)

    def train_dataloader(self) -> DataLoader[Any]:
        # Asked for anew in every epoch: Lightning draws the first batch before any hook in which
        # the epoch could be set.
        trainer = self.trainer
        assert trainer is not None
        return self.train_batches(trainer.current_epoch, trainer.global_rank, trainer.world_size)

    def batches(self, split: str, perturb: Sequence[Any] = ()) -> DataLoader[Any]:
        """Evaluation batches, in order, without augmentation."""
        dataset = self.dataset(split, perturb=perturb)
        return self._loader(dataset, EpochBatches(len(dataset), self.batch_size))

    def _loader(self, dataset: Dataset[Any], batches: EpochBatches) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=PairBatch.pack if self.paired else ShapeBatch.pack,
            num_workers=self.workers,
            generator=torch.Generator(),  # leaves torch's own generator alone
        )


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_data: ShapeData


def _start_worker(data: ShapeData) -> None:
    global _data
    _data = data
    torch.set_num_threads(1)
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _worker_item(work: tuple[Item, bool]) -> Any:
    return prepare_item(_data, *work)


def prepare_item(
    data: ShapeData, item: Item, train: bool
) -> tuple[int, int, list[str], str | None]:
    """Hits, misses, what was mended, and why the shape was dropped (or None)."""
    hits, misses = data.cache.hits, data.cache.misses
    mended: list[str] = []
    try:
        shape, mended = data._load(item)  # pyright: ignore[reportPrivateUsage]
        dataset = ShapeDataset(data, [item], train)
        copies = range(data.copies) if train and data.copies else [0]
        if data.needs.computed or data.copies:
            for copy in copies:
                dataset.with_operators(shape, item, copy)
    except (BadShape, ValueError) as error:
        return 0, 0, mended, str(error)
    except UserError as error:  # a file that cannot be read, or does not fit its labels
        if data.process.on_defect != "drop":
            raise
        return 0, 0, mended, str(error)
    return data.cache.hits - hits, data.cache.misses - misses, mended, None


class ShapeDataset(Dataset[Shape]):
    """Shapes of one split as the model sees them; indexed by (epoch, index).

    Preprocessed shapes with their operators stay in memory once loaded.
    """

    def __init__(
        self, data: ShapeData, items: list[Item], train: bool, perturb: Sequence[Perturbation] = ()
    ) -> None:
        self.data = data
        self.items = items
        self.train = train
        self.perturb = list(perturb)
        self.kept: dict[tuple[int, int], Shape] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Shape:
        epoch, index = key
        item, data = self.items[index], self.data
        rng = np.random.default_rng([data.seed, epoch, item_seed(item.name)])
        copy = int(rng.integers(data.copies)) if self.train and data.copies else 0
        if (copy, index) not in self.kept:
            shape = self.data.load(item) if self.train else self.data.remembered(item)
            shape = self.changed(shape)
            self.kept[copy, index] = self.with_operators(shape, item, copy)
        shape = self.kept[copy, index]
        points = data.needs.find(Points)
        if points and not data.needs.computed:
            shape = sampled(shape, points.n, data.spec.label_on, rng if self.train else None)
        if self.train:
            for augment in data.augment:
                if "operators" in augment.keeps or not data.copies:
                    shape = augment(shape, rng, data.spec)
        return shape

    def changed(self, shape: Shape) -> Shape:
        """What the test set makes of a preprocessed shape."""
        for perturb in self.perturb:
            shape = self._perturbed(perturb, shape, 0)
        return shape

    def _perturbed(self, perturb: Perturbation, shape: Shape, copy: int) -> Shape:
        words = [perturb.seed, item_seed(shape.name), *([copy] if copy else [])]
        rng = np.random.default_rng(words)
        if not perturb.cached:
            return perturb(shape, rng, self.data.spec)
        spec, made = self.data.spec, ("label", "landmark")

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
        arrays = self.data.cache.get("perturbed", key, make)
        return Shape(
            **{n: torch.from_numpy(x) for n, x in arrays.items()},
            category=shape.category,
            name=shape.name,
            ops=shape.ops.only("target"),
        )

    def with_operators(self, shape: Shape, item: Item, copy: int) -> Shape:
        """One prepared copy: other meshes of the same surface first, points drawn once where
        operators are needed, augmentations that would spoil operators before these are computed."""
        data = self.data
        points = data.needs.find(Points)
        spoiling = [a for a in data.augment if "operators" not in a.keeps]
        rng = np.random.default_rng([data.seed, copy, item_seed(item.name)])
        if self.train and data.copies:
            for augment in spoiling:
                if isinstance(augment, Perturbation):
                    shape = self._perturbed(augment, shape, copy)
        if data.spec.template is not None:
            surface = {"scan": shape.pos, "scan_face": shape.face}
            shape = shape.replace(ops=shape.ops.added(surface, dict.fromkeys(surface, "row")))
        if points and data.needs.computed:
            shape = sampled(shape, points.n, data.spec.label_on, None)
        if self.train and data.copies:
            for augment in spoiling:
                if not isinstance(augment, Perturbation):
                    shape = augment(shape, rng, data.spec)
        return attach(shape, data.needs, data.process.backend, data.cache)


class PairDataset(Dataset[tuple[Shape, Shape]]):
    """Pairs of the shapes of one split; indexed by (epoch, index)."""

    def __init__(self, shapes: ShapeDataset, pairs: list[tuple[Item, Item]]) -> None:
        if not pairs:
            raise UserError(
                f"{type(shapes.data).__name__} has no pairs in this split: a pair takes two shapes "
                "of one class."
            )
        self.shapes = shapes
        self.pairs = pairs
        self.place = {item.name: i for i, item in enumerate(shapes.items)}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Shape, Shape]:
        epoch, index = key
        a, b = self.pairs[index]
        # A shape is in many pairs of an epoch: every pair augments it anew.
        words = (epoch * len(self) + index + 1) if self.shapes.train else epoch
        source, target = (self.shapes[words, self.place[item.name]] for item in (a, b))
        if source.landmark is None or target.landmark is None:
            raise UserError(
                f"{a.name} or {b.name} has no landmarks: maps go between meshes, so test=cloud is "
                "not for task=matching."
            )
        return self.shapes.data.correspond(a, b, source, target)


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


def plain(process: Preprocess) -> dict[str, Any]:
    return asdict(process)


def edges_of(face: Tensor) -> tuple[Tensor, Tensor]:
    """Undirected edges (e 2) in MeshCNN's order and the edges (f 3) of every face."""
    edge, face_edge = unique_edges(face.numpy())
    return torch.from_numpy(edge), torch.from_numpy(face_edge)
