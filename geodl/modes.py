"""What ``mode=train | eval | predict | prepare`` do. Everything heavy is imported here."""

from __future__ import annotations

import contextlib
import csv
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from geodl import record
from geodl.augment import Augmentation
from geodl.build import (
    ALLOWED,
    Parts,
    build_data,
    build_many,
    build_task,
    make,
    paths,
    preprocess_of,
)
from geodl.data.base import (
    BadShape,
    Preprocess,
    attach,
    edges_of,
    elements,
    plain,
    sampled,
)
from geodl.data.files import CLOUD_SUFFIXES, MESH_SUFFIXES, atomic, read_mesh, write_ply
from geodl.encoders.base import Encoder
from geodl.errors import UserError
from geodl.history import History, Saver
from geodl.metrics import to_surface
from geodl.ops.cache import Cache
from geodl.ops.remesh import nearest
from geodl.perturb import Perturbation
from geodl.shape import Shape, ShapeBatch
from geodl.spec import DataSpec, Points
from geodl.tasks.base import Evaluation, Scene, Task
from geodl.tasks.reconstruction import Reconstruction

log = logging.getLogger(__name__)
GALLERY = 12  # shapes in a gallery of predictions


# ---- train ----


def train(cfg: DictConfig) -> str:
    """Train, or resume, or only evaluate what is missing; then write figures and result.json."""
    folder = record.run_folder(cfg)
    record.make_folder(folder)
    with _alone(folder):
        result = record.read_result(folder)
        if cfg.force or not (result and result.get("status") == "done"):
            _train(cfg, folder)
        try:
            return _evaluate_run(cfg, folder)
        except Exception:  # the training is done; what its evaluation died of stays on record
            result = record.read_result(folder) or {}
            record.write_json(
                folder / "result.json", result | {"traceback": traceback.format_exc()}
            )
            raise


