"""Where the configs are, and how one is composed; without torch."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


def config_dir() -> Path:
    """The folder of YAML groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


@contextmanager
def composer() -> Generator[Callable[[Sequence[str]], DictConfig]]:
    """A function from words to the config that the command line would compose, in the session of
    the command line or in one of its own. Hydra takes 0.1 s for a config, so words that choose the
    same members of groups (two seeds) share one, and values are set in copies of it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    started = GlobalHydra.instance().is_initialized()
    with nullcontext() if started else initialize_config_dir(str(config_dir()), version_base="1.3"):
        parser = OverridesParser.create()
        configs: dict[tuple[str, ...], DictConfig] = {}

        @cache
        def value(word: str) -> Any:
            """A word that sets an option, parsed; None if it does anything else."""
            key = word.partition("=")[0]
            plain = re.fullmatch(r"(?!hydra)[a-z]\w*(\.\w+)*", key)
            if plain is None or (config_dir() / key).is_dir():
                return None
            try:
                return parser.parse_override(word)
            except HydraException:
                return None

        def composed(words: Sequence[str]) -> DictConfig:
            chosen = tuple(w for w in words if value(w) is None)
            if chosen not in configs:
                configs[chosen] = compose("run", overrides=list(chosen))
            cfg = copy.deepcopy(configs[chosen])
            try:
                for word in words:
                    if (override := value(word)) is not None:
                        OmegaConf.update(cfg, override.key_or_group, override.value())
            except OmegaConfBaseException:  # a mistake: let Hydra name it
                return compose("run", overrides=list(words))
            return cfg

        yield composed


def compose(words: Sequence[str] = ()) -> DictConfig:
    """The config that the command line would compose, ``compose(["encoder=diffusionnet"])``."""
    with composer() as composed:
        return composed(words)
