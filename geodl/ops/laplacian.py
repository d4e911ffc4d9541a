"""Laplacian and vertex areas of meshes and point clouds."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from geodl.ops.geometry import Geometry


def laplacian(geometry: Geometry) -> tuple[sp.csr_matrix, NDArray[np.float64]]:
    """Weak Laplacian (v v), positive semi-definite, and lumped vertex areas (v).

    ``cotan``: cotangent weights and a third of the incident areas, as diffusion-net computes them.
    ``robust``: the tufted intrinsic-Delaunay Laplacian of Sharp and Crane (SGP 2020), for meshes
    that are not manifold or have bad triangles. A cloud always takes the latter's point version.
    """
    pos, face = geometry.pos, geometry.face
    if geometry.is_cloud or geometry.backend == "robust":
        import robust_laplacian

        if geometry.is_cloud:
            lap, area = robust_laplacian.point_cloud_laplacian(pos)
        else:
            lap, area = robust_laplacian.mesh_laplacian(pos, face)
        mass = np.asarray(area.diagonal())
    else:
        import potpourri3d as pp3d

        lap = pp3d.cotan_laplacian(pos, face, denom_eps=1e-10)
        mass = np.asarray(pp3d.vertex_areas(pos, face))
    mass = mass + 1e-8 * mass.mean()  # a vertex without a face keeps a positive area
    if not (np.isfinite(lap.data).all() and np.isfinite(mass).all()):
        raise ValueError("the Laplacian is not finite: the mesh has degenerate faces")
    return lap.tocsr(), mass


def mass(geometry: Geometry) -> dict[str, NDArray[np.float64]]:
    """The request ``Mass()``."""
    return {"mass": laplacian(geometry)[1]}


def laplacian_fields(geometry: Geometry) -> dict[str, NDArray[np.float64] | sp.csr_matrix]:
    """The request ``Laplacian()``."""
    lap, area = laplacian(geometry)
    return {"lap": lap, "mass": area}
