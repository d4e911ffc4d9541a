"""Other triangulations of the same surface: simplification and subdivision, with vertex maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import KDTree

from geodl.ops.geometry import face_areas, face_vectors, handy, unique_edges, unit
from geodl.ops.neighbors import surface_nearest

SHAPE_KEPT = 0.3  # what a slide leaves of a triangle's quality


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
    points, offset, length = handy(pos)
    small, triangles = library.simplify(
        points.astype(np.float32), face.astype(np.int32), target_count=target, agg=7
    )
    return np.asarray(small, np.float64) * length + offset, np.asarray(triangles, np.int64)


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


def _boundary(edge: NDArray[np.int64], face_edge: NDArray[np.int64]) -> NDArray[np.int64]:
    """The edges (b 2) that have one face."""
    return edge[np.bincount(face_edge.reshape(-1), minlength=len(edge)) == 1]


def slide(
    pos: NDArray[np.floating],
    face: NDArray[np.integer],
    amount: float,
    rng: np.random.Generator,
    steps: int = 10,
) -> NDArray[np.float64]:
    """Vertices (v 3) moved along the surface by up to ``amount``, all around one random axis as far
    as the surface allows it, less near boundaries: the same surface and connectivity, another
    parameterisation.

    Such a flow keeps areas, where one in a direction would crowd all vertices at the far ends. It
    goes in short ``steps``, and in every step the vertices stay behind that would fold or squeeze
    a triangle: in the end every triangle either is where it was or faces as the surface under its
    corners does, with ``SHAPE_KEPT`` of its :func:`_quality` or more.
    """
    pos, face = np.asarray(pos, np.float64), np.asarray(face, np.int64)
    across = face_vectors(pos, face)
    normal = np.zeros_like(pos)
    for corner in face.T:
        np.add.at(normal, corner, across)
    across, normal = unit(across), unit(normal)
    least = SHAPE_KEPT * _quality(pos, face, across)
    axis = unit(rng.standard_normal((1, 3)))
    reach = np.full((len(pos), 1), amount / steps)
    edge, face_edge = unique_edges(face)
    rim = _boundary(edge, face_edge)
    if len(rim):
        gap = KDTree(pos[rim.reshape(-1)]).query(pos)[0]
        reach *= np.minimum(1.0, gap / (3.0 * amount))[:, None]
    at = pos
    for _ in range(steps):
        on, new = surface_nearest(pos, face, at + reach * np.cross(axis, normal))
        under, stay = across[on], np.zeros(len(pos), bool)
        while True:
            bad = _quality(new, face, unit(under[face].sum(1))) < least
            bad &= ~stay[face].all(1)
            if not bad.any():
                break
            stay[face[bad]] = True
            new[stay], under[stay] = at[stay], normal[stay]
        at, normal = new, under
    return at


def _quality(
    pos: NDArray[np.float64], face: NDArray[np.int64], normal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Shape of every triangle (f) as seen against a normal (f 3): 1 equilateral, 0 without area,
    negative folded over."""
    corner = pos[face]
    sides = ((corner - np.roll(corner, 1, axis=1)) ** 2).sum((1, 2))
    area = (face_vectors(pos, face) * normal).sum(1)
    return 2 * 3**0.5 * area / np.maximum(sides, 1e-300)


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
    """Re-meshing with about ``vertices`` new vertices, hardly any of them an old one: isotropic, or
    ``contrast`` times as dense at one end of the shape as at the other, in a random direction.

    Connected clusters of a subdivided mesh, and the triangles that join three of them (Valette and
    Chassery 2004, with Lloyd's iteration and distances along edges). Where the clusters do not tell
    the surface's topology (thin parts), more are added, until the new mesh is one of the same
    surface; of a surface that is no manifold itself, what then is left is for
    :func:`geodl.ops.check.repair`, to which the result should be passed on.
    """
    pos, face = np.asarray(pos, np.float64), np.asarray(face, np.int64)
    while len(pos) < 12 * vertices * contrast**0.5:
        pos, face = subdivide(pos, face)
    edge, face_edge = unique_edges(face)
    length = np.linalg.norm(pos[edge[:, 0]] - pos[edge[:, 1]], axis=1) + 1e-12
    shape = (len(pos), len(pos))
    graph: Any = sparse.csr_array((length, (edge[:, 0], edge[:, 1])), shape=shape)
    weight = np.bincount(face.reshape(-1), np.repeat(face_areas(pos, face), 3), len(pos)) + 1e-12
    if contrast != 1.0:
        along = pos @ unit(rng.standard_normal((1, 3)))[0]
        weight *= contrast ** ((along - along.min()) / (np.ptp(along) + 1e-12))
    seed = rng.choice(len(pos), vertices, replace=False, p=weight / weight.sum())
    _, part = connected_components(graph, directed=False)
    _, first = np.unique(part, return_index=True)
    seed = np.concatenate([seed, first[~np.isin(part[first], part[seed])]])  # no part is lost
    # A cluster on a boundary is represented there, so that the boundary stays where it is.
    rim = np.zeros(len(pos), bool)
    rim[_boundary(edge, face_edge)] = True
    owner, distance = _clusters(graph, seed)
    for _ in range(8):
        seed = _middle(pos, owner, weight, rim, len(seed))
        owner, distance = _clusters(graph, seed)
    for _ in range(20):
        bad = _entangled(face, edge, owner, len(seed))
        if not len(bad):
            break
        # The vertex of a bad cluster that is farthest from its seed becomes one more seed.
        order = np.lexsort((distance, owner))
        last = order[np.searchsorted(owner[order], bad, side="right") - 1]
        seed = np.concatenate([seed, last[distance[last] > 0]])
        owner, distance = _clusters(graph, seed)
    triangles = owner[face]
    return pos[seed], triangles[_different(triangles)]


