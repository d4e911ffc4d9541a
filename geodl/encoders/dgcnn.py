"""DGCNN: edge convolutions on a graph that is rebuilt in feature space."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points

SLOPE = 0.2  # of the leaky ReLU, everywhere


def neighbours(x: Tensor, batch: ShapeBatch, k: int) -> Tensor:
    """The k nearest rows (n k) of every row of x (n c) among those of its own shape.
    Memory: the distances of one shape at a time."""
    found: list[Tensor] = []
    for rows, start in zip(x.detach().split(batch.sizes), batch.ptr.tolist(), strict=False):
        if len(rows) < k:
            raise UserError(f"encoder.k={k} is more than the {len(rows)} points of a shape.")
        found.append(torch.cdist(rows, rows).topk(k, largest=False).indices + start)
    return torch.cat(found)


class EdgeConv(nn.Module):
    """max_j LeakyReLU(BatchNorm(A (x_j - x_i) + B x_i)) over the neighbours j of i."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * in_channels, out_channels, bias=False)
        self.norm = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """x (n c), index (n k) -> (n out)."""
        n, k = index.shape
        a, b = self.linear.weight.chunk(2, dim=1)
        # The layer is linear before its norm: multiply points, not edges.
        edges = (x @ a.T).index_select(0, index.reshape(-1)).view(n, k, -1) + (x @ (b - a).T)[
            :, None
        ]
        edges = F.leaky_relu(self.norm(edges.flatten(0, 1)), SLOPE)
        return edges.view(n, k, -1).amax(1)


class DGCNN(Encoder):
    """Four edge convolutions, each on the graph of the nearest neighbours in the features before
    it; all of them through a shared layer, maximum and mean over the points, two layers.

    Paper: Wang, Sun, Liu, Sarma, Bronstein, Solomon: Dynamic graph CNN for learning on point
    clouds, TOG 2019. https://arxiv.org/abs/1801.07829
    Differs: nothing known from AnTao97's PyTorch version for classification, 1,809,576 parameters
    with 40 classes; with its weights the outputs are equal (3e-8). The forms for parts and for
    scenes are not here.

    Args:
        points: number of surface samples to look at; null: the shape's own vertices.
        k: neighbours of a point, itself among them.
        widths: channels of the edge convolutions.
        dropout: probability behind both hidden layers.
    """

    outputs = ("whole",)
    small = MappingProxyType({"points": 64, "k": 8, "widths": [16, 16, 32, 32]})
    counts = (Count(1_809_576, {}, 3, "whole", 40),)

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int | None = 1024,
        k: int = 20,
        widths: Sequence[int] = (64, 64, 128, 256),
        dropout: float = 0.5,
    ) -> None:
        super().__init__(in_channels, spec, out)
        if k < 1 or not widths:
            raise UserError("encoder.k must be 1 or more, encoder.widths not empty.")
        self.needs = Needs.of(Points(points) if points else None)
        self.k = k
        steps = itertools.pairwise([in_channels, *widths])
        self.convs = nn.ModuleList(EdgeConv(i, o) for i, o in steps)
        self.shared = nn.Sequential(nn.Linear(sum(widths), 1024, bias=False), nn.BatchNorm1d(1024))
        self.last = nn.Sequential(
            nn.Linear(2048, 512, bias=False),
            nn.BatchNorm1d(512),
            nn.LeakyReLU(SLOPE),
            nn.Dropout(dropout),
            nn.Linear(512, 256),
            nn.BatchNorm1d(256),
            nn.LeakyReLU(SLOPE),
            nn.Dropout(dropout),
        )
        self.channels = 256

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        levels: list[Tensor] = []
        for conv in self.convs:
            x = conv(x, neighbours(x, batch, self.k))
            levels.append(x)
        x = F.leaky_relu(self.shared(torch.cat(levels, dim=1)), SLOPE)
        return Encoding(whole=self.last(torch.cat([batch.max(x), batch.mean(x)], dim=1)))
