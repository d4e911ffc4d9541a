"""SpiralNet++'s decoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from geodl.decoders.base import Decoder
from geodl.encoders.spiralnet import SpiralConv, glorot, spirals_of
from geodl.encoders.template import Unpool, check_sizes
from geodl.ops.hierarchy import pyramid
from geodl.spec import DataSpec


class Spiral(Decoder):
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
        super().__init__(latent, spec)
        lists = [list(x) for x in (channels, factors, length, dilation)]
        names = ("channels", "factors", "length", "dilation")
        check_sizes("decoder", **dict(zip(names, lists, strict=True)))
        indices = spirals_of(self.template, *lists[1:])
        levels = pyramid(self.template, tuple(lists[1]))
        self.coarsest = len(levels[-1].pos)
        self.first = nn.Linear(latent, self.coarsest * channels[-1])
        glorot(self.first)
        self.unpools = nn.ModuleList(Unpool(level) for level in reversed(levels))
        widths = [channels[-1], *reversed(channels)]
        self.convs = nn.ModuleList(
            SpiralConv(widths[i], widths[i + 1], index) for i, index in enumerate(reversed(indices))
        )
        self.last = SpiralConv(channels[0], 3, indices[0])

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).view(len(z), self.coarsest, -1)
        for unpool, conv in zip(self.unpools, self.convs, strict=True):
            x = F.elu(conv(unpool(x)))
        return self.last(x)
