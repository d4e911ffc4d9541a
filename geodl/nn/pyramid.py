"""A template and the coarser meshes below it: pooling, unpooling, and the checks of sizes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.errors import UserError
from geodl.ops.hierarchy import pyramid
from geodl.spec import DataSpec, Level, Template


def template_of(spec: DataSpec, who: str) -> Template:
    """The template of a specification.

    Raises:
        UserError: the data set has none.
    """
    if spec.template is None:
        raise UserError(
            f"{who} works on one template mesh, but this data set has none: choose data=heads, "
            "ict_faces, coma, dfaust or registered, or another encoder (pointnet, diffusionnet)."
        )
    return spec.template


class Pool(nn.Module):
    """(b n c) -> (b m c): the selected vertices of a level."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.register_buffer("down", torch.from_numpy(level.down), persistent=False)
        self.down: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.down]


class Unpool(nn.Module):
    """(b m c) -> (b n c): barycentric interpolation to the finer level."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.register_buffer("up", torch.from_numpy(level.up), persistent=False)
        self.register_buffer("weight", torch.from_numpy(level.weight), persistent=False)
        self.up: Tensor
        self.weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        b, m, c = x.shape
        index = batched(self.up, b, m)
        weight = self.weight.repeat(b, 1).to(x.dtype)
        flat = F.embedding_bag(index, x.reshape(b * m, c), per_sample_weights=weight, mode="sum")
        return flat.view(b, -1, c)


def batched(index: Tensor, b: int, rows: int) -> Tensor:
    """Indices (n k) into ``rows`` rows, for b stacked copies of them: (b n, k)."""
    shift = torch.arange(b, device=index.device) * rows
    return (index[None] + shift[:, None, None]).view(-1, index.shape[1])


def meshes_of(
    template: Template, factors: tuple[int, ...]
) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Vertices and faces of the template and of the levels below it."""
    levels = pyramid(template, factors)
    return [(template.pos, template.face), *((x.pos, x.face) for x in levels)]


def check_sizes(where: str, **lists: list[int]) -> None:
    """Lists of per-level options must be of one length, positive."""
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise UserError(f"{where}: {counts} entries; give one per level in each.")
    for name, values in lists.items():
        if not values or min(values) < 1:
            raise UserError(f"{where}.{name}={values} must be a list of positive numbers.")
