"""What ``mode=train | eval | predict | prepare`` do. Everything heavy is imported here."""

from __future__ import annotations

import contextlib
import csv
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from geodl import record
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
from geodl.data.base import attach, plain, sampled
from geodl.data.files import CLOUD_SUFFIXES, MESH_SUFFIXES, atomic, read_mesh, write_ply
from geodl.errors import UserError
from geodl.history import History
from geodl.ops.cache import Cache
from geodl.ops.remesh import nearest
from geodl.shape import Shape, ShapeBatch
from geodl.spec import DataSpec, Points
from geodl.tasks.base import Evaluation, Task

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
        return _evaluate_run(cfg, folder)


@contextlib.contextmanager
def _alone(folder: Path) -> Generator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder} is being trained by another process: wait for it.") from None
    try:
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
        result |= {
            "protocol": data.spec.protocol,
            "split_checksum": data.split_checksum(),
            "shapes": {s: len(data.items(s)) for s in ("train", "val", "test") if data.has(s)},
            "mended": len(report.mended),
            "dropped": report.dropped,
            "parameters": sum(p.numel() for p in task.parameters()),
        }
        if cfg.weights:
            task.load_strict(load_weights(Path(cfg.weights)), Path(cfg.weights))
        if cfg.init:
            initialise(task, Path(cfg.init))
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
    cfg = parts.cfg
    augment = build_many("augment", cfg.augment, (*ALLOWED, *(cfg.allow or [])))
    copies = int(cfg.augment.get("copies", 0) or 0)
    parts.data.configure(parts.task.needs, augment, copies, cfg.batch_size, cfg.workers, cfg.seed)


def _fit(parts: Parts, folder: Path, history: History) -> None:
    cfg, task, data = parts.cfg, parts.task, parts.data
    allow = (*ALLOWED, *(cfg.allow or []))
    _device(cfg)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = L.Trainer(
        **{str(k): v for k, v in cfg.trainer.items()},
        max_epochs=cfg.epochs,
        default_root_dir=folder,
        callbacks=[history, *_progress(), *build_many("callbacks", cfg.callbacks, allow)],
        logger=make("logger", cfg.logger, allow=allow)() if cfg.logger else False,
        enable_checkpointing=False,
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
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt


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
    task = build_task(stored, DataSpec.from_plain(meta["spec"]))
    task.load_strict(checkpoint["state_dict"], path)
    return stored, task, meta


def load_weights(path: Path) -> dict[str, Any]:
    """A state dict: of a checkpoint of geodl, or a file that holds nothing else."""
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


def initialise(task: Task, path: Path) -> None:
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
    """``mode=eval``: the test sets on a checkpoint, or on weights with an experiment."""
    if cfg.ckpt:
        path = Path(cfg.ckpt)
        stored, task, meta = restore(path, cfg)
        data = build_data(stored)
        data.process = preprocess_of(meta["preprocess"])
        _check_spec(data.spec, task.spec)
        folder = path.resolve().parent
        return _evaluate(Parts(stored, data, task), folder, path.stem, force=True)
    data = build_data(cfg)
    data.items("train")
    task = build_task(cfg, data.spec)
    task.load_strict(load_weights(Path(cfg.weights)), Path(cfg.weights))
    folder = record.run_folder(cfg)
    record.make_folder(folder)
    return _evaluate(Parts(cfg, data, task), folder, "weights", force=True)


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
    text = _evaluate(Parts(stored, data, task), folder, name, force=False)
    if cfg.figures:
        from geodl import viz

        rows = read_csv(folder / "metrics.csv")
        viz.learning_curves(rows, folder / "figures" / "learning_curves.png")
    return f"{text}\n{folder}"


def read_csv(path: Path) -> list[dict[str, float]]:
    with path.open() as stream:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]


def _evaluate(parts: Parts, folder: Path, checkpoint: str, force: bool) -> str:
    cfg, task, data = parts.cfg, parts.task, parts.data
    data.configure(task.needs, batch_size=cfg.batch_size, workers=cfg.workers, seed=cfg.seed)
    result = record.read_result(folder) or {}
    scores: dict[str, Any] = {} if force else dict(result.get("eval", {}))
    todo = [name for name in cfg.test if name not in scores]
    if todo:
        splits = list(dict.fromkeys(str(cfg.test[name].split) for name in todo))
        report = data.prepare(splits=splits)
        if report.misses or report.dropped:
            log.info("%s", report)
    (folder / "eval").mkdir(exist_ok=True)
    (folder / "figures").mkdir(exist_ok=True)
    device = _device(cfg)
    task.to(device)
    allow = (*ALLOWED, *(cfg.allow or []))
    for name in todo:
        options = cfg.test[name]
        perturb = [make("test", p, f"test.{name}", allow)() for p in (options.get("perturb") or [])]
        count = len(data.items(options.split))
        shown = set(np.linspace(0, count - 1, GALLERY).round().astype(int).tolist())
        loader = data.batches(options.split, perturb)
        evaluation = task.evaluate(loader, _context(cfg), shown)
        entry: dict[str, Any] = {
            "scores": evaluation.scores,
            "shapes": evaluation.shapes,
            "split": options.split,
            "protocol": data.spec.protocol,
            "checkpoint": checkpoint,
        }
        record.write_json(folder / "eval" / f"{name}.json", entry | evaluation.details)
        _per_class(folder / "eval" / f"{name}.csv", evaluation)
        scores[name] = entry
        if cfg.figures:
            _figures(task, evaluation, folder / "figures", name)
    if result.get("status") == "done":
        merged = dict(result.get("eval", {})) | scores
        record.write_json(folder / "result.json", result | {"eval": merged})
    return _table({name: scores[name] for name in cfg.test})


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


