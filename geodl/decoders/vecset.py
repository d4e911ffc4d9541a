"""A function of space that asks a set of vectors."""

from __future__ import annotations

from torch import Tensor, nn

from geodl.decoders.field import FieldDecoder
from geodl.errors import UserError
from geodl.nn.attention import Attention, Gated, Waves
from geodl.spec import DataSpec


class VecSet(FieldDecoder):
    """The vectors of a code look at each other; points ask them by attention.

    Paper: Zhang, Tang, Niessner, Wonka: 3DShape2VecSet, SIGGRAPH 2023: 24 blocks of width 512,
    vectors of 8 numbers. Differs: see ``encoder=vecset``; no stochastic depth.

    Args:
        size: numbers of each vector.
        width, depth, heads: of the blocks.
        waves: frequencies of the points' coordinates (eight there).
    """

    def __init__(
        self,
        latent: int,
        spec: DataSpec,
        ask: int = 3,
        answer: int = 1,
        size: int = 8,
        width: int = 96,
        depth: int = 4,
        heads: int = 4,
        waves: int = 4,
    ) -> None:
        super().__init__(latent, spec, ask, answer)
        if latent % size:
            raise UserError(f"decoder.size={size} must divide the length of the code, {latent}.")
        if width % heads:
            raise UserError(f"decoder.width={width} must be a multiple of decoder.heads={heads}.")
        self.size = size
        self.first = nn.Linear(size, width)
        layers = ((Attention(width, heads), Gated(width)) for _ in range(depth))
        self.layers = nn.Sequential(*(layer for both in layers for layer in both))
        self.embed = Waves(width, waves, ask - 3)
        self.ask_set = Attention(width, 1, others=True)
        self.last = nn.Linear(width, answer)

    def forward(self, z: Tensor, query: Tensor | None = None) -> Tensor:
        assert query is not None
        x = self.first(z.unflatten(1, (-1, self.size)))
        for layer in self.layers:
            x = x + layer(x)
        return self.last(self.ask_set(self.embed(query), x))
