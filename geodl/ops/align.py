"""The motions that take points best onto others that they correspond to."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


def rotation(
    source: Float[np.ndarray, "p 3"], target: Float[np.ndarray, "p 3"]
) -> NDArray[np.float64]:
    """The rotation (3 3) that takes ``source``, centred, nearest to ``target``, centred, in least
    squares; never a reflection (Kabsch 1976)."""
    u, _, vt = np.linalg.svd((target - target.mean(0)).T @ (source - source.mean(0)))
    return u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt


def rigid(
    pos: Float[np.ndarray, "v 3"],
    source: Float[np.ndarray, "p 3"],
    target: Float[np.ndarray, "p 3"],
) -> NDArray[np.float64]:
    """Points (v 3) under the rotation and shift that take ``source`` nearest to ``target``."""
    return (pos - source.mean(0)) @ rotation(source, target).T + target.mean(0)


def similarity(
    source: Float[np.ndarray, "p 3"], target: Float[np.ndarray, "p 3"]
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """Rotation, scale and shift that take ``source`` nearest to ``target`` (Umeyama 1991):
    ``scale * source @ rotation.T + shift``."""
    turn = rotation(source, target)
    turned = (source - source.mean(0)) @ turn.T
    scale = float((turned * (target - target.mean(0))).sum() / (turned**2).sum())
    return turn, scale, target.mean(0) - scale * source.mean(0) @ turn.T
