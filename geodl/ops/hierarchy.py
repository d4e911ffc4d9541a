"""A pyramid of coarser meshes, with exact maps between its levels.

Quadric decimation gives a coarse mesh whose vertices are vertices of the fine one (D selects them);
U places every fine vertex at its nearest point of the coarse surface, in barycentric coordinates.
So D U = I, the rows of U sum to one and lie in [0, 1], and a constant signal stays constant.
"""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geodl.errors import UserError
from geodl.ops.geometry import face_areas, handy
from geodl.spec import Level, Template


def pyramid(template: Template, factors: tuple[int, ...]) -> tuple[Level, ...]:
    """Levels of the template, each ``factor`` times fewer vertices (rounded up) than the one
    before; made once per template.

    Raises:
        UserError: a level would have fewer than four vertices.
    """
    if factors not in template.levels:
        pos, face = template.pos, template.face
        levels: list[Level] = []
        for factor in factors:
            level = coarser(pos, face, -(-len(pos) // factor))
            levels.append(level)
            pos, face = level.pos, level.face
        template.levels[factors] = tuple(levels)
    return template.levels[factors]


def coarser(pos: NDArray[np.floating], face: NDArray[np.integer], vertices: int) -> Level:
    """One level with ``vertices`` vertices."""
    down, triangles = decimate(pos, face, vertices)
    coarse = np.asarray(pos, np.float32)[down]
    up, weight = barycentric(np.asarray(pos, np.float64), coarse.astype(np.float64), triangles)
    # A selected vertex is its own image: exactly, not up to rounding.
    up[down] = np.arange(len(down))[:, None]
    weight[down] = (1.0, 0.0, 0.0)
    return Level(coarse, triangles, down, up, weight.astype(np.float32))


def decimate(
    pos: NDArray[np.floating], face: NDArray[np.integer], vertices: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Quadric decimation to ``vertices`` of the mesh's own vertices (one more where a boundary
    leaves no choice): their indices (m) and the faces between them (f 3).

    Of the fine vertices that an edge collapse merged, the one nearest to the merged position stays.

    Raises:
        UserError: the mesh cannot be reduced that far.
    """
    import fast_simplification

    library: Any = fast_simplification
    points = np.ascontiguousarray(handy(pos)[0], np.float32)
    triangles = np.ascontiguousarray(face, np.int32)
    n = len(points)
    if vertices >= n:
        return np.arange(n), np.asarray(face, np.int64)
    *_, collapses = library.simplify(
        points, triangles, target_count=4, agg=7, return_collapses=True
    )
    # A collapse takes one vertex away, at a boundary now and then two: the last state with enough.
    states = range(len(collapses) + 1)
    found = bisect.bisect_right(
        states,
        -vertices,
        key=lambda k: -len(library.replay_simplification(points, triangles, collapses[:k])[0]),
    )
    if vertices < 4 or found > len(collapses):
        raise UserError(
            f"a mesh of {n} vertices cannot be simplified to {vertices}: use fewer levels or "
            "smaller factors."
        )
    merged, coarse, owner = library.replay_simplification(points, triangles, collapses[: found - 1])
    distance = np.linalg.norm(points - merged[owner], axis=1)
    order = np.lexsort((distance, owner))
    first = np.r_[True, np.diff(owner[order]) > 0]
    kept = order[first].astype(np.int64)
    coarse = np.asarray(coarse, np.int64)
    coarse = coarse[face_areas(points[kept].astype(np.float64), coarse) > 0]
    _, unique = np.unique(np.sort(coarse, axis=1), axis=0, return_index=True)
    return kept, coarse[np.sort(unique)]


def barycentric(
    points: NDArray[np.float64], pos: NDArray[np.float64], face: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest point of a mesh for every point (n 3): corners (n 3) and weights (n 3)."""
    import igl

    _, index, nearest = igl.point_mesh_squared_distance(points, pos, face)
    corners = face[np.asarray(index, np.int64)]
    a, b, c = (np.ascontiguousarray(pos[corners[:, i]]) for i in range(3))
    weight = np.asarray(igl.barycentric_coordinates(np.ascontiguousarray(nearest), a, b, c))
    weight = np.nan_to_num(weight).clip(0.0, 1.0)
    total = weight.sum(1, keepdims=True)
    weight = np.where(total > 0, weight / np.maximum(total, 1e-12), 1 / 3)
    return corners, weight
