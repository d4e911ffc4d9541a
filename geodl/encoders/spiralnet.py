"""SpiralNet++: linear layers on spiral sequences of a template's vertices."""

from __future__ import annotations

from types import MappingProxyType

import torch

from geodl.encoders.template import PyramidEncoder
from geodl.nn.pyramid import check_sizes
from geodl.nn.spiral import SpiralConv, spirals_of
from geodl.ops.hierarchy import pyramid
from geodl.spec import DataSpec, Out


class SpiralNet(PyramidEncoder):
    """Spiral convolution, ELU and pooling per level; all vertices of the last level as one vector.

    Paper: Gong, Chen, Bronstein, Zafeiriou: SpiralNet++, ICCVW 2019.
    https://arxiv.org/abs/1911.05856
    Differs: U is barycentric on the coarse mesh (the usual construction extrapolates, with entries
    from -3 to 4), and decimation is that of another library. With its decoder, 5,023 vertices,
    channels 32, 32, 32, 64 and latent 16: 154,899 parameters, as the authors' (the last linear
    layer is the task's head).

    Args:
        channels: one entry per level.
        factors: how many times fewer vertices each level has.
        length: vertices per spiral, per level.
        dilation: every how-many-th vertex of the sequence, per level.
    """

    small = MappingProxyType(
        {"channels": [8, 8], "factors": [4, 4], "length": [9, 9], "dilation": [1, 1]}
    )

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        channels: list[int] | tuple[int, ...] = (32, 32, 32, 64),
        factors: list[int] | tuple[int, ...] = (4, 4, 4, 4),
        length: list[int] | tuple[int, ...] = (9, 9, 9, 9),
        dilation: list[int] | tuple[int, ...] = (1, 1, 1, 1),
    ) -> None:
        super().__init__(in_channels, spec, out)
        lists = [list(x) for x in (channels, factors, length, dilation)]
        names = ("channels", "factors", "length", "dilation")
        check_sizes("encoder", **dict(zip(names, lists, strict=True)))
        indices = spirals_of(self.template, *lists[1:])
        widths = [in_channels, *channels]
        # Pooling takes vertices away, so nothing is computed for the others.
        down = [torch.from_numpy(level.down) for level in pyramid(self.template, tuple(factors))]
        convs = (
            SpiralConv(widths[i], widths[i + 1], x[down[i]], len(x)) for i, x in enumerate(indices)
        )
        self.stack(convs, factors, widths[-1], pooled=True)
