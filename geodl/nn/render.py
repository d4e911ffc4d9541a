"""Pictures of meshes that gradients go through, in plain torch: soft silhouettes and shading.

Paper: Liu, Li, Chen, Li: Soft rasterizer, ICCV 2019. Cameras are orthographic: what a picture shows
is the square [-1, 1]^2, its first row at the top.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

REACH = 9.0  # pixels up to the root of so many sigmas away hear of a triangle
DEPTH = 0.01  # by how much nearer a surface has to be to hide another one, in radii


def cameras(count: int, turn: float = 0.0) -> NDArray[np.float64]:
    """Rotations (count 3 3), rows right, up and towards the viewer, from directions spread over the
    sphere (Fibonacci); ``turn``: radians by which all are turned about y."""
    i = np.arange(count) + 0.5
    height = 1 - 2 * i / count
    angle = np.pi * (1 + 5**0.5) * i + turn
    ring = np.sqrt(1 - height**2)
    toward = np.stack([ring * np.cos(angle), height, ring * np.sin(angle)], 1)
    right = np.cross([0.0, 1.0, 0.0], toward)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(toward, right), toward], 1).astype(np.float64)


def rendered(
    pos: Tensor, face: Tensor, views: Tensor, size: int, sigma: float, shade: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Soft silhouettes (k size size) of a mesh, pos (v 3), face (f 3), in the cameras ``views``
    (k 3 3): one minus the product over triangles of 1 - sigmoid(+-d^2 / sigma), d the distance of
    the pixel to the triangle's border, + inside. With ``shade`` also normals in camera coordinates
    (k size size 3), averaged with weights that favour what is in front.

    Memory is that of the pixels that a triangle's box, widened by 3 sqrt(sigma), has.
    """
    k, f = len(views), len(face)
    seen = torch.einsum("kij,vj->kvi", views.to(pos), pos)
    corner = seen[:, face].flatten(0, 1)  # (k*f 3 3)
    flat = corner[..., :2]
    box = flat.detach()
    margin = math.sqrt(REACH * sigma)
    step = 2.0 / size
    low = ((box.amin(1) - margin + 1) / step - 0.5).ceil().clamp(0, size).long()
    high = ((box.amax(1) + margin + 1) / step - 0.5).floor().clamp(-1, size - 1).long()
    extent = (high - low + 1).clamp(min=0)
    counts = extent[:, 0] * extent[:, 1]
    total = int(counts.sum())
    owner = torch.arange(k * f, device=pos.device).repeat_interleave(counts, output_size=total)
    within = torch.arange(total, device=pos.device) - (counts.cumsum(0) - counts)[owner]
    width = extent[owner, 0]
    column, row = low[owner, 0] + within % width, low[owner, 1] + within // width
    at = torch.stack([column, row], 1) * step + (0.5 * step - 1)
    signed = _signed(flat[owner], at)
    x = signed.sign() * signed.square() / sigma
    pixel = (owner // f) * size * size + (size - 1 - row) * size + column
    clear = pos.new_zeros(k * size * size).index_add(0, pixel, -torch.nn.functional.softplus(x))
    silhouette = (1 - clear.exp()).view(k, size, size)
    if not shade:
        return silhouette, None
    a, b, c = corner.unbind(1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)
    seen_by = torch.nn.functional.logsigmoid(x) + corner[..., 2].mean(1)[owner] / DEPTH
    front = torch.full_like(clear, -torch.inf)
    front = front.scatter_reduce(0, pixel, seen_by.detach(), "amax")
    weight = (seen_by - front[pixel]).exp()
    total_weight = clear.new_zeros(clear.shape).index_add(0, pixel, weight)
    shown = clear.new_zeros(len(clear), 3).index_add(0, pixel, weight[:, None] * normal[owner])
    shown = shown / total_weight.clamp(min=1e-12)[:, None]
    return silhouette, shown.view(k, size, size, 3) * silhouette[..., None]


def _signed(triangle: Tensor, at: Tensor) -> Tensor:
    """Distances (n) of points (n 2) to the borders of triangles (n 3 2), negative outside."""
    start, end = triangle, triangle.roll(-1, dims=1)
    side, gap = end - start, at[:, None] - start
    length = side.square().sum(2).clamp(min=1e-12)
    t = ((gap * side).sum(2) / length).clamp(0, 1)
    square = (gap - t[..., None] * side).square().sum(2)
    distance = square.amin(1).clamp(min=1e-12).sqrt()
    cross = side[..., 0] * gap[..., 1] - side[..., 1] * gap[..., 0]
    inside = (cross >= 0).all(1) | (cross <= 0).all(1)
    return torch.where(inside, distance, -distance)
