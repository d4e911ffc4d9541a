"""``geodl mode=report``: finished runs and written tables as one HTML file that needs no network.

Plots and the 3D viewer are plotly's, whose library is part of the file. The page's own text, style
and behaviour are in ``report.html``; this module gathers the numbers and shapes that go into it.
"""

from __future__ import annotations

import base64
import csv
import json
import logging
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from geodl.atomic import atomic
from geodl.errors import UserError
from geodl.ops.neighbors import nearest
from geodl.ops.remesh import simplify
from geodl.results.reference import factor, reference_dir
from geodl.results.render import notes, written
from geodl.runs import record

log = logging.getLogger(__name__)
TEMPLATE = Path(__file__).with_name("report.html")
VERTICES = 3000  # a larger mesh is decimated for the page
SHAPES = 4  # of each run and test set
WORST = 10  # names of each
BYTES = 14_500_000  # of the page; plotly's library takes five million


def report(cfg: DictConfig) -> str:
    """Write the page; its path and what is in it.

    Raises:
        UserError: neither a finished run nor a table to show.
    """
    outputs = Path(cfg.paths.outputs).expanduser()
    runs = list(finished(outputs))
    found = {
        table["file"]: table
        | {"notes": notes(table), "image": _image(place / f"{table['file']}.png")}
        for place in (reference_dir(cfg), outputs / "tables")  # yours take the reference's place
        for table in written(place)
    }
    tables = list(found.values())
    if not runs and not tables:
        raise UserError(
            f"there is no finished run in {outputs} and no table: train something "
            "first, or set paths.outputs."
        )
    place = Path(cfg.output or outputs / "report.html").expanduser()
    record.make_folder(place.parent)
    data: dict[str, Any] = {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "commit": str(record.commit()["commit"] or "")[:8],
        "groups": groups(runs),
        "curves": curves(runs),
        "confusions": confusions(runs),
        "worst": worst(runs),
        "tables": tables,
        "scenes": [],
    }
    data["scenes"] = shown = scenes(runs, BYTES - len(page(data)))
    with atomic(place) as part:
        part.write_text(page(data))
    shapes = sum(len(s["shapes"]) for s in shown)
    size = place.stat().st_size / 1e6
    return f"{len(runs)} runs, {len(tables)} tables, {shapes} shapes, {size:.1f} MB\n{place}"


def page(data: dict[str, Any]) -> str:
    """The template with the library and the data inside."""
    from plotly.offline import get_plotlyjs

    content = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    text = TEMPLATE.read_text().replace("/*PLOTLY*/", get_plotlyjs())
    # No "<" at all: a tag or the beginning of a comment would be read as one, even in a string.
    return text.replace("/*DATA*/", content.replace("<", "\\u003c"))


def _image(file: Path) -> str | None:
    return base64.b64encode(file.read_bytes()).decode() if file.is_file() else None


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


# ---- what there is ----


