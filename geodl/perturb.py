"""Changes to shapes, named and seeded: the same shapes every time.

Of test shapes (config group ``test/``), or of training shapes as augmentations with
``augment.copies=n`` prepared copies of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geodl.augment import Augmentation, random_rotation
from geodl.carry import carried, sampled
from geodl.errors import UserError
from geodl.ops.check import repair
from geodl.ops.remesh import holes, loop, remesh, simplify, slide, subdivide
from geodl.shape import Shape
from geodl.spec import DataSpec, Field

Mesh = tuple[NDArray[np.float64], NDArray[np.int64]]


class Perturbation(Augmentation):
    """Base. Called with a preprocessed shape that has no operators yet.

    ``cached``: whether the result is kept on disk, because it takes long to make.
    """

    cached: ClassVar[bool] = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        raise NotImplementedError


def _need_faces(change: Perturbation, shape: Shape) -> None:
    if shape.is_cloud:
        raise UserError(
            f"{type(change).__name__} changes a mesh, but {shape.name} is a point cloud: leave out "
            "the test set or augmentation that asks for it."
        )


class Rotate(Perturbation):
    """A uniform random rotation."""

    moves = True
    keeps = frozenset({"operators", "connectivity", "registration"})

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        return shape.turned(random_rotation(rng))


class Noise(Perturbation):
    """Gaussian noise on every vertex.

    Args:
        sigma: standard deviation, in the model's coordinates (shapes are about one in radius).
    """

    keeps = frozenset({"connectivity", "registration"})

    def __init__(self, sigma: float = 0.01, seed: int = 0) -> None:
        super().__init__(seed)
        self.sigma = sigma

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        noise = rng.standard_normal(shape.pos.shape, dtype=np.float32) * self.sigma
        return shape.replace(pos=shape.pos + torch.from_numpy(noise), normal=None)


class Shuffle(Perturbation):
    """The vertices in random order, those that a loss compares with as well: the correspondence is
    lost, the surface is the same."""

    moves = True

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        order = torch.from_numpy(rng.permutation(len(shape.pos)))
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        moved = {"vertex", "template"} | ({"label"} if spec.label_on == "vertex" else set())

        def change(x: Tensor, field: Field) -> Tensor:
            if field.on == "template" and len(x) != len(order):
                return x  # re-meshed before: these vertices are not the template's any more
            if field.on in moved:
                x = x[order]
            return place[x] if field.kind == "index" and field.into in moved else x

        return shape.map(change)


class Retriangulation(Perturbation):
    """Base of changes that give the surface other vertices. Labels and landmarks come from the
    nearest point on the old surface."""

    cached = True

    def mesh(
        self, pos: NDArray[np.float64], face: NDArray[np.int64], rng: np.random.Generator
    ) -> Mesh:
        raise NotImplementedError

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        _need_faces(self, shape)
        mesh = repair(*self.mesh(shape.pos.double().numpy(), shape.face.numpy(), rng))
        new = carried(shape, mesh.pos.astype(np.float32), mesh.face, spec.label_on)
        return new.replace(pos=new.pos.float())


class Remesh(Retriangulation):
    """Re-meshing: the same surface, its vertices all over again.

    Args:
        ratio: new number of vertices over old.
        contrast: how many times as dense one end of the shape is as the other; 1: isotropic.
    """

    def __init__(self, ratio: float = 1.0, contrast: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed)
        if ratio <= 0 or contrast < 1:
            raise UserError(
                f"test.remesh: ratio={ratio} must be positive, contrast={contrast} at least 1."
            )
        self.ratio, self.contrast = ratio, contrast

    def mesh(
        self, pos: NDArray[np.float64], face: NDArray[np.int64], rng: np.random.Generator
    ) -> Mesh:
        return remesh(pos, face, max(16, round(len(pos) * self.ratio)), rng, self.contrast)


class Simplify(Retriangulation):
    """Quadric decimation.

    Args:
        ratio: new number of vertices over old.
    """

    def __init__(self, ratio: float = 0.5, seed: int = 0) -> None:
        super().__init__(seed)
        if not 0 < ratio <= 1:
            raise UserError(f"test.simplify: ratio={ratio} must lie in (0, 1].")
        self.ratio = ratio

    def mesh(
        self, pos: NDArray[np.float64], face: NDArray[np.int64], rng: np.random.Generator
    ) -> Mesh:
        return simplify(pos, face, max(16, round(len(pos) * self.ratio)))


class Subdivide(Retriangulation):
    """Every triangle into four, by edge midpoints."""

    cached = False

    def mesh(
        self, pos: NDArray[np.float64], face: NDArray[np.int64], rng: np.random.Generator
    ) -> Mesh:
        return subdivide(pos, face)


class Loop(Retriangulation):
    """Loop's subdivision: every triangle into four, and the surface a little smoother."""

    cached = False

    def mesh(
        self, pos: NDArray[np.float64], face: NDArray[np.int64], rng: np.random.Generator
    ) -> Mesh:
        return loop(pos, face)


