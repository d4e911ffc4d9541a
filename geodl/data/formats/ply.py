"""Stanford .ply, text or binary: the element ``vertex``, and ``face`` or ``tristrips``."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geodl.data.formats.base import Polygons, Unreadable, floats, lists, whole

TYPES = dict(
    pair.split(":")
    for pair in (
        *("char:i1", "uchar:u1", "short:i2", "ushort:u2", "int:i4", "uint:u4"),
        *("int8:i1", "uint8:u1", "int16:i2", "uint16:u2", "int32:i4", "uint32:u4"),
        *("float:f4", "double:f8", "float32:f4", "float64:f8"),
    )
)
INDICES = ("vertex_indices", "vertex_index", "vertex_indexes")


@dataclass
class Property:
    """``count``: the type of a list's length, or None; ``kind``: that of its numbers."""

    name: str
    kind: str
    count: str | None = None


@dataclass
class Element:
    name: str
    count: int
    properties: list[Property] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return [p.name for p in self.properties]

    @property
    def least(self) -> int:
        """Bytes of the shortest possible row in a binary file."""
        return sum(np.dtype(p.count or p.kind).itemsize for p in self.properties)


def read(path: Path) -> Polygons:
    """Everything but positions and corners is left aside; vertices are not split at texture seams,
    whatever a face's list of texture coordinates says."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    form, elements, start = _header(data)
    vertex = next((e for e in elements if e.name == "vertex"), None)
    if vertex is None or not {"x", "y", "z"} <= set(vertex.columns):
        raise Unreadable("it has no vertices with x, y and z")
    face = next((e for e in elements if e.name == "face" and e.count), None)
    strips = next((e for e in elements if e.name == "tristrips" and e.count), None)
    for element in (face, strips):
        if element is not None and not set(INDICES) & set(element.columns):
            raise Unreadable(f"its element {element.name} has no list vertex_indices")
    read = [e.name for e in elements if e.name in ("vertex", "face", "tristrips")]
    others = [e.name for e in elements if e.count and set(INDICES) & set(e.columns)]
    if len(set(read)) < len(read) or not {*others} <= {"face", "tristrips"}:
        raise Unreadable(
            f"it has the elements {', '.join(e.name for e in elements)}: expected one "
            "vertex, and one face or tristrips"
        )
    wanted = {"vertex": ["x", "y", "z"]}
    for element in (face, strips):
        if element is not None:
            wanted[element.name] = [c for c in element.columns if c in INDICES][:1]
    if form == "ascii":
        body = re.split(r"\r\n|\r|\n", data[start:].decode("latin-1"))
        found = _ascii(body, elements, wanted)
    else:
        found = _binary(data, start, elements, wanted, "<" if "little" in form else ">")
    pos = np.stack([found["vertex"][c] for c in ("x", "y", "z")], axis=1).astype(np.float64)
    none = np.empty(0, np.int64)
    corners, sizes = found["face"][wanted["face"][0]] if face else (none, none)
    if strips:
        run, lengths = found["tristrips"][wanted["tristrips"][0]]
        more = _strips(run, lengths)
        corners = np.concatenate([corners, more.reshape(-1)])
        sizes = np.concatenate([sizes, np.full(len(more), 3)])
    return Polygons(pos, corners.astype(np.int64), sizes.astype(np.int64))


def _header(data: bytes) -> tuple[str, list[Element], int]:
    """The format, the elements, and where the body begins."""
    if not data.startswith(b"ply"):
        raise Unreadable("it does not begin with 'ply'")
    end = data.find(b"\nend_header") + 1
    if not end:
        raise Unreadable("its header has no end")
    form, elements = "", list[Element]()
    for line in re.split(r"\r?\n", data[:end].decode("latin-1"))[1:]:
        words = line.split() or ["comment"]
        if words[0] == "format" and len(words) > 1:
            form = words[1]
        elif words[0] == "element" and len(words) == 3:
            elements.append(Element(words[1], whole(words[2:], "the count of an element")[0]))
        elif words[0] == "property" and elements:
            kinds = [TYPES.get(w, "") for w in words[1:-1] if w != "list"]
            if not all(kinds) or len(kinds) != (2 if words[1] == "list" else 1):
                raise Unreadable(f"its header has an unknown property: {line.strip()!r}")
            elements[-1].properties.append(
                Property(words[-1].lower(), kinds[-1], kinds[0] if words[1] == "list" else None)
            )
        elif words[0] not in ("comment", "obj_info"):
            raise Unreadable(f"its header has an unknown line: {line.strip()!r}")
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise Unreadable(f"its format {form!r} is unknown")
    start = end + len(b"end_header")
    start += 2 if data[start : start + 2] == b"\r\n" else 1
    return form, elements, start


def _announced(elements: list[Element]) -> str:
    return " and ".join(f"{e.count} {e.name}" for e in elements)


def _ascii(
    body: list[str], elements: list[Element], wanted: dict[str, list[str]]
) -> dict[str, Any]:
    lines = [line for line in body if line and not line.isspace()]
    announced = sum(e.count for e in elements)
    if len(lines) != announced:
        raise Unreadable(
            f"its header says {_announced(elements)}, one a line, but {len(lines)} lines follow"
        )
    found: dict[str, Any] = {}
    at = 0
    for element in elements:
        rows = [line.split() for line in lines[at : at + element.count]]
        at += element.count
        if element.name in wanted:
            found[element.name] = _ascii_rows(element, rows, wanted[element.name])
    return found


def _ascii_rows(element: Element, rows: list[list[str]], wanted: list[str]) -> dict[str, Any]:
    if not any(p.count for p in element.properties):
        places = [element.columns.index(name) for name in wanted]
        table = floats([[*row[: max(places) + 1]] for row in rows], element.name, max(places) + 1)
        return {name: table[:, at] for name, at in zip(wanted, places, strict=True)}
    if wanted == element.columns[:1]:
        return {wanted[0]: lists(rows, element.name)}
    values: dict[str, list[list[str]]] = {name: [] for name in wanted}
    for i, row in enumerate(rows):
        at = 0
        for p in element.properties:
            size = 1
            if p.count and at < len(row):
                (size,) = whole(row[at : at + 1], f"a list of {element.name} {i}")
                at += 1
            if at + size > len(row):
                raise Unreadable(f"{element.name} {i} is too short: {' '.join(row)[:60]!r}")
            if p.name in values:
                values[p.name].append(row[at : at + size])
            at += size
    found: dict[str, Any] = {}
    for p in element.properties:
        if p.name in values and p.count:
            flat = [word for words in values[p.name] for word in words]
            sizes = np.array([len(words) for words in values[p.name]], np.int64)
            try:
                found[p.name] = np.array(flat, np.int64), sizes
            except ValueError:
                raise Unreadable(f"its {element.name}s have corners that are no numbers") from None
        elif p.name in values:
            found[p.name] = floats(values[p.name], element.name, 1)[:, 0]
    return found


def _binary(
    data: bytes, at: int, elements: list[Element], wanted: dict[str, list[str]], order: str
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for element in elements:
        if element.count * element.least > len(data) - at:
            raise Unreadable(
                f"its header says {_announced(elements)}, but its {len(data)} bytes end before"
            )
        rows, at = _binary_rows(data, at, element, order)
        if element.name in wanted:
            found[element.name] = {name: rows[name] for name in wanted[element.name]}
    if data[at:].strip(b"\0 \r\n\t"):
        raise Unreadable(f"{len(data) - at} bytes follow what its header says")
    return found


def _binary_rows(data: bytes, at: int, element: Element, order: str) -> tuple[dict[str, Any], int]:
    """The columns of an element; a list's is its numbers and their counts."""
    lists = [p for p in element.properties if p.count]
    lengths = _lengths(data, at, element, order) if element.count else {p.name: 0 for p in lists}
    if lengths is not None:  # every row like the first: one block
        kinds: list[Any] = []
        for i, p in enumerate(element.properties):
            if p.count:
                kinds += [(f"n{i}", order + p.count), (f"p{i}", order + p.kind, lengths[p.name])]
            else:
                kinds.append((f"p{i}", order + p.kind))
        block = np.dtype(kinds)
        if element.count * block.itemsize <= len(data) - at:
            rows = np.frombuffer(data, block, element.count, at)
            where = {p.name: i for i, p in enumerate(element.properties)}
            if all((rows[f"n{where[p.name]}"] == lengths[p.name]).all() for p in lists):
                columns: dict[str, Any] = {}
                for i, p in enumerate(element.properties):
                    column = rows[f"p{i}"]
                    sizes = np.full(element.count, lengths.get(p.name, 1), np.int64)
                    columns[p.name] = (column.reshape(-1), sizes) if p.count else column
                return columns, at + element.count * block.itemsize
    values: dict[str, list[Any]] = {p.name: [] for p in element.properties}
    counts: dict[str, list[int]] = {p.name: [] for p in lists}
    for i in range(element.count):
        for p in element.properties:
            size = 1
            if p.count:
                (size,), at = _unpacked(data, at, order, p.count, 1, element, i)
                counts[p.name].append(size)
            numbers, at = _unpacked(data, at, order, p.kind, size, element, i)
            values[p.name] += numbers
    return {
        p.name: (np.array(values[p.name]), np.array(counts[p.name], np.int64))
        if p.count
        else np.array(values[p.name])
        for p in element.properties
    }, at


