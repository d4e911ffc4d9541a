"""``mode=predict``: a trained model on the user's own files."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from geodl.atomic import atomic
from geodl.data.files import CLOUD_SUFFIXES, MESH_SUFFIXES
from geodl.data.own import own_shape
from geodl.data.preprocess import Preprocess
from geodl.errors import UserError
from geodl.ops.cache import Cache
from geodl.runs import record
from geodl.runs.build import device, paths
from geodl.runs.checkpoint import restore
from geodl.tasks.base import Task


def predict(cfg: DictConfig) -> str:
    """Labels, maps or meshes for every file, coloured .ply, a picture of each."""
    files = _inputs(cfg.input)
    stored, task, meta = restore(Path(cfg.ckpt).expanduser(), cfg)
    task.eval().to(device(stored))
    groups = _grouped(files, task)
    target = Path(
        cfg.output
        or Path(cfg.paths.outputs) / "predict" / record.valid_name(_title(cfg.input, groups))
    ).expanduser()
    record.make_folder(target)
    given = Preprocess(**meta["preprocess"]), Cache(paths(cfg).cache), _category(task, cfg.category)
    # All mistakes before any output.
    shapes = [[own_shape(f, task.needs, task.out, *given) for f in group] for group in groups]
    stems = ["-".join(record.valid_name(f.stem) for f in group) for group in groups]
    if len(set(stems)) < len(stems):  # a.off and a.obj
        stems = ["-".join(record.valid_name(f.name) for f in group) for group in groups]
    if len(set(stems)) < len(stems):  # one/a.off and two/a.off
        stems = [f"{i}-{stem}" for i, stem in enumerate(stems)]
    try:
        rows = [task.write(s, target / stem) for s, stem in zip(shapes, stems, strict=True)]
    except UserError:
        with contextlib.suppress(OSError):
            target.rmdir()  # if nothing was written
        raise
    record.write_json(target / "predictions.json", rows)
    if task.columns:
        with atomic(target / "predictions.csv") as part, part.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["file", *task.columns], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    return "\n".join([*(f"{row['file']}: {task.in_words(row)}" for row in rows), str(target)])


def _inputs(given: Any) -> list[Path]:
    """The files of ``input``: one, a list of them, or those of a folder."""
    if isinstance(given, ListConfig):
        return [file for one in given for file in _inputs(one)]
    path = Path(given).expanduser()
    if path.is_dir():
        suffixes = (*MESH_SUFFIXES, *CLOUD_SUFFIXES[:2])
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
        if not files:
            raise UserError(f"input={path} has no mesh or cloud ({' '.join(suffixes)}).")
        return files
    if not path.is_file():
        raise UserError(f"input={path} does not exist: give a file or a folder.")
    return [path]


def _grouped(files: list[Path], task: Task) -> list[list[Path]]:
    """Files that are predicted together."""
    n = len(task.inputs)
    if n > 1 and len(files) != n:
        raise UserError(
            f"this model takes {n} shapes at once ({', '.join(task.inputs)}), but input= has "
            f"{len(files)}: give input=[{','.join(f'{name}.off' for name in task.inputs)}]."
        )
    return [files] if n > 1 else [[file] for file in files]


def _title(given: Any, groups: list[list[Path]]) -> str:
    if isinstance(given, ListConfig):
        names = [file.stem for group in groups for file in group]
        return "-".join(names[:4]) + (f"-and-{len(names) - 4}-more" if len(names) > 4 else "")
    return Path(given).expanduser().resolve().stem


def _category(task: Task, name: str | None) -> Tensor | None:
    """The class that a model which must be told is told."""
    if not task.encoder.categories:
        return None
    if name not in task.spec.classes:
        known = ", ".join(task.spec.classes)
        raise UserError(
            f"this model must be told the shapes' class: give category=<one of {known}>."
        )
    return torch.tensor(task.spec.classes.index(name))
