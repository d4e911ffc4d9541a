"""From a composed config to objects: the one place where a class is found by its name and built.

A config may come from somebody's checkpoint, so nothing in it is trusted: a class must fit its slot
and lie in an allowed package, an option must be one that it has, and whatever still looks like an
interpolation is refused. Hydra's ``instantiate`` would resolve once more, and run what comes out.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, cast, get_origin, get_type_hints

import lightning as L
import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from geodl.augment import Augmentation
from geodl.data.fetch import Paths
from geodl.data.loaders import Loaders
from geodl.data.memory import Memory, available
from geodl.data.source import PATH, TRANSFER, Source
from geodl.data.views import Wishes
from geodl.decoders.base import Decoder
from geodl.encoders.base import Encoder
from geodl.errors import UserError
from geodl.features import Feature
from geodl.ops.cache import Cache
from geodl.perturb import Perturbation
from geodl.schedules import Schedule
from geodl.shapespace.metric import H2
from geodl.spec import DataSpec
from geodl.tasks.base import Setup, Task

# Slot of the config -> what may stand in it.
SLOTS: dict[str, type] = {
    "task": Task,
    "data": Source,
    "features": Feature,
    "encoder": Encoder,
    "decoder": Decoder,
    "augment": Augmentation,
    "optim": torch.optim.Optimizer,
    "schedule": Schedule,
    "metric": H2,
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
    data: Source
    task: Task

    def loaders(self, train: bool = True) -> Loaders:
        """Batches as the config and the task ask for them; ``train``: with its augmentation.

        Raises:
            UserError: the augmentation is not for this encoder, or spoils its operators.
        """
        cfg, task = self.cfg, self.task
        augment: list[Augmentation] = []
        if train:
            augment = build_many("augment", cfg.augment, allow(cfg))
            check_changes(task, [("augmentation", a) for a in augment])
        copies = int(cfg.augment.get("copies", 0) or 0)
        wishes = Wishes(task.needs, tuple(augment), copies, cfg.seed)
        limit = cfg.data.get("memory")
        most = available() / 2 if limit is None else limit * 2**30
        devices = int(cfg.trainer.devices)
        memory = Memory(int(most / (1 + cfg.workers) / devices))  # each process keeps its own
        return Loaders(self.data, wishes, cfg.batch_size, cfg.workers, task.inputs, memory)

    def tests(self, names: Sequence[str]) -> dict[str, list[Perturbation]]:
        """The changes that named test sets make.

        Raises:
            UserError: one is not for this encoder.
        """
        for name in names:  # no such split, as better known before training
            self.data.items(str(self.cfg.test[name].split))
        found = {name: perturbations(self.cfg, name) for name in names}
        changes = [(f"test={name}", p) for name, chosen in found.items() for p in chosen]
        check_changes(self.task, changes)
        for name, chosen in found.items():
            if chosen and is_ways(self.task, self.cfg.test[name]):
                raise UserError(
                    f"test={name} changes shapes, but ways go between shapes as they are: leave "
                    "its perturb= empty, or take another test set."
                )
            if self.cfg.test[name].get("transfer"):
                if not self.task.transfers:
                    raise UserError(
                        f"test={name} shows somebody else's shape to a model that reads targets: "
                        "take task=deformation with task.condition=target and an encoder, or leave "
                        "it out."
                    )
                # Data that know no transfers refuse here, before training.
                self.data.transfers(self.data.items(str(self.cfg.test[name].split)))
        return found


def build(cfg: DictConfig) -> Parts:
    """Data and task of a config, neither downloaded nor trained.

    Raises:
        UserError: a class that does not fit its slot, an option it does not have, a value of the
            wrong type, or parts that cannot work together.
    """
    data = build_data(cfg)
    return Parts(cfg, data, build_task(cfg, data.spec))


def build_data(cfg: DictConfig) -> Source:
    return make("data", cfg.data, allow=allow(cfg))(paths=paths(cfg))


def build_task(cfg: DictConfig, spec: DataSpec) -> Task:
    allowed = allow(cfg)
    torch.set_num_threads(cfg.threads)  # another number gives other last digits
    _keep_memory()
    torch.manual_seed(cfg.seed)  # initial weights follow from the seed alone
    setup = Setup(
        spec=spec,
        features=make("features", cfg.features, allow=allowed)(),
        encoder=make("encoder", cfg.encoder, allow=allowed),
        optimizer=make("optim", cfg.optim, allow=allowed),
        schedule=make("schedule", cfg.schedule, allow=allowed)(),
        seed=cfg.seed,
        cache=Cache(paths(cfg).cache),
        decoder=make("decoder", cfg.decoder, allow=allowed) if cfg.get("decoder") else None,
    )
    return make("task", cfg.task, allow=allowed)(setup=setup)


def _keep_memory() -> None:
    """Have the C library (glibc) keep freed blocks: it would give every large one back to the
    system, and ask for it again in the next layer, which is a third of PointNet's step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            mallopt(option, value)


