"""Gradients of functions on vertices, in tangent frames (Sharp et al. 2022, DiffusionNet, 3.3)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float
from numpy.typing import NDArray

from geodl.ops.geometry import Geometry, cloud_neighbors, vertex_normals

EPS = 1e-5  # diffusion-net's Tikhonov term: keeps the 2 x 2 systems of collinear stars solvable


def tangent_frames(normal: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "v 3 3"]:
    """Rows (x, y, normal) of a right-handed frame at every vertex.

    The x direction is the world's x (y where the normal is near it) projected to the tangent plane.
    """
    axis = np.where(np.abs(normal[:, :1]) < 0.9, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    x = axis - normal * np.sum(axis * normal, axis=1, keepdims=True)
    x = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-6)
    return np.stack([x, np.cross(normal, x), normal], axis=1)


def gradient(
    geometry: Geometry, normal: NDArray[np.float64] | None = None
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Matrices (v v) of the x and y components of the gradient in the vertices' tangent frames.

    Least squares over the one-ring (mesh) or the 30 nearest points (cloud): the differences to the
    neighbours should equal the gradient times the edges, projected to the tangent plane.
    """
    pos = geometry.pos
    n = len(pos)
    frames = tangent_frames(vertex_normals(geometry) if normal is None else normal)
    if geometry.is_cloud:
        near = cloud_neighbors(pos)
        tail, tip = np.repeat(np.arange(n), near.shape[1]), near.reshape(-1)
    else:
        tail, tip = geometry.face.T.reshape(-1), geometry.face.T[[1, 2, 0]].reshape(-1)
        tail, tip = np.concatenate([tail, tip]), np.concatenate([tip, tail])
    # The pattern of both matrices, rows in order: every vertex, its neighbours and itself.
    index = np.concatenate([tail, np.arange(n)]), np.concatenate([tip, np.arange(n)])
    pattern = sp.csr_matrix((np.ones(len(index[0]), bool), index), shape=(n, n))
    tail, tip = np.repeat(np.arange(n), np.diff(pattern.indptr)), pattern.indices
    own = tail == tip
    edge = pos[tip] - pos[tail]
    ex = np.einsum("ij,ij->i", edge, frames[tail, 0])
    ey = np.einsum("ij,ij->i", edge, frames[tail, 1])
    # The 2 x 2 normal equations of all vertices at once, inverted in closed form.
    a = np.bincount(tail, ex * ex, n) + EPS
    b = np.bincount(tail, ex * ey, n)
    d = np.bincount(tail, ey * ey, n) + EPS
    det = (a * d - b * b)[tail]
    gx = (d[tail] * ex - b[tail] * ey) / det
    gy = (a[tail] * ey - b[tail] * ex) / det
    matrices: list[sp.csr_matrix] = []
    for value in (gx, gy):
        value[own] = -np.bincount(tail, value, n)
        matrices.append(sp.csr_matrix((value, tip, pattern.indptr), shape=(n, n)))
    return matrices[0], matrices[1]


def gradient_fields(geometry: Geometry) -> dict[str, sp.csr_matrix]:
    """The request ``Gradient()``."""
    x, y = gradient(geometry)
    return {"grad_x": x, "grad_y": y}
