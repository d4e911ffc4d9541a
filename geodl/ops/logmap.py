"""Logarithmic maps: every vertex's neighbourhood laid out in its tangent plane."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import dijkstra

from geodl.ops.geodesic import edge_graph
from geodl.ops.geometry import Geometry, vertex_normals
from geodl.ops.gradient import tangent_frames

CHUNK = 1024  # vertices at a time: memory is this many times the vertices, 20 bytes each


def log_map(geometry: Geometry, radius: float) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Matrices (v v) of the x and y coordinates of the vertices within a geodesic distance of each
    vertex, itself among them, in its tangent frame, whose x points at the nearest vertex.

    The distance is that along edges and across unfolded pairs of triangles; the direction is found
    by laying the edges of the shortest path into the plane one by one, turned along (discrete
    exponential map; Schmidt, Grimm and Wyvill 2006, Interactive decal compositing, 4).
    """
    pos, n = geometry.pos, len(geometry.pos)
    frames = tangent_frames(vertex_normals(geometry))
    graph = edge_graph(pos, geometry.face)
    parts = [
        _laid_out(np.arange(start, min(start + CHUNK, n)), pos, frames, graph, radius)
        for start in range(0, n, CHUNK)
    ]
    source = np.concatenate([part[0] for part in parts])
    target = np.concatenate([part[1] for part in parts])
    place = np.concatenate([part[2] for part in parts])
    length = np.abs(place)
    length[length == 0] = np.inf  # a vertex itself, and those that lie on it
    order = np.lexsort((length, source))
    first = order[np.searchsorted(source[order], np.arange(n))]
    axis = np.where(np.isfinite(length[first]), place[first], 1.0 + 0j)
    place *= np.conj(axis / np.abs(axis))[source]
    x, y = (sp.csr_matrix((p, (source, target)), (n, n)) for p in (place.real, place.imag))
    return x, y


def _laid_out(
    sources: NDArray[np.int64],
    pos: NDArray[np.float64],
    frames: NDArray[np.float64],
    graph: sp.csr_matrix,
    radius: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.complex128]]:
    """Pairs of a source and a vertex within the radius, and its place in the source's plane."""
    distance, before = dijkstra(
        graph, directed=False, indices=sources, limit=radius, return_predecessors=True
    )
    row, target = np.nonzero(np.isfinite(distance))
    length = distance[row, target]
    last = before[row, target].astype(np.int64)  # negative at the source itself
    number = np.full(distance.shape, -1)
    number[row, target] = np.arange(len(row))
    parent = number[row, np.maximum(last, 0)]
    place = np.zeros(len(row), np.complex128)
    turn = np.ones(len(row), np.complex128)
    known = last < 0
    while not known.all():
        now = np.flatnonzero(~known & known[parent])
        p, q, up = last[now], target[now], parent[now]
        step = pos[q] - pos[p]
        size = np.linalg.norm(step, axis=1)
        place[now] = place[up] + turn[up] * size * _flat(step, frames[p])
        turn[now] = turn[up] * _transport(frames[q], frames[p])
        known[now] = True
    place = _unit(place) * length
    return sources[row], target, place


def _flat(vector: NDArray[np.float64], frame: NDArray[np.float64]) -> NDArray[np.complex128]:
    """The directions of vectors (n 3) in tangent planes (n 3 3)."""
    flat = np.einsum("ni,nki->nk", vector, frame[:, :2])
    return _unit(flat[:, 0] + 1j * flat[:, 1])


def _unit(z: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Divided by their lengths, zeros as they are."""
    return z / np.maximum(np.abs(z), 1e-300)


def _transport(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Unit numbers by which vectors in one frame (n 3 3) turn into vectors in another, carried by
    the smallest rotation between the normals."""
    x, a, b = start[:, 0], start[:, 2], end[:, 2]
    axis, cos = np.cross(a, b), (a * b).sum(1, keepdims=True)
    along = (axis * x).sum(1, keepdims=True) * axis / np.maximum(1 + cos, 1e-9)
    return _flat(cos * x + np.cross(axis, x) + along, end)


def log_map_fields(geometry: Geometry, radius: float) -> dict[str, sp.csr_matrix]:
    """The request ``LogMap(radius)``: as shares of the radius."""
    x, y = log_map(geometry, radius)
    return {"log_x": x / radius, "log_y": y / radius}
