"""One point that stands for a part."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from geodl.carry import elements
from geodl.ops.geometry import face_areas
from geodl.shape import Shape

MOST = 2000  # elements that a medoid is sought among
PIECE = 3.0  # elements nearer than so many times the median distance of neighbours hang together


def areas(shape: Shape, label_on: str) -> NDArray[np.float64]:
    """Of the labelled elements: faces, or a third of the faces at a vertex; ones where there are no
    faces, or the elements are edges."""
    count = len(elements(shape, label_on))
    if shape.is_cloud or label_on == "edge":
        return np.ones(count)
    face = shape.face.numpy()
    area = face_areas(shape.pos.double().numpy(), face)
    if label_on == "face":
        return area
    return np.asarray(np.bincount(face.reshape(-1), np.repeat(area / 3, 3), count), np.float64)


def medoid(pos: NDArray[Any], area: NDArray[Any], chosen: NDArray[np.bool_]) -> int | None:
    """Of the largest piece of the chosen elements, at pos (n 3), the one with the least mean
    distance to the others, by area: it lies in the part, and well inside. None where nothing is
    chosen."""
    place = np.flatnonzero(chosen)
    if not len(place):
        return None
    asked = place[np.linspace(0, len(place) - 1, min(len(place), MOST)).round().astype(int)]
    if len(asked) > 1:
        tree = KDTree(pos[asked])
        near = tree.query_pairs(PIECE * np.median(tree.query(pos[asked], 2)[0][:, 1]))
        rows = np.array(sorted(near), np.int64).reshape(-1, 2)
        links = sp.coo_matrix((np.ones(len(rows)), rows.T), (len(asked), len(asked)))
        piece = connected_components(links, directed=False)[1]
        asked = asked[piece == np.bincount(piece, area[asked]).argmax()]
    gap = np.linalg.norm(pos[asked, None] - pos[None, asked], axis=2)
    return int(asked[(gap @ area[asked]).argmin()])


def nearest_to_center(
    pos: NDArray[Any], area: NDArray[Any], chosen: NDArray[np.bool_]
) -> int | None:
    """The element of the shape that is nearest to the centre of the chosen ones, by area."""
    if not chosen.any():
        return None
    weight = np.where(chosen, area, 0)
    center = (weight[:, None] * pos).sum(0) / max(float(weight.sum()), 1e-12)
    return int(np.linalg.norm(pos - center, axis=1).argmin())
