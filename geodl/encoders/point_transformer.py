"""Point Transformer: vector attention to the nearest neighbours, level by level."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.mlp import mlp
from geodl.nn.neighbors import cloud, farthest, interpolated, knn
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points

SHARE = 8  # channels that share an attention weight


class Attention(nn.Module):
    """softmax_j(w(k_j - q_i + d_ij)) over the neighbours j of i, times v_j + d_ij; d_ij: an MLP of
    the relative position. Memory: n k c."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))
        self.position = nn.Sequential(*mlp([3, 3]), nn.Linear(3, channels))
        fewer = channels // SHARE
        self.weight = nn.Sequential(
            nn.BatchNorm1d(channels), nn.ReLU(), *mlp([channels, fewer]), nn.Linear(fewer, fewer)
        )

    def forward(self, x: Tensor, pos: Tensor, index: Tensor) -> Tensor:
        n, k = index.shape
        flat = index.reshape(-1)
        gap = pos.index_select(0, flat) - pos.repeat_interleave(k, dim=0)
        delta = self.position(gap)
        w = self.k(x).index_select(0, flat) - self.q(x).repeat_interleave(k, dim=0) + delta
        w = self.weight(w).view(n, k, 1, -1).softmax(1)
        v = (self.v(x).index_select(0, flat) + delta).view(n, k, SHARE, -1)
        return (v * w).sum(1).flatten(1)


class Block(nn.Module):
    """Linear, attention, linear, each with BatchNorm, added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = nn.Linear(channels, channels, bias=False)
        self.attention = Attention(channels)
        self.after = nn.Linear(channels, channels, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(3))

    def forward(self, x: Tensor, pos: Tensor, index: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.before(x)))
        y = F.relu(self.norms[1](self.attention(y, pos, index)))
        return F.relu(x + self.norms[2](self.after(y)))


class Down(nn.Module):
    """A ``stride``-th of the points, farthest from each other, each with the maximum of one layer
    over its k nearest; with stride 1 the layer alone."""

    def __init__(self, in_channels: int, channels: int, stride: int, k: int) -> None:
        super().__init__()
        self.stride, self.k = stride, k
        beside = 3 if stride > 1 else 0
        self.linear = nn.Linear(beside + in_channels, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor, points: ShapeBatch) -> tuple[Tensor, ShapeBatch]:
        if self.stride == 1:
            return F.relu(self.norm(self.linear(x))), points
        wanted = [max(1, n // self.stride) for n in points.sizes]
        rows, sizes = farthest(points.pos, points.sizes, wanted)
        centres = cloud(points, points.pos[rows], sizes)
        index = knn(centres.pos, sizes, self.k, points.pos, points.sizes)
        # The layer is linear before its norm: multiply points, not pairs.
        at, of = self.linear.weight[:, :3], self.linear.weight[:, 3:]
        pairs = (points.pos @ at.T + x @ of.T).index_select(0, index.reshape(-1))
        pairs = pairs.view(*index.shape, -1) - (centres.pos @ at.T)[:, None]
        return F.relu(self.norm(pairs.flatten(0, 1)).view(*index.shape, -1).amax(1)), centres


class Up(nn.Module):
    """A level's own rows, and those of the coarser level interpolated, one layer each, added."""

    def __init__(self, coarse: int, channels: int) -> None:
        super().__init__()
        self.own, self.below = mlp([channels, channels]), mlp([coarse, channels])

    def forward(self, x: Tensor, fine: ShapeBatch, below: Tensor, coarse: ShapeBatch) -> Tensor:
        return self.own(x) + interpolated(self.below(below), coarse, fine, power=1)


