"""Pictures, Matplotlib only."""

from geodl.viz.plots import confusion, error_curve, learning_curves, pck_curve
from geodl.viz.shapes import (
    PLAIN,
    draw,
    error_map,
    film,
    gallery,
    heat,
    of_elements,
    on_vertices,
    palette,
    position_color,
    reconstructions,
    save_shape,
    strips,
    to_vertices,
    transfers,
    view,
)

__all__ = [
    "PLAIN",
    "confusion",
    "draw",
    "error_curve",
    "error_map",
    "film",
    "gallery",
    "heat",
    "learning_curves",
    "of_elements",
    "on_vertices",
    "palette",
    "pck_curve",
    "position_color",
    "reconstructions",
    "save_shape",
    "strips",
    "to_vertices",
    "transfers",
    "view",
]
