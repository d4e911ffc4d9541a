"""Functional maps: solved, read as maps between vertices, and made of them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from geodl.nn.neighbors import BLOCK, nearest


def functional_map(
    a: Tensor,
    b: Tensor,
    source: Tensor,
    target: Tensor,
    weight: float,
    resolvent: float | None = None,
) -> Tensor:
    """C (n k k) for coefficients a, b (n k d) and eigenvalues (n k): row i solves
    (A A^T + weight diag(mask_i)) c_i = A b_i, with mask_ij = (source_j - target_i)^2, or that of
    the resolvents with exponent ``resolvent`` (Ren et al. 2019). Memory: n k^3."""
    mask = (
        (source[:, None, :] - target[:, :, None]).square()
        if resolvent is None
        else resolvent_mask(source, target, resolvent)
    )
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.to(mask), b.to(mask)
        left = (a @ a.mT)[:, None] + weight * torch.diag_embed(mask)
        right = (a @ b.mT).mT[..., None]  # (n i k 1)
        return torch.linalg.solve(left, right)[..., 0]


def resolvent_mask(source: Tensor, target: Tensor, gamma: float) -> Tensor:
    """(n i j): squared differences of the real and imaginary parts of 1 / (mu - i), with
    mu = (eigenvalue over the largest of both shapes) ^ gamma."""
    largest = torch.maximum(source.amax(1), target.amax(1))[:, None]
    parts: list[tuple[Tensor, Tensor]] = []
    for evals in (source, target):
        mu = (evals / largest).clamp(min=0) ** gamma
        parts.append((mu / (mu.square() + 1), 1 / (mu.square() + 1)))
    (re, im), (re_t, im_t) = parts
    return (re[:, None] - re_t[:, :, None]).square() + (im[:, None] - im_t[:, :, None]).square()


def soft_fmap(
    source: Tensor, target: Tensor, a: Tensor, b: Tensor, mass: Tensor, tau: float
) -> Tensor:
    """C (k k) of the soft map from descriptors: row v of the map is
    softmax_u(cos(target_v, source_u) / tau) over the source's vertices. a (n k), b (m k):
    eigenfunctions; mass (m) of the target. The map (m n) itself is never held: it is made in
    blocks, and made again for the gradient."""
    source, target = F.normalize(source, dim=1), F.normalize(target, dim=1)
    weighted = mass[:, None] * b

    def part(rows: Tensor, weights: Tensor) -> Tensor:
        return weights.T @ ((rows @ source.T / tau).softmax(1) @ a)

    step = max(1, 16 * BLOCK // len(source))
    blocks = zip(target.split(step), weighted.split(step), strict=True)
    found = [checkpoint(part, *pair, use_reentrant=False) for pair in blocks]
    return torch.stack(cast("list[Tensor]", found)).sum(0)


def from_fmap(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """For every row of b (target) the nearest row of a C^T (source): vertices of the source."""
    k = c.shape[0]
    return nearest(b[:, :k], a[:, :k] @ c.T)


def to_fmap(found: Tensor, a: Tensor, b: Tensor, mass: Tensor) -> Tensor:
    """C (k k) of a map from the target's vertices to the source's."""
    return b.T @ (mass[:, None] * a[found])
