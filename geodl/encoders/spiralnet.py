"""SpiralNet++: linear layers on spiral sequences of a template's vertices."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.template import PyramidEncoder, batched, check_sizes, meshes_of
from geodl.ops.spirals import spirals
from geodl.spec import DataSpec, Out, Template


class SpiralConv(nn.Module):
    """One linear layer on the concatenated features of each vertex's spiral.

    indices (v l), -1 for the dummy vertex of zeros. (b v in) -> (b v out).
    """

    def __init__(self, in_channels: int, out_channels: int, indices: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices, persistent=False)
        self.indices: Tensor
        self.dummy = bool((indices < 0).any())
        self.linear = nn.Linear(in_channels * indices.shape[1], out_channels)
        glorot(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        b, v, c = x.shape
        n, length = self.indices.shape
        out = self.linear.out_features
        x = x.reshape(b * v, c)
        if out < c:
            # Multiply first, gather the fewer channels: the sum over the spiral is the same.
            weight = self.linear.weight.view(out, length, c).permute(1, 0, 2).reshape(-1, c)
            parts = (x @ weight.T).view(b * v * length, out)
            index = batched(self.indices, b, v) * length + torch.arange(length, device=x.device)
            if self.dummy:
                gone = self.indices.repeat(b, 1) < 0
                parts = torch.cat([parts, parts.new_zeros(1, out)])
                index = index.masked_fill(gone, b * v * length)
            y = F.embedding_bag(index, parts, mode="sum") + self.linear.bias
        else:
            index = batched(self.indices, b, v)
            if self.dummy:
                index = index.masked_fill(self.indices.repeat(b, 1) < 0, b * v)
                x = torch.cat([x, x.new_zeros(1, c)])
            y = self.linear(F.embedding(index, x).view(b * n, length * c))
        return y.view(b, n, out)


def glorot(linear: nn.Linear) -> None:
    """The authors' initial weights."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)


def spirals_of(
    template: Template, factors: list[int], length: list[int], dilation: list[int]
) -> list[Tensor]:
    """Spirals (v l) of the template and of all levels but the coarsest."""
    meshes = meshes_of(template, tuple(factors))
    return [
        torch.from_numpy(spirals(*mesh, n, d))
        for mesh, n, d in zip(meshes, length, dilation, strict=False)
    ]


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
        convs = (SpiralConv(widths[i], widths[i + 1], x) for i, x in enumerate(indices))
        self.stack(convs, factors, widths[-1])
