"""Formats that libraries read: .glb and .gltf (trimesh), .vtk and .vtu (meshio)."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from geodl.data.formats.base import LARGEST, Polygons, Unreadable, cloud

SURFACE = ("triangle", "quad", "polygon")
NEITHER = ("vertex", "line", "polyline")


def read_gltf(path: Path) -> Polygons:
    """All meshes of the scene, each where the scene puts it, in the scene's order."""
    import trimesh

    logging.getLogger("trimesh").setLevel(logging.CRITICAL)
    try:
        scene: Any = trimesh.load_scene(path, process=False)
        # In the order of the file's meshes: the graph is walked in one of its own.
        order = list(scene.geometry)
        nodes = sorted(scene.graph.nodes_geometry, key=lambda n: order.index(scene.graph[n][1]))
        parts = [_placed(scene, node) for node in nodes]
    except Exception as error:  # it raises whatever the file's fault suggests
        raise Unreadable(f"is it whole? ({type(error).__name__}: {error})"[:160]) from None
    if not parts:
        raise Unreadable("it has no mesh")
    start = np.cumsum([0, *(len(p) for p, _ in parts)])
    pos = np.concatenate([p for p, _ in parts])
    corners = np.concatenate([f + s for (_, f), s in zip(parts, start, strict=False)]).reshape(-1)
    return Polygons(pos, corners, np.full(len(corners) // 3, 3, np.int64))


def _placed(scene: Any, node: str) -> tuple[Any, Any]:
    matrix, name = scene.graph[node]
    mesh = scene.geometry[name]
    pos = np.asarray(mesh.vertices, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    face = np.asarray(getattr(mesh, "faces", np.empty((0, 3))), np.int64)
    return pos, face[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else face


def read_vtk(path: Path) -> Polygons:
    """The triangles, quadrilaterals and polygons; a file of volume cells is refused."""
    import meshio

    _small(path)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = meshio.read(path)
    except (Exception, SystemExit) as error:  # it raises whatever the file's fault suggests
        reason = " ".join(str(error).split())
        reason = f" ({reason[:120]})" if len(reason) > 3 else ""
        raise Unreadable(
            f"meshio takes unstructured grids only{reason}: save it as .vtu, or as .ply"
        ) from None
    corners: list[Any] = []
    sizes: list[Any] = []
    for block in found.cells:
        if block.type in NEITHER:
            continue
        if block.type not in SURFACE:
            raise Unreadable(f"it has cells of type {block.type}: give their surface")
        for cell in block.data:
            corners.append(np.asarray(cell, np.int64))
            sizes.append(len(cell))
    pos = np.asarray(found.points, np.float64)
    if pos.ndim != 2 or pos.shape[1] != 3:
        raise Unreadable(f"its points have shape {pos.shape}, expected (v, 3)")
    if not sizes:
        return cloud(pos)
    return Polygons(pos, np.concatenate(corners), np.array(sizes, np.int64))


def _small(path: Path) -> None:
    """Raises Unreadable for a header that claims more points than the file has bytes."""
    import re

    with path.open("rb") as stream:
        head = stream.read(65536).decode("latin-1")
    for number in re.findall(r'POINTS\s+(\d+)|NumberOfPoints="(\d+)"', head):
        claimed = int(number[0] or number[1])
        if claimed > min(LARGEST, max(path.stat().st_size, 1) * 64):
            raise Unreadable(f"its header says {claimed} points, more than the file can hold")