def finished(outputs: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folders and results of all finished runs."""
    found: list[tuple[Path, dict[str, Any]]] = []
    for file in sorted(outputs.rglob("result.json")):
        result = record.read_result(file.parent)
        if result is None or result.get("status") != "done":
            continue
        if result["format"] < 2:  # its metrics do not say what they mean
            log.info("left out: %s is the result of an older geodl", file.parent)
            continue
        found.append((file.parent, result))
    return found


def label(result: dict[str, Any]) -> str:
    """A run in a few words: encoder, features, and what the options add."""
    config = result["config"]
    words = [class_name(config["encoder"]), class_name(config["features"])]
    if config.get("decoder"):
        words.append(f"{class_name(config['decoder'])} decoder")
        words.append(f"z = {config['task'].get('latent')}")
        words += [k for k, w in config["task"].get("losses", {}).items() if w]
    words += [k for k in config.get("augment", {}) if k != "copies"]
    encoder = config["encoder"]
    words += ["mean pooling"] if encoder.get("pool") == "mean" else []
    words += ["sorted"] if encoder.get("sort") else []
    words += ["no diffusion"] if encoder.get("diffusion") == "none" else []
    words += [f"time {encoder['time']}"] if "time" in encoder else []
    words += ["no gradients"] if encoder.get("gradient") is False else []
    task = config["task"]
    words += [task["refine"]] if task.get("refine") else []
    words += ["linear"] if class_name(task) == "Probe" else []
    words += [f"{task['shots']} labels per class"] if task.get("shots") else []
    words += [f"begun with {config['init']}"] if config.get("init") else []
    words += [f"select={config['select']}"] if config.get("select", "last") != "last" else []
    return ", ".join(words)


def class_name(node: dict[str, Any]) -> str:
    """The name of a component's class; of several, all of them."""
    parts = node.get("parts")
    return " + ".join(map(class_name, parts)) if parts else node["_target_"].rsplit(".", 1)[-1]


def _title(folder: Path, result: dict[str, Any]) -> str:
    return f"{result['protocol']}: {label(result)} ({folder.name})"


def groups(runs: list[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of the comparison: runs that differ in their seed alone, per test set."""
    same: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _, result in runs:
        same[result["hash"]].append(result)
    rows: list[dict[str, Any]] = []
    for results in same.values():
        first = results[0]
        for test in first["eval"]:
            values = [record.headlines(r)[test] for r in results if test in r["eval"]]
            metric = record.headline(first, first["eval"][test]["scores"])
            times = factor(first["metrics"][metric]["unit"])
            rows.append(
                {
                    "task": class_name(first["config"]["task"]).lower(),
                    "protocol": first["protocol"],
                    "model": label(first),
                    "test": test,
                    "metric": metric,
                    "value": times * float(np.mean(values)),
                    "std": times * float(np.std(values, ddof=1)) if len(values) > 1 else None,
                    "seeds": len(values),
                    "epochs": first["epochs"],
                    "parameters": first["parameters"],
                    "seconds": first["seconds_per_epoch"],
                    "hash": first["hash"],
                }
            )
    return rows


def curves(runs: list[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Metrics per epoch of every run that has more than one."""
    found: list[dict[str, Any]] = []
    for folder, result in runs:
        file = folder / "metrics.csv"
        if not file.is_file():
            continue
        with file.open() as stream:
            rows = list(csv.DictReader(stream))
        if len(rows) < 2:
            continue
        shown = ("loss", *(n for n, m in result["metrics"].items() if m["headline"]))
        columns = [k for k in rows[0] if k.split("/")[-1] in shown]
        series = {k: [float(r[k]) if r[k] else None for r in rows] for k in columns}
        found.append(
            {
                "name": f"{label(result)} ({folder.name})",
                "group": result["protocol"],
                "epoch": [int(float(r["epoch"])) + 1 for r in rows],
                "series": series,
            }
        )
    return found


def confusions(runs: list[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Confusion matrices of the first seed of every configuration."""
    found: list[dict[str, Any]] = []
    for folder, result in _first_seeds(runs):
        for test in result["eval"]:
            file = folder / "eval" / f"{test}.json"
            if not file.is_file():
                continue
            details = json.loads(file.read_text())
            if "confusion" in details and len(details["confusion"]) <= 64:
                names = [row.get("name") for row in details.get("per_class", [])]
                found.append(
                    {
                        "name": f"{_title(folder, result)}, {test}",
                        "matrix": details["confusion"],
                        "classes": names,
                    }
                )
    return found


def worst(runs: list[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The shapes that the first seed of every configuration did worst on, test set by test set;
    nothing where there is none that another is better than."""
    found: list[dict[str, Any]] = []
    for folder, result in _first_seeds(runs):
        for test, entry in result["eval"].items():
            file = folder / "eval" / f"{test}-each.csv"
            if not ("each" in entry and file.is_file()):
                continue
            metric = entry["each"]["metric"]
            of = result["metrics"][metric]
            with file.open() as stream:
                rows = [(r["shape"], float(r[metric])) for r in csv.DictReader(stream)]
            rows.sort(key=lambda row: row[1] if of.get("better") == "more" else -row[1])
            if rows[0][1] == rows[-1][1]:
                continue
            times = factor(of["unit"])
            found.append(
                {
                    "name": f"{_title(folder, result)}, {test}",
                    "metric": f"{metric}, {of['unit']}" if of["unit"] else metric,
                    "rows": [[shape, times * value] for shape, value in rows[:WORST]],
                    "of": len(rows),
                    "median": times * float(np.median([value for _, value in rows])),
                }
            )
    return found


def _first_seeds(
    runs: list[tuple[Path, dict[str, Any]]],
) -> list[tuple[Path, dict[str, Any]]]:
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder, result in runs:
        first.setdefault(result["hash"], (folder, result))
    return list(first.values())


# ---- shapes ----


def scenes(runs: list[tuple[Path, dict[str, Any]]], room: int) -> list[dict[str, Any]]:
    """Shapes to look at: of the first seed of every configuration, first the first test set of
    each, the data sets taking turns, until ``room`` characters are full."""
    files: list[tuple[int, int, Path, dict[str, Any], str]] = []
    turns: dict[tuple[int, str], int] = defaultdict(int)
    for folder, result in _first_seeds(runs):
        for rank, test in enumerate(result["eval"]):
            if (folder / "eval" / f"{test}-shapes.npz").is_file():
                turn = turns[rank, result["protocol"]]
                turns[rank, result["protocol"]] += 1
                files.append((rank, turn, folder, result, test))
    found: list[dict[str, Any]] = []
    for _, _, folder, result, test in sorted(files, key=lambda f: f[:2]):
        shapes = _shapes(folder / "eval" / f"{test}-shapes.npz")
        size = sum(len(json.dumps(s)) for s in shapes)
        if size > room:
            log.info(
                "the page is full: no shapes of %s, %s, and of those after it", folder.name, test
            )
            break
        room -= size
        up = "z" if result["eval"][test].get("up") == "z" else "y"
        found.append({"name": f"{_title(folder, result)}, {test}", "up": up, "shapes": shapes})
    return found


def _shapes(file: Path) -> list[dict[str, Any]]:
    shapes: dict[str, dict[str, Any]] = {}
    with np.load(file, allow_pickle=False) as arrays:
        names = list(dict.fromkeys(key.rsplit("/", 1)[0] for key in arrays.files))
        for name in names:
            number, title, layer = name.split("/", 2)
            if int(number) >= SHAPES:
                continue
            shape = shapes.setdefault(number, {"name": title, "layers": {}})
            parts = (arrays[f"{name}/{part}"] for part in ("pos", "face", "color"))
            new = packed(*parts)
            for other, old in shape["layers"].items():  # prediction, truth and error of one mesh
                if {**old, "color": None} == {**new, "color": None}:
                    new = {"same": other, "color": new["color"]}
                    break
            shape["layers"][layer] = new
    return list(shapes.values())


def packed(pos: NDArray[Any], face: NDArray[Any], color: NDArray[Any]) -> dict[str, Any]:
    """A mesh or cloud with colours (v 3, 0 to 255) as text: positions in 16 bits, base64; meshes
    above ``VERTICES`` decimated, with the colours of the nearest vertices."""
    given = len(pos)
    if len(face) and given > VERTICES:
        small, face = simplify(pos, face, VERTICES)
        color = color[nearest(small, pos)]
        pos = small
    low = pos.min(0)
    size = float(np.ptp(pos, axis=0).max()) or 1.0
    quantised = np.round((pos - low) / size * 65535).astype("<u2")
    kind = "<u2" if len(pos) < 65536 else "<u4"
    return {
        "pos": _text(quantised),
        "low": [float(x) for x in low],
        "size": size,
        "face": _text(np.asarray(face).astype(kind)),
        "wide": kind == "<u4",
        "color": _text(color.astype(np.uint8)),
        "shown": len(pos),
        "of": given,
    }


def _text(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
