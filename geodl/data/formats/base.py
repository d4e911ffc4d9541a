"""What all readers share: their result, their error, text, and polygons split into triangles."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST = 2 << 30  # bytes of one shape, unpacked


class Unreadable(ValueError):
    """Why a file cannot be read, as the end of a sentence."""


class Polygons(NamedTuple):
    """A file's content in its order: pos (v 3), the corners of all polygons one after the other
    (indices into pos), and how many each polygon has (p). No polygons: a cloud."""

    pos: NDArray[np.float64]
    corners: NDArray[np.int64]
    sizes: NDArray[np.int64]


class Mesh(NamedTuple):
    """pos (v 3) and face (f 3) in the file's order; ``polygon`` (f): the polygon of the file that
    each triangle is a part of, and how many polygons the file has."""

    pos: NDArray[np.float64]
    face: NDArray[np.int64]
    polygon: NDArray[np.int64]
    polygons: int


def text_of(path: Path) -> str:
    """A text file, without a byte-order mark.

    Raises:
        Unreadable: it is binary, or in UTF-16.
    """
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("it is UTF-16 text: save it as UTF-8")
    if b"\0" in data:
        raise Unreadable("it should be text, but holds zero bytes")
    return data.decode("utf-8-sig", errors="replace")


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, whatever system it comes from (and nothing else ends a line)."""
    text = text_of(path).rstrip("\x1a")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def cloud(points: Any) -> Polygons:
    """Points (v 3) as a result without polygons."""
    none = np.empty(0, np.int64)
    return Polygons(np.ascontiguousarray(points, np.float64), none, none)


def table(lines: list[str], columns: int, number: type) -> NDArray[Any] | None:
    """The first columns of lines of numbers, in one go; None where a line is of another kind, which
    a slower reader then names."""
    if not lines:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 3.0 as a whole number, say
        try:
            found = np.loadtxt(lines, number, comments=None, usecols=range(columns), ndmin=2)
        except (ValueError, OverflowError, Warning):
            return None
    return found if len(found) == len(lines) else None


def floats(rows: list[list[str]], what: str, width: int) -> NDArray[np.float64]:
    """Rows of ``width`` words as numbers (n width).

    Raises:
        Unreadable: a row with fewer words, or a word that is no number.
    """
    try:
        return np.array(rows, np.float64).reshape(len(rows), width)
    except ValueError:
        for i, row in enumerate(rows):
            if len(row) != width or not all(_number(word) for word in row):
                raise Unreadable(
                    f"{what} {i} is not {width} numbers: {' '.join(row)[:60]!r}"
                ) from None
        raise


def _number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def triangles(found: Polygons) -> Mesh:
    """Polygons split into triangles: by a fan, or by clipping ears where a fan would fold over.

    Raises:
        Unreadable: a corner that is no vertex.
    """
    pos, corners, sizes = found
    count = len(sizes)
    bad = np.flatnonzero((corners < 0) | (corners >= len(pos)))
    if len(bad):
        owner = int(np.searchsorted(np.cumsum(sizes), bad[0], side="right"))
        raise Unreadable(
            f"face {owner} names vertex {corners[bad[0]]}, but the vertices are 0 to "
            f"{len(pos) - 1} (counted from 0)"
        )
    if (sizes == 3).all():
        return Mesh(pos, corners.reshape(-1, 3), np.arange(count), count)
    start = np.cumsum(sizes) - sizes
    face: list[NDArray[np.int64]] = [np.empty((0, 3), np.int64)]
    polygon: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for size in np.unique(sizes[sizes >= 3]):
        mine = np.flatnonzero(sizes == size)
        ring = corners[start[mine][:, None] + np.arange(size)]
        first, rest = ring[:, :1, None], np.stack([ring[:, 1:-1], ring[:, 2:]], axis=2)
        fan = np.concatenate([np.broadcast_to(first, (*rest.shape[:2], 1)), rest], axis=2)
        if size > 3:
            for i in np.flatnonzero(~_unfolded(pos, ring, fan)):
                fan[i] = _ears(pos, ring[i])
        face.append(fan.reshape(-1, 3))
        polygon.append(np.repeat(mine, size - 2))
    order = np.argsort(np.concatenate(polygon), kind="stable")
    return Mesh(pos, np.concatenate(face)[order], np.concatenate(polygon)[order], count)


