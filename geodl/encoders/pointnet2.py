"""PointNet++: small PointNets on balls, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.mlp import mlp
from geodl.nn.neighbors import ball, cloud, farthest, interpolated
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points


class Scale(NamedTuple):
    """A ball around every centre: its radius, how many points of it are looked at, layers."""

    radius: float
    k: int
    widths: tuple[int, ...]


# Levels of the authors' networks, each with its scales.
SINGLE = ((Scale(0.2, 32, (64, 64, 128)),), (Scale(0.4, 64, (128, 128, 256)),))
MULTI = (
    (Scale(0.1, 16, (32, 32, 64)), Scale(0.2, 32, (64, 64, 128)), Scale(0.4, 128, (64, 96, 128))),
    (
        Scale(0.2, 32, (64, 64, 128)),
        Scale(0.4, 64, (128, 128, 256)),
        Scale(0.8, 128, (128, 128, 256)),
    ),
)
MULTI_PARTS = (
    (Scale(0.1, 32, (32, 32, 64)), Scale(0.2, 64, (64, 64, 128)), Scale(0.4, 128, (64, 96, 128))),
    (Scale(0.4, 64, (128, 128, 256)), Scale(0.8, 128, (128, 196, 256))),
)


class Gathered(nn.Module):
    """The first layer on [x_j - c_i, f_j] for the neighbours j of the centres i, with its norm.

    It is linear, so points are multiplied, and what comes out is gathered: 32 to 64 times fewer
    products than on the gathered rows.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 + in_channels, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(
        self, x: Tensor, pos: Tensor, centres: Tensor, index: Tensor, unit: float = 1.0
    ) -> Tensor:
        """x (n c), pos (n 3), centres (m 3), index (m k) -> (m*k width)."""
        m, k = index.shape
        at = self.linear.weight[:, :3] / unit
        points = F.linear(x, self.linear.weight[:, 3:], self.linear.bias) + pos @ at.T
        rows = points.index_select(0, index.reshape(-1)).view(m, k, -1)
        return self.norm((rows - (centres @ at.T)[:, None]).flatten(0, 1))


class Ball(nn.Module):
    """Largest value, over the points in a ball, of an MLP on relative position and features."""

    def __init__(self, in_channels: int, scale: Scale) -> None:
        super().__init__()
        self.radius, self.k = scale.radius, scale.k
        self.first = Gathered(in_channels, scale.widths[0])
        self.rest = mlp(list(scale.widths))

    def forward(self, x: Tensor, points: ShapeBatch, centres: ShapeBatch) -> Tensor:
        index = ball(centres.pos, centres.sizes, self.radius, self.k, points.pos, points.sizes)
        rows = self.rest(F.relu(self.first(x, points.pos, centres.pos, index), inplace=True))
        return rows.view(*index.shape, -1).amax(1)


class Residual(nn.Module):
    """Inverted residual MLP (PointNeXt, Fig. 3): one layer and the maximum over the ball, two
    layers on the point, the first four times as wide, added to what came in."""

    def __init__(self, width: int, scale: Scale) -> None:
        super().__init__()
        self.radius, self.k = scale.radius, scale.k
        self.first = Gathered(width, width)
        self.point = nn.Sequential(
            *mlp([width, 4 * width]), nn.Linear(4 * width, width), nn.BatchNorm1d(width)
        )

    def forward(self, x: Tensor, points: ShapeBatch) -> Tensor:
        index = ball(points.pos, points.sizes, self.radius, self.k, points.pos, points.sizes)
        rows = F.relu(self.first(x, points.pos, points.pos, index, self.radius))
        return F.relu(x + self.point(rows.view(*index.shape, -1).amax(1)))


class Level(nn.Module):
    """Fewer points, farthest from each other, each with what its balls hold."""

    def __init__(
        self, in_channels: int, scales: Sequence[Scale], centres: int, residuals: int
    ) -> None:
        super().__init__()
        self.centres = centres
        self.balls = nn.ModuleList(Ball(in_channels, s) for s in scales)
        self.channels = sum(s.widths[-1] for s in scales)
        # Centres are sparser than points: their balls are twice as large.
        wide = Scale(2 * scales[-1].radius, 32, ())
        self.residuals = nn.ModuleList(Residual(self.channels, wide) for _ in range(residuals))

    def forward(self, x: Tensor, points: ShapeBatch) -> tuple[Tensor, ShapeBatch]:
        rows, sizes = farthest(points.pos, points.sizes, self.centres)
        centres = cloud(points, points.pos[rows], sizes)
        x = torch.cat([ball(x, points, centres) for ball in self.balls], dim=1)
        for block in self.residuals:
            x = block(x, centres)
        return x, centres


