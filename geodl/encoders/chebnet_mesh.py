"""Chebyshev graph convolutions on any mesh."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.cheb import polynomials
from geodl.nn.neighbors import edges
from geodl.nn.rows import Bags, both_ways, product
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Out


def laplacian_of(batch: ShapeBatch) -> tuple[Bags, Bags]:
    """-D^(-1/2) A D^(-1/2) of the batch's edges, and its transpose (which is itself), made once."""
    if "edges" not in batch.cache:
        batch.need_faces("follows the edges of meshes", "dgcnn")
        n = len(batch.pos)
        row, column = edges(batch.face, n)
        degree = torch.bincount(row, minlength=n).clamp(min=1).float()
        weight = -(degree[row] * degree[column]).rsqrt()
        batch.cache["edges"] = both_ways(row, column, weight, (n, n))
    return batch.cache["edges"]


class ChebConv(nn.Module):
    """sum_k theta_k T_k(L) x with k < order. (n in) -> (n out)."""

    def __init__(self, in_channels: int, out_channels: int, order: int) -> None:
        super().__init__()
        self.order = order
        self.linear = nn.Linear(order * in_channels, out_channels)

    def forward(self, x: Tensor, laplacian: tuple[Bags, Bags]) -> Tensor:
        terms = polynomials(x, lambda y: product(y, *laplacian), self.order)
        return self.linear(torch.cat(terms, dim=1))


class MeshChebNet(Encoder):
    """Chebyshev convolutions on the graph of a mesh's edges, each with BatchNorm and ReLU; for
    elements, every vertex beside the mean and maximum of its shape.

    Paper: Defferrard, Bresson, Vandergheynst: Convolutional neural networks on graphs with fast
    localized spectral filtering, NeurIPS 2016. https://arxiv.org/abs/1606.09375
    Differs: the paper classifies signals on one graph with graph coarsening; here every shape has
    its own graph and nothing is pooled but the whole. The form on a template is
    ``encoder=chebnet``.

    Args:
        widths: channels of the layers.
        order: K, the number of Chebyshev polynomials: a layer sees K - 1 edges far.
        dropout: probability behind the hidden layer at the end.
    """

    small = MappingProxyType({"widths": [16, 16], "order": 3})

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        widths: Sequence[int] = (64, 64, 128, 128),
        order: int = 6,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(in_channels, spec, out)
        if not widths:
            raise UserError("encoder.widths is empty: give a number per layer.")
        steps = itertools.pairwise([in_channels, *widths])
        self.convs = nn.ModuleList(ChebConv(i, o, order) for i, o in steps)
        self.norms = nn.ModuleList(nn.BatchNorm1d(w) for w in widths)
        wide = 2 * widths[-1] + (0 if out == "whole" else sum(widths))
        self.last = nn.Sequential(nn.Linear(wide, 128), nn.ReLU(), nn.Dropout(dropout))
        self.channels = 128

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        laplacian = laplacian_of(batch)
        levels: list[Tensor] = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x, laplacian)))
            levels.append(x)
        whole = torch.cat([batch.max(x), batch.mean(x)], dim=1)
        if self.out == "whole":
            return Encoding(whole=self.last(whole))
        return self.elements(self.last(torch.cat([batch.spread(whole), *levels], dim=1)), batch)
