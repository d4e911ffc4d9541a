"""The embedded data set: generated animals, posed at random, each with its own triangulation."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from geodl.data.fetch import Paths
from geodl.data.preprocess import UNIT_RADIUS, Preprocess
from geodl.data.source import Source
from geodl.errors import UserError
from geodl.ops.cache import Arrays, digest
from geodl.ops.check import repair
from geodl.ops.neighbors import nearest
from geodl.ops.remesh import simplify
from geodl.shape import Shape
from geodl.spec import DataSpec, Item

log = logging.getLogger(__name__)
VERSION = 3  # part of the protocol: raise it when the generator draws other shapes

PARTS = ("body", "head", "leg", "arm", "wing", "tail", "fin", "feeler")


@dataclass(frozen=True)
class Limb:
    """A chain of bones.

    part      its label
    at        where it begins along the spine, 0 (rear) to 1 (front)
    azimuth   degrees around the spine: 0 up, 90 left, 180 down; mirrored if ``pair``
    forward   degrees by which it leans to the front
    bones     number of bones; length of the limb, radius at root and tip, in body lengths
    bend      degrees by which each joint turns in a random pose; curl: a constant part of it
    pair      also on the other side
    """

    part: str
    at: float
    azimuth: float
    forward: float
    bones: int
    length: float
    radius: tuple[float, float]
    bend: float = 25.0
    curl: float = 0.0
    pair: bool = True


@dataclass(frozen=True)
class Species:
    """A spine (bones, radius at rear and front, bend of its joints), limbs, and whether it stands
    on its rear instead of lying along x."""

    spine: tuple[int, tuple[float, float], float]
    limbs: tuple[Limb, ...]
    upright: bool = False
    length: float = 1.0  # of the spine


def _ring(part: str, n: int, **shape: Any) -> tuple[Limb, ...]:
    """n limbs around a vertical spine."""
    return tuple(Limb(part=part, azimuth=360.0 * i / n, pair=False, **shape) for i in range(n))


SPECIES: dict[str, Species] = {
    "biped": Species(
        (2, (0.15, 0.18), 12),
        (
            Limb("head", 1.0, 0, 80, 2, 0.38, (0.08, 0.15), 15, pair=False),
            Limb("arm", 0.9, 90, -10, 3, 0.75, (0.07, 0.05), 35),
            Limb("leg", 0.05, 140, -55, 3, 0.95, (0.09, 0.06), 28),
        ),
        upright=True,
    ),
    "quadruped": Species(
        (3, (0.17, 0.18), 10),
        (
            Limb("head", 1.0, 0, 45, 2, 0.45, (0.09, 0.12), 18, pair=False),
            Limb("leg", 0.95, 160, 0, 3, 0.6, (0.07, 0.05), 22),
            Limb("leg", 0.05, 160, 0, 3, 0.6, (0.08, 0.05), 22),
            Limb("tail", 0.0, 10, -60, 3, 0.4, (0.05, 0.03), 30, pair=False),
        ),
    ),
    "giraffe": Species(
        (2, (0.16, 0.17), 8),
        (
            Limb("head", 1.0, 0, 30, 4, 1.1, (0.09, 0.09), 14, pair=False),
            Limb("leg", 0.95, 165, 0, 3, 0.95, (0.06, 0.045), 16),
            Limb("leg", 0.05, 165, 0, 3, 0.95, (0.06, 0.045), 16),
            Limb("tail", 0.0, 20, -70, 2, 0.25, (0.04, 0.03), 25, pair=False),
        ),
    ),
    "bird": Species(
        (2, (0.12, 0.2), 8),
        (
            Limb("head", 1.0, 0, 55, 2, 0.35, (0.09, 0.1), 18, pair=False),
            Limb("wing", 0.75, 80, 0, 3, 1.0, (0.09, 0.05), 25),
            Limb("leg", 0.35, 165, -10, 2, 0.42, (0.045, 0.04), 25),
            Limb("tail", 0.0, 0, -85, 1, 0.35, (0.1, 0.08), 15, pair=False),
        ),
    ),
    "fish": Species(
        (4, (0.07, 0.2), 14),
        (
            Limb("head", 1.0, 0, 85, 1, 0.22, (0.18, 0.12), 5, pair=False),
            Limb("fin", 0.6, 110, -35, 1, 0.3, (0.06, 0.04), 20),
            Limb("fin", 0.6, 0, -40, 1, 0.32, (0.08, 0.04), 15, pair=False),
            Limb("tail", 0.0, 0, -45, 1, 0.36, (0.06, 0.05), 12, pair=False),
            Limb("tail", 0.0, 180, -45, 1, 0.36, (0.06, 0.05), 12, pair=False),
        ),
    ),
    "snake": Species(
        (8, (0.05, 0.085), 42),
        (Limb("head", 1.0, 0, 85, 1, 0.16, (0.08, 0.09), 10, pair=False),),
    ),
    "lizard": Species(
        (4, (0.12, 0.13), 16),
        (
            Limb("head", 1.0, 0, 85, 2, 0.32, (0.09, 0.1), 15, pair=False),
            Limb("leg", 0.9, 100, 15, 2, 0.4, (0.055, 0.045), 30),
            Limb("leg", 0.1, 100, -15, 2, 0.4, (0.055, 0.045), 30),
            Limb("tail", 0.0, 0, -88, 5, 1.0, (0.09, 0.03), 24, pair=False),
        ),
    ),
    "octopus": Species(
        (1, (0.22, 0.26), 5),
        (
            *_ring(
                "arm", 8, at=0.0, forward=-12, bones=4, length=1.05, radius=(0.075, 0.035), bend=26
            ),
            Limb("head", 1.0, 0, 80, 1, 0.2, (0.24, 0.2), 5, pair=False),
        ),
        upright=True,
        length=0.35,
    ),
    "spider": Species(
        (2, (0.24, 0.14), 8),
        (
            Limb("head", 1.0, 0, 88, 1, 0.15, (0.11, 0.1), 8, pair=False),
            *(Limb("leg", 0.75, 70, f, 3, 1.0, (0.05, 0.035), 10, 34) for f in (40, 13, -13, -40)),
        ),
        length=0.7,
    ),
    "ant": Species(
        (3, (0.2, 0.12), 8),
        (
            Limb("head", 1.0, 0, 88, 1, 0.2, (0.12, 0.13), 8, pair=False),
            *(Limb("leg", 0.65, 100, f, 3, 0.75, (0.045, 0.035), 12, 24) for f in (35, 0, -35)),
            Limb("feeler", 1.12, 35, 60, 2, 0.45, (0.035, 0.03), 22),
        ),
        length=0.85,
    ),
    "starfish": Species(
        (1, (0.16, 0.16), 0),
        _ring("arm", 5, at=0.5, forward=0, bones=3, length=0.95, radius=(0.15, 0.06), bend=20),
        upright=True,
        length=0.1,
    ),
    "crab": Species(
        (1, (0.26, 0.26), 0),
        (
            *(Limb("leg", 0.5, 95, f, 3, 0.8, (0.045, 0.035), 10, 26) for f in (20, -8, -36)),
            Limb("arm", 0.9, 85, 50, 3, 0.85, (0.07, 0.12), 22),
            Limb("feeler", 1.0, 25, 50, 1, 0.22, (0.04, 0.035), 20),
        ),
        length=0.25,
    ),
}

# Shapes per class in train, val, test; classes; vertices of a shape; cells of the grid.
SIZES: dict[str, tuple[tuple[int, int, int], int, tuple[int, int], int]] = {
    "tiny": ((2, 1, 1), 8, (180, 260), 28),
    "small": ((14, 3, 6), 8, (450, 650), 44),
    "standard": ((24, 4, 10), 12, (700, 1200), 60),
    "many": ((120, 0, 50), 8, (450, 650), 44),
}


def described(species: Species) -> tuple[str, ...]:
    """Its limbs in words: "4 legs", "1 tail"; "upright"."""
    count: dict[str, int] = {}
    for limb in species.limbs:
        count[limb.part] = count.get(limb.part, 0) + (2 if limb.pair else 1)
    limbs = [f"{n} {part}{'s' if n > 1 else ''}" for part, n in count.items() if part != "head"]
    return (*limbs, *(["upright"] if species.upright else []))


def _rotation(axis: NDArray[Any], degrees: float) -> NDArray[Any]:
    a = np.deg2rad(degrees)
    k = np.cross(np.eye(3), axis / np.linalg.norm(axis))
    return np.eye(3) - np.sin(a) * k + (1 - np.cos(a)) * k @ k


def _chain(
    root: NDArray[Any],
    heading: NDArray[Any],
    bones: int,
    length: float,
    bend: float,
    curl: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Joints (bones + 1, 3) of a limb whose joints are turned at random, and by ``curl`` down."""
    joints = [root]
    for i in range(bones):
        axis = rng.standard_normal(3)
        heading = _rotation(axis, rng.normal(0.0, bend * (0.5 if i == 0 else 0.8))) @ heading
        side = np.cross(heading, [0.0, 1.0, 0.0])
        if i and np.linalg.norm(side) > 1e-3:
            heading = _rotation(side, curl) @ heading
        joints.append(joints[-1] + heading * length / bones)
    return np.array(joints)


