"""PoissonNet: gradients turned and mixed on faces, and the functions that have them."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.nn.poisson import Faces, faces_of
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Out


class Complex(nn.Module):
    """A complex linear map of the channels of (2 f c): real and imaginary parts."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.real = nn.Linear(channels, channels, bias=False)
        self.imaginary = nn.Linear(channels, channels, bias=False)

    def forward(self, g: Tensor) -> Tensor:
        straight, crossed = self.real(g), self.imaginary(g)
        return torch.stack([straight[0] - crossed[1], straight[1] + crossed[0]])


class Block(nn.Module):
    """The gradient of every channel, turned and scaled by what the channels are, mixed, and
    integrated by a Poisson equation; two MLPs."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.modulation = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2 * width)
        )
        self.mix, self.products = Complex(width), Complex(width)
        self.scale = nn.Parameter(torch.full((width,), 0.01))
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.Linear(i, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width)
            )
            for i in (3 * width, width)
        )
        self.layer_scales = nn.ParameterList(torch.ones(width) for _ in range(2))

    def forward(self, x: Tensor, faces: Faces, batch: ShapeBatch) -> Tensor:
        g = faces.grad(x)
        phase, size = self.modulation(faces.to_faces(x)).chunk(2, dim=1)
        size = F.softplus(size) + 1e-8
        cos, sin = size * phase.cos(), size * phase.sin()
        y = self.mix(torch.stack([g[0] * cos - g[1] * sin, g[0] * sin + g[1] * cos]))
        u = faces.poisson(y, batch)
        inner = (self.products(y) * g).sum(0)
        inner = torch.tanh(faces.to_vertices(inner) * self.scale)
        x = x + self.layer_scales[0] * self.mlps[0](torch.cat([x, u, inner], dim=1))
        return x + self.layer_scales[1] * self.mlps[1](x)


class PoissonNet(Encoder):
    """Features are passed over the whole surface by Poisson equations whose right sides are learned
    transformations of their gradients; needs no eigenfunctions.

    Paper: Maesumi, Makadia, Groueix, Kim, Ritchie, Aigerman: PoissonNet, 2025.
    Differs: nothing known in the definition; the operators are made in the step, in double
    precision. Parameters with xyz: 644,618 (3 blocks, 10 parts), 861,470 (4 blocks, 30 classes), as
    the authors'. On their weights of SHREC11 outputs are equal up to what their factor in single
    precision costs. The last linear layer is the task's head; averages commute with it.

    Args:
        width: channels of the blocks.
        blocks: number of blocks.
        dropout: probability inside the MLPs.
    """

    small = MappingProxyType({"width": 8, "blocks": 2})
    symmetries = frozenset({"permutation", "rotation", "translation"})
    counts = (
        Count(644_618, {"blocks": 3}, 3, "face", 10),
        Count(861_470, {}, 3, "whole", 30),
    )

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        width: int = 128,
        blocks: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, spec, out)
        self.first = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(blocks))
        self.channels = width

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        faces = faces_of(batch)
        x = self.first(x)
        for block in self.blocks:
            x = block(x, faces, batch)
        if self.out == "whole":
            return Encoding(whole=batch.mean(x, faces.mass))
        return self.elements(x, batch)

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The names of ArmanMaesumi/poissonnet."""
        if "proj_in.weight" not in state:
            return state
        names = {
            "proj_in.": "encoder.first.",
            "blocks.": "encoder.blocks.",
            ".grad_mlp.modulator.modulator.": ".modulation.",
            ".grad_mlp.layers.0.lin_real.": ".mix.real.",
            ".grad_mlp.layers.0.lin_imag.": ".mix.imaginary.",
            ".grad_features.lin_real.": ".products.real.",
            ".grad_features.lin_imag.": ".products.imaginary.",
            ".grad_scaler": ".scale",
            ".vert_mlp.ls1": ".layer_scales.0",
            ".vert_mlp.ls2": ".layer_scales.1",
            ".vert_mlp.mlp1.layers.": ".mlps.0.",
            ".vert_mlp.mlp2.layers.": ".mlps.1.",
        }
        translated: dict[str, Tensor] = {}
        for key, value in state.items():
            for theirs, ours in names.items():
                key = key.replace(theirs, ours, 1)
            translated[key] = value
        return translated
