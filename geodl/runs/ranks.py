"""One training in several processes (``trainer=ddp``): which of them this one is.

Lightning starts them on one machine; ``torchrun`` and ``srun`` start them themselves. The first
one writes the run down and evaluates it, the others only train.
"""

from __future__ import annotations

import os
from typing import Any

from omegaconf import DictConfig


def world(cfg: DictConfig) -> int:
    """How many processes train a config."""
    return int(cfg.trainer.devices) * int(cfg.trainer.get("num_nodes", 1))


def rank(cfg: DictConfig) -> int:
    """The number of this process among them."""
    if world(cfg) == 1:
        return 0
    names = ("RANK", "SLURM_PROCID" if _slurm_starts() else "LOCAL_RANK", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def plugins(cfg: DictConfig) -> list[Any]:
    """What Lightning must be told: in a job of SLURM with one task it starts the processes itself
    (a sweep's job with trainer=ddp), although it would expect them from SLURM."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    inside = "SLURM_NTASKS" in os.environ and not _slurm_starts()
    return [LightningEnvironment()] if world(cfg) > 1 and inside else []


def _slurm_starts() -> bool:
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1
