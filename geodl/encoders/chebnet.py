"""CoMA: Chebyshev graph convolutions and mesh pooling on a template."""

from __future__ import annotations

from types import MappingProxyType

from geodl.encoders.template import PyramidEncoder
from geodl.nn.cheb import ChebConv, laplacians_of
from geodl.nn.pyramid import check_sizes
from geodl.spec import DataSpec, Out


class ChebNet(PyramidEncoder):
    """Chebyshev convolution, ELU and pooling per level; all vertices of the last level as one
    vector.

    Paper: Ranjan, Bolkart, Sanyal, Black: Generating 3D faces using convolutional mesh
    autoencoders (CoMA), ECCV 2018. https://arxiv.org/abs/1807.10267
    Differs: ELU as in sw-gong's PyTorch version (the TensorFlow original has biased ReLU); pooling
    as in ``SpiralNet``. With its decoder, 5,023 vertices and latent 8: 30,059 parameters, as
    sw-gong's (the original prints 33,856; the last linear layer is the task's head).

    Args:
        channels: one entry per level.
        factors: how many times fewer vertices each level has.
        order: K, the number of Chebyshev polynomials.
    """

    small = MappingProxyType({"channels": [8, 8], "factors": [4, 4]})

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        channels: list[int] | tuple[int, ...] = (16, 16, 16, 32),
        factors: list[int] | tuple[int, ...] = (4, 4, 4, 4),
        order: int = 6,
    ) -> None:
        super().__init__(in_channels, spec, out)
        check_sizes("encoder", channels=list(channels), factors=list(factors))
        widths = [in_channels, *channels]
        laps = laplacians_of(self.template, list(factors))
        convs = (ChebConv(widths[i], widths[i + 1], order, x) for i, x in enumerate(laps))
        self.stack(convs, factors, widths[-1])
