"""Changes to test shapes, named and seeded: the same shapes every time (config group ``test/``)."""

from __future__ import annotations

import numpy as np

from geodl.augment import random_rotation, rotate
from geodl.ops.check import repair
from geodl.ops.remesh import remesh
from geodl.shape import Shape
from geodl.spec import DataSpec


class Perturbation:
    """Base. Called with a preprocessed shape that has no operators yet."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        raise NotImplementedError


class Rotate(Perturbation):
    """A uniform random rotation."""

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        return rotate(shape, random_rotation(rng))


class Remesh(Perturbation):
    """Isotropic re-meshing: the same surface, none of the old vertices. Clouds stay as they are.

    Labels and landmarks come from the nearest old element; labels of edges are not carried.

    Args:
        ratio: new number of vertices over old.
    """

    def __init__(self, ratio: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed)
        self.ratio = ratio

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        from geodl.data.base import carried

        if shape.is_cloud:
            return shape
        old = shape.pos.double().numpy()
        count = max(16, round(len(old) * self.ratio))
        mesh = repair(*remesh(old, shape.face.numpy(), count, rng))
        new = carried(shape, mesh.pos.astype(np.float32), mesh.face, spec.label_on)
        return new.replace(pos=new.pos.float())