class Slide(Perturbation):
    """Another parameterisation: every vertex moved along the surface, which keeps its shape and
    its connectivity. Labels and landmarks stay where they are on the surface.

    Args:
        amount: length of the largest move, in the model's coordinates.
        steps: in how many the moves are made; short ones fold no triangle.
    """

    keeps = frozenset({"connectivity"})

    def __init__(self, amount: float = 0.1, steps: int = 10, seed: int = 0) -> None:
        super().__init__(seed)
        if amount <= 0 or steps < 1:
            raise UserError(
                f"test.slide: amount={amount} must be positive, steps={steps} 1 or more."
            )
        self.amount, self.steps = amount, steps

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        _need_faces(self, shape)
        face = shape.face.numpy()
        new = carried(
            shape, slide(shape.pos.numpy(), face, self.amount, rng, self.steps), face, spec.label_on
        )
        return new.replace(pos=new.pos.float())


class Cloud(Perturbation):
    """A point cloud in place of the mesh: samples of its surface, uniform by area. Labels stay
    those of the mesh's own elements, and the nearest sample answers for each.

    Args:
        ratio: number of points over the number of vertices.
    """

    def __init__(self, ratio: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed)
        self.ratio = ratio

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        if shape.is_cloud:
            return shape
        return sampled(shape, max(16, round(len(shape.pos) * self.ratio)), spec.label_on, rng)


class Holes(Retriangulation):
    """Patches of the surface taken away: the faces nearest to a random one.

    Args:
        count: number of patches.
        share: share of the faces that go, all together.
    """

    cached = False

    def __init__(self, count: int = 1, share: float = 0.1, seed: int = 0) -> None:
        super().__init__(seed)
        if count < 1 or not 0 < share < 1:
            raise UserError(
                f"test.holes: count={count} must be 1 or more and share={share} lie in (0, 1)."
            )
        self.count, self.share = count, share

    def mesh(
        self, pos: NDArray[np.float64], face: NDArray[np.int64], rng: np.random.Generator
    ) -> Mesh:
        return pos, holes(pos, face, self.share, self.count, rng)


class Unregister(Retriangulation):
    """Another triangulation of every shape, each in a way of its own: re-meshed, or subdivided and
    simplified, to between ``low`` and ``high`` times the vertices; then noise and
    holes, if asked for. What it leaves is a scan: same surface, no correspondence.

    Args:
        low, high: bounds of the new number of vertices over the old.
        noise: standard deviation of Gaussian noise, in the model's coordinates.
        holes: share of the faces taken away, in two patches.
    """

    def __init__(
        self,
        low: float = 0.6,
        high: float = 1.4,
        noise: float = 0.0,
        holes: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if not 0 < low <= high or noise < 0 or not 0 <= holes < 1:
            raise UserError(
                f"augment.unregister: low={low}, high={high} must be positive, in this order, "
                f"noise={noise} not negative, holes={holes} in [0, 1)."
            )
        self.low, self.high, self.noise, self.holes = low, high, noise, holes

    def mesh(
        self, pos: NDArray[np.float64], face: NDArray[np.int64], rng: np.random.Generator
    ) -> Mesh:
        count = max(16, round(len(pos) * rng.uniform(self.low, self.high)))
        ways: list[Callable[[], Mesh]] = [
            lambda: remesh(pos, face, count, rng),
            lambda: simplify(*subdivide(pos, face), count),
        ]
        new, triangles = ways[rng.integers(len(ways))]()
        if self.holes:
            triangles = holes(new, triangles, self.holes, 2, rng)
        if self.noise:
            new = new + rng.standard_normal(new.shape) * self.noise
        return new, triangles
