"""Linear layers on spirals of a template's vertices (SpiralNet++)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.nn.init import glorot
from geodl.nn.pyramid import batched, meshes_of
from geodl.ops.spirals import spirals
from geodl.spec import Template


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


def spirals_of(
    template: Template, factors: list[int], length: list[int], dilation: list[int]
) -> list[Tensor]:
    """Spirals (v l) of the template and of all levels but the coarsest."""
    meshes = meshes_of(template, tuple(factors))
    return [
        torch.from_numpy(spirals(*mesh, n, d))
        for mesh, n, d in zip(meshes, length, dilation, strict=False)
    ]
