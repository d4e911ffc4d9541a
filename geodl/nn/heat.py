"""Exponential decay."""

from __future__ import annotations

import torch
from torch import Tensor


def decayed(exponent: Tensor) -> Tensor:
    """exp(-exponent), but no less than exp(-40): 4e-18 is lost beside one, while numbers below
    1e-38 make a processor a hundred times slower, in exp and in every product after it."""
    return torch.exp(-exponent.clamp(max=40.0))
