"""Points: .npy, .npz, .pcd, and rows of numbers in .xyz, .pts or .txt. A .npz may hold a mesh."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from geodl.data.formats.base import LARGEST, Polygons, Unreadable, cloud, floats, lines_of, whole

POSITIONS = ("pos", "vertices", "verts", "v", "points", "xyz", "arr_0")
FACES = ("face", "faces", "f", "triangles", "tris", "cells", "elements", "arr_1")


def read_npy(path: Path) -> Polygons:
    """An array (points, 3 or more)."""
    return cloud(points_of(array_of(path)))


def array_of(path: Path) -> NDArray[Any]:
    """The array of a .npy file; nothing is loaded before the file is known to be long enough.

    Raises:
        Unreadable: it is no array of plain numbers, or shorter than its header says.
    """
    try:
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise Unreadable(
            f"no array of numbers, or cut off ({' '.join(str(error).split())})"
        ) from None


def points_of(array: NDArray[Any]) -> NDArray[np.float64]:
    """The first three columns of an array (points, 3 or more)."""
    if array.ndim != 2 or array.shape[1] < 3 or len(array) <= array.shape[1]:
        turned = array.ndim == 2 and len(array) <= array.shape[1] and array.shape[1] > 9
        raise Unreadable(
            f"it has shape {array.shape}, expected (points, 3 or more)"
            + (": turn it around (points.T)" if turned and len(array) >= 3 else "")
        )
    if array.dtype.kind not in "fiu":
        raise Unreadable(f"it holds {array.dtype}, expected numbers")
    return array[:, :3].astype(np.float64)


def read_npz(path: Path) -> Polygons:
    """Arrays ``pos`` (v 3) and, of a mesh, ``face`` (f 3), or their usual other names."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {
                n.removesuffix(".npy").lower(): n for n in archive.namelist() if n.endswith(".npy")
            }
            place = next((n for n in POSITIONS if n in names), None)
            if place is None and len(names) == 1:
                place = next(iter(names))
            if place is None:
                raise Unreadable(f"it has no array 'pos', only {', '.join(names) or 'none'}")
            pos = _member(archive, names[place])
            faces = next((n for n in FACES if n in names), None)
            face = None if faces is None else _member(archive, names[faces])
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise Unreadable(f"it is damaged ({error})") from None
    if face is None or face.size == 0:
        return cloud(points_of(pos))
    if pos.ndim != 2 or pos.shape[1] != 3 or pos.dtype.kind not in "fiu":
        raise Unreadable(f"its vertices have shape {pos.shape}, expected (v, 3)")
    if face.ndim != 2 or face.shape[1] not in (3, 4) or face.dtype.kind not in "iu":
        raise Unreadable(f"its faces have shape {face.shape}, expected (f, 3) whole numbers")
    sizes = np.full(len(face), face.shape[1], np.int64)
    return Polygons(pos.astype(np.float64), face.astype(np.int64).reshape(-1), sizes)


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array of a .npz, refused before it is unpacked if it cannot be right."""
    size = archive.getinfo(name).file_size
    if size > LARGEST:
        raise Unreadable(f"its array {name} would take {size >> 30} GB")
    with archive.open(name) as stream:
        try:
            if _claimed(stream) > size:
                raise Unreadable(f"its array {name} claims more numbers than the file has")
        except (ValueError, SyntaxError) as error:
            raise Unreadable(f"its array {name} is damaged ({error})") from None
    with archive.open(name) as stream:
        try:
            return np.lib.format.read_array(stream, allow_pickle=False)
        except (ValueError, zipfile.BadZipFile) as error:
            raise Unreadable(f"its array {name} cannot be read ({error})") from None


def _claimed(stream: IO[bytes]) -> int:
    """Bytes that an array's header says it has."""
    major, _ = np.lib.format.read_magic(stream)
    header = (
        np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    )
    shape, _, kind = header(stream)
    count = kind.itemsize
    for n in shape:  # as Python numbers, which do not overflow
        count *= int(n)
    return count


def read_text(path: Path) -> Polygons:
    """A point a line: three numbers or more, separated by blanks or commas. The first line may be
    their count, or name the columns; # and // begin comments."""
    every = lines_of(path)
    _check_columns(every)
    lines = [s for line in every if (s := _bare(line))]
    if lines and _names(lines[0])[:3] == ["x", "y", "z"]:
        lines = lines[1:]
    elif lines and re.fullmatch(r"\d+", lines[0]):
        count = int(lines[0])
        lines = lines[1:]
        if count != len(lines):
            raise Unreadable(f"its first line says {count} points, but {len(lines)} follow")
    if not lines:
        raise Unreadable("it has no points")
    fields = re.split(r"[;\s]+", lines[0])
    if len(fields) > 1 and any(re.fullmatch(r"[-+]?\d*,\d+([eE][-+]?\d+)?", f) for f in fields):
        raise Unreadable(f"write decimals with a point, not a comma: {lines[0][:60]!r}")
    rows = [re.split(r"\s*[,;]\s*|\s+", line) for line in lines]
    width = len(rows[0])
    return cloud(points_of(floats(rows, "point", width)))


