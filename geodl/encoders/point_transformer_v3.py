"""Point Transformer V3: attention within patches of a space-filling curve."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.attention import kept
from geodl.nn.mlp import mlp
from geodl.nn.neighbors import cells, means, owners
from geodl.nn.serialize import ORDERS, code
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points

DEPTH = 12  # bits of a cell's number per axis: grids of 4,096 cells a side at most
NORM = 1e-3  # of the BatchNorms, as in the authors' code


@dataclass
class Grid:
    """Occupied cells (n 3) of all shapes, shape by shape, so many of each; their places on the four
    curves (4 n), with the number of the shape in front. ``memo``: what blocks share."""

    cell: Tensor
    sizes: list[int]
    codes: Tensor
    memo: dict[object, Tensor] = field(default_factory=dict)

    def neighbours(self, width: int) -> Tensor:
        """The numbers (n width^3) of the cells around each cell, -1 where there is none."""
        if width not in self.memo:
            bits = DEPTH + 1  # one cell of margin on either side
            shape = owners(self.sizes, self.cell.device)
            reach = range(-(width // 2), width // 2 + 1)
            steps = torch.tensor(list(itertools.product(reach, reach, reach)))
            around = self.cell[:, None] + steps.to(self.cell) + width
            key = _key(self.cell + width, shape, bits)
            order = key.argsort()
            wanted = _key(around.flatten(0, 1), shape.repeat_interleave(len(steps)), bits)
            place = torch.searchsorted(key[order], wanted).clamp(max=len(key) - 1)
            index = order[place]
            self.memo[width] = torch.where(key[index] == wanted, index, -1).view(-1, len(steps))
        return self.memo[width]

    def patches(self, curve: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Consecutive cells on a curve: their numbers (p size), which are real (p size), and where
        in the flattened patches every cell's own row is (n). The last patch of a shape reaches back
        to be full, as in the authors' code; a shape with fewer cells is one patch."""
        name = ("patches", curve, size)
        if name not in self.memo:
            order = self.codes[curve].argsort()
            device = order.device
            place = torch.empty_like(order)
            place[order] = torch.arange(len(order), device=device)
            index, own, begin, rows = [], [], 0, 0
            for n in self.sizes:
                first = torch.arange(0, n, size, device=device)
                start = first.clamp(max=max(0, n - size))
                index.append(
                    torch.where(
                        (slot := torch.arange(size, device=device)) < n - start[:, None],
                        start[:, None] + slot + begin,
                        -1,
                    )
                )
                at = torch.arange(n, device=device)
                patch = at // size
                own.append(rows + patch * size + at - start[patch])
                begin += n
                rows += len(first) * size
            found = torch.cat(index)
            self.memo[name] = torch.where(found >= 0, order[found.clamp(min=0)], 0)
            self.memo["real", curve, size] = found >= 0
            self.memo["own", curve, size] = torch.cat(own)[place]
        return self.memo[name], self.memo["real", curve, size], self.memo["own", curve, size]


def _key(cell: Tensor, shape: Tensor, bits: int) -> Tensor:
    return ((shape << bits | cell[:, 0]) << bits | cell[:, 1]) << bits | cell[:, 2]


class SparseConv(nn.Module):
    """Convolution on occupied cells, at the cells where the input is (submanifold): the sum over
    the neighbours that exist of W_offset times their rows."""

    def __init__(self, in_channels: int, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(width**3, in_channels, channels))
        nn.init.normal_(self.weight, std=(width**3 * in_channels) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        index = grid.neighbours(self.width)
        total = x.new_zeros(len(x), self.weight.shape[2])
        for offset, weight in enumerate(self.weight):
            there = (index[:, offset] >= 0).nonzero()[:, 0]
            rows = x[index[there, offset]] @ weight
            total = total.index_add(0, there, rows.to(total))
        return total if self.bias is None else total + self.bias


class PatchAttention(nn.Module):
    """Self-attention among the cells of each patch. Memory: n times the patch's size."""

    def __init__(self, channels: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, grid: Grid, curve: int) -> Tensor:
        index, real, own = grid.patches(curve, self.size)
        p, k = index.shape
        rows = self.qkv(x).index_select(0, index.reshape(-1)).view(p, k, 3, self.heads, -1)
        q, key, v = rows.permute(2, 0, 3, 1, 4)
        mask = None if bool(real.all()) else real[:, None, None]
        y = F.scaled_dot_product_attention(q, key, v, mask)
        return self.out(y.transpose(1, 2).reshape(p * k, -1).index_select(0, own))


class Block(nn.Module):
    """Sparse convolution for the position, attention, MLP, each added to what came in."""

    def __init__(self, channels: int, heads: int, size: int, curve: int, drop: float) -> None:
        super().__init__()
        self.curve, self.drop = curve, drop
        self.position = SparseConv(channels, channels, 3, bias=True)
        self.mixed = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.attention = PatchAttention(channels, heads, size)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor, grid: Grid, order: Sequence[int]) -> Tensor:
        x = x + self.mixed(self.position(x, grid))
        curve = order[self.curve % len(order)]
        y = self.attention(self.norms[0](x), grid, curve)
        x = x + kept(y, self.drop, self.training)
        return x + kept(self.mlp(self.norms[1](x)), self.drop, self.training)


