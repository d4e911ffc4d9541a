"""``mode=eval``, and the evaluation at the end of a training."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from geodl.atomic import atomic, write_csv
from geodl.data.preprocess import Preprocess
from geodl.data.source import Source
from geodl.errors import UserError
from geodl.ops.cache import digest
from geodl.runs import record
from geodl.runs.build import (
    Parts,
    build_data,
    build_task,
    device,
    inputs_of,
    is_ways,
)
from geodl.runs.checkpoint import load_weights, restore
from geodl.spec import DataSpec
from geodl.tasks.base import Evaluation, Scene, Task
from geodl.tasks.ways import draw_ways, evaluate_ways, scenes_of_ways

log = logging.getLogger(__name__)
GALLERY = 12  # shapes in a gallery of predictions


def evaluate(cfg: DictConfig) -> str:
    """``mode=eval``: the test sets on a checkpoint, or on weights with an experiment.

    The results go to ``eval/<test set>-<checkpoint>.json``; those of the run itself stay.
    """
    if cfg.ckpt:
        path = Path(cfg.ckpt).expanduser()
        stored, task, meta = restore(path, cfg)
        data = _source(stored, meta)
        _check_spec(data.spec, task.spec)
        folder = path.resolve().parent
        return _table(_evaluate(Parts(stored, data, task), folder, path.stem, list(cfg.test)))
    data = build_data(cfg)
    data.all_splits()
    task = build_task(cfg, data.spec)
    task.load_strict(task.translate(load_weights(cfg.weights)), cfg.weights)
    folder = record.run_folder(cfg)
    record.make_folder(folder)
    return _table(_evaluate(Parts(cfg, data, task), folder, "weights", list(cfg.test)))


def _source(cfg: DictConfig, meta: dict[str, Any]) -> Source:
    """The data set of a checkpoint, preprocessed as it was then."""
    source = build_data(cfg)
    source.preprocess = Preprocess(**meta["preprocess"])
    return source


def _check_spec(found: DataSpec, stored: DataSpec) -> None:
    for name in ("classes", "parts", "label_on"):
        if getattr(found, name) != getattr(stored, name):
            raise UserError(
                f"the data set's {name} are not those that the checkpoint was trained with "
                f"({len(getattr(stored, name))} then): use the same data set."
            )


def evaluate_run(cfg: DictConfig, folder: Path) -> str:
    name = "last" if cfg.select == "last" else "best"
    stored, task, meta = restore(folder / f"{name}.ckpt", cfg)
    data = _source(stored, meta)
    result = record.read_result(folder) or {}
    failed_before = result.pop("traceback", None)
    missing = record.missing_tests(cfg, result)
    entries = dict(result.get("eval", {}))

    def store(name: str, entry: dict[str, Any]) -> None:  # a killed evaluation keeps what it has
        entries[name] = entry
        record.write_json(folder / "result.json", result | {"eval": entries})

    _evaluate(Parts(stored, data, task), folder, None, missing, store)
    text = _table({name: entries[name] for name in cfg.test})
    if cfg.figures:
        from geodl import viz

        rows = read_csv(folder / "metrics.csv")
        picture = folder / "figures" / "learning_curves.png"
        viz.learning_curves(rows, picture, task.metrics)
    if failed_before:
        record.write_json(folder / "result.json", result | {"eval": entries})
    return f"{text}\n{folder}"


def read_csv(path: Path) -> list[dict[str, float]]:
    with path.open() as stream:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]


def _evaluate(
    parts: Parts,
    folder: Path,
    checkpoint: str | None,
    todo: list[str],
    store: Callable[[str, dict[str, Any]], None] = lambda name, entry: None,
) -> dict[str, dict[str, Any]]:
    """Entries of the test sets ``todo``, written to eval/ and, as pictures, to figures/; ``store``
    is called with each as soon as it is there.

    ``checkpoint`` is None for the run's own evaluation; otherwise it is part of the files' names.
    """
    cfg, task = parts.cfg, parts.task
    if not todo:
        return {}
    perturbs = parts.tests(todo)
    loaders = parts.loaders(train=False)
    report = loaders.prepare(splits=list(dict.fromkeys(str(cfg.test[t].split) for t in todo)))
    if report.misses or report.dropped:
        log.info("%s", report)
    for name in ("eval", "figures"):
        (folder / name).mkdir(exist_ok=True)
    task.to(device(cfg)).eval()  # pictures ask the model too, which must not learn from them
    made = record.provenance()
    entries: dict[str, dict[str, Any]] = {}
    for name in todo:
        options = cfg.test[name]
        ways = is_ways(task, options)
        inputs = inputs_of(task, options)
        count = loaders.count(options.split, inputs)
        shown = set(np.linspace(0, count - 1, GALLERY).round().astype(int).tolist())
        loader = loaders.batches(options.split, perturbs[name], inputs=inputs)
        if ways:
            evaluation = evaluate_ways(task, loader, shown)
        else:
            evaluation = task.evaluate(loader, _context(cfg), shown)
        entries[name] = {
            "scores": evaluation.scores,
            "shapes": evaluation.shapes,
            "options": record.test_options(cfg, name),
            "protocol": task.spec.protocol,
            "checkpoint": checkpoint or ("last" if cfg.select == "last" else "best"),
            "up": task.spec.up,
            **({"dropped": report.dropped} if report.dropped else {}),
            **made,
        }
        stem = f"{name}-{checkpoint}" if checkpoint else name
        if (each := evaluation.each).metric:
            # one line of a file: a test set may have thousands
            words = " ".join(f"{value:.4g}" for value in each.values)
            entries[name]["each"] = {"metric": each.metric, "values": words}
            items = loaders.items(str(options.split))
            if len(task.inputs) == 1 and all(parts.data.person(i) is None for i in items):
                # What a paired test may pair: the same shapes, and no two of one person.
                entries[name]["each"]["shapes"] = digest(*each.names)[:16]
            rows = [
                {"shape": shape, each.metric: round(value, 6)}
                for shape, value in zip(each.names, each.values, strict=True)
            ]
            write_csv(folder / "eval" / f"{stem}-each.csv", ["shape", each.metric], rows)
        record.write_json(folder / "eval" / f"{stem}.json", entries[name] | evaluation.details)
        _per_class(folder / "eval" / f"{stem}.csv", evaluation)
        if cfg.figures:
            draw = draw_ways if ways else type(task).figures
            draw(task, evaluation, folder / "figures", stem)
            scenes = scenes_of_ways(evaluation) if ways else _scenes(task, evaluation)
            _save_scenes(folder / "eval" / f"{stem}-shapes.npz", scenes)
        store(name, entries[name])
    return entries


def _scenes(task: Task, evaluation: Evaluation) -> list[Scene]:
    """The worst shapes, then those that are kept of every test set."""
    if not evaluation.worst:
        return task.scenes(evaluation)
    worst = task.scenes(replace(evaluation, kept=evaluation.worst))
    return [*((f"worst: {name}", layers) for name, layers in worst), *task.scenes(evaluation)]


def _save_scenes(path: Path, scenes: Sequence[Scene]) -> None:
    """Predictions on shapes, for the report: <number>/<shape>/<layer>/pos, face and color."""
    arrays: dict[str, Any] = {}
    for i, (name, layers) in enumerate(scenes):
        for layer, (pos, face, color) in layers.items():
            where = f"{i}/{name.replace('/', '-')}/{layer}"
            arrays[f"{where}/pos"] = pos.astype(np.float32)
            arrays[f"{where}/face"] = face.astype(np.int32)
            arrays[f"{where}/color"] = np.round(color.clip(0, 1) * 255).astype(np.uint8)
    if arrays:
        with atomic(path) as part, part.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)


def _context(cfg: DictConfig) -> Any:
    if "bf16" not in str(cfg.trainer.get("precision", "")):
        return None
    kind = device(cfg).type
    return lambda: torch.autocast(kind, torch.bfloat16)


def _per_class(path: Path, evaluation: Evaluation) -> None:
    rows = evaluation.details.get("per_class") or []
    if not rows:
        return
    write_csv(path, list(rows[0]), rows)


def _table(entries: dict[str, Any]) -> str:
    """Scores of the test sets as text, a line each."""
    lines: list[str] = []
    for name, entry in entries.items():
        scores = "  ".join(f"{k} {v:.4f}" for k, v in entry["scores"].items())
        lines.append(f"{name} ({entry['shapes']} shapes): {scores}")
    return "\n".join(lines)
