"""What fixed-connectivity networks share: the check of their input, pooling on a mesh pyramid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Encoder, Encoding
from geodl.errors import UserError
from geodl.ops.hierarchy import pyramid
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Level, Out, Template


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


class TemplateEncoder(Encoder):
    """Base of encoders whose weights belong to the vertices or the levels of one template."""

    outputs: ClassVar[tuple[Out, ...]] = ("whole",)
    symmetries: ClassVar[frozenset[str]] = frozenset()
    registered = True

    def __init__(self, in_channels: int, spec: DataSpec, out: Out) -> None:
        super().__init__(in_channels, spec, out)
        self.template = template_of(spec, f"encoder {type(self).__name__}")
        face = torch.from_numpy(self.template.face)
        self.register_buffer("face", face, persistent=False)
        self.face: Tensor

    def rows(self, x: Tensor, batch: ShapeBatch) -> Tensor:
        """Features (b v c) of shapes that are the template's own mesh.

        Raises:
            UserError: a shape has another number of vertices, or other faces.
        """
        v, f = self.template.pos.shape[0], self.face.shape[0]
        for name, size, faces in zip(batch.names, batch.sizes, batch.face_sizes, strict=True):
            if (size, faces) != (v, f):
                raise UserError(
                    f"{self.refusal} {name} has {size} vertices and {faces} faces instead of {v} "
                    f"and {f}; {self.advice}"
                )
        faces = batch.face.view(len(batch), f, 3) - batch.ptr[:-1, None, None]
        same = (faces == self.face).flatten(1).all(1)
        if not same.all():
            name = batch.names[int((~same).nonzero()[0])]
            raise UserError(f"{self.refusal} {name} has other faces; {self.advice}")
        return x.view(len(batch), v, -1)

    @property
    def refusal(self) -> str:
        return (
            f"encoder {type(self).__name__} needs shapes in vertex correspondence with its "
            "template, but"
        )

    advice = "take encoder=pointnet or diffusionnet for shapes that are not registered."


class PyramidEncoder(TemplateEncoder):
    """Convolution, ELU and pooling per level; all vertices of the last level as one vector."""

    def stack(self, convs: Iterable[nn.Module], factors: Sequence[int], width: int) -> None:
        """Set the convolutions, one per level, the last of which gives ``width`` channels."""
        self.convs = nn.ModuleList(convs)
        levels = pyramid(self.template, tuple(factors))
        self.pools = nn.ModuleList(Pool(level) for level in levels)
        self.channels = len(levels[-1].pos) * width

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        y = self.rows(x, batch)
        for conv, pool in zip(self.convs, self.pools, strict=True):
            y = pool(F.elu(conv(y)))
        return Encoding(whole=y.flatten(1))


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
