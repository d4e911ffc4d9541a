"""Geomview .off, as text: OFF, COFF, NOFF, STOFF and their combinations."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from geodl.data.formats.base import Polygons, Unreadable, floats, lines_of, lists, table, whole


def read(path: Path) -> Polygons:
    """Comments may stand anywhere; colours and normals are left aside. The word OFF may be glued to
    the counts (ModelNet) or missing."""
    lines = [s for line in lines_of(path) if (s := line.partition("#")[0].strip())]
    if not lines:
        raise Unreadable("it is empty")
    header = re.match(r"(?i:(?:ST)?C?N?(4?))(n?)(?i:OFF)(?=\b|\d)", lines[0])
    rest = lines[0][header.end() :].strip() if header else lines[0]
    if header and (header[1] or header[2]):
        raise Unreadable("its vertices do not have three dimensions")
    if "BINARY" in rest:
        raise Unreadable("it is binary: save it as text, or as .ply")
    del lines[0]
    counts = rest or (lines.pop(0) if lines else "")
    vertices, faces, *_ = [*whole(counts.split()[:3], "the counts after OFF"), -1, -1]
    if vertices < 0 or faces < 0:
        raise Unreadable("it does not begin with OFF and the numbers of vertices and faces")
    if len(lines) != vertices + faces:
        raise Unreadable(
            f"its header says {vertices} vertices and {faces} faces, one a line, but "
            f"{len(lines)} lines follow"
        )
    points, rest = lines[:vertices], lines[vertices:]
    pos = table(points, 3, np.float64)
    if pos is None:
        pos = floats([line.split()[:3] for line in points], "vertex", 3)
    triangles = table(rest, 4, np.int64)
    if triangles is not None and (triangles[:, 0] == 3).all():
        return Polygons(pos, triangles[:, 1:].reshape(-1), triangles[:, 0])
    corners, sizes = lists([line.split() for line in rest], "face")
    return Polygons(pos, corners, sizes)
