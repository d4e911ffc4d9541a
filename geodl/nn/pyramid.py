"""A template and the coarser meshes below it: pooling, unpooling, and the checks of sizes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from geodl.errors import UserError
from geodl.nn.rows import FixedRows
from geodl.ops.hierarchy import pyramid
from geodl.spec import DataSpec, Level, Template


def template_of(spec: DataSpec, who: str) -> Template:
    """The template of a specification.

    Raises:
        UserError: the data set has none.
    """
    if spec.template is None:
        raise UserError(
            f"{who} works on one template mesh, but this data set has none: choose data=heads, "
            "ict_faces, coma, dfaust or registered, or another encoder (pointnet, diffusionnet)."
        )
    return spec.template


def pool(level: Level, rows: int) -> FixedRows:
    """(b n c) -> (b m c): the selected vertices of a level, of ``rows``."""
    return FixedRows(torch.from_numpy(level.down)[:, None], rows)


def unpool(level: Level) -> FixedRows:
    """(b m c) -> (b n c): barycentric interpolation to the finer level."""
    up, weight = torch.from_numpy(level.up), torch.from_numpy(level.weight)
    return FixedRows(up, len(level.pos), weight)


def meshes_of(
    template: Template, factors: tuple[int, ...]
) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Vertices and faces of the template and of the levels below it."""
    levels = pyramid(template, factors)
    return [(template.pos, template.face), *((x.pos, x.face) for x in levels)]


def check_sizes(where: str, **lists: list[int]) -> None:
    """Lists of per-level options must be of one length, positive."""
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise UserError(f"{where}: {counts} entries; give one per level in each.")
    for name, values in lists.items():
        if not values or min(values) < 1:
            raise UserError(f"{where}.{name}={values} must be a list of positive numbers.")
