"""Stereolithography .stl, text or binary. The format repeats the vertices of every triangle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from geodl.data.formats.base import Polygons, Unreadable, floats, lines_of

TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
SAME = 1e-6  # of the shape's size: vertices this close are one


def read(path: Path) -> Polygons:
    """The triangles in the file's order; vertices in order of first appearance, equal ones (up to
    a millionth of the shape's size) merged."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(84)
    count = int.from_bytes(head[80:84], "little") if len(head) == 84 else -1
    whole = 84 + count * TRIANGLE.itemsize
    with path.open("rb") as stream:
        stream.seek(max(0, min(whole, size)))
        padded = size - whole < 4096 and not stream.read(4096).strip(b"\0 \r\n\t")
    if count >= 0 and size >= whole and padded:
        points = np.fromfile(path, TRIANGLE, count, offset=84)["corners"]
    elif b"\0" not in head and head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(b"solid"):
        points = _text(path)
    else:
        raise Unreadable(
            f"its header says {count} triangles ({whole} bytes), but it has {size} bytes"
            if count >= 0
            else "it is too short"
        )
    pos, corners = _merged(points.reshape(-1, 3).astype(np.float64))
    return Polygons(pos, corners, np.full(len(corners) // 3, 3, np.int64))


def _text(path: Path) -> NDArray[np.float64]:
    rows: list[list[str]] = []
    loops = ends = solids = 0
    for line in lines_of(path):
        words = line.split()
        if not words:
            continue
        key = words[0].lower()
        solids += key == "endsolid" or [w.lower() for w in words[:2]] == ["end", "solid"]
        if key == "vertex":
            rows.append(words[1:4])
        elif key == "facet":
            loops += 1
        elif key == "endfacet":
            ends += 1
            if len(rows) != 3 * ends:
                raise Unreadable(f"facet {ends - 1} has not three vertices")
    if not solids or loops != ends or len(rows) != 3 * ends:
        raise Unreadable("it ends in the middle: is it whole?")
    return floats(rows, "vertex", 3)


def _merged(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distinct points in order of first appearance, and the place of every given one."""
    if not len(points):
        return points, np.empty(0, np.int64)
    _, first, group = np.unique(points, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    size = float(np.abs(points).max())
    if 0 < size < 1e100:  # others are refused by name later
        from scipy.spatial import KDTree

        places = points[first] / size
        near = KDTree(places).query_pairs(SAME * np.ptp(places, axis=0).max())
        if near:
            a, b = np.array(sorted(near)).T
            graph = sp.coo_matrix((np.ones(len(a)), (a, b)), (len(first),) * 2)
            group = connected_components(graph, directed=False)[1][group]
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return points[first[order]], rank[group.reshape(-1)].astype(np.int64)
