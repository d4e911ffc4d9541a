"""Other triangulations of the same surface: simplification and subdivision, with vertex maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from geodl.ops.geometry import face_areas, unique_edges


def simplify(
    pos: NDArray[np.floating], face: NDArray[np.integer], vertices: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Quadric decimation to about ``vertices`` vertices; a smaller mesh is returned as it is.

    The result can have duplicate faces, non-manifold edges and unused vertices: pass it on to
    :func:`geodl.ops.check.repair`.
    """
    import fast_simplification

    pos = np.ascontiguousarray(pos, np.float64)
    face = np.ascontiguousarray(face, np.int64)
    if len(pos) <= vertices:
        return pos, face
    # A closed surface of V vertices has about 2 V faces; the ratio carries over to open ones.
    target = max(4, round(len(face) * vertices / len(pos)))
    library: Any = fast_simplification
    small, triangles = library.simplify(
        pos.astype(np.float32), face.astype(np.int32), target_count=target, agg=7
    )
    return np.asarray(small, np.float64), np.asarray(triangles, np.int64)


def subdivide(
    pos: NDArray[np.floating], face: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Every triangle into four, by edge midpoints; the surface does not change."""
    pos = np.asarray(pos, np.float64)
    face = np.asarray(face, np.int64)
    edge, face_edge = unique_edges(face)
    mid = face_edge + len(pos)
    a, b, c = face.T
    ab, bc, ca = mid.T
    children = np.stack([[a, ab, ca], [ab, b, bc], [ca, bc, c], [ab, bc, ca]])
    return np.concatenate([pos, pos[edge].mean(1)]), children.transpose(2, 0, 1).reshape(-1, 3)


def nearest(source: NDArray[np.floating], target: NDArray[np.floating]) -> NDArray[np.int64]:
    """For every row of ``target`` (m 3) the nearest row of ``source`` (n 3)."""
    return np.asarray(KDTree(source).query(target)[1], np.int64)


def remesh(
    pos: NDArray[np.floating], face: NDArray[np.integer], vertices: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Isotropic re-meshing with about ``vertices`` new vertices, none of them an old one.

    Clusters of a subdivided mesh, and the triangles that join three of them (Valette and Chassery
    2004, with Euclidean k-means). Pass the result on to :func:`geodl.ops.check.repair`.
    """
    pos, face = np.asarray(pos, np.float64), np.asarray(face, np.int64)
    while len(pos) < 12 * vertices:
        pos, face = subdivide(pos, face)
    weight = np.bincount(face.reshape(-1), np.repeat(face_areas(pos, face), 3), len(pos)) + 1e-12
    start = rng.choice(len(pos), vertices, replace=False, p=weight / weight.sum())
    centers = pos[start]
    owner = nearest(centers, pos)
    for _ in range(8):
        total = np.bincount(owner, weight, vertices)
        mean = np.stack([np.bincount(owner, weight * pos[:, i], vertices) for i in range(3)], 1)
        centers = np.where(total[:, None] > 0, mean / np.maximum(total, 1e-12)[:, None], centers)
        owner = nearest(centers, pos)
    # A vertex of the new mesh lies on the surface: the old vertex nearest to its cluster's mean.
    triangles = owner[face]
    apart = (
        (triangles[:, 0] != triangles[:, 1])
        & (triangles[:, 1] != triangles[:, 2])
        & (triangles[:, 2] != triangles[:, 0])
    )
    return pos[nearest(pos, centers)], triangles[apart]


def hole(
    pos: NDArray[np.floating], face: NDArray[np.integer], share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The faces without those nearest to a random one, ``share`` of them all. The vertices of the
    hole stay: pass the result on to :func:`geodl.ops.check.repair`."""
    face = np.asarray(face, np.int64)
    middle = np.asarray(pos)[face].mean(1)
    distance = np.linalg.norm(middle - middle[rng.integers(len(face))], axis=1)
    return face[np.argsort(distance, kind="stable")[min(len(face) - 1, round(len(face) * share)) :]]