def _clusters(graph: Any, seed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For every vertex the number of the seed nearest along edges, and how far that is; vertices of
    components without a seed belong to the first one."""
    found: Any = dijkstra(
        graph, directed=False, indices=seed, min_only=True, return_predecessors=True
    )
    distance, _, source = found
    number = np.zeros(graph.shape[0], np.int64)
    number[seed] = np.arange(len(seed))
    return number[np.where(source >= 0, source, seed[0])], distance


def _middle(
    pos: NDArray[np.float64],
    owner: NDArray[np.int64],
    weight: NDArray[np.floating],
    rim: NDArray[np.bool_],
    count: int,
) -> NDArray[np.int64]:
    """For every cluster its vertex nearest to its mean; of those on the rim, if there are any."""
    total = np.bincount(owner, weight, count)[:, None]
    mean = np.stack([np.bincount(owner, weight * x, count) for x in pos.T], 1) / total
    gap = np.linalg.norm(pos - mean[owner], axis=1)
    order = np.lexsort((gap, ~rim, owner))
    return order[np.searchsorted(owner[order], np.arange(count))]


def _different(triangles: NDArray[np.int64]) -> NDArray[np.bool_]:
    return (triangles != np.roll(triangles, 1, axis=1)).all(1)


def _entangled(
    face: NDArray[np.int64], edge: NDArray[np.int64], owner: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Clusters that keep the dual mesh from having the surface's topology: those that are no discs,
    pairs whose common border is not one curve, triples that meet more than once."""
    triangles = np.sort(owner[face], 1)
    ends = np.sort(owner[edge], 1)
    inside = ends[:, 0] == ends[:, 1]
    whole = triangles[:, 0] == triangles[:, 2]
    euler = np.bincount(owner, minlength=count) - np.bincount(ends[inside, 0], minlength=count)
    euler += np.bincount(triangles[whole, 0], minlength=count)
    bad = [np.flatnonzero(euler != 1)]
    # Edges across a border, less the faces of two clusters, are one for every piece of border.
    mixed = triangles[(triangles[:, 0] == triangles[:, 1]) ^ (triangles[:, 1] == triangles[:, 2])]
    pair = np.concatenate([ends[~inside], mixed[:, [0, 2]]])
    sign = np.repeat([1, -1], [(~inside).sum(), len(mixed)])
    pairs, place = np.unique(pair, axis=0, return_inverse=True)
    pieces = np.bincount(place.reshape(-1), sign, len(pairs))
    bad.append(pairs[pieces != 1].reshape(-1))
    triples, times = np.unique(triangles[_different(triangles)], axis=0, return_counts=True)
    bad.append(triples[times > 1].reshape(-1))
    return np.unique(np.concatenate(bad))


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
