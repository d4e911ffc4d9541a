"""Shared per-point MLP: "naive 1" of the course."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from geodl.encoders.base import Encoder, Encoding
from geodl.nn.mlp import mlp
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points


class PointMLP(Encoder):
    """The same small network at every point, which sees nothing of the other points.

    Paper: none; the baseline that shows what context is worth.
    Differs: nothing known. For a whole shape the rows of the points are averaged, which with the
    linear head is the average of per-point logits.

    Args:
        widths: channels of the layers.
        points: number of surface samples to look at; null: the shape's own vertices.
    """

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        widths: Sequence[int] = (64, 128, 256),
        points: int | None = None,
    ) -> None:
        super().__init__(in_channels, spec, out)
        self.needs = Needs.of(Points(points) if points else None)
        self.layers = mlp([in_channels, *widths])
        self.channels = widths[-1]

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        x = self.layers(x)
        if self.out == "whole":
            return Encoding(whole=batch.mean(x))
        return self.elements(x, batch)
