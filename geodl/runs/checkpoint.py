"""Reading checkpoints and weights: plain data and tensors, never code, and nothing damaged."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from geodl.data.preprocess import Preprocess
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
    checkpoint = content_of(path, "ckpt")
    meta: Any = checkpoint.get("geodl") if isinstance(checkpoint, dict) else None
    if not isinstance(meta, dict):
        raise UserError(
            f"{path} is no checkpoint of geodl: use weights={path} for weights of another code."
        )
    plain = cast("dict[str, Any]", meta)
    if not isinstance(plain.get("format"), int) or plain["format"] > record.FORMAT:
        raise UserError(
            f"{path} has format {plain.get('format')}, this geodl reads up to {record.FORMAT}: "
            "upgrade geodl (pip install -U geodl)."
        )
    state: Any = checkpoint.get("state_dict")
    tensors = isinstance(state, dict) and all(
        isinstance(k, str) and isinstance(v, torch.Tensor) and v.layout == torch.strided
        for k, v in state.items()
    )
    have = {**plain, "state_dict": state if tensors else None}
    if not all(
        isinstance(have.get(k), dict) for k in ("config", "spec", "preprocess", "state_dict")
    ):
        raise UserError(f"{path} lacks its config or weights: it is damaged, or made by hand.")
    if _interpolates(plain["config"]):
        raise UserError(
            f"{path} has a config with an interpolation (${{...}}), which geodl never writes: do "
            "not trust this file."
        )
    if plain["format"] < 2:
        plain["config"] = upgraded(plain["config"])
    return cast("dict[str, Any]", checkpoint)


def content_of(path: Path, key: str) -> Any:
    """Plain data and tensors of a file that torch wrote. The checksums of its parts are compared:
    torch itself would take a changed byte for a number.

    Raises:
        UserError: it is damaged, or holds anything else.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                claimed = sum(member.file_size for member in archive.infolist())
                if claimed > path.stat().st_size:  # torch stores tensors as they are
                    raise ValueError(f"it claims to unpack to {claimed} bytes")
                if (bad := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {bad} differs")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise whatever the archive's fault suggests
        reason = str(error).split("\n")[0][:100] if isinstance(error, ValueError) else ""
        raise UserError(
            f"{key}={path} cannot be read: it is damaged, cut off, or holds more than tensors and "
            f"plain data{f' ({reason})' if reason else ''}."
        ) from error


def _interpolates(value: Any) -> bool:
    """Whether some text in plain data would be resolved by OmegaConf."""
    if isinstance(value, dict):
        inner = cast("dict[Any, Any]", value)
        return any(_interpolates(k) or _interpolates(v) for k, v in inner.items())
    if isinstance(value, (list, tuple)):
        return any(map(_interpolates, cast("list[Any]", value)))
    return isinstance(value, str) and "${" in value


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
    try:
        spec = DataSpec.from_plain(meta["spec"])
        Preprocess(**meta["preprocess"])
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} does not say what its data were: it is damaged.") from error
    try:
        task = build_task(stored, spec)
    except (TypeError, ValueError, LookupError, AttributeError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path} has a config that builds no model ({reason}).") from error
    task.load_strict(checkpoint["state_dict"], path)
    if broken := not_finite(checkpoint["state_dict"]):
        log.warning("%s has NaN or infinite weights (%s): its training diverged", path, broken)
    return stored, task, meta


def not_finite(state: dict[str, Any]) -> str | None:
    """The first tensor of a state dict with NaN or infinite numbers."""
    return next(
        (
            name
            for name, x in state.items()
            if isinstance(x, torch.Tensor) and x.is_floating_point() and not x.isfinite().all()
        ),
        None,
    )


def load_weights(file: str) -> dict[str, Any]:
    """A state dict: of a checkpoint of geodl, or a file that holds nothing else."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"weights={path} does not exist.")
    content = content_of(path, "weights")
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(v, torch.Tensor) for v in cast("dict[str, Any]", state).values()
    ):
        raise UserError(f"weights={path} is no state dict of tensors.")
    return cast("dict[str, Any]", state)


def initialise(task: Task, path: str) -> None:
    """Fine-tuning: take every tensor that fits in name and shape, and say which did not."""
    given = task.translate(load_weights(path))
    task.make_room(given)
    own = task.state_dict()
    fits = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not fits:
        raise UserError(f"init={path} has no tensor of this model: choose the same encoder.")
    fresh = sorted(k for k in own if k not in fits)
    log.info("init: %d tensors from %s, fresh: %s", len(fits), path, ", ".join(fresh) or "none")
    task.load_state_dict({**own, **fits})
    task.started = True