def _figures(task: Task, evaluation: Evaluation, folder: Path, name: str) -> None:
    from geodl import viz

    names = task.spec.classes if task.out == "whole" else task.spec.parts
    if "confusion" in evaluation.details:
        viz.confusion(evaluation.details["confusion"], names, folder / f"confusion-{name}.png")
    viz.gallery(evaluation.kept, task.spec, folder / f"gallery-{name}.png")


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
    shapes = [_own_shape(f, task, process, cache) for f in files]  # all mistakes before any output
    rows = [
        _predict_one(task, process, cache, f, *s, target)
        for f, s in zip(files, shapes, strict=True)
    ]
    if task.out == "whole":
        record.write_json(target / "predictions.json", rows)
        with atomic(target / "predictions.csv") as part, part.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "label", "probability"])
            writer.writerows([r["file"], r["label"], f"{r['probability']:.6f}"] for r in rows)
    else:
        record.write_json(target / "predictions.json", rows)
    lines = [
        f"{r['file']}: {r['label']} ({r['probability']:.2f})"
        if "label" in r
        else f"{r['file']}: " + ", ".join(f"{k} {v:.0%}" for k, v in r["parts"].items() if v)
        for r in rows
    ]
    return "\n".join([*lines, str(target)])


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


def _own_shape(file: Path, task: Task, process: Any, cache: Cache) -> tuple[Shape, Shape]:
    """The file as it is, and as the model sees it."""
    from geodl.data.base import BadShape, edges_of

    pos, face = read_mesh(file)
    raw = Shape(pos=torch.from_numpy(pos), face=torch.from_numpy(face), name=file.stem)
    needs_mesh = task.out in ("face", "edge") and task.needs.find(Points) is None
    if raw.is_cloud and needs_mesh:
        raise UserError(f"{file} is a point cloud, but this model labels {task.out}s: give a mesh.")
    try:
        seen, mended = process(raw, "whole", cache)
    except BadShape as error:
        raise UserError(f"{file} cannot be used: {error}.") from error
    for what in mended:
        log.info("%s: %s", file.name, what)
    if task.out == "edge":
        edge, _ = edges_of(seen.face)
        seen = seen.replace(ops=seen.ops.added({"edge": edge}, {"edge": "index"}))
    return raw, seen


def _predict_one(
    task: Task, process: Any, cache: Cache, file: Path, raw: Shape, seen: Shape, target: Path
) -> dict[str, Any]:
    from geodl import viz
    from geodl.data.base import elements

    needs = task.needs
    points = needs.find(Points)
    placed = seen
    if points:
        if task.out != "whole":  # predictions are carried to every element of the mesh
            count = len(elements(seen, task.out))
            seen = seen.replace(label=torch.zeros(count, dtype=torch.long))
        seen = sampled(seen, points.n, task.out, None)
    shape = attach(seen, needs, process.backend, cache)
    batch = ShapeBatch.pack([shape]).to(task.device)
    with torch.no_grad():
        probability = task.predict_eval(batch).logits.float().softmax(1).cpu().numpy()
    pos, face = raw.pos.numpy(), raw.face.numpy()
    stem = record.valid_name(file.stem)
    if task.out == "whole":
        best = int(probability[0].argmax())
        label, p = task.spec.classes[best], float(probability[0, best])
        viz.save_shape(pos, face, None, target / f"{stem}.png", f"{label} ({p:.0%})")
        return {
            "file": file.name,
            "label": label,
            "probability": p,
            "probabilities": dict(
                zip(task.spec.classes, (round(float(x), 6) for x in probability[0]), strict=True)
            ),
        }
    # From the model's elements back onto those of the user's mesh.
    part = probability.argmax(1)
    placed_raw = raw.replace(pos=raw.pos.float())
    if len(part) == len(elements_of(placed_raw, task.out)):
        own = part
    else:
        moved = _like(raw.pos.double().numpy(), placed.pos.numpy(), process)
        source = elements(placed, task.out)
        own = part[nearest(source, elements_of(raw.replace(pos=torch.from_numpy(moved)), task.out))]
    color = viz.palette(len(task.spec.parts))[own]
    vertex = color
    if task.out != "vertex":
        vertex = viz.to_vertices(color, elements_index(raw, task.out), len(pos))
    write_ply(target / f"{stem}.ply", pos, face, (vertex * 255).astype(np.uint8))
    with atomic(target / f"{stem}.csv") as partial:
        np.savetxt(partial, own, fmt="%d", header=f"{task.out} labels: {list(task.spec.parts)}")
    viz.save_shape(pos, face, vertex, target / f"{stem}.png", file.name, task.spec.parts)
    share = np.bincount(own, minlength=len(task.spec.parts)) / len(own)
    return {
        "file": file.name,
        "labels_on": task.out,
        "labels": f"{stem}.csv",
        "parts": {n: round(float(s), 4) for n, s in zip(task.spec.parts, share, strict=True)},
    }


def _like(raw: Any, _placed: Any, process: Any) -> Any:
    """Raw coordinates brought to the model's by the same centre and scale."""
    moved, _ = process.__class__(process.center, process.scale, None, "repair", process.backend)(
        Shape(pos=torch.from_numpy(raw)), "whole", cast(Any, None)
    )
    return moved.pos.numpy()


def elements_of(shape: Shape, on: str) -> Any:
    pos = shape.pos.numpy()
    return pos if on == "vertex" else pos[elements_index(shape, on)].mean(1)


def elements_index(shape: Shape, on: str) -> Any:
    """Vertices (m 3) of faces or (m 2) of edges."""
    from geodl.data.base import edges_of

    return shape.face.numpy() if on == "face" else edges_of(shape.face)[0].numpy()


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
