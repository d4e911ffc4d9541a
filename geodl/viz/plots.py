"""Curves and matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from geodl.viz.figure import save


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Confusion matrix, rows (true) scaled to one."""
    counts = np.asarray(matrix, float)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(14.0, 2.5 + 0.33 * len(names))
    figure = Figure(figsize=(size, size))
    ax = figure.add_subplot()
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 60:
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        ax.set_yticks(range(len(names)), names, fontsize=7)
    if len(names) <= 20:
        for i, j in zip(*np.nonzero(counts), strict=True):
            ink = "white" if share[i, j] > 0.5 else "black"
            ax.text(
                j, i, f"{share[i, j]:.0%}"[:-1], ha="center", va="center", fontsize=6, color=ink
            )
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    ax.set_title("share of true class, %", fontsize=9)
    figure.colorbar(image, fraction=0.046)
    save(figure, path)


def learning_curves(
    rows: Sequence[dict[str, float]], path: Path, metrics: Mapping[str, Any]
) -> None:
    """Loss, the headline metric and learning rate over epochs."""
    if not rows:
        return
    known = {key.split("/")[-1] for row in rows for key in row}
    monitor = next((n for n, m in metrics.items() if m.headline and n in known), "loss")
    figure = Figure(figsize=(11, 3.2))
    epochs = [r["epoch"] + 1 for r in rows]
    for i, metric in enumerate(("loss", monitor, "lr")):
        ax = figure.add_subplot(1, 3, i + 1)
        for split, color in (("train", "tab:blue"), ("val", "tab:orange"), ("test", "tab:red")):
            key = metric if metric == "lr" else f"{split}/{metric}"
            points = [(e, r[key]) for e, r in zip(epochs, rows, strict=True) if key in r]
            if points and (metric != "lr" or split == "train"):
                ax.plot(
                    *zip(*points, strict=True),
                    color=color,
                    marker="o",
                    ms=2.5,
                    lw=1.2,
                    label=split if metric != "lr" else None,
                )
        ax.set_xlabel("epoch")
        ax.set_title(metric, fontsize=10)
        ax.grid(alpha=0.3)
        if metric != "lr":
            ax.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save(figure, path)


def error_curve(quantiles: Sequence[float], path: Path) -> None:
    """Cumulative error: the share of vertices (y) within a distance (x, mm)."""
    figure = Figure(figsize=(4.5, 3.2))
    ax = figure.add_subplot()
    ax.plot(quantiles, np.linspace(0, 100, len(quantiles)))
    ax.set_xlim(0, float(quantiles[-3]))
    ax.set_ylim(0, 100)
    ax.set_xlabel("error, mm")
    ax.set_ylabel("vertices within, %")
    ax.grid(alpha=0.3)
    save(figure, path)


def pck_curve(pck: Sequence[float], path: Path) -> None:
    """Share of points (y) within a geodesic error (x, hundredths of the root of the area)."""
    figure = Figure(figsize=(4.5, 3.2))
    ax = figure.add_subplot()
    ax.plot(np.linspace(0, 25, len(pck)), 100 * np.asarray(pck))
    ax.set_xlim(0, 25)
    ax.set_ylim(0, 100)
    ax.set_xlabel("geodesic error x 100")
    ax.set_ylabel("points within, %")
    ax.grid(alpha=0.3)
    save(figure, path)