@dataclass
class Skeleton:
    """Capsules: a (n 3), b (n 3), radii (n 2), part (n), and a direction across each (n 3) that
    bends with the chain but does not twist; the capsule at whose end or side each begins (n, -1 for
    the first), which comes before it."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    radius: NDArray[np.float64]
    part: NDArray[np.int64]
    across: NDArray[np.float64]
    parent: NDArray[np.int64]


def skeleton(species: Species, rng: np.random.Generator) -> Skeleton:
    """A random individual in a random pose. The capsules come in a fixed order per species."""
    bones, (rear, front), bend = species.spine
    x, y = np.eye(3)[:2]
    forward, up = (y, x) if species.upright else (x, y)
    left = np.cross(up, forward)
    size = species.length * rng.uniform(0.85, 1.15)
    spine = _chain(-0.5 * forward * size, forward, bones, size, bend, 0.0, rng)
    a, b, radius, part, across = [], [], [], [], [_across(spine, up)]
    parent = list(range(-1, bones - 1))
    fat = rng.uniform(0.85, 1.2)
    for i in range(bones):
        r = [rear + (front - rear) * (i + e) / bones for e in (0, 1)]
        a.append(spine[i])
        b.append(spine[i + 1])
        radius.append([x * fat for x in r])
        part.append(0)
    for limb in species.limbs:
        length = limb.length * rng.uniform(0.85, 1.15)
        slim = rng.uniform(0.85, 1.2)
        for sign in (1.0, -1.0) if limb.pair else (1.0,):
            t = np.clip(limb.at, 0.0, 1.0) * bones
            i = min(int(t), bones - 1)
            root = spine[i] + (spine[i + 1] - spine[i]) * (t - i)
            along = spine[i + 1] - spine[i]
            along = along / np.linalg.norm(along)
            if limb.at > 1:
                root = root + along * (limb.at - 1) * size
            azimuth, lean = np.deg2rad(limb.azimuth) * sign, np.deg2rad(limb.forward)
            around = up * np.cos(azimuth) + left * np.sin(azimuth)
            around = around - along * (around @ along)
            around = around / np.linalg.norm(around)
            heading = around * np.cos(lean) + along * np.sin(lean)
            chain = _chain(root, heading, limb.bones, length, limb.bend, limb.curl, rng)
            across.append(_across(chain, along * np.cos(lean) - around * np.sin(lean)))
            parent += [i, *range(len(a), len(a) + limb.bones - 1)]
            for k in range(limb.bones):
                r = [
                    limb.radius[0] + (limb.radius[1] - limb.radius[0]) * (k + e) / limb.bones
                    for e in (0, 1)
                ]
                a.append(chain[k])
                b.append(chain[k + 1])
                radius.append([x * slim for x in r])
                part.append(PARTS.index(limb.part))
    rows = np.array(a), np.array(b), np.array(radius), np.array(part)
    return Skeleton(*rows, np.concatenate(across), np.array(parent))


def _across(joints: NDArray[Any], first: NDArray[Any]) -> NDArray[np.float64]:
    """Unit vectors (bones, 3) across the bones of a chain: ``first``, turned from bone to bone by
    the smallest rotation that takes one into the next."""
    rows: list[NDArray[Any]] = []
    for bone in np.diff(joints, axis=0):
        direction = bone / np.linalg.norm(bone)
        side = first - direction * (first @ direction)
        first = side / np.linalg.norm(side)
        rows.append(first)
    return np.array(rows)


def surface_points(bones: Skeleton) -> NDArray[np.float64]:
    """Nine points (n 9 3) on every capsule, the same on every individual: two rings of four, and
    the tip."""
    axis = bones.b - bones.a
    direction = axis / np.linalg.norm(axis, axis=1, keepdims=True)
    third = np.cross(direction, bones.across)
    rings: list[NDArray[Any]] = []
    for t in (0.25, 0.75):
        r = bones.radius[:, :1] + t * (bones.radius[:, 1:] - bones.radius[:, :1])
        for side in (bones.across, third, -bones.across, -third):
            rings.append(bones.a + t * axis + r * side)
    return np.stack([*rings, bones.b + bones.radius[:, 1:] * direction], axis=1)


def visible(name: str) -> NDArray[np.bool_]:
    """Which of the surface points (n 9) of a species lie outside its other capsules, on one
    individual that stands for all."""
    bones = skeleton(SPECIES[name], np.random.default_rng(0))
    points = surface_points(bones)
    gap = distances(points.reshape(-1, 3), bones).reshape(*points.shape[:2], -1)
    own = np.arange(len(bones.a))
    gap[own, :, own] = np.inf
    return gap.min(2) > 0


def distances(points: NDArray[Any], bones: Skeleton) -> NDArray[np.float64]:
    """Signed distances (m n) of points (m 3) to n capsules with linearly varying radius."""
    axis = bones.b - bones.a
    offset = points[:, None, :] - bones.a
    t = np.einsum("mnc,nc->mn", offset, axis) / np.einsum("nc,nc->n", axis, axis)
    t = t.clip(0.0, 1.0)
    gap = np.linalg.norm(offset - t[:, :, None] * axis, axis=2)
    return gap - (bones.radius[:, 0] + t * (bones.radius[:, 1] - bones.radius[:, 0]))


def generate(name: str, rng: np.random.Generator, vertices: tuple[int, int], cells: int) -> Arrays:
    """One animal: pos (v 3), face (f 3), label (v), landmark (t).

    No two triangulations agree, and the numbers of vertices are random. A vertex has the part of
    the nearest capsule; landmark t is the vertex nearest to the t-th visible point on the capsules.
    """
    bones = skeleton(SPECIES[name], rng)
    pos, face = surface(bones, rng, cells)
    pos, face = simplify(pos, face, int(rng.integers(*vertices)))
    mesh = repair(pos, face)
    gap = distances(mesh.pos, bones)
    landmark = nearest(surface_points(bones)[visible(name)], mesh.pos)
    return {
        "pos": mesh.pos.astype(np.float32),
        "face": mesh.face.astype(np.int32),
        "label": bones.part[gap.argmin(1)].astype(np.int32),
        "landmark": landmark.astype(np.int32),
    }


def surface(
    bones: Skeleton, rng: np.random.Generator, cells: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The zero level of a smooth union of capsules: pos (v 3), face (f 3), on a grid of so many
    cells along the longest side that is placed and turned at random."""
    from skimage.measure import marching_cubes

    ends = np.concatenate([bones.a, bones.b])
    margin = bones.radius.max() + 0.1
    low, high = ends.min(0) - margin, ends.max(0) + margin
    step = max((high - low).max() / cells, bones.radius.min() * 0.8 if cells < 40 else 0.0)
    grid_turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    center = (low + high) / 2
    # The turned box must hold the shape: measure it in the grid's axes.
    turned = (ends - center) @ grid_turn
    low, high = turned.min(0) - margin, turned.max(0) + margin
    low = low - rng.uniform(0, step, 3)
    counts = np.ceil((high - low) / step).astype(int) + 2
    axes = [low[i] + step * np.arange(counts[i]) for i in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) @ grid_turn.T + center
    sharp = 1.0 / (0.35 * bones.radius.min())
    field = np.concatenate(
        [
            -np.log(np.exp(-sharp * distances(chunk, bones).clip(-0.6, 1.5)).sum(1)) / sharp
            for chunk in np.array_split(points, max(1, len(points) // 20_000))
        ]
    ).reshape(counts)
    pos, face, _, _ = marching_cubes(field, 0.0, spacing=(step,) * 3)
    pos = (pos + low) @ grid_turn.T + center
    if np.linalg.det(grid_turn) < 0:
        face = face[:, ::-1]
    return pos, face.astype(np.int64)


class Creatures(Source):
    """Articulated animals of 12 species (8 in the smaller sizes) in random poses.

    Classes for classification, 8 parts on vertices for segmentation, points on the limbs as
    landmarks for matching. Everything follows from ``generator_seed``; shapes are generated on
    first use and kept in the geometry cache. Paper: none; differs: nothing to differ from.

    Args:
        size: "tiny" (tests), "small" (the demo), "standard" (456 shapes) or "many" (1,360, for
            generation; none for validation).
        generator_seed: another seed, other animals.
    """

    def __init__(
        self,
        paths: Paths,
        size: Literal["tiny", "small", "standard", "many"] = "small",
        generator_seed: int = 0,
        preprocess: Preprocess = UNIT_RADIUS,
    ) -> None:
        super().__init__(paths)
        if size not in SIZES:
            raise UserError(f"data.size={size} is not known: choose one of {', '.join(SIZES)}.")
        self.counts, classes, self.vertices, self.cells = SIZES[size]
        self.size = size
        self.generator_seed = generator_seed
        self.preprocess = preprocess
        self.spec = DataSpec(
            classes=tuple(SPECIES)[:classes],
            words=tuple(described(SPECIES[name]) for name in tuple(SPECIES)[:classes]),
            parts=PARTS,
            label_on="vertex",
            landmarks=0,
            up="y",
            protocol=f"creatures-{size}-v{VERSION}-seed{generator_seed}",
        )

    def splits(self) -> dict[str, list[Item]]:
        splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
        for category, name in enumerate(self.spec.classes):
            number = 0
            for split, count in zip(splits, self.counts, strict=True):
                for _ in range(count):
                    splits[split].append(Item(f"{name}-{number:03d}", category, number))
                    number += 1
        return splits

    def read(self, item: Item) -> Shape:
        name = item.name.rsplit("-", 1)[0]
        seeds = [VERSION, self.generator_seed, tuple(SPECIES).index(name), int(item.source)]
        key = digest(*seeds, self.vertices, self.cells)

        def make() -> Arrays:
            return generate(name, np.random.default_rng(seeds), self.vertices, self.cells)

        arrays = self.cache.get("creatures", key, make)
        return Shape(
            pos=torch.from_numpy(arrays["pos"]),
            face=torch.from_numpy(arrays["face"]).long(),
            label=torch.from_numpy(arrays["label"]).long(),
            landmark=torch.from_numpy(arrays["landmark"]).long(),
        )
