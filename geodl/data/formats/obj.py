"""Wavefront .obj: the vertices (``v``) and faces (``f``) of all objects, groups and materials."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geodl.data.formats.base import Polygons, Unreadable, floats, lines_of

# What else may begin a line (the format's appendix); a word outside is a sign of damage.
IGNORED = {
    *(
        "vt",
        "vn",
        "vp",
        "vc",
        "l",
        "p",
        "o",
        "g",
        "s",
        "mg",
        "usemtl",
        "mtllib",
        "usemap",
        "maplib",
    ),
    *("deg", "bmat", "step", "cstype", "curv", "curv2", "surf", "parm", "trim", "hole", "scrv"),
    *("sp", "end", "con", "bevel", "c_interp", "d_interp", "lod", "shadow_obj", "trace_obj"),
    *("ctech", "stech", "call", "csh", "bsp", "bzp", "cdc", "cdp", "res"),
}


def read(path: Path) -> Polygons:
    """Texture coordinates, normals and materials are left aside, so nothing is split or moved;
    negative indices count back from the last vertex so far."""
    rows: list[list[str]] = []
    corners: list[int] = []
    sizes: list[int] = []
    begun = ""
    for number, line in enumerate(lines_of(path), 1):
        # A backslash continues a vertex or face; elsewhere it is part of a name (C:\models\).
        line, begun = f"{begun} {line}" if begun else line, ""
        if line.rstrip().endswith("\\") and line.split()[0] in ("v", "f", "fo"):
            begun = line.rstrip()[:-1]
            continue
        key, *words = (line.partition("#")[0] if "#" in line else line).split() or ["#"]
        if key == "v":
            if len(words) < 3:
                raise Unreadable(f"line {number}: a vertex has three numbers: {line.strip()!r}")
            rows.append(words[:3])
        elif key in ("f", "fo"):
            if len(words) < 3:
                raise Unreadable(f"line {number}: a face of {len(words)} corners")
            try:
                face = [int(word.partition("/")[0]) for word in words]
            except ValueError:
                raise Unreadable(f"line {number}: no indices: {line.strip()[:60]!r}") from None
            if 0 in face:
                raise Unreadable(f"line {number}: index 0 is not valid, .obj counts from 1")
            if min(face) < 0:
                face = [i if i > 0 else len(rows) + i + 1 for i in face]
            corners += face
            sizes.append(len(face))
        elif key not in IGNORED and key != "#":
            raise Unreadable(f"line {number} begins with {key!r}, which is no word of the format")
    if not rows:
        raise Unreadable("it has no vertices")
    try:
        places = np.array(corners, np.int64) - 1
    except OverflowError:
        raise Unreadable("an index is out of range") from None
    return Polygons(floats(rows, "vertex", 3), places, np.array(sizes, np.int64))
