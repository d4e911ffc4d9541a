"""Spirals: an order of the vertices around every vertex, ring by ring.

Two definitions. SpiralNet++ (Gong et al. 2019): a fixed number of vertices, one ring after the
other, filled up with the nearest vertices where the mesh ends. Neural3DMM (Bouritsas et al. 2019):
a number of whole rings that start towards a reference vertex; the length varies, is cut at mean +
2 sigma and padded with -1 (a dummy vertex of zeros).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree

from geodl.ops.geometry import unique_edges


def spirals(
    pos: NDArray[np.floating], face: NDArray[np.integer], length: int, dilation: int = 1
) -> NDArray[np.int64]:
    """(v length): each vertex, its rings in counter-clockwise order, every ``dilation``-th of
    ``length * dilation`` entries. Deterministic: a ring begins at a boundary or at the neighbour
    with the smallest index.

    Where the mesh has too few vertices in reach (small components, isolated vertices), the nearest
    vertices in space stand in, repeated if the whole mesh is too small.
    """
    fans = _fans(face, len(pos))
    wanted = length * dilation
    rows = np.empty((len(pos), length), np.int64)
    tree: KDTree | None = None
    for v in range(len(pos)):
        sequence = _rings(fans, v, wanted)
        if len(sequence) < wanted:
            tree = tree or KDTree(pos)
            near = np.asarray(tree.query(pos[v], min(wanted, len(pos)))[1]).reshape(-1)
            near = np.r_[v, near[near != v]]
            sequence = np.resize(near, wanted).tolist()
        rows[v] = sequence[:wanted][::dilation]
    return rows


def reference_spirals(
    pos: NDArray[np.floating],
    face: NDArray[np.integer],
    reference: int,
    rings: int = 2,
    dilation: int = 1,
) -> NDArray[np.int64]:
    """(v l): whole rings, the first of which starts with the neighbour on the shortest path to the
    reference vertex; padded with -1. l = mean + 2 sigma of the lengths."""
    fans = _fans(face, len(pos))
    toward = _predecessors(pos, face, reference)
    sequences: list[list[int]] = []
    for v in range(len(pos)):
        whole = _rings(fans, v, None, rings, int(toward[v]))
        sequences.append([v, *whole[1:][::dilation]])
    lengths = np.array([len(s) for s in sequences])
    size = max(1, int(lengths.mean() + 2 * lengths.std()))
    rows = np.full((len(pos), size), -1, np.int64)
    for v, sequence in enumerate(sequences):
        rows[v, : len(sequence)] = sequence[:size]
    return rows


def _predecessors(
    pos: NDArray[np.floating], face: NDArray[np.integer], reference: int
) -> NDArray[np.int64]:
    """The next vertex on the way to the reference; of the reference itself, its nearest neighbour;
    -1 where there is no way."""
    edge, _ = unique_edges(np.asarray(face, np.int64))
    length = np.linalg.norm(pos[edge[:, 0]] - pos[edge[:, 1]], axis=1) + 1e-12
    graph = sp.csr_matrix((length, (edge[:, 0], edge[:, 1])), (len(pos), len(pos)))
    _, before = dijkstra(graph, directed=False, indices=reference, return_predecessors=True)
    before = np.where(before < 0, -1, before).astype(np.int64)
    mine = (edge == reference).any(1)
    if mine.any():
        ends = edge[mine][np.argmin(length[mine])]
        before[reference] = ends[ends != reference][0]
    return before


Fans = list[list[list[int]]]


def _fans(face: NDArray[np.integer], vertices: int) -> Fans:
    """For every vertex its neighbours in counter-clockwise order: one list per fan of faces. A
    closed fan begins with the smallest index, an open one at its boundary; a non-manifold vertex
    has several."""
    after: list[dict[int, list[int]]] = [{} for _ in range(vertices)]
    for a, b, c in np.asarray(face).tolist():
        for v, x, y in ((a, b, c), (b, c, a), (c, a, b)):
            after[v].setdefault(x, []).append(y)
    fans: Fans = []
    for following in after:
        targets = {y for ys in following.values() for y in ys}
        starts = sorted(x for x in following if x not in targets)
        left = {x: list(ys) for x, ys in following.items()}
        mine: list[list[int]] = []
        seen: set[int] = set()
        for start in [*starts, *sorted(following)]:
            if not left.get(start):
                continue
            fan, x = [start], start
            while left.get(x):
                x = left[x].pop(0)
                fan.append(x)
            fresh = [u for u in dict.fromkeys(fan) if u not in seen]
            seen.update(fresh)
            if fresh:
                mine.append(fresh)
        fans.append(mine)
    return fans


def _rings(
    fans: Fans, v: int, wanted: int | None, rings: int | None = None, start: int = -1
) -> list[int]:
    """v and the rings around it, until ``wanted`` vertices or ``rings`` rings are there."""
    ring = [u for fan in fans[v] for u in fan if u != v]
    if start in ring:
        at = ring.index(start)
        ring = ring[at:] + ring[:at]
    sequence, inside = [v, *ring], {v, *ring}
    count = 1
    while ring and (wanted is None or len(sequence) < wanted) and (rings is None or count < rings):
        outer: list[int] = []
        last = set(ring)
        for u in ring:
            # Around u, begin behind the ring that we come from: the outer ring keeps its order.
            around = [w for fan in fans[u] for w in fan]
            edge = max((i for i, w in enumerate(around) if w in last), default=-1)
            for w in around[edge + 1 :] + around[: edge + 1]:
                if w not in inside:
                    inside.add(w)
                    outer.append(w)
        ring = outer
        sequence += ring
        count += 1
    return sequence
