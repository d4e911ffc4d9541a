"""Shared linear layers."""

from __future__ import annotations

import itertools

from torch import nn


def mlp(
    widths: tuple[int, ...] | list[int], norm: bool = True, dropout: float = 0.0
) -> nn.Sequential:
    """Linear (+ BatchNorm) + ReLU (+ dropout) for each step of ``widths``."""
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        layers.append(nn.Linear(i, o))
        if norm:
            layers.append(nn.BatchNorm1d(o))
        layers.append(nn.ReLU(inplace=True))
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)
