"""Fixed linear maps between the rows of a template's features: gathering, pooling, unpooling."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Bags(NamedTuple):
    """Rows to be summed (e), where each sum begins (n), and their weights (e) or None."""

    rows: Tensor
    start: Tensor
    weight: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.embedding_bag(self.rows, x, self.start, mode="sum", per_sample_weights=weight)

    def stacked(self, b: int, rows: int) -> _Bags:
        """For b copies of ``rows`` rows, one after the other."""
        copy = torch.arange(b, device=self.rows.device)[:, None]
        return _Bags(
            (self.rows + copy * rows).flatten(),
            (self.start + copy * len(self.rows)).flatten(),
            None if self.weight is None else self.weight.repeat(b),
        )


def _bags(to: Tensor, source: Tensor, weight: Tensor | None, n: int) -> _Bags:
    """Row ``to`` of n is the sum over its entries of weight times row ``source``."""
    order = torch.argsort(to, stable=True)
    count = torch.bincount(to, minlength=n)
    return _Bags(source[order], count.cumsum(0) - count, None if weight is None else weight[order])


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
        for name, bags in (
            ("forth", _bags(to[keep], source[keep], w, self.n)),
            ("back", _bags(source[keep], to[keep], w, rows)),
        ):
            for part, value in zip(bags._fields, bags, strict=True):
                self.register_buffer(f"{name}_{part}", value, persistent=False)
        self._stacked: tuple[Any, _Bags, _Bags] | None = None

    def forward(self, x: Tensor) -> Tensor:
        b, v, c = x.shape
        key = b, x.device
        if self._stacked is None or self._stacked[0] != key:
            forth, back = (
                _Bags(*(getattr(self, f"{name}_{part}") for part in _Bags._fields))
                for name in ("forth", "back")
            )
            self._stacked = key, forth.stacked(b, v), back.stacked(b, self.n)
        y = cast(Tensor, _Apply.apply(x.reshape(b * v, c), *self._stacked[1:]))
        return y.view(b, self.n, c)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: _Bags, back: _Bags) -> Tensor:
        ctx.back = back
        return forth(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return ctx.back(grad_outputs[0].contiguous()), None, None