@contextlib.contextmanager
def _alone(folder: Path) -> Generator[None]:
    """The folder for this process alone, when another one is through with it."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s is being trained by another process: waiting for it", folder)
        lock.acquire()
    try:
        for part in folder.glob(".*.part"):  # of a process that was killed while it wrote
            part.unlink()
        yield
    finally:
        lock.release()


def _train(cfg: DictConfig, folder: Path) -> None:
    started = time.time()
    config = cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
    if cfg.force:
        for name in ("last.ckpt", "best.ckpt", "metrics.csv", "result.json"):
            (folder / name).unlink(missing_ok=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    result: dict[str, Any] = {
        "format": record.FORMAT,
        "status": "running",
        "hash": record.run_hash(cfg),
        "seed": cfg.seed,
        "config": record.identity(cfg),
        **record.provenance(),
    }
    record.write_json(folder / "result.json", result)
    history: History | None = None
    try:
        data = build_data(cfg)
        data.items("train")
        task = build_task(cfg, data.spec)
        if cfg.select == "val" and not data.has("val"):
            raise UserError(
                f"select=val, but {type(data).__name__} has no val split: use select=last."
            )
        parts = Parts(cfg, data, task)
        _configure(parts)
        report = data.prepare()
        log.info("%s", report)
        _log_mended(report.mended)
        for name in cfg.test:  # a change that the shapes cannot take is better known now
            data.try_change(str(cfg.test[name].split), _perturbations(cfg, name))
        result |= {
            "protocol": data.spec.protocol,
            "split_checksum": data.split_checksum(),
            "shapes": {s: len(data.items(s)) for s in ("train", "val", "test") if data.has(s)},
            "mended": len(report.mended),
            "dropped": report.dropped,
            "parameters": sum(p.numel() for p in task.parameters()),
        }
        if cfg.weights:
            task.load_strict(task.translate(load_weights(cfg.weights)), cfg.weights)
        if cfg.init:
            initialise(task, cfg.init)
        meta = {
            "format": record.FORMAT,
            "config": config,
            "spec": data.spec.to_plain(),
            "preprocess": plain(data.process),
        }
        history = History(folder, meta, cfg.select)
        _fit(parts, folder, history)
        epochs = len(history.rows)
        last = history.rows[-1] if history.rows else {}
        result |= {
            "status": "done",
            "epochs": epochs,
            "seconds": round(history.seconds, 2),
            "seconds_per_epoch": round(history.seconds / max(1, epochs), 3),
            "peak_memory_mb": record.peak_memory_mb(),
            "select": cfg.select,
            "best_epoch": history.best_epoch if cfg.select != "last" else None,
            "device": str(_device(cfg)),
            "threads": torch.get_num_threads(),
            "train": {k: v for k, v in last.items() if k.startswith("train/")},
            "val": {k: v for k, v in last.items() if k.startswith("val/")},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "eval": {},
        }
        record.write_json(folder / "result.json", result)
    except BaseException as error:
        result |= {
            "status": "interrupted" if isinstance(error, KeyboardInterrupt) else "failed",
            "seconds": round(time.time() - started, 2),
            "traceback": traceback.format_exc(),
        }
        record.write_json(folder / "result.json", result)
        raise


def _configure(parts: Parts) -> None:
    cfg, encoder = parts.cfg, parts.task.encoder
    augment = build_many("augment", cfg.augment, (*ALLOWED, *(cfg.allow or [])))
    _check_registered(encoder, [("augmentation", a) for a in augment])
    tests = [(f"test={name}", p) for name in cfg.test for p in _perturbations(cfg, name)]
    _check_registered(encoder, tests)
    copies = int(cfg.augment.get("copies", 0) or 0)
    parts.data.configure(
        parts.task.needs, augment, copies, cfg.batch_size, cfg.workers, cfg.seed, parts.task.paired
    )


def _perturbations(cfg: DictConfig, name: str) -> list[Perturbation]:
    allow = (*ALLOWED, *(cfg.allow or []))
    chosen = cfg.test[name].get("perturb") or []
    return [make("test", p, f"test.{name}", allow)() for p in chosen]


def _check_registered(encoder: Encoder, changes: Sequence[tuple[str, Augmentation]]) -> None:
    """Raises UserError, before any work, where an encoder on a template would meet other meshes."""
    for where, change in changes:
        if encoder.registered and "connectivity" not in change.keeps:
            raise UserError(
                f"encoder {type(encoder).__name__} works on the template's own mesh, which "
                f"{type(change).__name__} ({where}) takes away: choose encoder=pointnet or "
                "diffusionnet."
            )


def _fit(parts: Parts, folder: Path, history: History) -> None:
    cfg, task, data = parts.cfg, parts.task, parts.data
    allow = (*ALLOWED, *(cfg.allow or []))
    _device(cfg)
    if "lr_monitor" in cfg.callbacks and not cfg.logger:
        raise UserError("callbacks=lr_monitor needs logger=wandb or tensorboard.")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = L.Trainer(
        **{str(k): v for k, v in cfg.trainer.items()},
        max_epochs=cfg.epochs,
        default_root_dir=folder,
        callbacks=[
            history,
            *_progress(),
            *build_many("callbacks", cfg.callbacks, allow),
            Saver(history),
        ],
        logger=make("logger", cfg.logger, allow=allow)() if cfg.logger else False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=1,
    )
    last = folder / "last.ckpt"
    resume = last if last.is_file() else None
    if resume:
        _check_format(torch.load(resume, map_location="cpu", weights_only=True), resume)
        log.info("resuming %s", resume)
    else:
        task.fit(data.batches("train"))
    if cfg.epochs == 0 or not any(p.requires_grad for p in task.parameters()):
        with atomic(last) as part:  # nothing to train, but a checkpoint all the same
            torch.save({"state_dict": task.state_dict(), "geodl": history.meta}, part)
        history.write_csv()
        return
    with warnings.catch_warnings():
        # Facts about loaders and loggers that are choices here.
        for text in (
            ".*num_workers.*",
            ".*does not have many workers.*",
            ".*no `val.*",
            ".*litlogger.*",
            ".*is not compiled.*",
            ".*tensorboardX.*",
            ".*`isinstance\\(treespec.*",
        ):
            warnings.filterwarnings("ignore", message=text)
        warnings.filterwarnings("ignore", message=".*Sparse.*", category=UserWarning)
        try:
            trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
        except SystemExit:  # what Lightning makes of Ctrl-C
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        except (ValueError, RuntimeError) as error:
            raise _explained(error) from error
    history.write_csv()


def _explained(error: Exception) -> Exception:
    """Faults of a configuration that only training shows, in the user's words."""
    text = str(error)
    if "Expected more than 1 value per channel" in text:
        return UserError(
            "BatchNorm needs two shapes in a training batch: set batch_size=2 or more, or add "
            "shapes."
        )
    if "Early stopping conditioned on metric" in text:
        return UserError(
            "callbacks=early_stopping watches val/acc, but this data set has no val split: leave "
            "it out, or set callbacks.early_stopping.monitor=train/acc."
        )
    return error


