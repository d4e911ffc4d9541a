"""KPConv: convolution with weights at kernel points in space, on a pyramid of grids."""

from __future__ import annotations

import functools
import math
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.neighbors import cells, cloud, knn, means, within
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points

RADIUS = 2.5  # of a convolution, in cells of its grid
EXTENT = 1.2  # reach of a kernel point, in the same
SLOPE = 0.1  # of the leaky ReLU


@functools.cache
def disposition(count: int) -> tuple[tuple[float, float, float], ...]:
    """Kernel points in the unit ball: one at the centre, the others where repulsion from each other
    and attraction to the centre leave them, at 0.66 in the mean (the paper, supplement)."""
    i = torch.arange(count - 1, dtype=torch.float64)
    z, angle = 1 - (2 * i + 1) / max(1, count - 1), i * math.pi * (3 - math.sqrt(5))
    ring = (1 - z**2).sqrt()
    pos = torch.stack([ring * angle.cos(), ring * angle.sin(), z], dim=1).requires_grad_()
    for step in range(500):
        every = torch.cat([pos.new_zeros(1, 3), pos])
        energy = pos.square().sum() + (1 / F.pdist(every)).sum()
        (slope,) = torch.autograd.grad(energy, pos)
        pos = (pos - 0.02 * 0.995**step * slope).detach().requires_grad_()
    pos = pos.detach() * (0.66 / pos.detach().norm(dim=1).mean())
    return ((0.0, 0.0, 0.0), *(tuple(row) for row in pos.tolist()))


class Linear(nn.Sequential):
    """Linear without bias, BatchNorm (and LeakyReLU)."""

    def __init__(self, in_channels: int, channels: int, relu: bool = True) -> None:
        last = [nn.LeakyReLU(SLOPE)] if relu else []
        super().__init__(
            nn.Linear(in_channels, channels, bias=False), nn.BatchNorm1d(channels), *last
        )


