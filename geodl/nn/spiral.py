"""Linear layers on spirals of a template's vertices (SpiralNet++)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geodl.nn.init import glorot
from geodl.nn.pyramid import meshes_of
from geodl.nn.rows import FixedRows
from geodl.ops.spirals import spirals
from geodl.spec import Template


class SpiralConv(nn.Module):
    """One linear layer on the concatenated features of each vertex's spiral.

    indices (n l), -1 for the dummy vertex of zeros; rows: v, where the spirals are not those of all
    vertices. (b v in) -> (b n out).
    """

    def __init__(
        self, in_channels: int, out_channels: int, indices: Tensor, rows: int | None = None
    ) -> None:
        super().__init__()
        n, length = indices.shape
        rows = n if rows is None else rows
        self.linear = nn.Linear(in_channels * length, out_channels)
        # Fewer channels come out: multiply first and gather those, the sum is the same.
        self.first = out_channels < in_channels
        if self.first:
            place = indices * length + torch.arange(length)
            self.gather = FixedRows(torch.where(indices < 0, -1, place), rows * length)
        else:
            self.gather = FixedRows(indices.reshape(-1, 1), rows)
        self.length = length
        glorot(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        b, v, c = x.shape
        if not self.first:
            return self.linear(self.gather(x).view(b, -1, self.length * c))
        weight = self.linear.weight.view(-1, self.length, c).permute(1, 0, 2).reshape(-1, c)
        return self.gather((x @ weight.T).view(b, v * self.length, -1)) + self.linear.bias


def spirals_of(
    template: Template, factors: list[int], length: list[int], dilation: list[int]
) -> list[Tensor]:
    """Spirals (v l) of the template and of all levels but the coarsest."""
    meshes = meshes_of(template, tuple(factors))
    return [
        torch.from_numpy(spirals(*mesh, n, d))
        for mesh, n, d in zip(meshes, length, dilation, strict=False)
    ]
