"""Pictures of tables: bars, cost, curves, heat map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from geodl.viz.figure import save
from geodl.viz.shapes import palette


def bars(data: Any, path: Path) -> None:
    """A group of bars per row, with their spread: yours where there are any, and then a dash for
    the reference; a diamond for the published value."""
    rows = [r for r in data["rows"] if r["cells"]]
    unit = _unit(rows)  # a column of another unit has no place on this axis
    names = [
        name
        for name in data["columns"]
        if {r["cells"].get(name, {}).get("unit", unit) for r in rows} == {unit}
    ]
    colors = palette(len(names))
    figure = Figure(figsize=(min(12.0, 2.5 + 0.9 * len(rows) * max(1, len(names) / 2)), 3.6))
    ax = figure.add_subplot()
    width = 0.8 / len(names)
    sections = [r.get("section", "") for r in rows]
    groups = list(dict.fromkeys(sections))
    at = [i + groups.index(section) for i, section in enumerate(sections)]
    if len(groups) > 1:
        for group in groups:
            own = [x for x, section in zip(at, sections, strict=True) if section == group]
            middle, top = (own[0] + own[-1]) / 2, ax.get_xaxis_transform()
            ax.text(middle, 0.98, group, fontsize=8, ha="center", va="top", transform=top)
    # Numbers above bars that are narrower than they are stand upright.
    narrow = figure.get_figwidth() * width / (at[-1] + 1) < 0.35
    style: dict[str, Any] = {"rotation": 90, "fontsize": 7} if narrow else {}
    before = " " if narrow else ""
    for j, (name, color) in enumerate(zip(names, colors, strict=True)):
        shift = (j - (len(names) - 1) / 2) * width
        for i, r in enumerate(rows):
            cell = r["cells"].get(name, {})
            label = name if i == 0 and len(names) > 1 else None
            if found := cell.get("yours") or measured(cell):
                high, spread = found["mean"], found["std"] or 0.0
                ax.bar(at[i] + shift, high, width, yerr=spread, color=color, alpha=0.85)
                above = max(high + spread, cell.get("mean", high))
                diamond = cell.get("published", 0.0)
                if 0.94 * above < diamond < 1.06 * above:  # the number stands above it
                    above = max(above, diamond) * 1.01
                number = f"{before}{high:.1f}"
                ax.text(at[i] + shift, above, number, ha="center", va="bottom", **style)
            if cell.get("n") and "yours" in cell:
                ends = [at[i] + shift - width / 2, at[i] + shift + width / 2]
                ax.plot(ends, [cell["mean"]] * 2, "k-", lw=2)
            if "published" in cell:
                inside = "black" if cell["verified"] else "none"
                ax.plot(at[i] + shift, cell["published"], "kD", ms=5, markerfacecolor=inside)
            if label:
                ax.bar(0, 0, color=color, label=label)
    if any("yours" in c and c.get("n") for r in rows for c in r["cells"].values()):
        ax.plot([], [], "k-", lw=2, label="reference (bars: yours)")
    if any("published" in c for r in rows for c in r["cells"].values()):
        ax.plot([], [], "kD", ms=5, label="published")
        if any(not c.get("verified", True) for r in rows for c in r["cells"].values()):
            ax.plot([], [], "kD", ms=5, markerfacecolor="none", label="published, not verified")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    tilt = 25 if sum(len(r["name"]) for r in rows) > 50 else 0
    side = "right" if tilt else "center"
    words = [r["name"] for r in rows]
    ax.set_xticks(at, words, rotation=tilt, ha=side, fontsize=8)
    ax.set_ylabel(unit)
    ax.margins(y=0.12 if len(groups) == 1 else 0.2)
    ax.grid(axis="y", alpha=0.3)
    ax.set_title(data["title"], fontsize=10)
    save(figure, path)


def cost(data: Any, path: Path) -> None:
    """The first column against the seconds of an epoch; the larger a dot, the more parameters. The
    rows' names stand beside, the best one first."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    name = data["columns"][0]
    rows = [(r, measured(r["cells"].get(name, {}))) for r in data["rows"]]
    rows = [(r, c) for r, c in rows if c and r["seconds_per_epoch"]]
    colors = palette(len(rows))
    figure = Figure(figsize=(9.0, 4.6))
    ax = figure.add_subplot()
    for i in sorted(range(len(rows)), key=lambda i: -rows[i][1]["mean"]):
        (r, cell), color = rows[i], colors[i]
        x, y = r["seconds_per_epoch"], cell["mean"]
        size = 12 + 60 * np.sqrt(r["parameters"] / 1e6) if isinstance(r["parameters"], int) else 30
        ax.errorbar(x, y, cell["std"] or 0.0, color=color, lw=1)
        ax.scatter(
            [x],
            [y],
            s=size,
            color=color,
            edgecolors="0.4",
            linewidths=0.5,
            alpha=0.8,
            label=f"{y:.1f}  {r['name']}",
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("seconds per epoch, one thread")
    ax.set_ylabel(f"{name}, {_unit(data['rows'])}")
    ax.margins(x=0.08, y=0.08)
    ax.grid(alpha=0.3)
    legend: Any = ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for handle in legend.legend_handles:
        handle.set_sizes([30])
    ax.set_title(data["title"], fontsize=10)
    save(figure, path)


def measured(cell: Any) -> Any:
    """The reference's numbers of a cell, or yours where it has none; or nothing."""
    return cell if cell.get("n") else cell.get("yours")


def _unit(rows: Sequence[Any]) -> str:
    return next((str(c["unit"]) for r in rows for c in r["cells"].values() if c.get("unit")), "")


def curve(data: Any, path: Path) -> None:
    """A line per series of rows: the first column over x, both axes logarithmic."""
    name = data["columns"][0]
    series = list(dict.fromkeys(r["series"] for r in data["rows"] if "series" in r))
    figure = Figure(figsize=(5.5, 3.8))
    ax = figure.add_subplot()
    for word, color in zip(series, palette(len(series)), strict=True):
        rows = [r for r in data["rows"] if r.get("series") == word]
        for yours in (False, True):
            cells = [(r["x"], r["cells"].get(name, {})) for r in rows]
            found = [(x, c.get("yours", {}) if yours else c) for x, c in cells]
            found = [(x, c) for x, c in found if c.get("n")]
            if found:
                ax.errorbar(
                    [x for x, _ in found],
                    [c["mean"] for _, c in found],
                    [c["std"] or 0.0 for _, c in found],
                    marker="x" if yours else "o",
                    linestyle="--" if yours else "-",
                    color=color,
                    label=f"{word}, yours" if yours else word,
                )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    places = sorted({r["x"] for r in data["rows"] if "x" in r})
    ax.set_xticks(places, [str(x) for x in places])
    ax.set_xlabel("length of the code")
    ax.set_ylabel(f"{name}, {_unit(data['rows'])}")
    ax.grid(alpha=0.3, which="both")
    ax.legend(frameon=False, fontsize=8)
    ax.set_title(data["title"], fontsize=10)
    save(figure, path)


def heatmap(data: Any, path: Path) -> None:
    """Rows x columns, a panel per section: values, the change against the first column below them,
    coloured by how much worse that is."""
    names = data["columns"]
    sections = list(dict.fromkeys(r.get("section", "") for r in data["rows"]))
    groups = [
        [r for r in data["rows"] if r.get("section", "") == s and r["cells"]] for s in sections
    ]
    pairs = [(s, g) for s, g in zip(sections, groups, strict=True) if g]
    heights = [len(g) + 0.8 for _, g in pairs]
    figure = Figure(figsize=(2.6 + 0.78 * len(names), 1.0 + 0.46 * sum(heights)))
    axes = figure.subplots(
        len(pairs), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights}
    )
    for ax, (section, rows) in zip(axes[:, 0], pairs, strict=True):
        worse = np.full((len(rows), len(names)), np.nan)
        for i, r in enumerate(rows):
            for j, name in enumerate(names):
                cell = r["cells"].get(name, {})
                found = measured(cell)
                if not found:
                    continue
                worse[i, j] = cell.get("worse", 0.0)
                ink = "white" if worse[i, j] > 0.55 else "black"
                words = {"ha": "center", "va": "center", "color": ink}
                change = cell.get("change")
                ax.text(j, i - 0.16 * bool(change), f"{found['mean']:.1f}", fontsize=8, **words)
                if change:
                    ax.text(j, i + 0.24, change, fontsize=6, alpha=0.8, **words)
        ax.imshow(worse, cmap="OrRd", vmin=0, vmax=1, aspect="auto")
        ax.set_yticks(range(len(rows)), [r["name"] for r in rows], fontsize=8)
        ax.set_title(section, fontsize=9, loc="left")
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
        ax.spines[:].set_visible(False)
    figure.tight_layout()
    save(figure, path, dpi=90)  # many rows
