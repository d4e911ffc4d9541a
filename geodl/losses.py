"""Distances between surfaces, to be minimised: with correspondence (L1, L2) and without (Chamfer,
current, varifold)."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from geodl.nn.neighbors import BLOCK, nearest

Kernel = Literal["current", "varifold"]


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance to the nearest point of the other set, both directions added:
    mean_i min_j |a_i - b_j|^2 + mean_j min_i |a_i - b_j|^2, for points (n 3) and (m 3)."""
    with torch.no_grad():
        forth, back = nearest(a, b), nearest(b, a)
    return (a - b[forth]).square().sum(1).mean() + (b - a[back]).square().sum(1).mean()


def triangles(pos: Tensor, face: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (f 3) and normals times area (f 3) of a mesh's triangles."""
    a, b, c = pos[face[:, 0]], pos[face[:, 1]], pos[face[:, 2]]
    return (a + b + c) / 3, torch.linalg.cross(b - a, c - a) / 2


def surface_distance(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], kind: Kernel, sigma: float
) -> Tensor:
    """Squared kernel distance |A - B|^2 = <A, A> - 2 <A, B> + <B, B> between two surfaces, given as
    centres and area-weighted normals of their triangles, in the unit of the shape squared, squared.

    Paper: Kaltenmark, Charlier, Charon: A general framework for curve and surface comparison and
    registration with oriented varifolds, CVPR 2017; Gaussian kernel exp(-|x - y|^2 / sigma^2) in
    space; on unit normals <u, v> (current, Vaillant and Glaunes 2005) or <u, v>^2 (unoriented
    varifold, Charon and Trouve 2013). No square root is taken. Memory is linear in the number of
    triangles, in the backward pass too.

    Args:
        sigma: width of the kernel, in the unit of the shape.
    """
    return inner(*a, *a, kind, sigma) - 2 * inner(*a, *b, kind, sigma) + inner(*b, *b, kind, sigma)


def inner(x: Tensor, n: Tensor, y: Tensor, m: Tensor, kind: Kernel, sigma: float) -> Tensor:
    """sum_ij k(x_i, y_j) t(n_i, m_j) for centres x (p 3), y (q 3), area-weighted normals n, m."""
    with torch.autocast(x.device.type, enabled=False):  # differences of large sums
        return cast(Tensor, _Inner.apply(x, n, y, m, kind, sigma))


class _Inner(torch.autograd.Function):
    """The double sum in blocks. Gradients are computed in the same sweep, so that nothing of size
    p x q is ever kept; of a surface with itself, one half of them, doubled."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, n: Tensor, y: Tensor, m: Tensor, kind: Kernel, sigma: float
    ) -> Tensor:
        varifold = kind == "varifold"
        # <u, v>^2 a b = <n / sqrt(a), m / sqrt(b)>^2
        u, v = (_root(n), _root(m)) if varifold else (n, m)
        itself = x is y and n is m
        need = [bool(f) for f in ctx.needs_input_grad[:4]]
        if itself:
            need[2] = need[3] = False
        gx, gu, gy, gv = (
            torch.zeros_like(t) if f else None for t, f in zip((x, u, y, v), need, strict=True)
        )
        value = x.new_zeros(())
        # Differences of centres near a common origin keep their digits in single precision.
        origin = y.mean(0)
        xs, ys = (x - origin) / sigma, (y - origin) / sigma
        x2, y2 = xs.square().sum(1, keepdim=True), ys.square().sum(1)
        step = max(1, BLOCK // max(1, len(y)))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            xp, up = xs[part], u[part]
            k = torch.addmm(x2[part] + y2, xp, ys.T, beta=-1.0, alpha=2.0)
            k = k.clamp_(min=-40.0).exp_()  # see ``geodl.nn.heat``
            t = up @ v.T
            if varifold:
                k.mul_(t)  # k t, half the slope of k t^2 in t
                w = t.mul_(k)
            else:
                w = t.mul_(k)  # k t, with slope k
            rows = w.sum(1, keepdim=True)
            value = value + rows.sum()
            # d/dx of k = -2 (x - y) / sigma^2 k
            if gx is not None:
                gx[part] = w @ ys - rows * xp
            if gy is not None:
                gy += w.T @ xp - w.sum(0)[:, None] * ys
            if gu is not None:
                gu[part] = k @ v
            if gv is not None:
                gv += k.T @ up
        double = 2.0 if itself else 1.0
        for g in (gx, gy):
            if g is not None:
                g *= 2.0 * double / sigma
        for g in (gu, gv):
            if g is not None:
                g *= (2.0 if varifold else 1.0) * double
        if varifold:
            gu = None if gu is None else _root_back(n, gu)
            gv = None if gv is None else _root_back(m, gv)
        ctx.gradients = (gx, gu, gy, gv)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        grads = (None if g is None else g * grad_outputs[0] for g in ctx.gradients)
        return (*grads, None, None)


def _root(n: Tensor) -> Tensor:
    """n / sqrt(|n|); a triangle without area stays zero."""
    length = n.norm(dim=1, keepdim=True)
    return n / length.clamp(min=1e-20).sqrt()


def _root_back(n: Tensor, g: Tensor) -> Tensor:
    """Gradient of ``_root``: d/dn (n |n|^-1/2) = |n|^-1/2 (I - n n^T / (2 |n|^2))."""
    length = n.norm(dim=1, keepdim=True).clamp(min=1e-20)
    along = (g * n).sum(1, keepdim=True) / (2 * length.square())
    return (g - along * n) / length.sqrt()