class Projection(nn.Sequential):
    """Linear, BatchNorm, GELU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(
            nn.Linear(in_channels, channels), nn.BatchNorm1d(channels, eps=NORM), nn.GELU()
        )


class PointTransformerV3(Encoder):
    """Cells of a grid in the order of space-filling curves, attention within patches of the order,
    grids twice as wide level by level; for elements, back up with skip connections.

    Paper: Wu, Jiang, Wang, Liu, Liu, Qiao, Ouyang, He, Zhao: Point Transformer V3, CVPR 2024.
    https://arxiv.org/abs/2312.10035
    Differs: the network is Pointcept's, 46,167,117 parameters with 6 channels in and 13 parts. Its
    serialisation codes are equal, and on one shape, orders in place and its sparse convolutions as
    sums, so are the outputs (4e-6), but for one thing: there the first block after each step back
    takes its sparse convolution of the skip connection alone, in their later versions and here of
    the sum. The sparse convolution is a loop over offsets in plain torch. Shapes are put on the
    grid here, the mean of each cell, and a shape's grid begins at its own corner, not at the
    batch's. Orders are shuffled in training only. A shape of fewer than ``patch`` cells is masked
    instead of shrinking the patches of all.

    Args:
        points: number of surface samples to look at; null: the shape's own vertices.
        cell: width of the finest grid.
        depths: blocks per level.
        channels: per level.
        heads: per level.
        patch: cells that attend to each other.
        up_depths, up_channels, up_heads: on the way back, per level but the coarsest.
        drop: stochastic depth of the last block, growing from 0 in the first.
        dropout: probability behind both hidden layers of the form for whole shapes.
    """

    symmetries = frozenset({"permutation"})
    small = MappingProxyType(
        {"points": None, "cell": 0.1, "depths": [1, 1], "channels": [8, 16], "heads": [2, 2]}
        | {"patch": 16, "up_depths": [1], "up_channels": [8], "up_heads": [2]}
    )
    counts = (Count(46_167_117, {}, 6, "vertex", 13),)

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int | None = None,
        cell: float = 0.02,
        depths: Sequence[int] = (2, 2, 2, 6, 2),
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        heads: Sequence[int] = (2, 4, 8, 16, 32),
        patch: int = 1024,
        up_depths: Sequence[int] = (2, 2, 2, 2),
        up_channels: Sequence[int] = (64, 64, 128, 256),
        up_heads: Sequence[int] = (4, 4, 8, 16),
        drop: float = 0.3,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(in_channels, spec, out)
        same = len(depths) == len(channels) == len(heads) > 0
        up = len(up_depths) == len(up_channels) == len(up_heads)
        if not (same and up and (len(up_heads) == len(heads) - 1 or out == "whole")):
            raise UserError(
                "encoder.depths, channels and heads need one number per level, up_depths, "
                "up_channels and up_heads one less."
            )
        if cell <= 0 or not 0 <= drop < 1:
            raise UserError(
                f"encoder.cell={cell} must be positive, encoder.drop={drop} less than 1."
            )
        if any(c % h for c, h in zip([*channels, *up_channels], [*heads, *up_heads], strict=True)):
            raise UserError(
                "encoder.channels, up_channels must be multiples of encoder.heads, up_heads."
            )
        self.needs = Needs.of(Points(points) if points else None)
        self.cell = cell
        self.stem = SparseConv(in_channels, channels[0], 5, bias=False)
        self.first = nn.Sequential(nn.BatchNorm1d(channels[0], eps=NORM), nn.GELU())
        self.pool = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(channels))
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(c, eps=NORM), nn.GELU()) for c in channels[1:]
        )
        self.blocks = _blocks(channels, heads, depths, patch, drop)
        if out == "whole":
            self.last = mlp([channels[-1], 256, 128], dropout=dropout)
            self.channels = 128
            return
        below = [*up_channels[1:], channels[-1]]
        self.below = nn.ModuleList(
            Projection(i, o) for i, o in zip(below, up_channels, strict=True)
        )
        self.beside = nn.ModuleList(
            Projection(i, o) for i, o in zip(channels, up_channels, strict=False)
        )
        self.back = _blocks(up_channels, up_heads, up_depths, patch, drop)
        self.channels = up_channels[0]

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        grid, x, cell = self._gridded(x, batch)
        order = torch.randperm(len(ORDERS)).tolist() if self.training else range(len(ORDERS))
        x = self.first(self.stem(x, grid))
        levels: list[tuple[Tensor, Grid, Tensor]] = []
        for level, blocks in enumerate(self.blocks):
            if level:
                coarse, parent = _coarser(grid)
                y = self.pool[level - 1](x)
                index = parent[:, None].expand_as(y)
                y = y.new_zeros(sum(coarse.sizes), y.shape[1]).scatter_reduce(
                    0, index, y, "amax", include_self=False
                )
                levels.append((x, grid, parent))
                x, grid = self.pooled[level - 1](y), coarse
            for block in cast(nn.ModuleList, blocks):
                x = block(x, grid, order)
        if self.out == "whole":
            whole = torch.stack([part.mean(0) for part in x.split(grid.sizes)])
            return Encoding(whole=self.last(whole))
        for level in reversed(range(len(levels))):
            beside, grid, parent = levels[level]
            x = self.beside[level](beside) + self.below[level](x)[parent]
            for block in cast(nn.ModuleList, self.back[level]):
                x = block(x, grid, order)
        return self.elements(x[cell], batch)

    def _gridded(self, x: Tensor, batch: ShapeBatch) -> tuple[Grid, Tensor, Tensor]:
        """The finest grid, the mean rows of its cells, and every point's cell."""
        corner = torch.stack([p.min(0).values for p in batch.pos.split(batch.sizes)])
        pos = (batch.pos - batch.spread(corner)) / self.cell
        cell, sizes = cells(pos, batch.sizes, 1.0)
        place = means(torch.floor(pos).double(), cell, sum(sizes)).round().long()
        if int(place.max()) >= 2**DEPTH:
            raise UserError(
                f"a shape is {int(place.max())} cells of encoder.cell={self.cell} long, more than "
                f"{2**DEPTH}: take wider cells."
            )
        shape = owners(sizes, x.device) << 3 * DEPTH
        codes = torch.stack([shape | code(place, DEPTH, name) for name in ORDERS])
        return Grid(place, sizes, codes), means(x, cell, sum(sizes)), cell


def _blocks(
    channels: Sequence[int], heads: Sequence[int], depths: Sequence[int], patch: int, drop: float
) -> nn.ModuleList:
    rates = torch.linspace(0, drop, sum(depths)).tolist()
    starts = itertools.accumulate(depths, initial=0)
    return nn.ModuleList(
        nn.ModuleList(Block(c, h, patch, i, rates[start + i]) for i in range(n))
        for c, h, n, start in zip(channels, heads, depths, starts, strict=False)
    )


def _coarser(grid: Grid) -> tuple[Grid, Tensor]:
    """Cells twice as wide, and in which of them every cell lies."""
    shape = grid.codes[0] >> 3 * DEPTH
    low = (grid.codes & (2 ** (3 * DEPTH) - 1)) >> 3
    keys, parent = torch.unique(shape << 3 * DEPTH | low[0], return_inverse=True)
    one = torch.zeros_like(keys).scatter_(0, parent, torch.arange(len(parent), device=keys.device))
    codes = (shape << 3 * DEPTH | low)[:, one]
    sizes = torch.bincount(keys >> 3 * DEPTH, minlength=len(grid.sizes)).tolist()
    return Grid(grid.cell[one] >> 1, sizes, codes), parent
