"""Laplacian and vertex areas of meshes and point clouds."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from geodl.ops.geometry import Geometry


def laplacian(geometry: Geometry) -> tuple[sp.csr_matrix, NDArray[np.float64]]:
    """Weak Laplacian (v v), positive semi-definite, and lumped vertex areas (v).

    ``cotan``: cotangent weights and a third of the incident areas. ``robust``: the tufted
    intrinsic-Delaunay Laplacian of Sharp and Crane (SGP 2020), for meshes that are not manifold or
    have bad triangles. A cloud always takes the latter's point version.
    """
    pos, face = geometry.pos, geometry.face
    if geometry.is_cloud or geometry.backend == "robust":
        import robust_laplacian

        try:
            if geometry.is_cloud:
                lap, area = robust_laplacian.point_cloud_laplacian(pos)
            else:
                lap, area = robust_laplacian.mesh_laplacian(pos, face)
        except RuntimeError as error:  # too few points, say
            raise ValueError(f"no Laplacian: {error}") from error
        mass = np.asarray(area.diagonal())
    else:
        lap, mass = _cotan(geometry)
    mass = mass + 1e-8 * mass.mean()  # a vertex without a face keeps a positive area
    if not (np.isfinite(lap.data).all() and np.isfinite(mass).all()):
        raise ValueError("the Laplacian is not finite: the mesh has degenerate faces")
    return lap.tocsr(), mass


def _cotan(geometry: Geometry) -> tuple[sp.csr_matrix, NDArray[np.float64]]:
    """Half the cotangents of the angles opposite to each edge; 1e-10 keeps slivers finite, as in
    potpourri3d, which diffusion-net calls."""
    pos, face = geometry.pos, geometry.face
    n = len(pos)
    corner = pos[face]
    weights = np.empty((3, len(face)))
    third = np.zeros(len(face))
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        u, v = corner[:, j] - corner[:, i], corner[:, k] - corner[:, i]
        dot = np.einsum("ij,ij->i", u, v)
        cross = np.cross(u, v)
        length = np.sqrt(np.einsum("ij,ij->i", cross, cross))
        weights[i] = 0.5 * dot / (length + 1e-10)
        if i == 0:
            third = length / 6
    a, b = face.T[[1, 2, 0]].reshape(-1), face.T[[2, 0, 1]].reshape(-1)
    weight = weights.reshape(-1)
    total = np.bincount(a, weight, n) + np.bincount(b, weight, n)
    rows, cols = np.concatenate([a, b, np.arange(n)]), np.concatenate([b, a, np.arange(n)])
    lap = sp.csr_matrix((np.concatenate([-weight, -weight, total]), (rows, cols)), shape=(n, n))
    mass = np.bincount(face.T.reshape(-1), np.tile(third, 3), n)
    return lap, mass.astype(np.float64)


def mass(geometry: Geometry) -> dict[str, NDArray[np.float64]]:
    """The request ``Mass()``."""
    return {"mass": laplacian(geometry)[1]}


def laplacian_fields(geometry: Geometry) -> dict[str, NDArray[np.float64] | sp.csr_matrix]:
    """The request ``Laplacian()``."""
    lap, area = laplacian(geometry)
    return {"lap": lap, "mass": area}
