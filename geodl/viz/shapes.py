"""Shapes as pictures: one, galleries, error maps, reconstructions, transfers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geodl.atomic import atomic
from geodl.ops.geometry import face_vectors, unit
from geodl.viz.figure import save

matplotlib.rcParams["text.parse_math"] = False  # a name with two dollars is no formula
PLAIN = (0.62, 0.70, 0.80)


def palette(n: int) -> NDArray[np.float64]:
    """n colours (n 3) that can be told apart."""
    base = np.concatenate(
        [
            np.asarray(matplotlib.colormaps[m](range(k)))[:, :3]
            for m, k in (("tab10", 10), ("Set3", 12))
        ]
    )
    if n <= len(base):
        return base[:n]
    return np.asarray(matplotlib.colormaps["gist_ncar"](np.linspace(0.03, 0.97, n)))[:, :3]


def view(up: str = "y", azimuth: float = 35.0, elevation: float = 18.0) -> NDArray[np.float64]:
    """Rows: right, up and towards the viewer, for a shape whose vertical axis is ``up``."""
    a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
    right = np.array([np.cos(a), 0.0, -np.sin(a)])
    toward = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    camera = np.stack([right, np.cross(toward, right), toward])
    if up == "z":
        camera = camera @ np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    return camera


def draw(
    ax: Any,
    pos: NDArray[Any],
    face: NDArray[Any],
    color: NDArray[Any] | None,
    camera: NDArray[Any],
    title: str = "",
    title_color: str = "black",
    frame: NDArray[Any] | None = None,
) -> None:
    """One shape: shaded triangles sorted from far to near, or dots. color (v 3), (f 3) or None;
    ``frame``: points (n 3) that the picture is to hold in place of the shape's own."""
    seen = np.asarray(pos, np.float64) @ camera.T
    held = seen if frame is None else np.asarray(frame, np.float64) @ camera.T
    middle = (held.min(0) + held.max(0)) / 2
    seen, held = seen - middle, held - middle
    reach = np.abs(held[:, :2]).max() * 1.05 + 1e-9
    if color is None:
        color = np.tile(PLAIN, (len(pos), 1))
    if len(face):
        surface = color[face].mean(1) if len(color) == len(pos) else color
        normal = unit(face_vectors(seen, np.asarray(face, np.int64)))
        light = np.abs(normal @ (np.array([0.3, 0.5, 0.8]) / np.linalg.norm([0.3, 0.5, 0.8])))
        shaded = (surface * (0.45 + 0.55 * light[:, None])).clip(0, 1)
        order = np.argsort(seen[face][:, :, 2].mean(1))
        triangles = seen[face][order][:, :, :2]
        ax.add_collection(
            PolyCollection(
                triangles, facecolors=shaded[order], edgecolors=shaded[order], linewidths=0.15
            )
        )
    else:
        order = np.argsort(seen[:, 2])
        depth = (seen[order, 2] - seen[:, 2].min()) / (np.ptp(seen[:, 2]) + 1e-9)
        shaded = (color[order] * (0.45 + 0.55 * depth[:, None])).clip(0, 1)
        ax.scatter(seen[order, 0], seen[order, 1], s=4, c=shaded, linewidths=0)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.set_aspect("equal")
    ax.axis("off")
    if title:
        ax.set_title(title, fontsize=8, color=title_color)


def save_shape(
    pos: NDArray[Any],
    face: NDArray[Any],
    color: NDArray[Any] | None,
    path: Path,
    title: str,
    legend: Sequence[str] = (),
    up: str = "y",
    marked: NDArray[Any] | None = None,
) -> None:
    """One shape from two sides; ``marked``: points (m 3) to be seen through it."""
    figure = Figure(figsize=(8, 4.2))
    for i, azimuth in enumerate((30.0, 210.0)):
        ax: Any = figure.add_subplot(1, 2, i + 1)
        camera = view(up, azimuth)
        draw(ax, pos, face, color, camera)
        if marked is not None and len(marked):
            seen = np.asarray(pos, np.float64) @ camera.T
            at = marked @ camera.T - (seen.min(0) + seen.max(0)) / 2
            ax.scatter(at[:, 0], at[:, 1], s=90, c="black", marker="x", linewidths=2.5, zorder=9)
    figure.suptitle(title)
    if legend and len(legend) <= 22:
        _legend(figure, legend)
    save(figure, path)


def _legend(figure: Figure, names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(color=tuple(c), label=n) for n, c in zip(names, palette(len(names)), strict=True)
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=min(8, len(names)), fontsize=7, frameon=False
    )


def to_vertices(rows: NDArray[Any], index: NDArray[Any], n: int) -> NDArray[np.float64]:
    """Mean colour at every vertex of the elements (m 3 or m 2 vertices each) around it."""
    total, count = np.zeros((n, rows.shape[1])), np.zeros(n)
    for corner in index.T:
        np.add.at(total, corner, rows)
        np.add.at(count, corner, 1)
    return total / np.maximum(count, 1)[:, None]


