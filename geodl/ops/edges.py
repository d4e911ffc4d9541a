"""Meshes as MeshCNN sees them: edges, their four neighbours, and five numbers about each."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from geodl.ops.geometry import Geometry, unique_edges

SOFT = 0.1  # MeshCNN adds it to every length that it divides by


def rings(
    edge: Int[np.ndarray, "e 2"], face: Int[np.ndarray, "f 3"], face_edge: Int[np.ndarray, "f 3"]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The other edges (e 4) of the two faces at every edge, each face's two in its own direction,
    -1 at a boundary; and the column (e 4) in which that neighbour has this edge.

    A face with a side that an earlier face has in the same direction is not seen: more than two
    faces at an edge, or neighbours of opposite orientation.
    """
    ring = [[-1] * 4 for _ in edge]
    side = [[-1] * 4 for _ in edge]
    count = [0] * len(edge)
    seen: set[tuple[int, int]] = set()
    for (a, b, c), own in zip(face.tolist(), face_edge.tolist(), strict=True):
        sides = ((a, b), (b, c), (c, a))
        if not seen.isdisjoint(sides):
            continue
        seen.update(sides)
        for i, e in enumerate(own):
            at, following, last = count[e], own[i - 2], own[i - 1]
            ring[e][at], ring[e][at + 1] = following, last
            # Each lists the two that come after it in the face: of the next, this one is the
            # second, of the last it is the first.
            side[e][at], side[e][at + 1] = count[following] + 1, count[last]
        for e in own:
            count[e] += 2
    return np.array(ring, np.int64).reshape(-1, 4), np.array(side, np.int64).reshape(-1, 4)


def edge_shape(
    pos: Float[np.ndarray, "v 3"], edge: Int[np.ndarray, "e 2"], ring: Int[np.ndarray, "e 4"]
) -> Float[np.ndarray, "e 5"]:
    """Dihedral angle, the two opposite angles and the two ratios of height to base, the smaller
    first (Hanocka et al. 2019, 3.2, with the authors' way to avoid divisions by zero, which makes
    them depend a little on the scale). A boundary edge has the one face that it has twice, an edge
    without faces zeros."""
    ring = ring.copy()
    for there, missing in ((slice(2), slice(2, 4)), (slice(2, 4), slice(2))):
        lacking = ring[:, missing.start or 0] < 0
        ring[lacking, missing] = ring[lacking, there]
    ring[ring < 0] = 0

    def meeting(i: int, j: int) -> NDArray[np.int64]:
        """The vertex that two neighbours share."""
        first, second = edge[ring[:, i]], edge[ring[:, j]]
        hit = (first[:, 1, None] == second).any(1)
        return np.where(hit, first[:, 1], first[:, 0])

    near = edge[ring[:, 0]]
    turned = (edge[:, 1, None] == near).any(1)
    a = pos[np.where(turned, edge[:, 1], edge[:, 0])]
    b = pos[np.where(turned, edge[:, 0], edge[:, 1])]
    c, d = pos[meeting(0, 1)], pos[meeting(2, 3)]

    def softly(x: NDArray[Any]) -> NDArray[Any]:
        return x / (np.linalg.norm(x, axis=1, keepdims=True) + SOFT)

    def angle(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        return np.arccos(np.clip((softly(x) * softly(y)).sum(1), -1, 1))

    def ratio(a: NDArray[Any], b: NDArray[Any], o: NDArray[Any]) -> NDArray[Any]:
        length = np.linalg.norm(b - a, axis=1)
        length[length == 0] = np.inf  # the ends coincide: a ratio of 0
        along = ((b - a) * (o - a)).sum(1) / (length + SOFT) / length
        return np.linalg.norm(o - a - along[:, None] * (b - a), axis=1) / length

    dihedral = np.pi - angle(np.cross(c - a, b - a), np.cross(d - b, a - b))
    angles = np.stack([angle(a - c, b - c), angle(a - d, b - d)], axis=1)
    ratios = np.stack([ratio(a, b, c), ratio(b, a, d)], axis=1)
    return np.column_stack([dihedral, np.sort(angles, axis=1), np.sort(ratios, axis=1)])


def edge_fields(geometry: Geometry) -> dict[str, NDArray[Any]]:
    """The request ``Edges()``."""
    edge, face_edge = unique_edges(geometry.face)
    ring, side = rings(edge, geometry.face, face_edge)
    look = edge_shape(geometry.pos, edge, ring)
    look[(ring < 0).all(1)] = 0
    return {
        "edge": edge,
        "face_edge": face_edge,
        "edge_ring": ring,
        "edge_side": side,
        "edge_shape": look,
    }
