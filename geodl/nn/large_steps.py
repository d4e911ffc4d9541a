"""Smooth descent on the vertices of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from geodl.nn.poisson import solved
from geodl.ops.geometry import unique_edges
from geodl.ops.spectrum import factor


def uniform_laplacian(face: NDArray[np.int64], n: int) -> sp.csr_matrix:
    """Combinatorial Laplacian (n n): the number of neighbours minus ones at them."""
    edge, _ = unique_edges(face)
    ones = np.ones(len(edge))
    near = sp.coo_matrix((ones, (edge[:, 0], edge[:, 1])), (n, n))
    near = (near + near.T).tocsr()
    return sp.csr_matrix(sp.diags(np.asarray(near.sum(1)).reshape(-1)) - near)


class LargeSteps:
    """Vertices x as functions of u = (I + weight L) x, L the combinatorial Laplacian: a step on u
    moves all of them smoothly.

    Paper: Nicolet, Jacobson, Jakob: Large steps in inverse rendering of geometry, SIGGRAPH Asia
    2021: weight 19 in all figures, with ``UniformAdam``.
    """

    def __init__(self, face: NDArray[np.int64], n: int, weight: float) -> None:
        system = sp.identity(n) + weight * uniform_laplacian(face, n)
        self.system = sp.csr_matrix(system)
        self.solver: Any = factor(self.system)

    def parameters_of(self, x: Tensor) -> Tensor:
        """u (n 3) of vertices (n 3)."""
        return torch.from_numpy(self.system @ x.detach().cpu().double().numpy()).to(x)

    def vertices(self, u: Tensor) -> Tensor:
        return solved(u, self.solver)


class UniformAdam(torch.optim.Optimizer):
    """Adam that divides all coordinates by one number, the root of the largest second moment, so
    that a smooth gradient makes a smooth step (Nicolet et al. 2021)."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                state["step"] += 1
                state["m"].lerp_(p.grad, 1 - first)
                state["v"].lerp_(p.grad.square(), 1 - second)
                m = state["m"] / (1 - first ** state["step"])
                v = state["v"].max() / (1 - second ** state["step"])
                p.sub_(group["lr"] * m / v.sqrt().clamp(min=1e-12))
