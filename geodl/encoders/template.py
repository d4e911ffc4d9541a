"""What fixed-connectivity networks share: the check of their input, pooling on a mesh pyramid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.pyramid import pool, template_of
from geodl.ops.hierarchy import pyramid
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Out


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
        for name, size, faces in zip(batch.names, batch.sizes, batch.counts["face"], strict=True):
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

    def stack(
        self, convs: Iterable[nn.Module], factors: Sequence[int], width: int, pooled: bool = False
    ) -> None:
        """Set the convolutions, one per level, the last of which gives ``width`` channels;
        ``pooled``: they answer at the vertices of the coarser level only."""
        self.convs = nn.ModuleList(convs)
        levels = pyramid(self.template, tuple(factors))
        rows = [len(self.template.pos), *(len(level.pos) for level in levels)]
        self.pools = nn.ModuleList(
            nn.Identity() if pooled else pool(level, n)
            for level, n in zip(levels, rows, strict=False)
        )
        self.channels = len(levels[-1].pos) * width

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        y = self.rows(x, batch)
        for conv, select in zip(self.convs, self.pools, strict=True):
            y = select(F.elu(conv(y)))
        return Encoding(whole=y.flatten(1))
