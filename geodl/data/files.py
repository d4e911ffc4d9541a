"""Reading and writing meshes, clouds and label files; the readers are in ``formats``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from geodl.atomic import atomic
from geodl.data import formats
from geodl.data.formats.base import Unreadable, text_of
from geodl.data.formats.clouds import array_of
from geodl.errors import UserError

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]


def read_mesh(path: Path) -> Arrays:
    """Vertices (v 3) and faces (f 3; none for a cloud), in the file's own order and number.

    Polygons are split into triangles (``formats.read`` tells which); an .stl, which repeats its
    vertices in every face, has them merged. The formats are those of ``formats.READERS``.

    Raises:
        UserError: the file is missing, of another kind, broken, or a mesh without faces.
    """
    mesh = formats.read(path)
    return mesh.pos, mesh.face


def read_labels(path: Path) -> NDArray[np.int64]:
    """Whole numbers, one per line of a .txt (or .eseg, .seg) or an array of a .npy.

    Raises:
        UserError: the file is missing, empty, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: every mesh needs its label file.")
    try:
        if path.suffix.lower() == ".npy":
            labels = array_of(path)
        else:
            text = text_of(path)
            words = text.split()
            labels = np.array(words, np.float64)
            lines = sum(bool(line.strip()) for line in text.splitlines())
            if len(words) != lines:
                raise Unreadable(f"it has {len(words)} numbers in {lines} lines")
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as labels, one a line ({error}).") from error
    if labels.size == 0:
        raise UserError(f"{path} is empty: give one label per vertex, face or edge.")
    if labels.ndim != 1 or labels.dtype.kind not in "fiu":
        raise UserError(
            f"{path} must hold one whole number per element, but has shape {labels.shape} of "
            f"{labels.dtype}."
        )
    bad = np.flatnonzero(~(np.abs(labels) < 2**31) | (labels != np.round(labels)))
    if len(bad):
        raise UserError(
            f"{path} has {labels[bad[0]]} as label {bad[0]}: labels are whole numbers (below 2^31)."
        )
    return labels.astype(np.int64)


def read_numbers(path: Path, columns: str) -> NDArray[np.float64]:
    """The lines (n c) of a text file; ``columns`` are the words that say what stands in them.

    Raises:
        UserError: the file is missing, no table of numbers, or one of other columns.
    """
    try:
        found = np.loadtxt(path, ndmin=2)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as lines of numbers ({error}).") from error
    if found.shape[1] != len(columns.split()):
        raise UserError(f"{path} has {found.shape[1]} columns, expected {columns}.")
    return found


def write_ply(
    path: Path,
    pos: NDArray[np.floating],
    face: NDArray[np.integer],
    color: NDArray[np.uint8],
) -> None:
    """A mesh or cloud with one colour (v 3, 0-255) per vertex."""
    import trimesh

    if len(face):
        mesh = trimesh.Trimesh(pos, face, vertex_colors=color, process=False)
    else:
        mesh = trimesh.PointCloud(pos, colors=color)
    data = cast(Any, mesh).export(file_type="ply")
    with atomic(path) as part:
        part.write_bytes(data)
