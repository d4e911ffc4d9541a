"""SpiralNet++'s decoder."""

from __future__ import annotations

from torch import nn

from geodl.decoders.base import PyramidDecoder
from geodl.nn.spiral import SpiralConv, spirals_of
from geodl.spec import DataSpec


class Spiral(PyramidDecoder):
    """A linear layer, then unpooling, spiral convolution and ELU per level; a last spiral
    convolution to three channels.

    Paper and differences: see ``geodl.encoders.spiralnet.SpiralNet``; options as there, from fine
    to coarse.
    """

    def __init__(
        self,
        latent: int,
        spec: DataSpec,
        channels: list[int] | tuple[int, ...] = (32, 32, 32, 64),
        factors: list[int] | tuple[int, ...] = (4, 4, 4, 4),
        length: list[int] | tuple[int, ...] = (9, 9, 9, 9),
        dilation: list[int] | tuple[int, ...] = (1, 1, 1, 1),
    ) -> None:
        more = {"length": list(length), "dilation": list(dilation)}
        super().__init__(latent, spec, channels, factors, **more)
        indices = spirals_of(self.template, list(factors), *more.values())
        w = self.widths
        self.convs = nn.ModuleList(
            SpiralConv(w[i], w[i + 1], index) for i, index in enumerate(reversed(indices))
        )
        self.last = SpiralConv(channels[0], 3, indices[0])
