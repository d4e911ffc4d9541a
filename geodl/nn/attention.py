"""The plain transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def kept(y: Tensor, drop: float, training: bool) -> Tensor:
    """Stochastic depth: y (n ...) without some of its rows, in training; the others are scaled."""
    if not training or not drop:
        return y
    return y * F.dropout(y.new_ones(len(y), *[1] * (y.dim() - 1)), drop)


class Block(nn.Module):
    """x + attention(norm x), then x + MLP(norm x), four times as wide inside; stochastic depth per
    shape (Dosovitskiy et al., ViT). Memory: the square of the number of tokens."""

    def __init__(self, width: int, heads: int, drop: float = 0.0) -> None:
        super().__init__()
        self.heads, self.drop = heads, drop
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b t width) -> (b t width)."""
        b, t, width = x.shape
        rows = self.qkv(self.norms[0](x)).view(b, t, 3, self.heads, -1)
        q, k, v = rows.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, width)
        x = x + kept(self.out(y), self.drop, self.training)
        return x + kept(self.mlp(self.norms[1](x)), self.drop, self.training)


class Blocks(nn.ModuleList):
    """Blocks with stochastic depth growing to ``drop``; the tokens' positions are added anew before
    each, as in Point-BERT."""

    def __init__(self, width: int, heads: int, depth: int, drop: float) -> None:
        rates = torch.linspace(0, drop, depth).tolist()
        super().__init__(Block(width, heads, rate) for rate in rates)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        for block in self:
            x = block(x + place)
        return x


class Attention(nn.Module):
    """What rows ask of others, both normalised: queries (b n width), others (b m width)."""

    def __init__(self, width: int, heads: int, others: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.norm_others = nn.LayerNorm(width) if others else None
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, others: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        if self.norm_others is not None and others is not None:
            others = self.norm_others(others)
        k, v = self.kv(x if others is None else others).chunk(2, dim=2)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (self.q(x), k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """Normalised rows through a gated layer, four times as wide inside (GEGLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.first(self.norm(x)).chunk(2, dim=-1)
        return self.second(value * F.gelu(gate))


class Waves(nn.Module):
    """Points (b n 3) as sines and cosines of their coordinates at pi, 2 pi, 4 pi, ..., and
    themselves -> (b n width)."""

    def __init__(self, width: int, waves: int, more: int = 0) -> None:
        """``waves``: number of frequencies; ``more``: numbers per point beside its coordinates."""
        super().__init__()
        self.register_buffer("rates", torch.pi * 2.0 ** torch.arange(waves), persistent=False)
        self.rates: Tensor
        self.linear = nn.Linear(6 * waves + 3 + more, width)

    def forward(self, x: Tensor) -> Tensor:
        angle = (x[..., :3, None] * self.rates).flatten(-2)
        return self.linear(torch.cat([angle.sin(), angle.cos(), x], dim=-1))
