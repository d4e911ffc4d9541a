"""A plain transformer on patches of points, or on the spectrum of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor, nn

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.attention import Blocks
from geodl.nn.mlp import mlp
from geodl.nn.neighbors import cloud, farthest, interpolated, knn
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points, Spectrum


class PatchEmbedding(nn.Module):
    """A small PointNet per patch: two layers, their maximum beside each point, two layers, the
    maximum."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        few, many = (128, 256) if width > 128 else (width // 2, width)
        self.first = nn.Sequential(*mlp([in_channels, few]), nn.Linear(few, many))
        self.second = nn.Sequential(*mlp([2 * many, 2 * many]), nn.Linear(2 * many, width))

    def forward(self, rows: Tensor) -> Tensor:
        """(p k c) -> (p width)."""
        p, k, _ = rows.shape
        x = self.first(rows.flatten(0, 1)).view(p, k, -1)
        both = torch.cat([x.amax(1, keepdim=True).expand_as(x), x], dim=2)
        return self.second(both.flatten(0, 1)).view(p, k, -1).amax(1)


class Tokens(Encoder):
    """A class token and blocks of self-attention on tokens; the whole shape is the class token
    beside the maximum over the others."""

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        width: int,
        depth: int,
        heads: int,
        drop: float,
        dropout: float,
        at: int,
    ) -> None:
        """``at``: numbers that say where a token is."""
        super().__init__(in_channels, spec, out)
        if width % heads:
            raise UserError(f"encoder.width={width} must be a multiple of encoder.heads={heads}.")
        self.width, self.heads = width, heads
        self.place = nn.Sequential(nn.Linear(at, 128), nn.GELU(), nn.Linear(128, width))
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.token_place = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.blocks = Blocks(width, heads, depth, drop)
        self.norm = nn.LayerNorm(width)
        beside = 0 if out == "whole" else width + 3 + in_channels
        self.last = mlp([2 * width + beside, 256, 256], dropout=dropout)
        self.channels = 256

    def start(self) -> None:
        """Small weights to begin with, as ViT's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if "bias" in module.state_dict():
                    nn.init.zeros_(module.bias)

    def attended(self, tokens: Tensor, place: Tensor) -> Tensor:
        """Tokens and their positions (b t width) -> (b 1+t width), the class token first."""
        b = len(tokens)
        tokens = torch.cat([self.token.expand(b, -1, -1), tokens], dim=1)
        place = torch.cat([self.token_place.expand(b, -1, -1), place], dim=1)
        return self.norm(self.blocks(tokens, place))

    def answer(
        self, y: Tensor, back: Callable[[Tensor], Tensor], x: Tensor, batch: ShapeBatch
    ) -> Encoding:
        """Of attended tokens; ``back`` takes those of the shapes (b t width) to rows (n width)."""
        whole = torch.cat([y[:, 0], y[:, 1:].amax(1)], dim=1)
        if self.out == "whole":
            return Encoding(whole=self.last(whole))
        rows = torch.cat([batch.spread(whole), back(y[:, 1:]), batch.pos, x], dim=1)
        return self.elements(self.last(rows), batch)


class Transformer(Tokens):
    """Each token is a patch: the nearest points around one of the centres that lie farthest from
    each other, seen by a small PointNet.

    Paper: Pang, Wang, Tay, Liu, Tian, Yuan: Masked autoencoders for point cloud self-supervised
    learning (Point-MAE), ECCV 2022. https://arxiv.org/abs/2203.06604
    Differs: for whole shapes the network is the authors' (encoder=transformer_base, features=none:
    22,099,752 parameters with 40 classes, equal outputs on their weights); the default is a small
    one. Their sampling of centres skips points at the origin. For elements the tokens are
    interpolated to the points and two layers follow (theirs takes earlier blocks' tokens as well).

    Args:
        points: number of surface samples to look at; null: the shape's own vertices.
        count: number of patches.
        k: points of a patch.
        width, depth, heads: of the blocks.
        drop: stochastic depth of the last block.
        dropout: probability behind the hidden layers at the end.
    """

    symmetries = frozenset()  # the first point is the first centre
    featureless = True
    small = MappingProxyType(
        {"points": None, "count": 8, "k": 8, "width": 16, "depth": 2, "heads": 2}
    )
    counts = (Count(22_099_752, {"width": 384, "depth": 12, "heads": 6}, 0, "whole", 40),)

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int | None = 1024,
        count: int = 64,
        k: int = 32,
        width: int = 96,
        depth: int = 4,
        heads: int = 4,
        drop: float = 0.1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(in_channels, spec, out, width, depth, heads, drop, dropout, at=3)
        self.needs = Needs.of(Points(points) if points else None)
        self.count, self.k = count, k
        self.embed = PatchEmbedding(3 + in_channels, width)
        self.start()

    def patches(self, x: Tensor, batch: ShapeBatch) -> tuple[Tensor, ShapeBatch]:
        """Rows (b*t k c), [relative position, features] of the points of each patch, and centres.
        A shape of fewer points than centres has some of them twice."""
        rows, sizes = farthest(batch.pos, batch.sizes, self.count)
        if min(sizes) < self.count:
            parts = rows.split(sizes)
            rows = torch.cat([p.repeat(-(-self.count // len(p)))[: self.count] for p in parts])
        centres = cloud(batch, batch.pos[rows], [self.count] * len(batch))
        index = knn(centres.pos, centres.sizes, self.k, batch.pos, batch.sizes)
        gap = batch.pos[index] - centres.pos[:, None]
        return torch.cat([gap, x[index]], dim=2), centres

    def embedded(self, rows: Tensor, centres: ShapeBatch) -> tuple[Tensor, Tensor]:
        """Tokens and their positions (b t width)."""
        b = len(centres)
        return self.embed(rows).view(b, self.count, -1), self.place(centres.dense(centres.pos))

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        rows, centres = self.patches(x, batch)
        y = self.attended(*self.embedded(rows, centres))
        return self.answer(y, lambda t: interpolated(t.flatten(0, 1), centres, batch), x, batch)

    @property
    def summary_channels(self) -> int:
        return 2 * self.width

    def summary(self, x: Tensor, batch: ShapeBatch) -> Tensor:
        """Maximum and mean of the tokens; without the class token, which masked training leaves
        aside."""
        y = self.norm(self.blocks(*self.embedded(*self.patches(x, batch))))
        return torch.cat([y.amax(1), y.mean(1)], dim=1)


class SpectrumTransformer(Tokens):
    """Each token is a coefficient: what the features are in one of the Laplacian's eigenfunctions,
    so the mesh's resolution does not matter. An eigenfunction's sign is the one that makes its
    largest coefficient positive.

    Paper: none; the plain transformer with the spectral tokens that functional maps suggest.
    Differs: nothing known.

    Args:
        k_eig: number of eigenfunctions, one token each.
        width, depth, heads: of the blocks.
        drop: stochastic depth of the last block.
        dropout: probability behind the hidden layers at the end.
    """

    small = MappingProxyType({"k_eig": 8, "width": 16, "depth": 2, "heads": 2})

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        k_eig: int = 64,
        width: int = 96,
        depth: int = 4,
        heads: int = 4,
        drop: float = 0.1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(in_channels, spec, out, width, depth, heads, drop, dropout, at=1)
        self.needs = Needs.of(Spectrum(k_eig))
        self.k_eig = k_eig
        self.embed = nn.Linear(in_channels, width)
        self.start()

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        evecs = batch.ops.evecs[:, : self.k_eig].split(batch.sizes)
        weighted = (batch.ops.mass[:, None] * x).split(batch.sizes)
        coefficients = torch.stack([e.T @ w for e, w in zip(evecs, weighted, strict=True)])
        largest = coefficients.abs().argmax(2, keepdim=True)
        sign = torch.where(coefficients.gather(2, largest) < 0, -1.0, 1.0)
        # Frequencies, the roots of the eigenvalues, are about 1 to 10 per radius.
        place = self.place(batch.ops.evals[:, : self.k_eig, None].clamp(min=0).sqrt() / 10)
        y = self.attended(self.embed(sign * coefficients), place)

        def back(tokens: Tensor) -> Tensor:
            signed = (sign * tokens).unbind()
            return torch.cat([e @ t for e, t in zip(evecs, signed, strict=True)])

        return self.answer(y, back, x, batch)
