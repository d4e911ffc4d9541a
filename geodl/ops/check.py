"""Names every defect of a mesh, and mends those that can be mended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from geodl.ops.geometry import face_areas

# A mesh with one of these cannot be mended without guessing what was meant.
ABSURD = "coordinates larger than 1e100 or smaller than 1e-100"
FAR = "a place so far from the origin that its coordinates have lost their digits"
FATAL = (
    *("no vertices", "NaN or infinite vertices", "face indices out of range", "zero faces"),
    *(ABSURD, FAR),
)
# These are mended by taking faces or vertices away; nothing moves.
MENDED = ("degenerate faces", "duplicate faces", "unreferenced vertices")
# The operators tolerate these; they are named and kept.
KEPT = ("non-manifold edges", "components")


@dataclass(frozen=True)
class Defects:
    """Defect -> how many there are."""

    count: dict[str, int] = field(default_factory=dict)

    @property
    def fatal(self) -> dict[str, int]:
        return {k: n for k, n in self.count.items() if k in FATAL}

    @property
    def mendable(self) -> dict[str, int]:
        return {k: n for k, n in self.count.items() if k in MENDED}

    def __str__(self) -> str:
        return ", ".join(f"{n} {name}" if n > 1 else name for name, n in self.count.items())

    def __bool__(self) -> bool:
        return bool(self.count)


def _degenerate(pos: NDArray[np.float64], face: NDArray[np.int64]) -> NDArray[np.bool_]:
    repeated = (face[:, 0] == face[:, 1]) | (face[:, 1] == face[:, 2]) | (face[:, 2] == face[:, 0])
    extent = np.ptp(pos, axis=0).max()
    return repeated | (face_areas(pos, face) <= 1e-14 * extent * extent)


def _duplicate(face: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True for every face whose vertex set an earlier face has."""
    _, first = np.unique(_codes(np.sort(face, axis=1)), return_index=True)
    duplicate = np.ones(len(face), bool)
    duplicate[first] = False
    return duplicate


def _codes(rows: NDArray[np.int64]) -> NDArray[Any]:
    """One number per row of non-negative indices: far faster to sort than rows."""
    n = int(rows.max(initial=0)) + 1
    if n ** rows.shape[1] < 2**63:
        return rows @ (n ** np.arange(rows.shape[1], dtype=np.int64))
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def check(pos: NDArray[np.floating], face: NDArray[np.integer], cloud: bool = False) -> Defects:
    """All defects of a mesh: vertices (v 3), faces (f 3). A cloud: its points only."""
    pos = np.asarray(pos, np.float64)
    face = np.asarray(face, np.int64).reshape(-1, 3)
    count: dict[str, int] = {}
    if len(pos) == 0:
        return Defects({"no vertices": 1})
    if bad := int((~np.isfinite(pos).all(axis=1)).sum()):
        count["NaN or infinite vertices"] = bad
    else:
        extent, far = float(np.ptp(pos, axis=0).max()), float(np.abs(pos).max())
        if far > 1e100 or 0 < extent < 1e-100:
            count[ABSURD] = 1
        elif 0 < extent < 1e-9 * far:
            count[FAR] = 1
    if cloud:
        return Defects(count)
    if len(face) == 0:
        count["zero faces"] = 1
        return Defects(count)
    if bad := int(((face < 0) | (face >= len(pos))).any(axis=1).sum()):
        count["face indices out of range"] = bad
    if count:
        return Defects(count)
    if bad := int(_degenerate(pos, face).sum()):
        count["degenerate faces"] = bad
    if bad := int(_duplicate(face).sum()):
        count["duplicate faces"] = bad
    used = np.zeros(len(pos), bool)
    used[face] = True
    if bad := int((~used).sum()):
        count["unreferenced vertices"] = bad
    sides = np.sort(np.concatenate([face[:, [0, 1]], face[:, [1, 2]], face[:, [2, 0]]]), axis=1)
    _, uses = np.unique(_codes(sides), return_counts=True)
    if bad := int((uses > 2).sum()):
        count["non-manifold edges"] = bad
    graph = sp.coo_matrix((np.ones(len(sides)), (sides[:, 0], sides[:, 1])), (len(pos),) * 2)
    _, component = connected_components(graph, directed=False)
    if (bad := int((np.bincount(component[face[:, 0]]) > 0).sum())) > 1:
        count["components"] = bad
    return Defects(count)


@dataclass(frozen=True)
class Mended:
    """A mesh after repair. ``vertex`` (v) and ``face_index`` (f) are the rows that were kept."""

    pos: NDArray[np.float64]
    face: NDArray[np.int64]
    vertex: NDArray[np.int64]
    face_index: NDArray[np.int64]


def repair(pos: NDArray[np.floating], face: NDArray[np.integer]) -> Mended:
    """Without degenerate faces, duplicate faces and vertices that no face uses.

    Raises:
        ValueError: a defect that cannot be mended, by name; or nothing is left.
    """
    defects = check(pos, face)
    if defects.fatal:
        raise ValueError(str(Defects(defects.fatal)))
    pos = np.asarray(pos, np.float64)
    face = np.asarray(face, np.int64)
    index = np.flatnonzero(~_degenerate(pos, face))
    index = index[~_duplicate(face[index])]
    if len(index) == 0:
        raise ValueError("every face is degenerate")
    used, compact = np.unique(face[index], return_inverse=True)
    return Mended(pos[used], compact.reshape(-1, 3).astype(np.int64), used, index)
