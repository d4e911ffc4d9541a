"""Chebyshev graph convolutions on a template (CoMA)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geodl.nn.pyramid import meshes_of
from geodl.ops.geometry import unique_edges
from geodl.spec import Template


def scaled_laplacian(face: NDArray[np.int64], vertices: int) -> Tensor:
    """-D^(-1/2) A D^(-1/2) (v v): the symmetric normalised graph Laplacian, scaled to [-1, 1] with
    its upper bound 2."""
    edge, _ = unique_edges(face)
    both = np.concatenate([edge, edge[:, ::-1]])
    degree = np.maximum(np.bincount(both[:, 0], minlength=vertices), 1)
    value = -1.0 / np.sqrt(degree[both[:, 0]] * degree[both[:, 1]])
    return torch.sparse_coo_tensor(
        torch.from_numpy(both.T.copy()),
        torch.from_numpy(value.astype(np.float32)),
        (vertices, vertices),
        check_invariants=False,
    ).coalesce()


def polynomials(x: Tensor, times: Callable[[Tensor], Tensor], order: int) -> list[Tensor]:
    """T_0(L) x to T_(order-1)(L) x of Chebyshev's polynomials; ``times`` multiplies by L."""
    terms = [x]
    if order > 1:
        terms.append(times(x))
    for _ in range(2, order):
        terms.append(2 * times(terms[-1]) - terms[-2])
    return terms


class ChebConv(nn.Module):
    """sum_k theta_k T_k(L) x with k < K (Defferrard et al. 2016). (b v in) -> (b v out)."""

    def __init__(self, in_channels: int, out_channels: int, order: int, lap: Tensor) -> None:
        super().__init__()
        self.register_buffer("lap", lap, persistent=False)
        self.lap: Tensor
        self.order = order
        self.linear = nn.Linear(order * in_channels, out_channels)
        # The authors' initial weights: one matrix per power.
        bound = (6.0 / (in_channels + out_channels)) ** 0.5
        nn.init.uniform_(self.linear.weight, -bound, bound)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, v, c = x.shape
        rows = x.float().transpose(0, 1).reshape(v, b * c)
        with torch.autocast(x.device.type, enabled=False):  # no sparse products in bfloat16
            terms = polynomials(rows, self.lap.mm, self.order)
        stacked = torch.stack([t.view(v, b, c) for t in terms], dim=2)  # (v b k c)
        return self.linear(stacked.flatten(2)).transpose(0, 1)


def laplacians_of(template: Template, factors: list[int]) -> list[Tensor]:
    """Scaled Laplacians of the template and of all levels but the coarsest."""
    meshes = meshes_of(template, tuple(factors))[:-1]
    return [scaled_laplacian(face, len(pos)) for pos, face in meshes]
