"""Sparse matrices times rows of features: gathering, pooling, unpooling, gradients."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bags(NamedTuple):
    """A sparse matrix as sums: rows of the operand (e), where each sum begins (n), and weights (e)
    or None. Several times faster than torch's compressed rows on a CPU."""

    rows: Tensor
    start: Tensor
    weight: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.embedding_bag(self.rows, x, self.start, mode="sum", per_sample_weights=weight)

    def stacked(self, b: int, rows: int) -> Bags:
        """For b copies of ``rows`` rows, one after the other."""
        copy = torch.arange(b, device=self.rows.device, dtype=self.rows.dtype)[:, None]
        return Bags(
            (self.rows + copy * rows).flatten(),
            (self.start + copy * len(self.rows)).flatten(),
            None if self.weight is None else self.weight.repeat(b),
        )


def both_ways(
    row: Tensor, column: Tensor, weight: Tensor | None, size: tuple[int, int]
) -> tuple[Bags, Bags]:
    """The matrix with these entries (e), which are sorted by row, and its transpose."""
    count = torch.bincount(row, minlength=size[0])
    start = count.cumsum(0) - count
    if row.device.type == "cpu":  # counting is faster than sorting
        ends = torch.cat([start, start.new_tensor([len(row)])]).numpy()
        place = sp.csr_matrix((np.arange(len(row)), column.numpy(), ends), size).tocsc()
        order, first = torch.from_numpy(place.data), torch.from_numpy(place.indptr[:-1])
    else:
        order = torch.argsort(column, stable=True)
        count = torch.bincount(column, minlength=size[1])
        first = count.cumsum(0) - count
    turned = None if weight is None else weight[order]
    forth = Bags(column.int(), start.int(), weight)
    return forth, Bags(row[order].int(), first.int(), turned)


def product(x: Tensor, forth: Bags, back: Bags) -> Tensor:
    """A sparse matrix times rows (n c), with the transpose at hand for the gradient."""
    return cast(Tensor, _Apply.apply(x, forth, back))


class FixedRows(nn.Module):
    """(b v c) -> (b n c): every new row is a sum of old ones, whatever the features are.

    index (n k): the old rows, -1 for none | rows: v | weight (n k), or None for ones. The gradient
    is the transposed map, which is computed once: torch would sort the indices in every step.
    """

    def __init__(self, index: Tensor, rows: int, weight: Tensor | None = None) -> None:
        super().__init__()
        self.rows, self.n = rows, len(index)
        to = torch.arange(self.n)[:, None].expand_as(index).reshape(-1)
        source = index.reshape(-1)
        keep = source >= 0
        w = None if weight is None else weight.reshape(-1)[keep]
        maps = both_ways(to[keep], source[keep], w, (self.n, rows))
        for name, bags in zip(("forth", "back"), maps, strict=True):
            for part, value in zip(bags._fields, bags, strict=True):
                self.register_buffer(f"{name}_{part}", value, persistent=False)
        self._stacked: tuple[Any, Bags, Bags] | None = None

    def forward(self, x: Tensor) -> Tensor:
        b, v, c = x.shape
        key = b, x.device
        if self._stacked is None or self._stacked[0] != key:
            forth, back = (
                Bags(*(getattr(self, f"{name}_{part}") for part in Bags._fields))
                for name in ("forth", "back")
            )
            self._stacked = key, forth.stacked(b, v), back.stacked(b, self.n)
        y = product(x.reshape(b * v, c), *self._stacked[1:])
        return y.view(b, self.n, c)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: Bags, back: Bags) -> Tensor:
        ctx.back = back
        return forth(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return ctx.back(grad_outputs[0].contiguous()), None, None
