"""Where a surface goes when some of its vertices are moved: solutions without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from geodl.errors import UserError
from geodl.ops.align import rigid

ITERATIONS = 20  # of as-rigid-as-possible


def biharmonic(
    pos: Float[np.ndarray, "v 3"],
    face: Int[np.ndarray, "f 3"],
    handle: Int[np.ndarray, " h"],
    moved: Float[np.ndarray, "h 3"],
) -> NDArray[np.float64]:
    """Displacements (v 3) that are ``moved`` at the handles and bend least: the smallest
    h^T L M^-1 L h (Botsch, Kobbelt 2004)."""
    import igl

    return np.asarray(igl.harmonic(*_mesh(pos, face), *_handles(handle, moved), 2), np.float64)


def arap(
    pos: Float[np.ndarray, "v 3"],
    face: Int[np.ndarray, "f 3"],
    handle: Int[np.ndarray, " h"],
    moved: Float[np.ndarray, "h 3"],
) -> NDArray[np.float64]:
    """Displacements (v 3) that are ``moved`` at the handles and turn every neighbourhood as a rigid
    body as far as can be, from the rigid motion of the handles and biharmonic ones beside it
    (Sorkine, Alexa 2007)."""
    import igl

    pos, face = _mesh(pos, face)
    data = igl.ARAPData()
    data.max_iter = ITERATIONS
    igl.arap_precomputation(pos, face, 3, np.asarray(handle, np.int32), data)
    goal = pos[handle] + moved
    start = rigid(pos, pos[handle], goal)
    start += biharmonic(start, face, handle, goal - start[handle])
    return np.asarray(igl.arap_solve(goal, data, start), np.float64) - pos


def rbf(
    pos: Float[np.ndarray, "v 3"],
    face: Int[np.ndarray, "f 3"],
    handle: Int[np.ndarray, " h"],
    moved: Float[np.ndarray, "h 3"],
) -> NDArray[np.float64]:
    """Displacements (v 3) of space that are ``moved`` at the handles: a triharmonic spline
    (|x|^3 and a linear map), which knows nothing of the surface."""
    from scipy.interpolate import RBFInterpolator

    at, values = np.asarray(pos[handle], np.float64), np.asarray(moved, np.float64)
    found = RBFInterpolator(at, values, kernel="cubic")(np.asarray(pos, np.float64))
    return np.asarray(found, np.float64)


SOLVERS: dict[str, Callable[..., NDArray[np.float64]]] = {
    "biharmonic": biharmonic,
    "arap": arap,
    "rbf": rbf,
}


def solve(
    name: str,
    pos: NDArray[np.floating],
    face: NDArray[np.integer],
    handle: NDArray[np.integer],
    moved: NDArray[np.floating],
) -> NDArray[np.float64]:
    """The displacements (v 3) that a solver finds. Handles on one vertex count as their mean.

    Raises:
        UserError: a cloud, too few handles, or a mesh that it cannot take.
    """
    if not len(face):
        raise UserError(f"task.solver={name} moves meshes, and this is a cloud: no test=cloud.")
    own, group = np.unique(handle, return_inverse=True)
    mean = np.zeros((len(own), 3))
    np.add.at(mean, group.reshape(-1), moved)
    mean /= np.bincount(group.reshape(-1))[:, None]
    if len(own) < 4:
        raise UserError(f"task.solver={name} needs four handles in different places.")
    try:
        return SOLVERS[name](pos, face, own, mean)
    except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"task.solver={name} finds nothing on this mesh ({reason}): every piece of it needs a "
            "handle."
        ) from error


def _mesh(
    pos: NDArray[np.floating], face: NDArray[np.integer]
) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.ascontiguousarray(pos, np.float64), np.ascontiguousarray(face, np.int64)


def _handles(
    handle: NDArray[np.integer], moved: NDArray[np.floating]
) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.ascontiguousarray(handle, np.int64), np.ascontiguousarray(moved, np.float64)