def task_class(cfg: DictConfig) -> type[Task]:
    """The class of a config's task, which says what its metrics mean."""
    return cast("type[Task]", _resolve(str(cfg.task._target_), Task, "task", allow(cfg)))


def build_many(slot: str, group: Any, allow: tuple[str, ...]) -> list[Any]:
    """The members of a group of which several can be chosen (augment, callbacks)."""
    return [
        make(slot, member, f"{slot}.{name}", allow)()
        for name, member in (group or {}).items()
        if isinstance(member, (Mapping, DictConfig)) and "_target_" in member
    ]


def paths(cfg: DictConfig) -> Paths:
    archives = cfg.paths.archives
    return Paths(
        data=Path(cfg.paths.data).expanduser(),
        cache=Path(cfg.paths.cache).expanduser(),
        archives=Path(archives).expanduser() if archives else None,
    )


def allow(cfg: DictConfig) -> tuple[str, ...]:
    given = cfg.get("allow") or []
    return (*ALLOWED, *([given] if isinstance(given, str) else map(str, given)))


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
    if slot == "data":
        plain.pop("memory", None)  # the loaders' affair
    target, options = _checked(slot, plain, where, allow)

    def built(*first: Any, **rest: Any) -> Any:
        try:
            return target(*first, **options, **rest)
        except ValueError as error:  # how torch refuses a value
            reason = " ".join(str(error).split())
            raise UserError(f"{where} cannot be built: {reason}.") from error

    built.__wrapped__ = target  # pyright: ignore[reportFunctionMemberAccess]  # inspect.signature
    return built


def _checked(
    slot: str, node: dict[str, Any], place: str, allow: tuple[str, ...]
) -> tuple[type, dict[str, Any]]:
    """The class of a node and its options, the nodes among them built."""
    target = _resolve(str(node.get("_target_")), SLOTS[slot], place, allow)
    options = {k: v for k, v in node.items() if k != "_target_"}
    options |= _check_options(target, options, place)
    if slot != "logger":
        _refuse_missing(target, options, place)
    return target, {k: _built(slot, v, f"{place}.{k}", allow) for k, v in options.items()}


def _built(slot: str, value: Any, place: str, allow: tuple[str, ...]) -> Any:
    """An option's value, with an object in place of every node inside."""
    if isinstance(value, dict):
        inner = cast("dict[str, Any]", value)
        if "_target_" in inner:
            target, options = _checked(slot, inner, place, allow)
            return target(**options)
        if odd := next((k for k in inner if str(k).startswith("_") and str(k).endswith("_")), None):
            raise UserError(f"{place}.{odd} is no option: only _target_ has a meaning.")
        return {k: _built(slot, v, f"{place}.{k}", allow) for k, v in inner.items()}
    if isinstance(value, list):
        return [
            _built(slot, v, f"{place}[{i}]", allow) for i, v in enumerate(cast("list[Any]", value))
        ]
    if isinstance(value, str) and "${" in value:
        raise UserError(f"{place}={value} holds an interpolation that was not resolved: refused.")
    return value


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


def _hints(target: type) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__)
    except NameError:  # another library's annotation of something it imports for type checkers only
        return {}


def _refuse_missing(target: type, options: dict[str, Any], place: str) -> None:
    """A run's name leaves out what is null. So an option that may be null and is not by default
    must be there: without it the run would have the name of the one with null."""
    hints = _hints(target)
    for key, parameter in inspect.signature(target).parameters.items():
        default = parameter.default
        given = key in options or default is None or default is inspect.Parameter.empty
        if not given and key in hints and is_bearable(None, hints[key]):
            raise UserError(f"{place}.{key} is missing: give {key}={default}, or {key}=null.")


