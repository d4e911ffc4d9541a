"""Neighbours in the step: plain torch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 2**18  # entries of a block of pairwise values: 1 MB in single precision, fits in a cache


def nearest(points: Tensor, among: Tensor) -> Tensor:
    """For every point (n c) the number (n) of the nearest row of ``among`` (m c); memory
    O(n + m). ``geodl.ops.neighbors.nearest`` is the same in double precision, for few columns."""
    step = max(1, ROWS // max(1, len(among)))
    half = 0.5 * among.square().sum(1)
    return torch.cat([(half - part @ among.T).argmin(1) for part in points.split(step)])
