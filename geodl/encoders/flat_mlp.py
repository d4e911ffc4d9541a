"""All coordinates in one vector: "naive 2" of the course."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.mlp import mlp
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points


class FlatMLP(Encoder):
    """An MLP on the concatenated features of a fixed number of points.

    Paper: PointNet (Qi et al. 2017), Fig. 5: "MLP (unsorted input)" and "MLP (sorted input)".
    Differs: the figure's widths are not published; 3072-512-256-classes is the course's.
    With 1,024 points and 40 classes: 1,714,984 parameters (no normalisation layers).

    Args:
        points: number of surface samples; the weights fit this number only.
        widths: channels of the hidden layers.
        sort: order the points lexicographically by their features first.
        dropout: probability behind each hidden layer.
    """

    outputs = ("whole",)
    counts = (Count(1_714_984, {}, 3, "whole", 40),)
    small = MappingProxyType({"points": 64})
    symmetries = frozenset()

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int = 1024,
        widths: Sequence[int] = (512, 256),
        sort: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, spec, out)
        self.points = points
        self.sort = sort
        self.needs = Needs.of(Points(points))
        self.layers = mlp([points * in_channels, *widths], norm=False, dropout=dropout)
        self.channels = widths[-1]

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        if set(batch.sizes) != {self.points}:
            raise UserError(
                f"encoder FlatMLP has weights for {self.points} points, but got shapes of "
                f"{sorted(set(batch.sizes))} points: sample {self.points} points from each shape."
            )
        rows = batch.dense(x)
        if self.sort:
            rows = lexicographic(rows)
        return Encoding(whole=self.layers(rows.flatten(1)))


def lexicographic(rows: Tensor) -> Tensor:
    """Points (b n c) of each shape in lexicographic order of their channels."""
    for channel in reversed(range(rows.shape[2])):
        order = torch.argsort(rows[:, :, channel], dim=1, stable=True)
        rows = rows.gather(1, order[:, :, None].expand_as(rows))
    return rows
