"""Generated animals of one species in many poses, on one mesh: every pose in between is known."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from geodl.data.creatures import SPECIES, Limb, Skeleton, distances, skeleton, surface
from geodl.data.fetch import Paths
from geodl.data.registered import Mesh, RegisteredData, turned
from geodl.errors import UserError
from geodl.ops.cache import Arrays, digest
from geodl.ops.check import repair
from geodl.ops.geometry import Backend
from geodl.ops.remesh import remesh
from geodl.spec import Item

VERSION = 1  # part of the protocol: raise it when other shapes are drawn
CELLS = 60  # of the grid that the mesh is taken from


class Poses(RegisteredData):
    """Individuals of a species, each at rest and in random poses, in vertex correspondence.

    One mesh is bound to the capsules of the species (``data=creatures``): a vertex follows those
    near it, individuals have other lengths and radii of bones, and in a pose every joint turns what
    hangs on it. The share of a joint's rotation that a vertex takes changes smoothly around the
    joint, so nothing is linear, and the pose between two is that in which every joint has turned a
    part of the way. Lengths are thousandths of that of the spine ("millimetres"). Paper: none.

    Args:
        species: one of those of ``data=creatures``.
        vertices: of the mesh, about.
        train, test: individuals.
        poses: of each, beside the one at rest.
        bend: how far joints turn, in times of what the species' do in ``data=creatures``.
        sample_seed: another seed, other animals.
    """

    millimetres = 1000.0

    def __init__(
        self,
        paths: Paths,
        species: str = "biped",
        vertices: int = 1000,
        train: int = 30,
        test: int = 6,
        poses: int = 10,
        bend: float = 1.5,
        sample_seed: int = 0,
        backend: Backend = "cotan",
    ) -> None:
        super().__init__(paths, None, backend)
        if species not in SPECIES:
            raise UserError(f"data.species={species} is not known: choose {', '.join(SPECIES)}.")
        if vertices < 100:
            raise UserError(f"data.vertices={vertices}: an animal has 100 or more.")
        self.species, self.about, self.poses, self.bend = species, vertices, poses, bend
        self.counts = {"train": train, "test": test}
        self.sample_seed = sample_seed
        drawn = f"{train}/{test}x{poses}"
        self.protocol = f"poses-{species}-v{VERSION}-{vertices}v-{drawn}-bend{bend}-{sample_seed}"

    def splits(self) -> dict[str, list[Item]]:
        numbers = range(self.poses + 1)  # the first one: at rest
        return {
            split: [Item(f"{split}-{i:03d}-{k:02d}") for i in range(n) for k in numbers]
            for split, n in self.counts.items()
        }

    def person(self, item: Item) -> str:
        return item.name.rsplit("-", 1)[0]

    # ---- the mesh and its bones ----

    def _individual(self, words: list[int]) -> Skeleton:
        """An individual of the species at rest."""
        one = SPECIES[self.species]
        bones, radii, _ = one.spine
        still = tuple(replace(limb, bend=0.0) for limb in one.limbs)
        at_rest = replace(one, spine=(bones, radii, 0.0), limbs=still)
        return skeleton(at_rest, np.random.default_rng(words))

    @cached_property
    def _template(self) -> Skeleton:
        return self._individual([VERSION, list(SPECIES).index(self.species)])

    @cached_property
    def _mesh(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """Positions and faces of the mesh, and by how much its vertices follow the bones (v n)."""
        bones = self._template

        def make() -> Arrays:
            rng = np.random.default_rng(VERSION)
            even = repair(*remesh(*surface(bones, rng, CELLS), self.about, rng))
            return {"pos": even.pos, "face": even.face}

        key = digest("poses", VERSION, self.about, bones.a, bones.b, bones.radius)
        mesh = self.cache.get("poses", key, make)
        near = -distances(mesh["pos"], bones) / (0.35 * bones.radius.min(1))
        weight = np.exp(near - near.max(1, keepdims=True))
        return mesh["pos"], mesh["face"].astype(np.int64), weight / weight.sum(1, keepdims=True)

    def mesh(self) -> Mesh:
        pos, face, _ = self._mesh
        return pos, face

    # ---- individuals and poses ----

    def _words(self, item: Item) -> list[int]:
        """What the random numbers of an individual begin with."""
        split, number, _ = item.name.split("-")
        return [VERSION, self.sample_seed, list(self.counts).index(split), int(number)]

    def _joints(self, item: Item) -> Rotation:
        """How every joint (n) of an item is turned."""
        pose = int(item.name.rsplit("-", 1)[1])
        bends = self.bend * np.array(joint_bends(self.species))
        if pose == 0:
            return Rotation.identity(len(bends))
        rng = np.random.default_rng([*self._words(item), 1 + pose])
        axes = rng.standard_normal((len(bends), 3))
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        return Rotation.from_rotvec(axes * np.radians(rng.normal(0.0, bends))[:, None])

    def _placed(self, item: Item, joints: Rotation) -> NDArray[np.float64]:
        """The vertices (v 3) of an individual whose joints are turned so."""
        pos, _, weight = self._mesh
        own = self._individual([*self._words(item), 0])
        posed = fitted(pos, weight, self._template, own)
        share = weight.copy()  # of a joint's rotation: what hangs on it
        for bone in range(len(own.parent) - 1, 0, -1):
            share[:, own.parent[bone]] += share[:, bone]
        vectors = joints.as_rotvec()
        for bone in range(len(own.parent) - 1, -1, -1):  # from the tips to the spine
            posed = turned(posed, share[:, bone], vectors[bone], own.a[bone])
        return posed

    def vertices_of(self, item: Item) -> NDArray[np.floating]:
        return self._placed(item, self._joints(item))[self.selected[0]]

    def between(self, first: Item, second: Item, share: float) -> NDArray[np.float64]:
        start, end = self._joints(first), self._joints(second)
        way = (start.inv() * end).as_rotvec()
        joints = start * Rotation.from_rotvec(share * way)
        return self._placed(first, joints)[self.selected[0]]

    def carried(self, shape: Item, rest: Item) -> NDArray[np.float64]:
        """Its joints turned as those of the other."""
        return self._placed(rest, self._joints(shape))[self.selected[0]]


def joint_bends(species: str) -> list[float]:
    """Degrees by which the joint at the beginning of every bone turns; the spine's first, which
    would turn the whole animal, does not."""
    one = SPECIES[species]

    def chain(bones: int, bend: float) -> list[float]:
        return [bend * (0.8 if i else 0.5) for i in range(bones)]

    def limb(part: Limb) -> list[float]:
        return chain(part.bones, part.bend) * (2 if part.pair else 1)

    spine = chain(one.spine[0], one.spine[2])
    return [0.0, *spine[1:], *(bend for part in one.limbs for bend in limb(part))]


def fitted(
    pos: NDArray[np.float64], weight: NDArray[np.float64], bones: Skeleton, own: Skeleton
) -> NDArray[np.float64]:
    """Vertices (v 3) that follow bones by weights (v n), on the bones of another individual in the
    same pose: as far along each, and as many radii away."""
    total = np.zeros_like(pos)
    for i in range(len(bones.a)):
        axis = bones.b[i] - bones.a[i]
        offset = pos - bones.a[i]
        t = offset @ axis / (axis @ axis)
        away = offset - t[:, None] * axis
        thick, thin = (
            r[i, 0] + t.clip(0, 1) * (r[i, 1] - r[i, 0]) for r in (own.radius, bones.radius)
        )
        moved = own.a[i] + t[:, None] * (own.b[i] - own.a[i]) + away * (thick / thin)[:, None]
        total += weight[:, i, None] * moved
    return total
