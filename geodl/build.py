"""From a composed config to objects. The only caller of ``hydra.utils.instantiate``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import lightning as L
import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from geodl.augment import Augmentation
from geodl.data.base import Preprocess, ShapeData
from geodl.data.fetch import Paths
from geodl.decoders.base import Decoder
from geodl.encoders.base import Encoder
from geodl.errors import UserError
from geodl.features import Feature
from geodl.ops.cache import Cache
from geodl.perturb import Perturbation
from geodl.run import config_dir
from geodl.schedules import Schedule
from geodl.spec import DataSpec
from geodl.tasks.base import Setup, Task

# Slot of the config -> what may stand in it.
SLOTS: dict[str, type] = {
    "task": Task,
    "data": ShapeData,
    "features": Feature,
    "encoder": Encoder,
    "decoder": Decoder,
    "augment": Augmentation,
    "optim": torch.optim.Optimizer,
    "schedule": Schedule,
    "callbacks": L.Callback,
    "logger": Logger,
    "test": Perturbation,
}
# Modules that may be imported to find a class; ``allow`` on the command line adds to them.
ALLOWED = ("geodl", "torch.optim", "lightning.pytorch")


@dataclass
class Parts:
    """A data set and the task (features, encoder, head) that learns from it."""

    cfg: DictConfig
    data: ShapeData
    task: Task


def compose(overrides: list[str] | None = None) -> DictConfig:
    """The config that the command line would compose, ``compose(["encoder=diffusionnet"])``."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra_compose("run", overrides=overrides or [])


def build(cfg: DictConfig) -> Parts:
    """Data and task of a config, neither downloaded nor trained.

    Raises:
        UserError: a class that does not fit its slot, an option it does not have, a value of the
            wrong type, or parts that cannot work together.
    """
    data = build_data(cfg)
    return Parts(cfg, data, build_task(cfg, data.spec))


def build_data(cfg: DictConfig) -> ShapeData:
    return make("data", cfg.data, allow=_allow(cfg))(paths=paths(cfg))


def build_task(cfg: DictConfig, spec: DataSpec) -> Task:
    allow = _allow(cfg)
    torch.manual_seed(cfg.seed)  # initial weights follow from the seed alone
    setup = Setup(
        spec=spec,
        features=make("features", cfg.features, allow=allow)(),
        encoder=make("encoder", cfg.encoder, allow=allow),
        optimizer=make("optim", cfg.optim, allow=allow),
        schedule=make("schedule", cfg.schedule, allow=allow)(),
        seed=cfg.seed,
        cache=Cache(paths(cfg).cache),
        decoder=make("decoder", cfg.decoder, allow=allow) if cfg.get("decoder") else None,
    )
    return make("task", cfg.task, allow=allow)(setup=setup)


def build_many(slot: str, group: Any, allow: tuple[str, ...]) -> list[Any]:
    """The members of a group of which several can be chosen (augment, callbacks)."""
    return [
        make(slot, member, f"{slot}.{name}", allow)()
        for name, member in (group or {}).items()
        if isinstance(member, (Mapping, DictConfig)) and "_target_" in member
    ]


def preprocess_of(plain: Mapping[str, Any]) -> Preprocess:
    return Preprocess(**plain)


def paths(cfg: DictConfig) -> Paths:
    archives = cfg.paths.archives
    return Paths(
        data=Path(cfg.paths.data).expanduser(),
        cache=Path(cfg.paths.cache).expanduser(),
        archives=Path(archives).expanduser() if archives else None,
    )


def _allow(cfg: DictConfig) -> tuple[str, ...]:
    return (*ALLOWED, *(str(a) for a in cfg.get("allow") or []))


def make(
    slot: str, cfg: Any, where: str | None = None, allow: tuple[str, ...] = ALLOWED
) -> Callable[..., Any]:
    """The class of a slot with its configured options, to be called with the rest."""
    where = where or slot
    plain: dict[str, Any] = (
        cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
        if OmegaConf.is_config(cfg)
        else dict(cfg)
    )
    for place, node in _nodes(plain, where):
        target = _resolve(str(node["_target_"]), SLOTS[slot], place, allow)
        _check_options(target, {k: v for k, v in node.items() if k != "_target_"}, place)
    try:
        return instantiate(plain, _partial_=True, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"{where} cannot be built: {' '.join(str(error).split())}") from error


def _nodes(value: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        node = cast("dict[str, Any]", value)
        if "_target_" in node:
            yield place, node
        for key, inner in node.items():
            yield from _nodes(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(cast("list[Any]", value)):
            yield from _nodes(inner, f"{place}[{i}]")


def _resolve(target: str, base: type, place: str, allow: tuple[str, ...]) -> type:
    if not any(target.startswith(f"{prefix}.") for prefix in allow):
        raise UserError(
            f"{place}._target_={target} is outside {', '.join(allow)}: give allow=[package] to let "
            "geodl import your own package."
        )
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise UserError(f"{place}._target_={target} does not exist.") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{place}._target_={target} is no {base.__name__}.")
    return found


def _check_options(target: type, options: dict[str, Any], place: str) -> None:
    parameters = inspect.signature(target).parameters
    try:
        hints = get_type_hints(target.__init__)
    except NameError:  # another library's annotation of something it imports for type checkers only
        hints = {}
    for key, value in options.items():
        if key not in parameters:
            known = ", ".join(k for k in parameters if k not in ("paths", "setup"))
            raise UserError(f"{place}.{key}: {target.__name__} has no such option; it has {known}.")
        if key not in hints or _has_nodes(value):
            continue
        if not is_bearable(value, hints[key], conf=BeartypeConf(is_pep484_tower=True)):
            wanted = str(parameters[key].annotation).replace("typing.", "")
            raise UserError(f"{place}.{key}={value} is not of type {wanted}.")


def _has_nodes(value: Any) -> bool:
    return next(_nodes(value, ""), None) is not None