class KernelConv(nn.Module):
    """sum_j sum_k max(0, 1 - |y_j - x_i - p_k| / extent) W_k f_j over the neighbours j of i, with
    BatchNorm and LeakyReLU. Memory: n times neighbours times kernel points."""

    def __init__(self, in_channels: int, channels: int, cell: float, kernel: int) -> None:
        super().__init__()
        self.extent = EXTENT * cell
        # Another machine's last digits, or another disposition, shall not change a checkpoint.
        self.register_buffer("points", RADIUS * cell * torch.tensor(disposition(kernel)))
        self.points: Tensor
        self.weight = nn.Parameter(torch.empty(kernel, in_channels, channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor, gap: Tensor, index: Tensor) -> Tensor:
        """x (m c); gap (n k 3), index (n k): the neighbours; -1 for none."""
        n, k = index.shape
        # Not by |a|^2 - 2ab + |b|^2, which near a kernel point leaves no digits under the root.
        exact = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(gap.reshape(-1, 3), self.points, compute_mode=exact).view(n, k, -1)
        influence = (1 - distance / self.extent).clamp(min=0)  # (n k kernel)
        influence = influence * (index >= 0)[:, :, None]
        rows = x.index_select(0, index.clamp(min=0).reshape(-1)).view(n, k, -1)
        gathered = influence.transpose(1, 2) @ rows  # (n kernel c)
        return F.leaky_relu(self.norm(gathered.flatten(1) @ self.weight.flatten(0, 1)), SLOPE)


class Residual(nn.Module):
    """A quarter of the channels, a convolution, all channels, added to what came in (or to the
    maximum over the neighbours, where the points change)."""

    def __init__(self, in_channels: int, channels: int, cell: float, kernel: int) -> None:
        super().__init__()
        few = channels // 4
        self.before = Linear(in_channels, few) if in_channels != few else nn.Identity()
        self.conv = KernelConv(few, few, cell, kernel)
        self.after = Linear(few, channels, relu=False)
        same = in_channels == channels
        self.shortcut = nn.Identity() if same else Linear(in_channels, channels, relu=False)

    def forward(self, x: Tensor, gap: Tensor, index: Tensor, strided: bool) -> Tensor:
        y = self.after(self.conv(self.before(x), gap, index))
        if strided:
            n, k = index.shape
            rows = x.index_select(0, index.clamp(min=0).reshape(-1)).view(n, k, -1)
            x = rows.masked_fill((index < 0)[:, :, None], -torch.inf).amax(1)
        return F.leaky_relu(y + self.shortcut(x), SLOPE)


class KPConv(Encoder):
    """Rigid kernel point convolutions in residual blocks, on grids of doubling width; mean over
    the coarsest one, or nearest-point upsampling with skip connections.

    Paper: Thomas, Qi, Deschaud, Marcotegui, Goulette, Guibas: KPConv, ICCV 2019.
    https://arxiv.org/abs/1904.08889
    Differs: the network is that of the authors' PyTorch version (rigid everywhere; the deformable
    kernels, with their own loss, are not here): without features and with 40 classes 6,143,688
    parameters; with its weights the outputs are equal (1e-6) but for one thing: there an absent
    neighbour counts as a zero in a maximum, where the batch has a point with more of them, here not
    at all. Kernel points are not turned and shaken anew in every layer, and the grids not in every
    batch. A point sees its ``limit`` nearest neighbours at most; there the number follows from the
    data. Beside ``features`` it sees a constant 1; relative positions are in the kernels.

    Args:
        points: number of surface samples to look at; null: the shape's own vertices.
        cell: width of the finest grid.
        width: channels of the first level; doubled in each.
        levels: of the pyramid.
        kernel: points of a kernel.
        limit: neighbours that are looked at, at most.
    """

    featureless = True
    small = MappingProxyType({"points": None, "cell": 0.1, "width": 16, "levels": 3})
    symmetries = frozenset({"permutation"})
    counts = (Count(6_143_688, {}, 0, "whole", 40),)

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int | None = None,
        cell: float = 0.02,
        width: int = 64,
        levels: int = 5,
        kernel: int = 15,
        limit: int = 40,
    ) -> None:
        super().__init__(in_channels, spec, out)
        if width % 4 or cell <= 0 or kernel < 2:
            raise UserError(
                f"encoder.width={width} must be a multiple of 4, encoder.cell={cell} positive, "
                f"encoder.kernel={kernel} 2 or more."
            )
        self.needs = Needs.of(Points(points) if points else None)
        self.cell, self.limit = cell, limit
        self.first = KernelConv(1 + in_channels, width // 2, cell, kernel)
        self.down = nn.ModuleList()  # from each level to the next
        self.blocks = nn.ModuleList()
        below = width // 2
        for level in range(levels):
            c, size = width * 2**level, cell * 2**level
            here = [Residual(below, c, size, kernel)]
            here += [Residual(c, c, size, kernel)] if level else []
            self.blocks.append(nn.ModuleList(here))
            if level < levels - 1:
                self.down.append(Residual(c, c, size, kernel))
            below = c
        if out == "whole":
            self.last = nn.Sequential(nn.Linear(below, 1024), nn.LeakyReLU(SLOPE))
            self.channels = 1024
            return
        widths = [width * 2**level for level in range(levels)]
        self.up = nn.ModuleList(Linear(3 * c, c) for c in widths[:-1])
        self.last = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(SLOPE))
        self.channels = width

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        grid, x = self._coarser(torch.cat([torch.ones_like(batch.pos[:, :1]), x], 1), batch, 0)
        levels: list[tuple[ShapeBatch, Tensor]] = []
        for level, blocks in enumerate(self.blocks):
            gap, index = self._neighbours(grid, grid, level)
            if level == 0:
                x = self.first(x, gap, index)
            for block in cast(nn.ModuleList, blocks):
                x = block(x, gap, index, False)
            levels.append((grid, x))
            if level < len(self.down):
                coarse, _ = self._coarser(x[:, :0], grid, level + 1)
                x = self.down[level](x, *self._neighbours(coarse, grid, level), True)
                grid = coarse
        if self.out == "whole":
            return Encoding(whole=self.last(grid.mean(x)))
        for level in reversed(range(len(self.up))):
            fine, own = levels[level]
            x = self.up[level](torch.cat([_nearest(x, grid, fine), own], dim=1))
            grid = fine
        return self.elements(_nearest(self.last(x), grid, batch), batch)

    def _coarser(self, x: Tensor, points: ShapeBatch, level: int) -> tuple[ShapeBatch, Tensor]:
        """The means of the points, and of their rows, in the cells of a level's grid."""
        cell, sizes = cells(points.pos, points.sizes, self.cell * 2**level)
        both = means(torch.cat([points.pos, x], dim=1), cell, sum(sizes))
        return cloud(points, both[:, :3], sizes), both[:, 3:]

    def _neighbours(
        self, centres: ShapeBatch, points: ShapeBatch, level: int
    ) -> tuple[Tensor, Tensor]:
        radius = RADIUS * self.cell * 2**level
        index = within(centres.pos, centres.sizes, radius, self.limit, points.pos, points.sizes)
        return points.pos[index.clamp(min=0)] - centres.pos[:, None], index


def _nearest(x: Tensor, coarse: ShapeBatch, fine: ShapeBatch) -> Tensor:
    return x[knn(fine.pos, fine.sizes, 1, coarse.pos, coarse.sizes)[:, 0]]
