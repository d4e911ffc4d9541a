"""Readers of shape files: what the file says, in its order, or one sentence why not.

``read`` picks the reader by the suffix. Every reader returns the vertices and polygons as they
stand in the file; polygons are split into triangles here, and every triangle knows its polygon.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from geodl.data.formats.base import LARGEST, Mesh, Unreadable, triangles
from geodl.errors import UserError

# suffix -> the function that reads it
MESHES = {
    ".obj": "obj:read",
    ".off": "off:read",
    ".ply": "ply:read",
    ".stl": "stl:read",
    ".glb": "others:read_gltf",
    ".gltf": "others:read_gltf",
    ".vtk": "others:read_vtk",
    ".vtu": "others:read_vtk",
}
CLOUDS = {
    ".npy": "clouds:read_npy",
    ".npz": "clouds:read_npz",
    ".pcd": "clouds:read_pcd",
    ".xyz": "clouds:read_text",
    ".pts": "clouds:read_text",
    ".txt": "clouds:read_text",
}
READERS = {**MESHES, **CLOUDS}
POINTER = b"version https://git-lfs"
SURFACES = (".obj", ".off", ".stl", ".glb", ".gltf")  # points alone are taken for a fault in these


def read(path: Path) -> Mesh:
    """A mesh or cloud as its file has it; see ``geodl.data.files.read_mesh``."""
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise UserError(f"{path} is no mesh or cloud that geodl reads: use {' '.join(READERS)}.")
    try:
        if path.stat().st_size > LARGEST:
            raise Unreadable(f"it has more than {LARGEST >> 30} GB: no single shape needs that")
        with path.open("rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                raise Unreadable("it is a pointer of Git LFS: fetch the file itself (git lfs pull)")
        module, function = READERS[suffix].split(":")
        reader = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        mesh = triangles(reader(path))
    except Unreadable as error:
        raise UserError(f"{path} cannot be read as {suffix}: {error}.") from error
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # what no page foresaw
        raise UserError(
            f"{path} cannot be read as {suffix} ({type(error).__name__}: {error}): is it whole?"
        ) from error
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "it does not fit into memory"
        raise UserError(f"{path} cannot be read: {reason}.") from error
    if suffix in SURFACES and len(mesh.face) == 0:
        raise UserError(
            f"{path} has zero faces: give a mesh, or save the points as .npy (v 3) or .ply."
        )
    return mesh


def is_points(path: Path) -> bool:
    """Whether a text file begins like a list of points, and not like prose or labels."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4096).decode("utf-8-sig", errors="replace").splitlines()[:3]
    except OSError:
        return False
    words = [w for w in re.split(r"[\s,;]+", head[-1] if head else "") if w]
    return len(words) >= 3 and all(re.fullmatch(r"[-+\d.eE]+|nan", w) for w in words)
