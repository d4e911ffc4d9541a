"""Geodesic CNN: filters on polar patches of the surface, turned in all directions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Encoder, Encoding
from geodl.errors import UserError
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, LogMap, Needs, Out


class Patches:
    """Polar patches of all vertices of a batch: at ``rings`` distances and ``angles`` directions,
    Gaussian means over the vertices within the radius. Kept as a Fourier series over the angle.
    """

    def __init__(self, batch: ShapeBatch, rings: int, angles: int) -> None:
        x, y = batch.ops.log_x, batch.ops.log_y
        row, self.column = x.indices()
        distance, angle = torch.hypot(x.values(), y.values()), torch.atan2(y.values(), x.values())
        places = torch.arange(rings).to(distance) + 0.5
        near = torch.exp(-0.5 * (rings * distance[:, None] - places).square())
        step = 2 * math.pi / angles
        turn = angle[:, None] - step * torch.arange(angles).to(angle)
        turn = torch.remainder(turn + math.pi, 2 * math.pi) - math.pi
        towards = torch.exp(-0.5 * (turn / step).square())
        # A vertex is in its own middle, in all directions.
        towards = torch.where(distance[:, None] > 0, towards, 1.0)
        weight = near[:, :, None] * towards[:, None]
        total = weight.new_zeros(len(batch.pos), rings, angles).index_add(0, row, weight)
        waves = torch.fft.rfft(weight / total.clamp(min=1e-30)[row], dim=2)
        # Vertices beside their neighbours, as many as the largest patch has.
        count = torch.bincount(row, minlength=len(batch.pos))
        start = count.cumsum(0) - count
        self.width = int(count.max())
        self.slot = row * self.width + torch.arange(len(row), device=row.device) - start[row]
        self.size = (len(batch.pos), self.width)
        flat = torch.cat([waves.real, waves.imag], dim=1).flatten(1)  # (pairs, 2 rings x waves)
        self.weight = self._beside(flat).transpose(1, 2)
        self.waves = waves.shape[2]

    def _beside(self, rows: Tensor) -> Tensor:
        """Rows of pairs (p c) as (v width c), zero where a patch has fewer vertices."""
        n, width = self.size
        padded = rows.new_zeros(n * width, rows.shape[1]).index_copy(0, self.slot, rows)
        return padded.view(n, width, rows.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        """Features (v c) -> the Fourier series of their patches (waves v 2 rings x c)."""
        found = self.weight @ self._beside(x[self.column])  # (v, 2 rings x waves, c)
        n, c = x.shape
        return found.view(n, -1, self.waves, c).permute(2, 0, 1, 3).reshape(self.waves, n, -1)


class GeodesicConv(nn.Module):
    """The largest answer of a filter (rings angles) on a patch among all its rotations: a circular
    correlation over the angle, which is a product wave by wave."""

    def __init__(self, in_channels: int, channels: int, rings: int, angles: int) -> None:
        super().__init__()
        self.angles = angles
        bound = 1 / math.sqrt(rings * angles * in_channels)
        weight = torch.empty(channels, in_channels, rings, angles).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, x: Tensor, patches: Patches) -> Tensor:
        """(v c) -> (v channels)."""
        with torch.autocast(x.device.type, enabled=False):
            waves = torch.fft.rfft(self.weight.float(), dim=3).permute(3, 2, 1, 0)
            real, imaginary = waves.real.flatten(1, 2), waves.imag.flatten(1, 2)
            # (a + ib) times the conjugate of (r + ii), both parts below and beside each other.
            both = torch.cat(
                [torch.cat([real, -imaginary], dim=2), torch.cat([imaginary, real], dim=2)], dim=1
            )
            real, imaginary = (patches(x.float()) @ both).chunk(2, dim=2)
            y = torch.fft.irfft(torch.complex(real, imaginary), n=self.angles, dim=0)
            return y.amax(0) + self.bias


class GeodesicCNN(Encoder):
    """A layer on every vertex, geodesic convolutions, and two layers on every vertex.

    Paper: Masci, Boscaini, Bronstein, Vandergheynst: Geodesic convolutional neural networks on
    Riemannian manifolds, 3dRR 2015 (its GCNN3 has one convolution of width 32).
    https://arxiv.org/abs/1501.06297
    Differs: the patch comes from a discrete exponential map instead of fast marching
    (``geodl.ops.logmap``); a whole shape is the mean of its vertices. The authors' code is not
    public: there is no count and no output to compare with. Where two vertices are equally near,
    outputs depend on which of them a patch begins with, as little as ``angles`` are many.

    Args:
        radius: of the patches, in the model's coordinates; memory is that of 18 rings numbers for
            every vertex and each of the most vertices that a patch has. A shape that is scaled in
            training keeps its patches.
        rings, angles: bins of a patch.
        width: channels of the first layer.
        widths: channels of the convolutions.
        hidden: channels of the two last layers.
        dropout: probability before the last layer.
    """

    small = MappingProxyType({"rings": 2, "angles": 8, "widths": [8], "hidden": [8, 8]})
    symmetries = frozenset({"permutation", "rotation", "translation"})

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        radius: float = 0.2,
        rings: int = 5,
        angles: int = 16,
        width: int = 16,
        widths: Sequence[int] = (32,),
        hidden: Sequence[int] = (256, 512),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, spec, out)
        if rings < 1 or angles < 2 or not widths or len(hidden) != 2:
            raise UserError(
                f"encoder.rings={rings} must be 1 or more, angles={angles} 2 or more, widths="
                f"{list(widths)} has a number per convolution, hidden={list(hidden)} has two."
            )
        self.rings, self.angles = rings, angles
        self.needs = Needs.of(LogMap(radius))
        self.first = nn.Linear(in_channels, width)
        self.convs = nn.ModuleList(
            GeodesicConv(i, o, rings, angles) for i, o in itertools.pairwise([width, *widths])
        )
        self.last = nn.Sequential(
            nn.Linear(widths[-1], hidden[0]),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
        )
        self.channels = hidden[1]

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        batch.need_faces("lays out patches of meshes", "dgcnn")
        if "patches" not in batch.cache:
            batch.cache["patches"] = Patches(batch, self.rings, self.angles)
        x = F.relu(self.first(x))
        for conv in self.convs:
            x = F.relu(conv(x, batch.cache["patches"]))
        x = self.last(x)
        if self.out == "whole":
            return Encoding(whole=batch.mean(x))
        return self.elements(x, batch)
