"""Means and directions of meshes of one connectivity."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geodl.shapespace.metric import H2
from geodl.shapespace.path import Smoothing, minimised


def karcher_mean(
    meshes: Float[Tensor, "n v 3"],
    face: Int[Tensor, "f 3"],
    metric: H2,
    times: int = 5,
    iterations: int = 200,
) -> Float[Tensor, "v 3"]:
    """The mesh from which the energies of the shortest paths to all meshes have the smallest sum;
    it and the paths, with so many meshes each, are found together (Hartman et al. 2023, 4.4)."""
    n, center = len(meshes), meshes.mean(0)
    share = torch.linspace(0, 1, times, dtype=meshes.dtype)[1:-1, None, None]
    inner = center + share * (meshes - center)[:, None]  # (n times-2 v 3)

    def energy(x: Tensor) -> Tensor:
        first = x[:1, None].expand(n, 1, -1, 3)
        paths = torch.cat([first, x[1:].view(inner.shape), meshes[:, None]], dim=1)
        return metric.energy(paths, face).sum()

    start = torch.cat([center[None], inner.flatten(0, 1)])
    return minimised(energy, start, iterations, Smoothing(center, face))[0]


def tangent_pca(
    q: Float[Tensor, "v 3"],
    velocities: Float[Tensor, "n v 3"],
    face: Int[Tensor, "f 3"],
    metric: H2,
    k: int,
) -> tuple[Float[Tensor, "k v 3"], Tensor]:
    """Fields at q along which velocities (towards other meshes, say) vary most, orthonormal in the
    metric, and the mean square along each; the velocities are not centred. Fewer than k if there
    are fewer."""
    h = velocities.detach().requires_grad_()
    base = q.expand_as(h)
    (dual,) = torch.autograd.grad(metric.norm(base, h, face).sum() / 2, h)  # G(h, .)
    gram = velocities.flatten(1) @ dual.flatten(1).T
    variance, rows = torch.linalg.eigh((gram + gram.T) / 2)
    variance, rows = variance.flip(0), rows.flip(1)
    kept = min(k, int((variance > 1e-9 * variance[0]).sum()))
    variance, rows = variance[:kept], rows[:, :kept]
    fields = torch.tensordot(rows.T / variance.sqrt()[:, None], velocities, 1)
    return fields, variance / len(velocities)