def _progress() -> list[L.Callback]:
    if not sys.stderr.isatty():
        return []
    from lightning.pytorch.callbacks import RichProgressBar

    return [RichProgressBar(leave=False)]


def _log_mended(mended: dict[str, str]) -> None:
    removed = {k: v for k, v in mended.items() if "removed" in v}
    if removed:
        name, what = next(iter(removed.items()))
        log.info("repaired %d meshes, e.g. %s: %s (all: mode=prepare)", len(removed), name, what)


def _device(cfg: DictConfig) -> torch.device:
    wanted = str(cfg.trainer.get("accelerator", "cpu"))
    if wanted in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.device("cuda")
    if wanted in ("mps", "auto") and torch.backends.mps.is_available():
        return torch.device("mps")
    if wanted in ("gpu", "cuda", "mps"):
        raise UserError(f"trainer.accelerator={wanted}, but there is none here: use trainer=cpu.")
    return torch.device("cpu")


# ---- checkpoints ----


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of geodl, as plain data and tensors.

    Raises:
        UserError: missing, broken, not geodl's, or of a newer format.
    """
    if not path.is_file():
        raise UserError(f"ckpt={path} does not exist: give a last.ckpt or best.ckpt of a run.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the archive's fault suggests
        raise UserError(f"ckpt={path} cannot be read: it is truncated or no checkpoint.") from error
    return _check_format(checkpoint, path)


def _check_format(checkpoint: Any, path: Path) -> dict[str, Any]:
    meta = checkpoint.get("geodl") if isinstance(checkpoint, dict) else None
    if meta is None:
        raise UserError(
            f"{path} is no checkpoint of geodl: use weights={path} for weights of another code."
        )
    if meta["format"] > record.FORMAT:
        raise UserError(
            f"{path} has format {meta['format']}, this geodl reads up to {record.FORMAT}: upgrade "
            "geodl (pip install -U geodl)."
        )
    return cast("dict[str, Any]", checkpoint)


def restore(path: Path, cfg: DictConfig) -> tuple[DictConfig, Task, dict[str, Any]]:
    """Config (with the run-time choices of ``cfg``), task and meta data of a checkpoint."""
    checkpoint = load_checkpoint(path)
    meta = checkpoint["geodl"]
    stored = cast(DictConfig, OmegaConf.create(meta["config"]))
    for key in ("paths", "trainer", "test", "workers", "allow", "figures"):
        stored[key] = cfg[key]
    if HydraConfig.initialized():
        given = HydraConfig.get().overrides.task
        if any(word.startswith("batch_size=") for word in given):
            stored.batch_size = cfg.batch_size
    task = build_task(stored, DataSpec.from_plain(meta["spec"]))
    task.load_strict(checkpoint["state_dict"], path)
    return stored, task, meta


def load_weights(file: str) -> dict[str, Any]:
    """A state dict: of a checkpoint of geodl, or a file that holds nothing else."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"weights={path} does not exist.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the archive's fault suggests
        raise UserError(f"weights={path} cannot be read: it is truncated or no weights.") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(v, torch.Tensor) for v in cast("dict[str, Any]", state).values()
    ):
        raise UserError(f"weights={path} is no state dict of tensors.")
    return cast("dict[str, Any]", state)


def initialise(task: Task, path: str) -> None:
    """Fine-tuning: take every tensor that fits in name and shape, and say which did not."""
    own = task.state_dict()
    given = load_weights(path)
    fits = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not fits:
        raise UserError(f"init={path} has no tensor of this model: choose the same encoder.")
    fresh = sorted(k for k in own if k not in fits)
    log.info("init: %d tensors from %s, fresh: %s", len(fits), path, ", ".join(fresh) or "none")
    task.load_state_dict({**own, **fits})


# ---- evaluation ----


def evaluate(cfg: DictConfig) -> str:
    """``mode=eval``: the test sets on a checkpoint, or on weights with an experiment.

    The results go to ``eval/<test set>-<checkpoint>.json``; those of the run itself stay.
    """
    if cfg.ckpt:
        path = Path(cfg.ckpt).expanduser()
        stored, task, meta = restore(path, cfg)
        data = build_data(stored)
        data.process = preprocess_of(meta["preprocess"])
        _check_spec(data.spec, task.spec)
        folder = path.resolve().parent
        return _table(_evaluate(Parts(stored, data, task), folder, path.stem, list(cfg.test)))
    data = build_data(cfg)
    data.items("train")
    task = build_task(cfg, data.spec)
    task.load_strict(task.translate(load_weights(cfg.weights)), cfg.weights)
    folder = record.run_folder(cfg)
    record.make_folder(folder)
    return _table(_evaluate(Parts(cfg, data, task), folder, "weights", list(cfg.test)))


