"""Functional maps: solved, read as maps between vertices, and made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from geodl.nn.neighbors import nearest


def functional_map(a: Tensor, b: Tensor, source: Tensor, target: Tensor, weight: float) -> Tensor:
    """C (n k k) for coefficients a, b (n k d) and eigenvalues (n k): row i solves
    (A A^T + weight diag((source_j - target_i)^2)) c_i = A b_i."""
    gap = (source[:, None, :] - target[:, :, None]).square()  # (n i j)
    left = (a @ a.mT)[:, None] + weight * torch.diag_embed(gap)
    right = (a @ b.mT).mT[..., None]  # (n i k 1)
    return torch.linalg.solve(left, right)[..., 0]


def from_fmap(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """For every row of b (target) the nearest row of a C^T (source): vertices of the source."""
    k = c.shape[0]
    return nearest(b[:, :k], a[:, :k] @ c.T)


def to_fmap(found: Tensor, a: Tensor, b: Tensor, mass: Tensor) -> Tensor:
    """C (k k) of a map from the target's vertices to the source's."""
    return b.T @ (mass[:, None] * a[found])
