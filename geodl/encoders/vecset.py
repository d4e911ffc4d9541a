"""A shape as a set of vectors."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor, nn

from geodl.encoders.base import Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.attention import Attention, Gated, Waves
from geodl.nn.neighbors import farthest
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points


class VecSet(Encoder):
    """Points that lie far from each other ask all points by attention; the answers, a few numbers
    each, one after the other, are the code of the shape.

    Paper: Zhang, Tang, Niessner, Wonka: 3DShape2VecSet, SIGGRAPH 2023.
    https://arxiv.org/abs/2301.11445 There 2,048 points, 512 vectors of 8 numbers, width 512,
    eight waves. It works with ``decoder=vecset``; with 24 blocks there, both have 106,155,537
    parameters, the authors' 26,624 fewer (one embedding of points for encoder and decoder).
    Differs: the default is small; features stand beside the coordinates, if there are any.

    Args:
        points: number of surface samples.
        count: number of vectors.
        size: numbers of each.
        width: channels inside.
        waves: frequencies of the coordinates; many make small data sets learned by heart.
        variance: half of the code says how sure the other half is (for ``task.kl``).
    """

    outputs = ("whole",)
    symmetries = frozenset()  # the first point is the first query
    featureless = True
    small = MappingProxyType({"points": None, "count": 4, "size": 4, "width": 16})

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int | None = 1024,
        count: int = 32,
        size: int = 8,
        width: int = 96,
        waves: int = 4,
        variance: bool = False,
    ) -> None:
        super().__init__(in_channels, spec, out)
        self.needs = Needs.of(Points(points) if points else None)
        self.count = count
        self.embed = Waves(width, waves, in_channels)
        self.ask = Attention(width, 1, others=True)
        self.gated = Gated(width)
        self.mean = nn.Linear(width, size)
        self.variance = nn.Linear(width, size) if variance else None
        self.channels = count * size * (2 if variance else 1)

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        if min(batch.sizes) < self.count:
            small = batch.names[batch.sizes.index(min(batch.sizes))]
            raise UserError(
                f"{small or 'a shape'} has {min(batch.sizes)} points, fewer than "
                f"encoder.count={self.count}: give it more, or ask for fewer vectors."
            )
        at, _ = farthest(batch.pos, batch.sizes, self.count)
        rows = self.embed(torch.cat([batch.pos, x], dim=1))
        query = rows[at].view(len(batch), self.count, -1)
        if batch.equal_sizes:
            heard = self.ask(query, batch.dense(rows))
        else:
            own = zip(query, rows.split(batch.sizes), strict=True)
            heard = torch.cat([self.ask(q[None], p[None]) for q, p in own])
        y = query + heard
        y = y + self.gated(y)
        found = [self.mean(y), *([] if self.variance is None else [self.variance(y)])]
        return Encoding(whole=torch.cat([part.flatten(1) for part in found], dim=1))
