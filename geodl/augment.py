"""Augmentations, each of which declares what it keeps.

Random numbers come from the generator that is handed in, which the data side seeds from (seed,
epoch, item), never from a worker's state.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from geodl.errors import UserError
from geodl.shape import Shape
from geodl.spec import DataSpec

Keeps = Literal["operators", "connectivity", "registration"]


def random_rotation(rng: np.random.Generator) -> Tensor:
    """A uniform rotation (3 3), from a normalised random quaternion."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float32,
    )


def axis_rotation(axis: str, angle: float) -> Tensor:
    """Rotation matrix (3 3) about the x, y or z axis."""
    c, s = math.cos(angle), math.sin(angle)
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    rotation = torch.eye(3)
    rotation[i, i], rotation[i, j], rotation[j, i], rotation[j, j] = c, -s, s, c
    return rotation


class Augmentation:
    """Base. ``keeps`` names what is still true of the shape afterwards; ``moves``: whether it no
    longer stands, or has its vertices, where others of its person do."""

    keeps: ClassVar[frozenset[Keeps]] = frozenset()
    moves: ClassVar[bool] = False

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        """The changed shape of a data set with this specification."""
        raise NotImplementedError


class SO3(Augmentation):
    """A uniform random rotation."""

    moves = True
    keeps = frozenset({"operators", "connectivity", "registration"})

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        return shape.turned(random_rotation(rng))


class RotateZ(Augmentation):
    """A random rotation about the vertical axis (the data set's own, or ``axis``)."""

    moves = True
    keeps = frozenset({"operators", "connectivity", "registration"})

    def __init__(self, axis: Literal["up", "x", "y", "z"] = "up") -> None:
        if axis not in ("up", "x", "y", "z"):
            raise UserError(f"augment.rotate_z.axis={axis} is not known: choose up, x, y or z.")
        self.axis = axis

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        axis = spec.up if self.axis == "up" else self.axis
        return shape.turned(axis_rotation(axis, float(rng.uniform(0.0, 2.0 * math.pi))))


class Scale(Augmentation):
    """A random uniform scale; operators are rescaled exactly.

    Args:
        low, high: bounds of the factor.
    """

    moves = True
    keeps = frozenset({"operators", "connectivity", "registration"})

    def __init__(self, low: float = 0.8, high: float = 1.25) -> None:
        if not 0 < low <= high:
            raise UserError(f"augment.scale: low={low}, high={high} must satisfy 0 < low <= high.")
        self.low = low
        self.high = high

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        return shape.scaled(float(rng.uniform(self.low, self.high)))


class Jitter(Augmentation):
    """Gaussian noise on every vertex, clipped (PointNet: sigma 0.01, clip 0.05)."""

    keeps = frozenset({"connectivity", "registration"})

    def __init__(self, sigma: float = 0.01, clip: float = 0.05) -> None:
        self.sigma = sigma
        self.clip = clip

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        noise = rng.standard_normal(shape.pos.shape, dtype=np.float32) * self.sigma
        noise = torch.from_numpy(noise.clip(-self.clip, self.clip))
        return shape.replace(pos=shape.pos + noise)


class Dropout(Augmentation):
    """Random points replaced by the first one, up to ``most`` of them (yanx27's PointNet)."""

    keeps = frozenset()

    def __init__(self, most: float = 0.875) -> None:
        if not 0 <= most < 1:
            raise UserError(f"augment.dropout.most={most} must lie in [0, 1).")
        self.most = most

    def __call__(self, shape: Shape, rng: np.random.Generator, spec: DataSpec) -> Shape:
        gone = torch.from_numpy(rng.random(shape.pos.shape[0]) < rng.random() * self.most)
        pos = shape.pos.clone()
        pos[gone] = pos[0].clone()
        normal = None if shape.normal is None else shape.normal.clone()
        if normal is not None:
            normal[gone] = normal[0].clone()
        return shape.replace(pos=pos, normal=normal)
