"""CoMA's decoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from geodl.decoders.base import Decoder
from geodl.encoders.chebnet import ChebConv, laplacians_of
from geodl.encoders.spiralnet import glorot
from geodl.encoders.template import Unpool, check_sizes
from geodl.ops.hierarchy import pyramid
from geodl.spec import DataSpec


class Cheb(Decoder):
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
        super().__init__(latent, spec)
        check_sizes("decoder", channels=list(channels), factors=list(factors))
        laps = laplacians_of(self.template, list(factors))
        levels = pyramid(self.template, tuple(factors))
        self.coarsest = len(levels[-1].pos)
        self.first = nn.Linear(latent, self.coarsest * channels[-1])
        glorot(self.first)
        self.unpools = nn.ModuleList(Unpool(level) for level in reversed(levels))
        widths = [channels[-1], *reversed(channels)]
        self.convs = nn.ModuleList(
            ChebConv(widths[i], widths[i + 1], order, lap) for i, lap in enumerate(reversed(laps))
        )
        self.last = ChebConv(channels[0], 3, order, laps[0])

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).view(len(z), self.coarsest, -1)
        for unpool, conv in zip(self.unpools, self.convs, strict=True):
            x = F.elu(conv(unpool(x)))
        return self.last(x)
