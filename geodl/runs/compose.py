"""Where the configs are, and how one is composed; without torch."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def config_dir() -> Path:
    """The folder of YAML groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


@contextmanager
def composer() -> Generator[Any]:
    """Hydra's ``compose``, in the session of the command line or in one of its own."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        yield compose
        return
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield compose


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The config that the command line would compose, ``compose(["encoder=diffusionnet"])``."""
    with composer() as make:
        return make("run", overrides=list(overrides))