def on_vertices(rows: NDArray[Any], shape: Any, on: str) -> NDArray[np.float64]:
    """Colours of vertices, faces or edges as colours of vertices."""
    if on == "vertex":
        return rows
    index = shape.face if on == "face" else shape.ops.edge
    return to_vertices(rows, index.numpy(), len(shape.pos))


def of_elements(rows: NDArray[Any], shape: Any, on: str) -> NDArray[np.float64]:
    """Colours of labelled elements as colours of what is drawn: the vertices, or the points that
    stand in for the mesh (those that answer for no element stay plain)."""
    if "carry" not in shape.ops:
        return on_vertices(rows, shape, on)
    points = np.tile(PLAIN, (len(shape.pos), 1))
    points[shape.ops.carry.numpy()] = rows
    return points


def gallery(kept: Sequence[tuple[Any, Any]], spec: Any, path: Path) -> None:
    """Shapes with their logits: named by class, or coloured by predicted and true part."""
    if not kept:
        return
    whole = kept[0][1].shape[0] == 1
    camera = view(spec.up)
    shapes = list(kept)
    if whole:
        columns = min(6, len(shapes))
        rows = -(-len(shapes) // columns)
        figure = Figure(figsize=(2 * columns, 2.2 * rows))
        for i, (shape, logits) in enumerate(shapes):
            guess, truth = int(logits[0].argmax()), int(shape.category)
            ax = figure.add_subplot(rows, columns, i + 1)
            right = guess == truth
            title = (
                spec.classes[guess]
                if right
                else f"{spec.classes[guess]} (is {spec.classes[truth]})"
            )
            draw(
                ax,
                shape.pos.numpy(),
                shape.face.numpy(),
                None,
                camera,
                title,
                "darkgreen" if right else "firebrick",
            )
    else:
        shapes = shapes[:6]
        figure = Figure(figsize=(2.1 * len(shapes), 4.6))
        colors = palette(len(spec.parts))
        for i, (shape, logits) in enumerate(shapes):
            guess, truth = logits.argmax(1).numpy(), shape.label.numpy()
            for row, labels in enumerate((guess, truth)):
                ax = figure.add_subplot(2, len(shapes), row * len(shapes) + i + 1)
                title = f"predicted ({(guess == truth).mean():.0%})" if row == 0 else "true"
                pos, face = shape.pos.numpy(), shape.face.numpy()
                color = colors[labels]
                if "carry" in shape.ops or spec.label_on == "edge":
                    color = of_elements(color, shape, spec.label_on)
                draw(ax, pos, face, color, camera, title)
        if len(spec.parts) <= 22:
            _legend(figure, spec.parts)
    save(figure, path)


def heat(errors: NDArray[Any], high: float) -> NDArray[np.float64]:
    """Colours (n 3) of errors: blue for none, yellow for ``high`` and above."""
    return np.asarray(matplotlib.colormaps["viridis"](np.clip(errors / max(high, 1e-12), 0, 1)))[
        :, :3
    ]


def _scale(figure: Figure, high: float, unit: str = "mm") -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    ax = figure.add_axes((0.93, 0.2, 0.012, 0.6))
    figure.colorbar(ScalarMappable(Normalize(0, high), "viridis"), cax=ax, label=unit)


FRONT = view("y", 20.0, 5.0)


def front(up: str) -> NDArray[np.float64]:
    return FRONT if up == "y" else view("z", 20.0, 5.0)


def reconstructions(
    rows: Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]],
    face: NDArray[Any],
    unit: float,
    path: Path,
    up: str = "y",
) -> None:
    """Columns: input (its own faces), reconstruction, and the reconstruction coloured by its
    distance to the true vertices in millimetres. rows: (scan, its faces, predicted, true)."""
    if not rows:
        return
    shown = rows[:6]
    errors = [np.linalg.norm(y - t, axis=1) * unit for *_, y, t in shown]
    high = float(np.quantile(np.concatenate(errors), 0.98))
    figure = Figure(figsize=(2.0 * len(shown), 6.2))
    for i, ((scan, scan_face, y, _), error) in enumerate(zip(shown, errors, strict=True)):
        drawn = (
            (scan, scan_face, None, f"input ({len(scan)})"),
            (y, face, None, "reconstruction"),
            (y, face, heat(error, high), f"{error.mean():.2f} mm"),
        )
        for j, (pos, triangles, color, title) in enumerate(drawn):
            ax = figure.add_subplot(3, len(shown), j * len(shown) + i + 1)
            draw(ax, pos, triangles, color, front(up), title)
    figure.subplots_adjust(right=0.91, wspace=0.02, hspace=0.12)
    _scale(figure, high)
    save(figure, path)


