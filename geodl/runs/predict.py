"""``mode=predict``: a trained model on the user's own files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from geodl.atomic import write_csv
from geodl.data import formats
from geodl.data.folder import shapes_among
from geodl.data.layout import counted, files_of
from geodl.data.own import own_shape
from geodl.data.preprocess import Preprocess
from geodl.errors import UserError
from geodl.ops.cache import Cache
from geodl.runs import record
from geodl.runs.build import build_task, device, paths
from geodl.runs.checkpoint import restore
from geodl.spec import DataSpec
from geodl.tasks.base import Task

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> str:
    """Labels, maps or meshes for every file, coloured .ply, a picture of each."""
    files = _inputs(cfg.input)
    if cfg.ckpt:
        checkpoint = Path(cfg.ckpt).expanduser()
        stored, task, meta = restore(checkpoint, cfg)
        model = f"{checkpoint.resolve()} {record.fingerprint(checkpoint)[:16]}"
        name = f"{checkpoint.resolve().parent.name}-{checkpoint.stem}"
        process = Preprocess(**meta["preprocess"])
    else:
        stored, (task, process) = cfg, _without_learning(cfg)
        model = name = record.run_name(cfg)
    task.eval().to(device(stored))
    if cfg.code is not None or cfg.mask is not None or cfg.amount != 1:
        task.tell(cfg.code, cfg.mask, float(cfg.amount))
        _same_model(cfg.code, model)
    words = None if cfg.words is None else [str(word) for word in listed(cfg.words)]
    if words is not None:
        task.point_at(words)
    groups = _grouped(list(files), task)
    made_of = {
        "checkpoint": model,
        "input": [str(Path(str(one)).expanduser().resolve()) for one in listed(cfg.input)],
        "code_file": _printed(cfg.code),
        "mask_file": _printed(cfg.mask),
        "amount": float(cfg.amount),
        "words": words,
    }
    target = place(cfg, f"predict/{record.valid_name(name)}", made_of, "predictions.json")
    given = process, Cache(paths(cfg).cache), _category(task, cfg.category)
    # All mistakes before any output.
    shapes = [[own_shape(f, task.needs, task.out, *given) for f in group] for group in groups]
    for group in shapes:
        for shape in group:
            shape.name = files[shape.file]
    for group in shapes:
        task.check(group)
    stems = _unique([[files[file] for file in group] for group in groups])
    with record.whole(target, "predictions.json") as part:
        rows = [task.write(s, part / stem) for s, stem in zip(shapes, stems, strict=True)]
        record.write_json(part / "predictions.json", [row | made_of for row in rows])
        if task.columns:
            flat = [_flat(row) for row in rows]
            classes = [key for key in flat[0] if key not in rows[0]]
            write_csv(part / "predictions.csv", ["file", *task.columns, *classes], flat)
    return "\n".join([*(f"{row['file']}: {task.in_words(row)}" for row in rows), str(target)])


def _printed(file: Any) -> str | None:
    return None if file is None else record.fingerprint(Path(str(file)).expanduser())[:16]


def _same_model(code: Any, model: str) -> None:
    """Raises UserError where a code is that of another model."""
    rows: Any = None if code is None else record.read_json(Path(str(code)).expanduser())
    row: Any = rows[0] if isinstance(rows, list) and rows else None
    # A path and a fingerprint; the file may have moved since.
    if isinstance(row, dict) and row.get("checkpoint", model).split()[-1] != model.split()[-1]:
        raise UserError(
            f"code={code} is of another model ({row['checkpoint']}): codes mean something to the "
            "model alone that made them."
        )


def _without_learning(cfg: DictConfig) -> tuple[Task, Preprocess]:
    """A model that has nothing to learn (descriptors and ZoomOut, say), and the preprocessing of
    its data set, which need not be there.

    Raises:
        UserError: it has to learn.
    """
    if not str(cfg.encoder._target_).endswith(".Identity"):
        raise UserError(
            "mode=predict needs ckpt=<a .ckpt file>, since this model has to learn first; one that "
            "has nothing to learn is experiment=faust_r/wks, which matches two meshes."
        )
    given = OmegaConf.to_container(cfg.data.get("preprocess") or OmegaConf.create())
    process = Preprocess(**cast("dict[str, Any]", given))
    return build_task(cfg, DataSpec(landmarks=0)), replace(process, on_defect="repair")


def listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, ListConfig) else [given]


def _inputs(given: Any) -> dict[Path, str]:
    """The files of ``input`` (one, a list of them, or those of a folder) and what to call them."""
    if isinstance(given, ListConfig):
        pairs = [pair for one in given for pair in _inputs(one).items()]
        names = [name for _, name in pairs]
        # Files of one name in several folders are told apart by their paths.
        found = {f: n if names.count(n) == 1 else str(f) for f, n in pairs}
        if not found:
            raise UserError("input=[] has no file: give one, or several between commas.")
        return found
    path = Path(str(given)).expanduser()
    if path.is_dir():
        every = files_of(path)
        files = shapes_among(every)
        if not files:
            raise UserError(f"input={path} has no mesh or cloud ({' '.join(formats.READERS)}).")
        if ignored := [f for f in every if f not in files]:
            log.info("ignored: %s", counted(ignored, path))
        return {f: str(f.relative_to(path)) for f in files}
    if not path.is_file():
        raise UserError(f"input={path} does not exist: give a file or a folder.")
    return {path: path.name}


def _grouped(files: list[Path], task: Task) -> list[list[Path]]:
    """Files that are predicted together."""
    n = len(task.inputs)
    if n > 1 and len(files) != n:
        raise UserError(
            f"this model takes {n} shapes at once ({', '.join(task.inputs)}), but input= has "
            f"{len(files)}: give input=[{','.join(f'{name}.off' for name in task.inputs)}]."
        )
    return [files] if n > 1 else [[file] for file in files]


def place(cfg: DictConfig, above: str, made_of: dict[str, Any], file: str) -> Path:
    """Where what was made of the user's shapes goes: ``output``, or ``<outputs>/<above>/<input>``,
    with a number where that holds what was made of others of the same name. ``file`` in it says of
    what.

    Raises:
        UserError: ``output`` holds something else.
    """
    if cfg.output:
        target = Path(cfg.output).expanduser()
        if _others(target, made_of, file):
            raise UserError(
                f"output={cfg.output} holds other files, or the predictions (or path) of another "
                "input, checkpoint or metric: name a folder of its own."
            )
        return target
    names = [Path(p).name for p in made_of["input"]]
    title = "-".join(names[:4]) + (f"-and-{len(names) - 4}-more" if len(names) > 4 else "")
    folder, n = Path(cfg.paths.outputs).expanduser() / above, 1
    target = folder / record.valid_name(title)
    while _others(target, made_of, file):
        n += 1
        target = folder / f"{record.valid_name(title)}-{n}"
    return target


def _others(target: Path, made_of: dict[str, Any], file: str) -> bool:
    """Whether a folder holds anything but what was made of the same."""
    if not target.exists():
        return False
    if not target.is_dir():
        return True
    rows: Any = record.read_json(target / file)
    first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
    usual = {"amount": 1.0}  # of folders that were written before there was a choice
    return any(target.iterdir()) and any(
        first.get(k, usual.get(k)) != v for k, v in made_of.items()
    )


def _unique(groups: Sequence[Sequence[str]]) -> list[str]:
    """A file name for every group, from the names of its files, each another one."""
    stems = ["-".join(record.valid_name(str(Path(n).with_suffix(""))) for n in g) for g in groups]
    if len(set(stems)) < len(stems):  # a.off and a.obj
        stems = ["-".join(record.valid_name(n) for n in group) for group in groups]
    if len(set(stems)) < len(stems):  # "a b.off" and "a-b.off"
        stems = [f"{i}-{stem}" for i, stem in enumerate(stems)]
    return stems


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the probabilities of the classes as columns of their own."""
    return row | {f"p({name})": p for name, p in row.get("probabilities", {}).items()}


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
