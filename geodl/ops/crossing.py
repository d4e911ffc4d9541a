"""Where a surface goes through itself."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.spatial import KDTree

from geodl.ops.geometry import face_vectors


def crossing(pos: Float[np.ndarray, "v 3"], face: Int[np.ndarray, "f 3"]) -> NDArray[np.bool_]:
    """Which faces (f) another one, with which they share no vertex, goes through: an edge of either
    meets the inside of the other. Faces that lie in one plane are not seen."""
    if not np.isfinite(pos).all():
        return np.ones(len(face), bool)
    corner = np.asarray(pos, np.float64)[face]
    center = corner.mean(1)
    reach = np.linalg.norm(corner - center[:, None], axis=2).max(1)
    # The few large ones are looked at one by one, or every pair would be near.
    large = reach > 4 * np.median(reach)
    small = np.flatnonzero(~large)
    pairs = KDTree(center[small]).query_pairs(2 * reach[small].max(), output_type="ndarray")
    rows = [small[pairs]]
    for i in np.flatnonzero(large):
        close = np.linalg.norm(center - center[i], axis=1) < reach + reach[i]
        others = np.flatnonzero(close & ~(large & (np.arange(len(face)) <= i)))
        rows.append(np.stack([np.full(len(others), i), others], axis=1))
    near = np.concatenate(rows)
    gap = np.linalg.norm(center[near[:, 0]] - center[near[:, 1]], axis=1)
    near = near[gap < reach[near[:, 0]] + reach[near[:, 1]]]
    shared = (face[near[:, 0]][:, :, None] == face[near[:, 1]][:, None]).any((1, 2))
    a, b = near[~shared].T
    normal = face_vectors(pos, face)
    meets = np.zeros(len(a), bool)
    for one, other in ((a, b), (b, a)):
        for i in range(3):
            start, end = corner[one][:, i], corner[one][:, (i + 1) % 3]
            meets |= _through(start, end, corner[other], normal[other])
    found = np.zeros(len(face), bool)
    found[a[meets]] = found[b[meets]] = True
    return found


def _through(
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    corner: NDArray[np.float64],
    normal: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Whether segments (n 3) to (n 3) meet the inside of triangles (n 3 3) with normals (n 3)."""
    before = ((start - corner[:, 0]) * normal).sum(1)
    behind = ((end - corner[:, 0]) * normal).sum(1)
    apart = before * behind < 0
    share = before / np.where(apart, before - behind, 1.0)
    at = start + share[:, None] * (end - start)
    inside = apart
    for i in range(3):
        side = corner[:, (i + 1) % 3] - corner[:, i]
        inside = inside & ((np.cross(side, at - corner[:, i]) * normal).sum(1) > 0)
    return inside
