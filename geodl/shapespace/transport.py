"""A motion of one mesh as a motion of another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from geodl.shapespace.metric import H2
from geodl.shapespace.path import following, geodesic, shoot


def transported(
    h: Float[Tensor, "v 3"],
    path: Float[Tensor, "t v 3"],
    face: Int[Tensor, "f 3"],
    metric: H2,
) -> Float[Tensor, "v 3"]:
    """The motion h of a path's first mesh, as one of its last, by Schild's ladder: rung by rung,
    the diagonal through the middle ends where the motion does (Hartman et al. 2023, 4.5).

    Differs: half the difference between the ladders of h and of -h, since middles here are those of
    straight lines, and the error of that is the same in both.
    """
    for here, there in itertools.pairwise(path):
        ahead, behind = (following(here, (here + there + x) / 2, face, metric) for x in (h, -h))
        h = (ahead - behind) / 2
    return h


def motion_transfer(
    source: Float[Tensor, "v 3"],
    moved: Float[Tensor, "v 3"],
    other: Float[Tensor, "v 3"],
    face: Int[Tensor, "f 3"],
    metric: H2,
    times: Sequence[int] = (3, 5),
) -> Float[Tensor, "t v 3"]:
    """Another mesh moved as ``source`` is when it becomes ``moved``: the first step of their
    geodesic, taken along the geodesic to the other mesh, and shot from there."""
    motion = geodesic(source, moved, face, metric, times)
    way = geodesic(source, other, face, metric, times)
    step = transported(motion[1] - motion[0], way, face, metric)
    return shoot(other, (len(motion) - 1) * step, face, metric, len(motion))
