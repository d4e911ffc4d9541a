"""The user's own shapes, for prediction."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geodl.carry import edges_of, elements, sampled
from geodl.data import formats
from geodl.data.preprocess import BadShape, Preprocess
from geodl.data.views import attach, computed
from geodl.errors import UserError
from geodl.ops.cache import Cache
from geodl.shape import Shape
from geodl.spec import EDGE, Needs, Out, Points

log = logging.getLogger(__name__)


@dataclass
class OwnShape:
    """A file of the user's.

    name: what to call it; file: where it is; raw: as in it; polygon (f): the polygon of the file
    that each triangle is of, of so many; placed: the raw elements in the model's coordinates; seen:
    mended and scaled; ready: with points and operators; center and size of the similarity.
    """

    name: str
    file: Path
    raw: Shape
    polygon: NDArray[np.int64]
    polygons: int
    placed: Shape
    seen: Shape
    ready: Shape
    center: Tensor
    size: float


def own_shape(
    file: Path,
    needs: Needs,
    on: Out,
    process: Preprocess,
    cache: Cache,
    category: Tensor | None = None,
) -> OwnShape:
    """A file as a model with these needs, that answers at ``on``, sees it.

    Raises:
        UserError: it cannot be read, or used.
    """
    mesh = formats.read(file)
    # Without a name: samples are drawn by it, and the answer is not to depend on a file's name.
    raw = Shape(pos=torch.from_numpy(mesh.pos), face=torch.from_numpy(mesh.face))
    points = needs.find(Points)
    if raw.is_cloud and on in ("face", "edge"):
        raise UserError(f"{file} is a point cloud, but this model labels {on}s: give a mesh.")
    try:
        done = process(raw, "whole", cache)
        for what in done.mended:
            log.info("%s: %s", file.name, what)
        placed = raw.replace(pos=((raw.pos.double() - done.center) / done.size).float())
        seen = done.shape.replace(category=category)
        if not seen.is_cloud:
            seen = computed(seen, needs.truth, process.backend, cache)
        if on == "edge":
            seen, placed = _with_edges(seen), _with_edges(placed)
        ready = seen
        if points:
            if on != "whole":  # predictions are carried to every element of the mesh
                count = len(elements(seen, on))
                ready = seen.replace(label=torch.zeros(count, dtype=torch.long))
            if needs.computed:  # of the points, as in training
                ready = sampled(ready, points.n, on, None)
        ready = attach(ready, needs, process.backend, cache)
        if points and not needs.computed:
            ready = sampled(ready, points.n, on, None)
    except (BadShape, ValueError) as error:
        raise UserError(f"{file} cannot be used: {error}.") from error
    return OwnShape(
        *(file.name, file, raw, mesh.polygon, mesh.polygons),
        *(placed, seen, ready, done.center, done.size),
    )


def _with_edges(shape: Shape) -> Shape:
    return shape.replace(ops=shape.ops.added({"edge": edges_of(shape.face)[0]}, {"edge": EDGE}))
