"""Reading checkpoints and weights: plain data and tensors, never code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from geodl.errors import UserError
from geodl.runs import record
from geodl.runs.build import build_task
from geodl.spec import DataSpec
from geodl.tasks.base import Task

log = logging.getLogger(__name__)


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
    return check_format(checkpoint, path)


def check_format(checkpoint: Any, path: Path) -> dict[str, Any]:
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
    if meta["format"] < 2:
        meta["config"] = upgraded(meta["config"])
    return cast("dict[str, Any]", checkpoint)


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """A config of format 1, whose options of preprocessing lay among those of the data set."""
    data = dict(config["data"])
    known = {"center", "scale", "on_defect"}
    if known <= data.keys():
        names = known | {"backend"} | ({"vertices"} & data.keys())
        data["preprocess"] = {"vertices": None} | {n: data.pop(n) for n in names}
    return {"threads": 1} | config | {"data": data}


def restore(path: Path, cfg: DictConfig) -> tuple[DictConfig, Task, dict[str, Any]]:
    """Config (with the run-time choices of ``cfg``), task and meta data of a checkpoint."""
    checkpoint = load_checkpoint(path)
    meta = checkpoint["geodl"]
    stored = cast(DictConfig, OmegaConf.create(meta["config"]))
    for key in ("paths", "trainer", "test", "workers", "allow", "figures", "threads"):
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