eval = evaluate


def _check_spec(found: DataSpec, stored: DataSpec) -> None:
    for name in ("classes", "parts", "label_on"):
        if getattr(found, name) != getattr(stored, name):
            raise UserError(
                f"the data set's {name} are not those that the checkpoint was trained with "
                f"({len(getattr(stored, name))} then): use the same data set."
            )


def _evaluate_run(cfg: DictConfig, folder: Path) -> str:
    name = "last" if cfg.select == "last" else "best"
    stored, task, meta = restore(folder / f"{name}.ckpt", cfg)
    data = build_data(stored)
    data.process = preprocess_of(meta["preprocess"])
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
        viz.learning_curves(rows, picture, task.monitor[0])
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
    cfg, task, data = parts.cfg, parts.task, parts.data
    if not todo:
        return {}
    perturbs = {name: _perturbations(cfg, name) for name in todo}
    changes = [(f"test={name}", p) for name, chosen in perturbs.items() for p in chosen]
    _check_registered(task.encoder, changes)
    data.configure(
        task.needs,
        batch_size=cfg.batch_size,
        workers=cfg.workers,
        seed=cfg.seed,
        paired=task.paired,
    )
    report = data.prepare(splits=list(dict.fromkeys(str(cfg.test[t].split) for t in todo)))
    if report.misses or report.dropped:
        log.info("%s", report)
    for name in ("eval", "figures"):
        (folder / name).mkdir(exist_ok=True)
    task.to(_device(cfg))
    entries: dict[str, dict[str, Any]] = {}
    for name in todo:
        options = cfg.test[name]
        count = len((data.pairs if task.paired else data.items)(options.split))
        shown = set(np.linspace(0, count - 1, GALLERY).round().astype(int).tolist())
        loader = data.batches(options.split, perturbs[name])
        evaluation = task.evaluate(loader, _context(cfg), shown)
        entries[name] = {
            "scores": evaluation.scores,
            "shapes": evaluation.shapes,
            "options": record.test_options(cfg, name),
            "protocol": data.spec.protocol,
            "checkpoint": checkpoint or ("last" if cfg.select == "last" else "best"),
            "up": data.spec.up,
        }
        stem = f"{name}-{checkpoint}" if checkpoint else name
        record.write_json(folder / "eval" / f"{stem}.json", entries[name] | evaluation.details)
        _per_class(folder / "eval" / f"{stem}.csv", evaluation)
        if cfg.figures:
            task.figures(evaluation, folder / "figures", stem)
            _save_scenes(folder / "eval" / f"{stem}-shapes.npz", task.scenes(evaluation))
        store(name, entries[name])
    return entries


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
    kind = _device(cfg).type
    return lambda: torch.autocast(kind, torch.bfloat16)


def _per_class(path: Path, evaluation: Evaluation) -> None:
    rows = evaluation.details.get("per_class") or []
    if not rows:
        return
    with atomic(path) as part, part.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _table(entries: dict[str, Any]) -> str:
    """Scores of the test sets as text, a line each."""
    lines: list[str] = []
    for name, entry in entries.items():
        scores = "  ".join(f"{k} {v:.4f}" for k, v in entry["scores"].items())
        lines.append(f"{name} ({entry['shapes']} shapes): {scores}")
    return "\n".join(lines)


# ---- predict ----


def predict(cfg: DictConfig) -> str:
    """A trained model on the user's own files: labels, coloured .ply, a picture of each."""
    files = _inputs(Path(cfg.input).expanduser())
    stored, task, meta = restore(Path(cfg.ckpt).expanduser(), cfg)
    task.eval().to(_device(stored))
    process = preprocess_of(meta["preprocess"])
    target = Path(
        cfg.output
        or Path(cfg.paths.outputs)
        / "predict"
        / record.valid_name(Path(cfg.input).expanduser().resolve().stem)
    ).expanduser()
    record.make_folder(target)
    cache = Cache(paths(cfg).cache)
    category = _category(task, cfg.category)
    # All mistakes before any output.
    shapes = [_own_shape(f, task, process, cache, category) for f in files]
    stems = [record.valid_name(f.stem) for f in files]
    if len(set(stems)) < len(stems):  # a.off and a.obj
        stems = [record.valid_name(f.name) for f in files]
    try:
        rows = [
            _predict_one(task, f.name, shape, target / stem)
            for f, shape, stem in zip(files, shapes, stems, strict=True)
        ]
    except UserError:
        with contextlib.suppress(OSError):
            target.rmdir()  # if nothing was written
        raise
    record.write_json(target / "predictions.json", rows)
    if rows and "label" in rows[0]:
        with atomic(target / "predictions.csv") as part, part.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "label", "probability"])
            writer.writerows([r["file"], r["label"], f"{r['probability']:.6f}"] for r in rows)
    return "\n".join([*(f"{row['file']}: {_in_words(row)}" for row in rows), str(target)])


