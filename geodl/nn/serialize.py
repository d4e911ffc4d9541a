"""Cells of a grid in a line: z-order and Hilbert curve."""

from __future__ import annotations

import torch
from torch import Tensor

ORDERS = ("z", "z-trans", "hilbert", "hilbert-trans")


def code(grid: Tensor, depth: int, order: str) -> Tensor:
    """Place (n) on a curve through a cube of 2^depth cells a side, of cells (n 3, integers);
    "-trans": with x and y exchanged. The code of the cells of a grid twice as wide is this one
    shifted by three bits."""
    if order.endswith("-trans"):
        grid = grid[:, [1, 0, 2]]
    return hilbert(grid, depth) if order.startswith("hilbert") else z_order(grid, depth)


def z_order(grid: Tensor, depth: int) -> Tensor:
    """Morton's code: the bits of x, y and z in turn, x first."""
    grid = grid.long()
    key = torch.zeros_like(grid[:, 0])
    for bit in range(depth):
        for axis in range(3):
            key |= ((grid[:, axis] >> bit) & 1) << (3 * bit + 2 - axis)
    return key


def hilbert(grid: Tensor, depth: int) -> Tensor:
    """Hilbert's curve (Skilling: Programming the Hilbert curve, AIP Conf. Proc. 707, 2004)."""
    axes = [grid[:, i].long().clone() for i in range(3)]
    for bit in range(depth - 1, 0, -1):
        below = (1 << bit) - 1
        for i in range(3):
            on = (axes[i] >> bit) & 1 == 1
            swap = torch.where(on, 0, (axes[0] ^ axes[i]) & below)
            axes[0] = torch.where(on, axes[0] ^ below, axes[0] ^ swap)
            axes[i] = axes[i] if i == 0 else axes[i] ^ swap
    key = z_order(torch.stack(axes, dim=1), depth)
    shift = 1
    while shift < 3 * depth:  # from Gray code to binary
        key ^= key >> shift
        shift *= 2
    return key
