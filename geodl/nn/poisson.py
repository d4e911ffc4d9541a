"""Gradients on the faces of meshes, and the Poisson equation, in the step.

A tangent vector of a face is a complex number, in the frame whose real axis is the first edge.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from geodl.nn.rows import both_ways, product
from geodl.ops.spectrum import factor
from geodl.shape import ShapeBatch

EPS = 1e-6  # added to the stiffness matrix, which is free of units, so that it has an inverse
SLIVER = 1e-6  # height of the thinnest triangle that counts as it is, over its longest side
SIDES = 128  # right-hand sides that the solver takes at once


class Faces:
    """Operators on the faces of a batch: areas (f), vertex masses (v), the gradient, sums over
    corners, the Poisson solver. One factor for all shapes, whose matrices are blocks of one."""

    def __init__(self, batch: ShapeBatch) -> None:
        batch.need_faces("solves equations on triangles", "diffusionnet")
        pos, face = batch.pos.detach().double(), batch.face
        p0, p1, p2 = pos[face].unbind(1)
        l0, l1, l2 = ((a - b).norm(dim=1) for a, b in ((p2, p1), (p0, p2), (p1, p0)))
        tiny = torch.finfo(torch.float32).tiny
        x = (l1**2 + l2**2 - l0**2) / (2 * l2).clamp(min=tiny)
        y = (l1**2 - x**2).clamp(min=0).sqrt()
        longest = torch.maximum(torch.maximum(l0, l1), l2)
        # Twice the area; slivers count as thin triangles, or the system is not positive definite.
        double = torch.maximum(l2 * y, SLIVER * longest.square()).clamp(min=tiny)
        none = torch.zeros_like(x)
        real, imaginary = torch.stack([-y, y, none], 1), torch.stack([x - l2, -x, l2], 1)
        value = torch.cat([real, imaginary]) / double.repeat(2)[:, None]
        n, f = len(pos), len(face)
        corner = face.flatten()
        row = torch.arange(2 * f, device=face.device).repeat_interleave(3)
        single = value.flatten().float()
        self.gradient = both_ways(row, corner.repeat(2), single, (2 * f, n))
        self.corners = both_ways(row[: 3 * f], corner, None, (f, n))
        area = double / 2
        self.area = area.float()
        self.sum = pos.new_zeros(n).index_add(0, corner, (area / 3).repeat_interleave(3)).float()
        self.mass = self.sum + 1e-8 * batch.spread(batch.mean(self.sum[:, None]))[:, 0]
        self._value, self._face = value.flatten(), corner

    def grad(self, x: Tensor) -> Tensor:
        """(v c) -> (2 f c): real and imaginary parts."""
        return product(x, *self.gradient).view(2, len(self.area), -1)

    def to_faces(self, x: Tensor) -> Tensor:
        """Mean over the corners, (v c) -> (f c)."""
        return product(x, *self.corners) / 3

    def to_vertices(self, y: Tensor) -> Tensor:
        """Mean over the faces around, by area, (f c) -> (v c)."""
        forth, back = self.corners
        total = product(y * (self.area / 3)[:, None], back, forth)
        return total / self.sum.clamp(min=torch.finfo(torch.float32).tiny)[:, None]

    def poisson(self, y: Tensor, batch: ShapeBatch, weight: Tensor | None = None) -> Tensor:
        """The function (v c), of mean 0 on every shape of the batch, whose gradient is nearest to
        y (2 f c); ``weight`` (f): how much a face counts, beside its area."""
        forth, back = self.gradient
        area = self.area if weight is None else self.area * weight
        divergence = product((y * area[:, None]).flatten(0, 1), back, forth)
        u = solved(divergence, self._solver if weight is None else self._factor(area))
        return u - batch.spread(batch.mean(u, self.mass))

    @functools.cached_property
    def _solver(self) -> Any:
        return self._factor(self.area)

    def _factor(self, weight: Tensor) -> Any:
        n, f = len(self.mass), len(self.area)
        ends = np.arange(0, 6 * f + 1, 3)
        columns = np.tile(self._face.cpu().numpy(), 2)
        gradient = sp.csr_matrix((self._value.cpu().numpy(), columns, ends), (2 * f, n))
        area = sp.diags(np.tile(weight.double().cpu().numpy(), 2))
        system = gradient.T @ area @ gradient + EPS * sp.identity(n)
        return factor(system.tocsr())


def faces_of(batch: ShapeBatch) -> Faces:
    """The operators of a batch, made once."""
    if "faces" not in batch.cache:
        batch.cache["faces"] = Faces(batch)
    return batch.cache["faces"]


def solved(b: Tensor, solver: Any) -> Tensor:
    """The columns of b (n c), each the right side of a symmetric system that was factorised."""
    return cast(Tensor, _Solve.apply(b, solver))


class _Solve(torch.autograd.Function):
    """The system is symmetric, so the gradient is another solution."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, solver: Any) -> Tensor:
        ctx.solver = solver
        return _solution(b, solver)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _solution(grads[0], ctx.solver), None


def _solution(b: Tensor, solver: Any) -> Tensor:
    parts = b.detach().cpu().double().split(SIDES, dim=1)
    return torch.cat([torch.from_numpy(solver(part.numpy())) for part in parts], dim=1).to(b)
