"""Elastic metrics of second order on meshes of one connectivity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geodl.errors import UserError

THIN = 1e-6  # of the mean area: smaller faces count as this large in cotangents and inverses


@dataclass(frozen=True)
class H2:
    """What it costs to move the vertices q (v 3) of a mesh with velocity h (v 3):

        G_q(h, h) = int a0 |h|^2 + a1 |shear|^2 + b1 |scaling|^2 + c1 |bending|^2
                        + d1 |rotation in the plane|^2 + a2 |Laplacian h|^2  dA

    Sources: Hartman, Sukurdeep, Klassen, Charon, Bauer: Elastic shape analysis of surfaces with
    second-order Sobolev metrics, 2023; Hartman, Pierson, Bauer, Charon, Daoudi: BaRe-ESA, 2023.
    Differs: the weights are those of the formula. The authors' code has 4 a1 for the shear, b1 +
    3 a1 for the scaling (which it leaves out if b1 < a1, as in BaRe-ESA: then also 4 a1) and 4 d1
    for the rotation, doubles all areas, and keeps them above 1e-3 whatever the size of the mesh.
    The metric depends on the scale of the shapes: give them a known one, such as area one.

    Args:
        a0, a1, b1, c1, d1, a2: weights, zero or more.
    """

    a0: float = 1.0
    a1: float = 4000.0
    b1: float = 4000.0
    c1: float = 1.0
    d1: float = 4.0
    a2: float = 1.0

    def __post_init__(self) -> None:
        if any(not weight >= 0 for weight in vars(self).values()):
            raise UserError(f"a metric's weights must be zero or more: {self}.")

    def norm(
        self, q: Float[Tensor, "*t v 3"], h: Float[Tensor, "*t v 3"], face: Int[Tensor, "f 3"]
    ) -> Float[Tensor, "*t"]:
        """G_q(h, h)."""
        sides, moved = _sides(q, face), _sides(h, face)
        normal = _normal(sides)
        g = _Gram(sides)
        # The normal's derivative lies in the plane: g^-1 of minus what the sides leave it by.
        leaving = (moved * normal[..., None]).sum(-2)
        bent = (leaving * g.solve(leaving)).sum(-1)
        return self._sum(q, h, face, sides, moved, bent, g)

    def step(
        self, q0: Float[Tensor, "*t v 3"], q1: Float[Tensor, "*t v 3"], face: Int[Tensor, "f 3"]
    ) -> Float[Tensor, "*t"]:
        """G of the step from q0 to q1, differences in place of derivatives and all else half-way:
        the same for the step back."""
        middle, h = (q0 + q1) / 2, q1 - q0
        sides, moved = _sides(middle, face), _sides(h, face)
        bent = (_normal(_sides(q1, face)) - _normal(_sides(q0, face))).square().sum(-1)
        return self._sum(middle, h, face, sides, moved, bent, _Gram(sides))

    def energy(self, path: Float[Tensor, "*n t v 3"], face: Int[Tensor, "f 3"]) -> Tensor:
        """(n) Of paths of t meshes in equal steps over a unit of time: the square of its length for
        a geodesic, more for every other path between its ends."""
        before, behind = path[..., :-1, :, :], path[..., 1:, :, :]
        return before.shape[-3] * self.step(before, behind, face).sum(-1)

    def _sum(
        self,
        q: Tensor,
        h: Tensor,
        face: Tensor,
        sides: Tensor,
        moved: Tensor,
        bent: Tensor,
        g: _Gram,
    ) -> Tensor:
        across = moved.transpose(-1, -2) @ sides
        stretch = g.solve_matrix(across + across.transpose(-1, -2))  # g^-1 dg
        trace = stretch.diagonal(dim1=-2, dim2=-1).sum(-1)
        square = (stretch * stretch.transpose(-1, -2)).sum((-1, -2))
        # xi = sides g^-1 w, w = (0 t; -t 0): tr(xi g^-1 xi^T) = tr(g^-1 w g^-1 w^T) = 2 t^2 / det.
        twist = across[..., 0, 1] - across[..., 1, 0]
        rotated = 2 * twist.square() / g.det
        area = g.det.sqrt() / 2
        first = (
            self.a1 * (square / 4 - trace.square() / 8)
            + self.b1 * trace.square() / 8
            + self.c1 * bent
            + self.d1 * rotated / 4
        )
        total = (first * area).sum(-1)
        if not self.a0 and not self.a2:
            return total
        mass = _scattered(area[..., None].expand(*area.shape, 3) / 3, face, q.shape[-2])
        total = total + self.a0 * (mass * h.square().sum(-1)).sum(-1)
        if self.a2:
            bend = laplacian(q, h, face, 2 * area)
            least = torch.finfo(mass.dtype).tiny  # a vertex without a face has no mass
            total = total + self.a2 * (bend.square().sum(-1) / mass.clamp(min=least)).sum(-1)
        return total


class _Gram:
    """g (.. 2 2) of two sides (.. 3 2), its determinant and solutions by hand."""

    def __init__(self, sides: Tensor) -> None:
        a, b = sides.unbind(-1)
        self.aa, self.ab, self.bb = (a * a).sum(-1), (a * b).sum(-1), (b * b).sum(-1)
        det = self.aa * self.bb - self.ab.square()
        least = (THIN * det.detach().clamp(min=0).sqrt().mean(-1, keepdim=True)).square()
        self.det = torch.maximum(det, least)

    def solve(self, x: Tensor) -> Tensor:
        """g^-1 x (.. 2)."""
        u, v = x.unbind(-1)
        both = torch.stack([self.bb * u - self.ab * v, self.aa * v - self.ab * u], dim=-1)
        return both / self.det[..., None]

    def solve_matrix(self, x: Tensor) -> Tensor:
        """g^-1 x (.. 2 2)."""
        return torch.stack([self.solve(column) for column in x.unbind(-1)], dim=-1)


def _sides(q: Tensor, face: Tensor) -> Tensor:
    """Two sides of every face as columns (.. f 3 2)."""
    a, b, c = (q[..., face[:, i], :] for i in range(3))
    return torch.stack([b - a, c - a], dim=-1)


def _normal(sides: Tensor) -> Tensor:
    across = torch.linalg.cross(sides[..., 0], sides[..., 1])
    least = THIN * across.detach().norm(dim=-1).mean(-1, keepdim=True)
    return across / torch.maximum(across.norm(dim=-1), least)[..., None]


def _scattered(x: Tensor, face: Tensor, vertices: int) -> Tensor:
    """What every corner of every face has (.. f 3), summed at its vertex (.. v)."""
    total = x.new_zeros(*x.shape[:-2], vertices)
    return total.index_add(-1, face.flatten(), x.flatten(-2))


def laplacian(q: Tensor, h: Tensor, face: Tensor, double: Tensor) -> Tensor:
    """The cotangent Laplacian of q, integrated, times h (.. v 3); ``double``: twice the areas."""
    total = torch.zeros_like(h)
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        corner, a, b = (q[..., face[:, n], :] for n in (i, j, k))
        cot = ((a - corner) * (b - corner)).sum(-1) / double
        flow = 0.5 * cot[..., None] * (h[..., face[:, j], :] - h[..., face[:, k], :])
        total = total.index_add(-2, face[:, j], flow).index_add(-2, face[:, k], -flow)
    return total
