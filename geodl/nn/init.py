"""Initial weights."""

from __future__ import annotations

from torch import nn


def glorot(linear: nn.Linear) -> None:
    """Uniform by the number of inputs and outputs, no bias (Glorot and Bengio 2010)."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