class Head(nn.Module):
    """The coarsest level: every row beside the mean of its shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())
        self.both = mlp([2 * channels, channels])

    def forward(self, x: Tensor, points: ShapeBatch) -> Tensor:
        return self.both(torch.cat([x, points.spread(self.mean(points.mean(x)))], dim=1))


class PointTransformer(Encoder):
    """Five levels of vector attention; for elements, the same back up.

    Paper: Zhao, Jiang, Jia, Torr, Koltun: Point Transformer, ICCV 2021.
    https://arxiv.org/abs/2012.09164
    Differs: for elements the network is the one of its authors' code for scenes, 7,767,729
    parameters with 6 channels in and 13 parts. There is no such code for whole shapes; the one of
    the same people's later code base (Pointcept, "Cls38": blocks 1, 2, 2, 2, 2) has the same
    encoder, a mean, and two layers (2,154,000 with 40 classes). With weights of both, outputs are
    equal up to rounding. ``features`` need positions among them, as there. A level of fewer than k
    points has its nearest repeated.

    Args:
        points: number of surface samples to look at; null: the shape's own vertices.
        widths: channels of the levels, multiples of 8.
        blocks: layers of each level, the first of which makes it from the level before.
        strides: how many times fewer points each level has than the one before.
        k: neighbours in each level.
        dropout: probability behind both hidden layers of the form for whole shapes.
    """

    symmetries = frozenset()  # the first point is the first centre
    small = MappingProxyType(
        {"points": None, "widths": [16, 32], "blocks": [2, 2], "strides": [1, 4], "k": [8, 8]}
    )
    counts = (
        Count(7_767_729, {}, 6, "vertex", 13),
        Count(2_154_000, {"blocks": [1, 2, 2, 2, 2]}, 6, "whole", 40),
        Count(3_262_872, {"blocks": [1, 2, 3, 5, 2]}, 6, "whole", 40),
    )

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int | None = 1024,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        blocks: Sequence[int] = (2, 3, 4, 6, 3),
        strides: Sequence[int] = (1, 4, 4, 4, 4),
        k: Sequence[int] = (8, 16, 16, 16, 16),
        dropout: float = 0.5,
    ) -> None:
        super().__init__(in_channels, spec, out)
        if not len(widths) == len(blocks) == len(strides) == len(k) > 0 or min(blocks) < 1:
            raise UserError("encoder.widths, blocks, strides and k need one number per level.")
        if out != "whole" and strides[0] != 1:
            raise UserError(
                f"encoder.strides={list(strides)} must begin with 1, since this task wants an "
                "answer for every point."
            )
        if any(w % SHARE for w in widths):
            raise UserError(f"encoder.widths={list(widths)} must be multiples of {SHARE}.")
        self.needs = Needs.of(Points(points) if points else None)
        self.k = list(k)
        steps = itertools.pairwise([in_channels, *widths])
        self.down = nn.ModuleList(
            Down(i, o, s, near) for (i, o), s, near in zip(steps, strides, k, strict=True)
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(w) for _ in range(n - 1))
            for w, n in zip(widths, blocks, strict=True)
        )
        if out == "whole":
            self.last = mlp([widths[-1], 256, 128], dropout=dropout)
            self.channels = 128
            return
        self.head = Head(widths[-1])
        self.up = nn.ModuleList(Up(o, i) for i, o in itertools.pairwise(widths))
        self.mixed = nn.ModuleList(Block(w) for w in widths)
        self.last = mlp([widths[0], widths[0]])
        self.channels = widths[0]

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        levels: list[tuple[Tensor, ShapeBatch, Tensor]] = []
        points = batch
        for down, blocks, k in zip(self.down, self.blocks, self.k, strict=True):
            x, points = down(x, points)
            index = knn(points.pos, points.sizes, k)
            for block in cast(nn.ModuleList, blocks):
                x = block(x, points.pos, index)
            levels.append((x, points, index))
        if self.out == "whole":
            return Encoding(whole=self.last(points.mean(x)))
        x = self.mixed[-1](self.head(x, points), points.pos, levels[-1][2])
        for i in reversed(range(len(levels) - 1)):
            own, fine, index = levels[i]
            x = self.mixed[i](self.up[i](own, fine, x, points), fine.pos, index)
            points = fine
        return self.elements(self.last(x), batch)