def error_map(
    pos: NDArray[Any], face: NDArray[Any], errors: NDArray[Any], path: Path, up: str = "y"
) -> None:
    """The mean error (v) at every vertex, on one mesh, from two sides."""
    high = float(np.quantile(errors, 0.99))
    figure = Figure(figsize=(7, 3.6))
    for i, azimuth in enumerate((-35.0, 35.0)):
        ax = figure.add_subplot(1, 2, i + 1)
        draw(ax, pos, face, heat(errors, high), view(up, azimuth, 5.0))
    figure.suptitle(f"mean error {errors.mean():.2f} mm", fontsize=10)
    _scale(figure, high)
    save(figure, path)


def strips(
    shapes: Sequence[Sequence[NDArray[Any]] | NDArray[Any]],
    face: NDArray[Any],
    path: Path,
    up: str = "y",
    faces: Sequence[Sequence[NDArray[Any]]] | None = None,
    colors: Sequence[Sequence[NDArray[Any] | None]] | None = None,
    titles: Sequence[str] = (),
) -> None:
    """Rows of shapes (n v 3) that share their faces (f 3), unless ``faces`` has others; a title for
    every row."""
    columns = max(len(row) for row in shapes)
    figure = Figure(figsize=(max(3.0, 1.7 * columns), 2.1 * len(shapes)))
    for i, row in enumerate(shapes):
        for j, pos in enumerate(row):
            draw(
                figure.add_subplot(len(shapes), columns, i * columns + j + 1),
                pos,
                faces[i][j] if faces else face,
                colors[i][j] if colors else None,
                front(up),
                titles[i] if titles and j == 0 else "",
            )
    figure.subplots_adjust(wspace=0.02, hspace=0.02)
    save(figure, path)


def meshes(
    rows: Sequence[Sequence[tuple[NDArray[Any], NDArray[Any]]]],
    path: Path,
    up: str = "y",
    titles: Sequence[str] = (),
) -> None:
    """Rows of meshes, or clouds: positions (v 3) and faces (f 3) each."""
    pos, faces = ([[mesh[i] for mesh in row] for row in rows] for i in range(2))
    strips(pos, np.empty((0, 3), np.int64), path, up, faces=faces, titles=titles)


def pictures(rows: Sequence[Sequence[NDArray[Any]]], path: Path) -> None:
    """Rows of grey images (s s) in [0, 1]."""
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(0.9 * columns, 0.95 * len(rows)))
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            ax: Any = figure.add_subplot(len(rows), columns, i * columns + j + 1)
            ax.imshow(image, cmap="gray", vmin=0, vmax=1)
            ax.axis("off")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99, wspace=0.05, hspace=0.05)
    save(figure, path)


def film(
    path: NDArray[Any], face: NDArray[Any], color: NDArray[Any] | None, file: Path, up: str = "y"
) -> None:
    """A .gif of meshes (t v 3), there and back."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    frames: list[Any] = []
    for pos in path:
        figure = Figure(figsize=(3.2, 3.2), facecolor="white")
        canvas = FigureCanvasAgg(figure)
        ax = figure.add_axes((0, 0, 1, 1))
        draw(ax, pos, face, color, front(up), frame=path.reshape(-1, 3))
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy()))
    frames += frames[-2:0:-1]
    with atomic(file) as part:
        frames[0].save(
            part, format="GIF", save_all=True, append_images=frames[1:], duration=120, loop=0
        )


def position_color(pos: NDArray[Any]) -> NDArray[np.float64]:
    """Colours (v 3) from where a vertex is in the box around its shape."""
    low, high = pos.min(0), pos.max(0)
    return 0.1 + 0.85 * (pos - low) / np.maximum(high - low, 1e-12)


def transfers(
    kept: Sequence[tuple[tuple[Any, Any], Any]],
    errors: Sequence[NDArray[Any]],
    path: Path,
    up: str = "y",
) -> None:
    """Pairs: the source coloured by position, the target with the colours that its map brings, and
    the target coloured by the geodesic errors (v) x 100."""
    if not kept:
        return
    figure = Figure(figsize=(2.0 * len(kept), 7.4))
    high = 10.0
    for i, (((source, target), found), error) in enumerate(zip(kept, errors, strict=True)):
        color = position_color(source.pos.numpy())
        drawn = (
            (source, color, source.name),
            (target, color[found.numpy()], f"to {target.name}"),
            (target, heat(error, high), f"error {error.mean():.1f}"),
        )
        for j, (shape, colors, title) in enumerate(drawn):
            ax = figure.add_subplot(3, len(kept), j * len(kept) + i + 1)
            draw(ax, shape.pos.numpy(), shape.face.numpy(), colors, front(up), title)
    figure.subplots_adjust(right=0.91, wspace=0.02, hspace=0.08)
    _scale(figure, high, "geodesic error x 100")
    save(figure, path)