class PointNet2(Encoder):
    """Two levels of farthest-point centres with the maximum of an MLP over their balls, one more
    over all that is left; for elements, three-nearest interpolation back, level by level.

    Paper: Qi, Yi, Su, Guibas: PointNet++, NeurIPS 2017. https://arxiv.org/abs/1706.02413
    Differs: the networks are those of yanx27's PyTorch version: without features and with 40
    classes 1,475,688 parameters (ssg) and 1,747,368 (msg), with normals 1,747,848; parts of
    ShapeNetPart, xyz as features and the class given, 1,411,250 and 1,740,958. The first centre is
    the first point, not a random one; one dropout for all (there .5 in places). Positions relative
    to the centres are always seen; ``features`` come beside them (features=none: no others).
    ``residuals`` adds PointNeXt's blocks behind every level (Qian et al., NeurIPS 2022), without
    its other widths and strides.

    Args:
        points: number of surface samples to look at; null: the shape's own vertices.
        form: "ssg", one ball around each centre, or "msg", several.
        centres: of the two levels.
        residuals: inverted residual blocks behind every level.
        dropout: probability behind the last hidden layers.
        use_category: give the shape's class as a one-hot vector to the segmentation form.
    """

    symmetries = frozenset()  # the first point is the first centre
    featureless = True
    small = MappingProxyType({"points": None, "centres": [32, 8]})
    counts = (
        Count(1_475_688, {}, 0, "whole", 40),
        Count(1_747_368, {"form": "msg"}, 0, "whole", 40),
        Count(1_747_848, {"form": "msg"}, 3, "whole", 40),
        Count(1_411_250, {"use_category": True}, 3, "vertex", 50),
        Count(1_740_958, {"form": "msg", "use_category": True}, 3, "vertex", 50),
        Count(1_741_822, {"form": "msg", "use_category": True}, 6, "vertex", 50),
    )

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int | None = 1024,
        form: Literal["ssg", "msg"] = "ssg",
        centres: Sequence[int] = (512, 128),
        residuals: int = 0,
        dropout: float = 0.4,
        use_category: bool = False,
    ) -> None:
        super().__init__(in_channels, spec, out)
        if form not in ("ssg", "msg"):
            raise UserError(f"encoder.form={form} is not known: choose ssg or msg.")
        if len(centres) != 2 or min(centres) < 1:
            raise UserError(f"encoder.centres={list(centres)} must be two positive numbers.")
        self.needs = Needs.of(Points(points) if points else None)
        whole = out == "whole"
        levels = SINGLE if form == "ssg" else MULTI if whole else MULTI_PARTS
        widths = [in_channels]
        self.levels = nn.ModuleList()
        for scales, count in zip(levels, centres, strict=True):
            level = Level(widths[-1], scales, count, residuals)
            widths.append(level.channels)
            self.levels.append(level)
        self.all = mlp([3 + widths[-1], 256, 512, 1024])
        self.tell(use_category, spec)
        if whole:
            self.last = mlp([1024, 512, 256], dropout=dropout)
            self.channels = 256
            return
        beside = self.categories + 3 + in_channels
        ends = ((256, 256), (256, 128), (128, 128, 128) if form == "ssg" else (128, 128))
        steps = zip((1024, 256, 128), (widths[2], widths[1], beside), ends, strict=True)
        self.up = nn.ModuleList(mlp([below + x, *end]) for below, x, end in steps)
        self.last = mlp([128, 128], dropout=dropout)
        self.channels = 128

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        features, clouds = [x], [batch]
        for level in self.levels:
            x, centres = level(x, clouds[-1])
            features.append(x)
            clouds.append(centres)
        whole = clouds[-1].max(self.all(torch.cat([clouds[-1].pos, x], dim=1)))
        if self.out == "whole":
            return Encoding(whole=self.last(whole))
        own = [batch.pos, features[0]]
        if self.categories:
            hot = self.one_hot(batch).to(x)
            own.insert(0, batch.spread(hot))
        features[0] = torch.cat(own, dim=1)
        x = clouds[-1].spread(whole)
        x = self.up[0](torch.cat([features[2], x], dim=1))
        for i in (1, 0):
            back = interpolated(x, clouds[i + 1], clouds[i])
            x = self.up[2 - i](torch.cat([features[i], back], dim=1))
        return self.elements(self.last(x), batch)
