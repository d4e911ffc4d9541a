"""Signed distances to meshes, and surfaces of functions of space."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geodl.errors import UserError
from geodl.ops.geometry import Geometry, on_surface

# Of the points near a surface: this share lies at a distance of about the first number, the rest
# at one of about the second (the surface's size is one in radius).
NEAR = (0.625, 0.05, 0.015)
COARSE = 4  # steps of the fine grid in one of the coarse one


def signed_distance(
    points: NDArray[np.floating], pos: NDArray[np.floating], face: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Distances (n) of points (n 3) to a mesh, negative inside, where its generalised winding
    number is above a half (Barill et al.: Fast winding numbers, SIGGRAPH 2018): the mesh may have
    defects."""
    import igl

    query, vertices = (np.ascontiguousarray(x, np.float64) for x in (points, pos))
    triangles = np.ascontiguousarray(face, np.int64)
    kind = igl.SIGNED_DISTANCE_TYPE_FAST_WINDING_NUMBER
    return np.asarray(igl.signed_distance(query, vertices, triangles, kind)[0]).reshape(-1)


def sample_fields(
    geometry: Geometry, near: int, cube: int, surface: int
) -> dict[str, NDArray[np.float64]]:
    """The request ``Samples(near, cube, surface)``.

    Raises:
        UserError: the shape does not lie in the cube.
    """
    pos, face = geometry.pos, geometry.face
    if np.abs(pos).max() > 1.01:
        raise UserError(
            "shapes as functions of space lie in the unit ball: set "
            "data.preprocess.scale=max_radius and center=mean or bbox."
        )
    rng = np.random.default_rng(zlib.crc32(pos.astype(np.float32).tobytes()))
    share, wide, narrow = NEAR
    first = round(share * near)
    around, _ = on_surface(pos, face, near, rng)
    width = np.where(np.arange(near) < first, wide, narrow)[:, None]
    around += width * rng.standard_normal(around.shape)
    anywhere = rng.uniform(-1, 1, (cube, 3))
    on, normal = on_surface(pos, face, surface, rng)
    distance = signed_distance(np.concatenate([around, anywhere]), pos, face)
    return {
        "near": around,
        "near_distance": distance[:near],
        "cube": anywhere,
        "cube_distance": distance[near:],
        "surface": on,
        "surface_normal": normal,
    }


def zero_level(
    field: Callable[[NDArray[np.float64]], NDArray[np.floating]], cells: int, reach: float = 1.05
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The mesh of a function's zero level in [-reach, reach]^3 (marching cubes on ``cells`` cells a
    side, a multiple of four), oriented outwards where the function is negative inside. The function
    takes points (n 3); it is asked on a grid four times as coarse first, then where its sign
    changes there or in the cells around, so parts thinner than two coarse cells may be lost.

    Raises:
        ValueError: the function has one sign everywhere.
    """
    from skimage.measure import marching_cubes

    few = cells // COARSE
    coarse = _asked(field, np.linspace(-reach, reach, few + 1))
    images: Any = importlib.import_module("scipy.ndimage")  # its types are too narrow
    inside = coarse < 0
    if inside.all() or not inside.any():
        raise ValueError("the function has no zero level in the cube")
    cube = np.ones((2, 2, 2), bool)
    # Coarse cells whose corners differ, and those around them.
    corner = np.stack([inside[i:, j:, k:][:few, :few, :few] for i, j, k in np.ndindex(2, 2, 2)])
    mixed = images.binary_dilation(corner.any(0) != corner.all(0), np.ones((3, 3, 3), bool))
    fine = few * COARSE
    wanted = np.zeros((fine + 1,) * 3, bool)
    wanted[:fine, :fine, :fine] = np.kron(mixed, np.ones((COARSE,) * 3, bool))
    wanted = images.binary_dilation(wanted, cube, origin=-1)
    value = images.zoom(coarse, (fine + 1) / (few + 1), order=1, mode="nearest", grid_mode=False)
    line = np.linspace(-reach, reach, fine + 1)
    place = np.argwhere(wanted)
    value[wanted] = field(line[place])
    # A closed surface, where the function is negative at the border of the cube as well.
    value = np.pad(value, 1, constant_values=max(float(np.abs(value).max()), 1e-6))
    if not (value < 0).any():
        raise ValueError("the function has no zero level in the cube")
    pos, face, _, _ = marching_cubes(value, 0.0)
    step = 2 * reach / fine
    return (pos - 1) * step - reach, np.asarray(face, np.int64)


def _asked(
    field: Callable[[NDArray[np.float64]], NDArray[np.floating]], line: NDArray[np.float64]
) -> NDArray[np.float64]:
    grid = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1)
    return np.asarray(field(grid.reshape(-1, 3)), np.float64).reshape(grid.shape[:3])
