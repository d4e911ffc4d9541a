"""What all pictures end with."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from geodl.atomic import atomic


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    """A .png, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as part:
        figure.savefig(part, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
