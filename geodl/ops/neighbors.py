"""The nearest vertex, and the nearest point of a surface."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree


def nearest(points: NDArray[np.floating], among: NDArray[np.floating]) -> NDArray[np.int64]:
    """For every point (n 3) the number (n) of the nearest row of ``among`` (m 3)."""
    return np.asarray(KDTree(among).query(points)[1], np.int64)


def surface_nearest(
    pos: NDArray[np.floating], face: NDArray[np.integer], points: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For every point (m 3) the face (m) of a mesh that it is nearest to, and where (m 3)."""
    import igl

    query, vertices = (np.ascontiguousarray(x, np.float64) for x in (points, pos))
    triangles = np.ascontiguousarray(face, np.int64)
    _, on, at = igl.point_mesh_squared_distance(query, vertices, triangles)
    return np.asarray(on, np.int64).reshape(-1), np.asarray(at, np.float64)
