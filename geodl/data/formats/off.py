"""Geomview .off, as text: OFF, COFF, NOFF, STOFF and their combinations."""

from __future__ import annotations

import re
from pathlib import Path

from geodl.data.formats.base import Polygons, Unreadable, floats, lines_of, lists, whole


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
    rows = [line.split()[:3] for line in lines[:vertices]]
    pos = floats(rows, "vertex", 3)
    corners, sizes = lists([line.split() for line in lines[vertices:]], "face")
    return Polygons(pos, corners, sizes)
