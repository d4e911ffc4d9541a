"""Reading and writing meshes, clouds and label files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from geodl.atomic import atomic
from geodl.errors import UserError

MESH_SUFFIXES = (".obj", ".ply", ".off", ".stl")
CLOUD_SUFFIXES = (".npy", ".xyz", ".txt")

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]


def read_mesh(path: Path) -> Arrays:
    """Vertices (v 3) and faces (f 3; none for a cloud) of .obj .ply .off .stl .npy .xyz.

    Vertices keep the file's order; an .stl, which repeats them per face, has them merged. Polygons
    are split into triangles. A cloud is a .npy or .xyz of (v 3 or more) numbers, or a .ply
    without faces.

    Raises:
        UserError: the file is missing, of another kind, broken, or a mesh without faces.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    suffix = path.suffix.lower()
    if suffix in (".npy", ".xyz"):
        return _read_cloud(path), np.empty((0, 3), np.int64)
    if suffix not in MESH_SUFFIXES:
        known = " ".join((*MESH_SUFFIXES, ".npy", ".xyz"))
        raise UserError(f"{path} is no mesh or cloud that geodl reads: use one of {known}.")
    import trimesh

    logging.getLogger("trimesh").setLevel(logging.CRITICAL)
    try:
        loaded: Any = trimesh.load(path, process=False, maintain_order=True)
        if isinstance(loaded, trimesh.Scene):
            loaded = loaded.to_mesh() if loaded.geometry else trimesh.Trimesh()
        if suffix == ".stl":
            loaded.merge_vertices()
        pos = np.asarray(loaded.vertices, np.float64).reshape(-1, 3)
        face = np.asarray(getattr(loaded, "faces", np.empty((0, 3))), np.int64).reshape(-1, 3)
    except Exception as error:  # the readers of four formats raise whatever they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} cannot be read as {suffix} ({reason[:120]}): is it whole, and are its face "
            "indices those of its vertices?"
        ) from error
    if len(face) == 0 and suffix != ".ply":
        raise UserError(
            f"{path} has zero faces: give a mesh, or save the points as .npy (v 3) or .ply."
        )
    return pos, face


def _read_cloud(path: Path) -> NDArray[np.float64]:
    try:
        points = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path)
        points = np.asarray(points, np.float64)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read as an array of numbers ({error}).") from error
    if points.ndim != 2 or points.shape[1] < 3 or len(points) == 0:
        raise UserError(f"{path} has shape {points.shape}, expected (points, 3 or more).")
    return points[:, :3]


def read_labels(path: Path) -> NDArray[np.int64]:
    """Integers, one per line of a .txt (or .eseg, .seg) or an array of a .npy."""
    try:
        labels = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path)
        labels = np.atleast_1d(np.asarray(labels, np.float64))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: every mesh needs its label file.") from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read as labels ({error}).") from error
    if labels.ndim != 1 or not np.equal(labels, np.round(labels)).all():
        raise UserError(f"{path} must hold one integer per element, got shape {labels.shape}.")
    return labels.astype(np.int64)


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