def _check_options(target: type, options: dict[str, Any], place: str) -> dict[str, Any]:
    """Raises UserError where an option does not exist or has another type. Options whose type is a
    dataclass are groups of options: they come back built, over their default; lists come back as
    tuples where such are asked for."""
    parameters = inspect.signature(target).parameters
    hints = _hints(target)
    groups: dict[str, Any] = {}
    for key, value in options.items():
        if key not in parameters:
            known = ", ".join(k for k in parameters if k not in ("paths", "setup"))
            raise UserError(f"{place}.{key}: {target.__name__} has no such option; it has {known}.")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number:
            default = parameters[key].default
            counts = isinstance(value, int) and isinstance(default, int) and default > 0
            counts &= not key.endswith("seed")
            if not value >= (1 if counts else 0):  # NaN as well
                least = "1 or more" if counts else "0 or more"
                raise UserError(f"{place}.{key}={value} must be {least}.")
        counts = isinstance(value, list) and _whole(parameters[key].default)
        if counts and not all(isinstance(x, int) and x >= 1 for x in cast("list[Any]", value)):
            raise UserError(f"{place}.{key}={value} must hold whole numbers of 1 or more.")
        if key not in hints or _has_nodes(value):
            continue
        if isinstance(value, list) and get_origin(hints[key]) is tuple:
            value = groups[key] = tuple(cast("list[Any]", value))
        if is_dataclass(hints[key]) and isinstance(value, dict):
            inner = cast("dict[str, Any]", value)
            _check_options(cast(type, hints[key]), inner, f"{place}.{key}")
            _refuse_missing(cast(type, hints[key]), inner, f"{place}.{key}")
            groups[key] = replace(parameters[key].default, **inner)
        elif not is_bearable(value, hints[key], conf=BeartypeConf(is_pep484_tower=True)):
            wanted = str(parameters[key].annotation).replace("typing.", "")
            if words := re.findall(r"Literal\[(.*?)\]", wanted):
                known = ", ".join(w.strip(" '\"") for w in words[0].split(","))
                raise UserError(f"{place}.{key}={value} is not known: choose one of {known}.")
            raise UserError(f"{place}.{key}={value} is not of type {wanted}.")
    return groups


def _whole(default: Any) -> bool:
    """Whether a default is a list of positive whole numbers."""
    return (
        isinstance(default, (tuple, list))
        and bool(default)
        and all(type(x) is int and x > 0 for x in cast("tuple[Any, ...]", default))
    )


def _has_nodes(value: Any) -> bool:
    if isinstance(value, dict):
        inner = cast("dict[str, Any]", value)
        return "_target_" in inner or any(map(_has_nodes, inner.values()))
    return isinstance(value, list) and any(map(_has_nodes, cast("list[Any]", value)))


# ---- what several modes do with a config ----


def perturbations(cfg: DictConfig, name: str) -> list[Perturbation]:
    """The changes that a named test set makes."""
    chosen = cfg.test[name].get("perturb") or []
    return [make("test", p, f"test.{name}", allow(cfg))() for p in chosen]


def is_ways(task: Task, test: DictConfig) -> bool:
    """Whether a test set is one of ways between shapes."""
    return bool(test.get("ways")) or task.inputs == PATH


def inputs_of(task: Task, test: DictConfig) -> tuple[str, ...] | None:
    """What is read together on a test set, where it is not what the task says."""
    return PATH if is_ways(task, test) else TRANSFER if test.get("transfer") else None


def check_changes(task: Task, changes: Sequence[tuple[str, Augmentation]]) -> None:
    """Raises UserError, before any work, where an encoder on a template would meet other meshes, or
    shapes that are compared where they stand would be moved one by one."""
    encoder = task.encoder
    for where, change in changes:
        if change.moves and task.in_place:
            raise UserError(
                f"task={type(task).__name__.lower()} compares the shapes of a person where they "
                f"stand, and {type(change).__name__} ({where}) moves each on its own: leave it out."
            )
        if encoder.registered and "connectivity" not in change.keeps:
            raise UserError(
                f"encoder {type(encoder).__name__} works on the template's own mesh, which "
                f"{type(change).__name__} ({where}) takes away: choose encoder=pointnet or "
                "diffusionnet."
            )


def device(cfg: DictConfig) -> torch.device:
    """Where to compute.

    Raises:
        UserError: there is no such device.
    """
    wanted = str(cfg.trainer.get("accelerator", "cpu"))
    if wanted in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.device("cuda")
    if wanted in ("mps", "auto") and torch.backends.mps.is_available():
        return torch.device("mps")
    if wanted in ("gpu", "cuda", "mps"):
        raise UserError(f"trainer.accelerator={wanted}, but there is none here: use trainer=cpu.")
    return torch.device("cpu")