def _lengths(data: bytes, at: int, element: Element, order: str) -> dict[str, int] | None:
    """The lengths of the lists of an element's first row."""
    lengths: dict[str, int] = {}
    for p in element.properties:
        size = 1
        if p.count:
            (size,), at = _unpacked(data, at, order, p.count, 1, element, 0)
            if size < 0:
                return None
            lengths[p.name] = size
        if size * np.dtype(p.kind).itemsize > len(data) - at:
            return None  # reading row by row finds out which one it is
        at += size * np.dtype(p.kind).itemsize
    return lengths


CODES = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f4": "f", "f8": "d"}


def _unpacked(
    data: bytes, at: int, order: str, kind: str, count: Any, element: Element, row: int
) -> tuple[tuple[Any, ...], int]:
    size = math.floor(count) * int(kind[1])
    if not 0 <= size <= len(data) - at:
        raise Unreadable(f"it ends in {element.name} {row} of {element.count}")
    return struct.unpack_from(f"{order}{int(count)}{CODES[kind]}", data, at), at + size


def _strips(run: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """The triangles (t 3) of triangle strips; -1 begins a new one, every other triangle turns
    around, and a triangle with a repeated corner only leads on."""
    faces: list[tuple[int, int, int]] = []
    at = 0
    for length in lengths.tolist():
        strip: list[int] = []
        for corner in [*run[at : at + length].tolist(), -1]:
            if corner < 0:
                for i in range(len(strip) - 2):
                    a, b, c = strip[i : i + 3]
                    faces.append((b, a, c) if i % 2 else (a, b, c))
                strip = []
            else:
                strip.append(int(corner))
        at += length
    solid = [f for f in faces if len(set(f)) == 3]
    return np.array(solid, np.int64).reshape(-1, 3)
