"""Other triangulations of the same surface: simplification and subdivision, with vertex maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from geodl.ops.geometry import face_areas, face_vectors, unique_edges, unit


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


def surface_nearest(
    pos: NDArray[np.floating], face: NDArray[np.integer], points: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For every point (m 3) the face (m) of a mesh that it is nearest to, and where (m 3)."""
    import igl

    query, vertices = (np.ascontiguousarray(x, np.float64) for x in (points, pos))
    triangles = np.ascontiguousarray(face, np.int64)
    _, on, at = igl.point_mesh_squared_distance(query, vertices, triangles)
    return np.asarray(on, np.int64).reshape(-1), np.asarray(at, np.float64)


def slide(
    pos: NDArray[np.floating], face: NDArray[np.integer], amount: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Vertices (v 3) moved along the surface by up to ``amount``, all in one random direction as
    far as the surface allows it, less near boundaries: the same surface and connectivity, another
    parameterisation."""
    pos, face = np.asarray(pos, np.float64), np.asarray(face, np.int64)
    normal = np.zeros_like(pos)
    for corner in face.T:
        np.add.at(normal, corner, face_vectors(pos, face))
    normal = unit(normal)
    direction = unit(rng.standard_normal((1, 3)))
    step = amount * (direction - (normal @ direction.T) * normal)
    edge, face_edge = unique_edges(face)
    rim = edge[np.bincount(face_edge.reshape(-1), minlength=len(edge)) == 1]
    if len(rim):
        gap = KDTree(pos[rim.reshape(-1)]).query(pos)[0]
        step *= np.minimum(1.0, gap / (3.0 * amount))[:, None]
    return surface_nearest(pos, face, pos + step)[1]


def loop(
    pos: NDArray[np.floating], face: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Loop's subdivision (1987): every triangle into four, and the surface smoothed. Boundaries are
    kept as curves; where an edge has more than two faces, its vertices stay where they are."""
    pos, face = np.asarray(pos, np.float64), np.asarray(face, np.int64)
    n = len(pos)
    edge, face_edge = unique_edges(face)
    sides = np.bincount(face_edge.reshape(-1), minlength=len(edge))
    # An edge's new vertex: 3/8 of its ends and 1/8 of the two opposite corners, or the middle.
    opposite = np.zeros((len(edge), 3))
    np.add.at(opposite, face_edge.reshape(-1), pos[face[:, [2, 0, 1]]].reshape(-1, 3))
    inner = (sides == 2)[:, None]
    ends = pos[edge].sum(1)
    middle = np.where(inner, 0.375 * ends + 0.125 * opposite, 0.5 * ends)
    # An old vertex moves towards its neighbours: all of them inside, the two on the boundary there.
    around, degree = np.zeros((n, 3)), np.zeros(n)
    rim, rim_degree = np.zeros((n, 3)), np.zeros(n)
    for a, b in ((0, 1), (1, 0)):
        np.add.at(around, edge[:, a], pos[edge[:, b]])
        np.add.at(degree, edge[:, a], 1)
        open_edge = edge[sides == 1]
        np.add.at(rim, open_edge[:, a], pos[open_edge[:, b]])
        np.add.at(rim_degree, open_edge[:, a], 1)
    cosine = 0.375 + 0.25 * np.cos(2 * np.pi / np.maximum(degree, 1))
    beta = ((0.625 - cosine**2) / np.maximum(degree, 1))[:, None]
    moved = (1 - degree[:, None] * beta) * pos + beta * around
    moved = np.where((rim_degree == 2)[:, None], 0.75 * pos + 0.125 * rim, moved)
    fixed = np.zeros(n, bool)
    fixed[edge[sides > 2]] = True
    fixed |= (rim_degree > 0) & (rim_degree != 2)
    _, split = subdivide(pos, face)
    return np.concatenate([np.where(fixed[:, None], pos, moved), middle]), split


def remesh(
    pos: NDArray[np.floating],
    face: NDArray[np.integer],
    vertices: int,
    rng: np.random.Generator,
    contrast: float = 1.0,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Re-meshing with about ``vertices`` new vertices, none of them an old one: isotropic, or
    ``contrast`` times as dense at one end of the shape as at the other, in a random direction.

    Clusters of a subdivided mesh, and the triangles that join three of them (Valette and Chassery
    2004, with Euclidean k-means). Pass the result on to :func:`geodl.ops.check.repair`.
    """
    pos, face = np.asarray(pos, np.float64), np.asarray(face, np.int64)
    while len(pos) < 12 * vertices * contrast**0.5:
        pos, face = subdivide(pos, face)
    weight = np.bincount(face.reshape(-1), np.repeat(face_areas(pos, face), 3), len(pos)) + 1e-12
    if contrast != 1.0:
        along = pos @ unit(rng.standard_normal((1, 3)))[0]
        weight *= contrast ** ((along - along.min()) / (np.ptp(along) + 1e-12))
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


def holes(
    pos: NDArray[np.floating],
    face: NDArray[np.integer],
    share: float,
    count: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """The faces without ``share`` of them all: those nearest to random ones, ``count`` times. The
    vertices of the holes stay: pass the result on to :func:`geodl.ops.check.repair`."""
    face = np.asarray(face, np.int64)
    gone = len(face) * share / count
    for _ in range(count):
        middle = np.asarray(pos)[face].mean(1)
        distance = np.linalg.norm(middle - middle[rng.integers(len(face))], axis=1)
        face = face[np.argsort(distance, kind="stable")[min(len(face) - 1, round(gone)) :]]
    return face