def _in_words(row: dict[str, Any]) -> str:
    if "label" in row:
        return f"{row['label']} ({row['probability']:.2f})"
    if "parts" in row:
        return ", ".join(f"{k} {v:.0%}" for k, v in row["parts"].items() if v)
    distance = f", {row['scan_to_mesh']:.2f} mm from the input" if "scan_to_mesh" in row else ""
    return f"{row['mesh']}{distance}"


def _inputs(path: Path) -> list[Path]:
    if path.is_dir():
        suffixes = (*MESH_SUFFIXES, *CLOUD_SUFFIXES[:2])
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
        if not files:
            raise UserError(f"input={path} has no mesh or cloud ({' '.join(suffixes)}).")
        return files
    if not path.is_file():
        raise UserError(f"input={path} does not exist: give a file or a folder.")
    return [path]


def _category(task: Task, name: str | None) -> Tensor | None:
    """The class that a model which must be told is told."""
    if not getattr(task.encoder, "categories", 0):
        return None
    if name not in task.spec.classes:
        known = ", ".join(task.spec.classes)
        raise UserError(
            f"this model must be told the shapes' class: give category=<one of {known}>."
        )
    return torch.tensor(task.spec.classes.index(name))


@dataclass
class OwnShape:
    """raw: as in the file; placed: the raw elements in the model's coordinates; seen: mended and
    scaled; ready: with points and operators; center and size of the similarity."""

    raw: Shape
    placed: Shape
    seen: Shape
    ready: Shape
    center: Tensor
    size: float


def _own_shape(
    file: Path, task: Task, process: Preprocess, cache: Cache, category: Tensor | None
) -> OwnShape:
    pos, face = read_mesh(file)
    raw = Shape(pos=torch.from_numpy(pos), face=torch.from_numpy(face), name=file.stem)
    points = task.needs.find(Points)
    if raw.is_cloud and task.out in ("face", "edge"):
        raise UserError(f"{file} is a point cloud, but this model labels {task.out}s: give a mesh.")
    try:
        done = process(raw, "whole", cache)
        for what in done.mended:
            log.info("%s: %s", file.name, what)
        placed = raw.replace(pos=((raw.pos.double() - done.center) / done.size).float())
        seen = done.shape.replace(category=category)
        if task.out == "edge":
            seen, placed = _with_edges(seen), _with_edges(placed)
        ready = seen
        if points:
            if task.out != "whole":  # predictions are carried to every element of the mesh
                count = len(elements(seen, task.out))
                ready = seen.replace(label=torch.zeros(count, dtype=torch.long))
            ready = sampled(ready, points.n, task.out, None)
        ready = attach(ready, task.needs, process.backend, cache)
    except (BadShape, ValueError) as error:
        raise UserError(f"{file} cannot be used: {error}.") from error
    return OwnShape(raw, placed, seen, ready, done.center, done.size)


def _with_edges(shape: Shape) -> Shape:
    return shape.replace(ops=shape.ops.added({"edge": edges_of(shape.face)[0]}, {"edge": "index"}))


def _reconstruct_one(
    task: Reconstruction, name: str, shape: OwnShape, batch: ShapeBatch, place: Path
) -> dict[str, Any]:
    """The reconstruction as .ply in the file's coordinates, coloured by its distance to the input
    (blue 0, yellow 3 mm), a picture, and a row with the code and the distances."""
    from geodl import viz

    with torch.no_grad():
        code, _ = task.encode(batch)
        y = task.decode(code)[0].cpu()
    face = task.face.cpu()
    scan = (shape.seen.pos, shape.seen.face)
    unit = task.spec.unit
    row: dict[str, Any] = {"file": name, "mesh": f"{place.name}.ply"}
    errors: Any = None
    if not shape.seen.is_cloud:
        errors = (unit * to_surface(y, scan)).numpy()
        row |= {
            "scan_to_mesh": float(unit * to_surface(scan[0], (y, face)).mean()),
            "mesh_to_scan": float(errors.mean()),
        }
    color = np.tile(viz.PLAIN, (len(y), 1)) if errors is None else viz.heat(errors, 3.0)
    own = y.double().numpy() * shape.size + shape.center.numpy()
    triangles = face.numpy()
    painted = (color * 255).astype(np.uint8)
    write_ply(place.with_name(f"{place.name}.ply"), own, triangles, painted)
    viz.strips(
        [[scan[0].numpy()], [y.numpy()]],
        triangles,
        place.with_name(f"{place.name}.png"),
        task.spec.up,
        faces=[[scan[1].numpy()], [triangles]],
        colors=[[None], [color]],
    )
    return row | {"code": [round(float(c), 6) for c in code[0]]}


