"""CoMA's decoder."""

from __future__ import annotations

from torch import nn

from geodl.decoders.base import PyramidDecoder
from geodl.nn.cheb import ChebConv, laplacians_of
from geodl.spec import DataSpec


class Cheb(PyramidDecoder):
    """A linear layer, then unpooling, Chebyshev convolution and ELU per level; a last Chebyshev
    convolution to three channels.

    Paper and differences: see ``geodl.encoders.chebnet.ChebNet``; options as there, from fine to
    coarse.
    """

    def __init__(
        self,
        latent: int,
        spec: DataSpec,
        channels: list[int] | tuple[int, ...] = (16, 16, 16, 32),
        factors: list[int] | tuple[int, ...] = (4, 4, 4, 4),
        order: int = 6,
    ) -> None:
        super().__init__(latent, spec, channels, factors)
        laps = laplacians_of(self.template, list(factors))
        w = self.widths
        self.convs = nn.ModuleList(
            ChebConv(w[i], w[i + 1], order, lap) for i, lap in enumerate(reversed(laps))
        )
        self.last = ChebConv(channels[0], 3, order, laps[0])