def _names(line: str) -> list[str]:
    """The names of columns in a line of words, without units and quotes; none in one of numbers."""
    names = [
        re.sub(r"[^a-z]", "", re.sub(r"\(.*?\)", "", w))
        for w in re.split(r"[\s,;]+", line.lstrip("#/ ").lower())
        if w
    ]
    return names if all(names) else []


def _check_columns(lines: list[str]) -> None:
    """Raises Unreadable where the first line names x, y and z in another place than the first."""
    names = _names(lines[0]) if lines else []
    if {"x", "y", "z"} <= set(names) and names[:3] != ["x", "y", "z"]:
        raise Unreadable(f"its columns are {', '.join(names)[:60]}: x, y and z must come first")


def _bare(line: str) -> str:
    return re.split(r"#|//", line)[0].strip().rstrip(",;")


def read_pcd(path: Path) -> Polygons:
    """Point Cloud Library's format, version 0.7: text, binary, or compressed."""
    data = path.read_bytes()
    header: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in header:
        end = data.find(b"\n", at)
        if end < 0:
            raise Unreadable("its header has no line DATA")
        words = data[at:end].decode("latin-1").removeprefix("\xef\xbb\xbf").split()
        at = end + 1
        if words and not words[0].startswith("#"):
            header[words[0].upper()] = words[1:]
    fields = header.get("FIELDS", header.get("COLUMNS", []))
    if not {"x", "y", "z"} <= set(fields) or "POINTS" not in header or not header["DATA"]:
        raise Unreadable("its header lacks x, y and z, or POINTS")
    (points,) = whole(header["POINTS"][:1], "POINTS")
    sizes = whole(header.get("SIZE", []), "SIZE")
    counts = whole(header.get("COUNT", ["1"] * len(fields)), "COUNT")
    kinds = [{"F": "f", "I": "i", "U": "u"}.get(t, "?") for t in header.get("TYPE", [])]
    if not len(fields) == len(sizes) == len(counts) == len(kinds) or "?" in kinds:
        raise Unreadable("its header's FIELDS, SIZE, TYPE and COUNT do not fit each other")
    form = header["DATA"][0].lower()
    if form == "ascii":
        lines = [line.split() for line in data[at:].decode("latin-1").splitlines() if line.strip()]
        if len(lines) != points or any(len(line) != sum(counts) for line in lines):
            raise Unreadable(f"its header says {points} points, but {len(lines)} lines follow")
        start = {f: sum(counts[:i]) for i, f in enumerate(fields)}
        columns = [[line[start[c]] for c in "xyz"] for line in lines]
        return cloud(points_of(floats(columns, "point", 3)))
    try:
        columns = zip(fields, kinds, sizes, counts, strict=True)
        row = np.dtype([(str(i), f"<{k}{s}", (c,)) for i, (_, k, s, c) in enumerate(columns)])
    except TypeError:
        raise Unreadable("its header has a SIZE that no number has") from None
    place = {f: str(i) for i, f in enumerate(fields)}
    if form == "binary":
        if points * row.itemsize > len(data) - at:
            raise Unreadable(f"its header says {points} points, but it ends before")
        rows = np.frombuffer(data, row, points, at)
        return cloud(points_of(np.stack([rows[place[c]][:, 0] for c in "xyz"], axis=1)))
    if form != "binary_compressed":
        raise Unreadable(f"DATA {form} is unknown")
    packed, unpacked = (int.from_bytes(data[at + i : at + i + 4], "little") for i in (0, 4))
    if unpacked != points * row.itemsize or packed > len(data) - at - 8 or unpacked > LARGEST:
        raise Unreadable(f"its header says {points} points, but its packed block has others")
    block = _lzf(data[at + 8 : at + 8 + packed], unpacked)
    column, at = dict[str, Any](), 0
    for f, k, s, c in zip(fields, kinds, sizes, counts, strict=True):  # column after column
        column[f] = np.frombuffer(block, f"<{k}{s}", points * c, at).reshape(points, c)[:, 0]
        at += points * c * s
    return cloud(points_of(np.stack([column[c] for c in "xyz"], axis=1)))


def _lzf(data: bytes, length: int) -> bytes:
    """LibLZF's decompression: runs of literal bytes, and references to what was written."""
    out = bytearray()
    at = 0
    try:
        while at < len(data) and len(out) <= length:
            control = data[at]
            at += 1
            if control < 32:
                out += data[at : at + control + 1]
                at += control + 1
                continue
            run = control >> 5
            if run == 7:
                run += data[at]
                at += 1
            start = len(out) - ((control & 31) << 8) - data[at] - 1
            at += 1
            if start < 0:
                raise IndexError
            for i in range(run + 2):  # may overlap what it writes
                out.append(out[start + i])
    except IndexError:
        raise Unreadable("its packed block is damaged") from None
    if len(out) != length:
        raise Unreadable("its packed block is damaged")
    return bytes(out)