def _predict_one(task: Task, name: str, shape: OwnShape, place: Path) -> dict[str, Any]:
    """Writes what is predicted for one file beside ``place`` and returns its row."""
    from geodl import viz

    spec = task.spec
    batch = ShapeBatch.pack([shape.ready]).to(task.device)
    if isinstance(task, Reconstruction):
        return _reconstruct_one(task, name, shape, batch, place)
    with torch.no_grad():
        logits = task.predict_eval(batch).output.float().cpu()
    pos, face = shape.raw.pos.numpy(), shape.raw.face.numpy()
    picture = place.with_name(f"{place.name}.png")
    if task.out == "whole":
        probability = logits.softmax(1)[0].numpy()
        best = int(probability.argmax())
        label, p = spec.classes[best], float(probability[best])
        viz.save_shape(pos, face, None, picture, f"{name}: {label} ({p:.0%})", up=spec.up)
        rounded = (round(float(x), 6) for x in probability)
        return {
            "file": name,
            "label": label,
            "probability": p,
            "probabilities": dict(zip(spec.classes, rounded, strict=True)),
        }
    if spec.category_parts and shape.seen.category is not None:
        allowed = torch.tensor(spec.category_parts[int(shape.seen.category)])
        part = allowed[logits[:, allowed].argmax(1)].numpy()
    else:
        part = logits.argmax(1).numpy()
    # From the model's elements back onto those of the user's mesh.
    target = elements(shape.placed, task.out)
    own = part
    if len(part) != len(target):
        own = part[nearest(elements(shape.seen, task.out), target)]
    vertex = viz.on_vertices(viz.palette(len(spec.parts))[own], shape.placed, task.out)
    color = (vertex * 255).astype(np.uint8)
    write_ply(place.with_name(f"{place.name}.ply"), pos, face, color)
    with atomic(place.with_name(f"{place.name}.csv")) as partial:
        np.savetxt(partial, own, fmt="%d", header=f"{task.out} labels: {list(spec.parts)}")
    viz.save_shape(pos, face, vertex, picture, name, spec.parts, up=spec.up)
    share = np.bincount(own, minlength=len(spec.parts)) / len(own)
    return {
        "file": name,
        "labels_on": task.out,
        "labels": f"{place.name}.csv",
        "parts": {n: round(float(s), 4) for n, s in zip(spec.parts, share, strict=True)},
    }


# ---- prepare ----


def prepare(cfg: DictConfig) -> str:
    """Get the data, check every shape, compute what the composed model needs; show the cache."""
    cache = Cache(paths(cfg).cache)
    lines: list[str] = []
    if cfg.clean:
        known = {f.split("/")[1] for f in cache.size()} | {"old", "all"}
        if cfg.clean not in known:
            raise UserError(
                f"clean={cfg.clean} is not in the cache: choose one of {', '.join(sorted(known))}."
            )
        freed = cache.clean(str(cfg.clean))
        lines.append(f"freed {freed / 1e6:.1f} MB")
    else:
        data = build_data(cfg)
        data.items("train")
        task = build_task(cfg, data.spec)
        _configure(Parts(cfg, data, task))
        report = data.prepare()
        lines.append(f"{data.spec.protocol}: {report}")
        lines += [f"  mended {name}: {what}" for name, what in report.mended.items()]
        lines += [f"  dropped {name}: {why}" for name, why in report.dropped.items()]
    total = 0
    for family, (files, size) in sorted(cache.size().items()):
        lines.append(f"cache {family}: {files} files, {size / 1e6:.1f} MB")
        total += size
    lines.append(
        f"cache {cache.folder}: {total / 1e6:.1f} MB (mode=prepare clean=<family|old|all>)"
    )
    return "\n".join(lines)