def _unfolded(
    pos: NDArray[np.float64], ring: NDArray[np.int64], fan: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether all triangles of each fan (p n-2 3) look to the polygon's own side."""
    a, b, c = (pos[fan[:, :, i]] for i in range(3))
    normals = np.cross(b - a, c - a)  # sums to the polygon's area vector
    return ((normals * normals.sum(1, keepdims=True)).sum(2) > 0).all(1)


def _ears(pos: NDArray[np.float64], ring: NDArray[np.int64]) -> NDArray[np.int64]:
    """One simple polygon (n) as triangles (n-2 3): ears are cut off in its own plane. What has no
    ear (a crossing or flat polygon) becomes a fan."""
    at = pos[ring] - pos[ring].mean(0)
    normal = np.cross(at, np.roll(at, -1, axis=0)).sum(0)
    length = float(np.linalg.norm(normal))
    left = list(range(len(ring)))
    cut: list[list[int]] = []
    if length > 0:
        normal = normal / length
        first = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
        plane = np.stack([at @ first, at @ np.cross(normal, first)], axis=1)
        while len(left) > 3:
            ear = next((i for i in range(len(left)) if _is_ear(plane, left, i)), None)
            if ear is None:
                break
            cut.append([left[ear - 1], left[ear], left[(ear + 1) % len(left)]])
            del left[ear]
    cut += [[left[0], left[i], left[i + 1]] for i in range(1, len(left) - 1)]
    return ring[np.array(cut)]


def _is_ear(plane: NDArray[np.float64], left: list[int], i: int) -> bool:
    a, b, c = left[i - 1], left[i], left[(i + 1) % len(left)]
    pa, pb, pc = plane[a], plane[b], plane[c]
    if not _side(pa, pb, pc) > 0:
        return False
    others = plane[[j for j in left if j not in (a, b, c)]]
    # A cut that leads to a hole passes its ends twice: the same place is no obstacle.
    others = others[~(others[:, None] == np.stack([pa, pb, pc])).all(2).any(1)]
    inside = (_side(pa, pb, others) >= 0) & (_side(pb, pc, others) >= 0)
    return not (inside & (_side(pc, pa, others) >= 0)).any()


def _side(a: NDArray[Any], b: NDArray[Any], p: NDArray[Any]) -> Any:
    """Positive where p lies to the left of the line from a to b."""
    return (b[0] - a[0]) * (p[..., 1] - a[1]) - (b[1] - a[1]) * (p[..., 0] - a[0])


def integers(words: list[str], what: str) -> list[int]:
    """Words as integers of 64 bits.

    Raises:
        Unreadable: one is none.
    """
    try:
        numbers = [int(w) for w in words]
    except ValueError:
        raise Unreadable(f"{what} should be whole numbers: {' '.join(words)[:60]!r}") from None
    if any(abs(n) >= 2**63 for n in numbers):
        raise Unreadable(f"{what} are out of range: {' '.join(words)[:60]!r}")
    return numbers


def whole(words: list[str], what: str) -> list[int]:
    """Words as integers of zero or more.

    Raises:
        Unreadable: one is none.
    """
    numbers = integers(words, what)
    if min(numbers, default=0) < 0:
        raise Unreadable(f"{what} cannot be negative: {' '.join(words)[:60]!r}")
    return numbers


def lists(rows: list[list[str]], what: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that begin with their length: all their numbers one after the other, and the lengths.
    What follows in a row is left aside.

    Raises:
        Unreadable: a row that is shorter than it says, or holds no whole numbers.
    """
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if all(row and row[0] == rows[0][0] for row in rows):  # the usual case, in one go
        (size,) = whole(rows[0][:1], f"the length of {what} 0")
        if size and all(len(row) > size for row in rows):
            with contextlib.suppress(ValueError, OverflowError):  # the loop finds the row
                corners = np.array([row[1 : size + 1] for row in rows], np.int64)
                return corners.reshape(-1), np.full(len(rows), size, np.int64)
    flat: list[int] = []
    sizes: list[int] = []
    for i, row in enumerate(rows):
        (size,) = whole(row[:1], f"the length of {what} {i}") or [-1]
        if not 1 <= size < len(row):
            raise Unreadable(f"{what} {i} should have {size} corners: {' '.join(row)[:60]!r}")
        flat += integers(row[1 : size + 1], f"the corners of {what} {i}")
        sizes.append(size)
    return np.array(flat, np.int64), np.array(sizes, np.int64)
