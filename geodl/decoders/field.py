"""Decoders that are functions of space."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from geodl.decoders.base import Decoder
from geodl.errors import UserError
from geodl.spec import DataSpec


class FieldDecoder(Decoder):
    """Base: codes (b latent) and points (b q ask) -> (b q answer).

    ``ask``: numbers per point, its coordinates and what else the task tells; ``answer``: numbers it
    wants to know there.
    """

    def __init__(self, latent: int, spec: DataSpec, ask: int = 3, answer: int = 1) -> None:
        super().__init__(latent, spec)
        self.ask, self.answer = ask, answer


class DeepSDF(FieldDecoder):
    """Linear layers on a code and a point, which are shown once more half-way; weight
    normalisation, ReLU and dropout in all of them, tanh at the end of a single answer.

    Paper: Park, Florence, Straub, Newcombe, Lovegrove: DeepSDF, CVPR 2019: eight layers of 512, a
    code of 256, dropout 0.2. With these 1,843,195 parameters (a number per row and one per weight,
    as in weight normalisation).
    Differs: the default is small.

    Args:
        widths: channels of the hidden layers.
        dropout: probability behind each of them.
    """

    def __init__(
        self,
        latent: int,
        spec: DataSpec,
        ask: int = 3,
        answer: int = 1,
        widths: list[int] | tuple[int, ...] = (128, 128, 128, 128),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(latent, spec, ask, answer)
        if len(widths) < 2:
            raise UserError("decoder.widths needs two entries or more.")
        given = latent + ask
        self.again = len(widths) // 2  # the layer that is shown the input once more
        self.dropout = dropout
        self.layers = nn.ModuleList()
        rows = given
        for i, width in enumerate(widths):
            # The one before leaves room for it, so that all layers have the same width.
            out = width - given if i + 1 == self.again and width > given else width
            self.layers.append(weight_norm(nn.Linear(rows, out)))
            rows = out + (given if i + 1 == self.again else 0)
        self.last = nn.Linear(rows, answer)

    def forward(self, z: Tensor, query: Tensor | None = None) -> Tensor:
        assert query is not None
        given = torch.cat([z[:, None].expand(-1, query.shape[1], -1), query], dim=2)
        x = given
        for i, layer in enumerate(self.layers):
            x = x if i != self.again else torch.cat([x, given], dim=2)
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        y = self.last(x)
        return y.tanh() if self.answer == 1 else y


class Modulated(nn.Module):
    """Normalised rows, scaled and shifted as the code says: "batch" as in conditional batch
    normalisation, or "layer"."""

    def __init__(self, latent: int, width: int, norm: str) -> None:
        super().__init__()
        batch = norm == "batch"
        self.norm = (
            nn.BatchNorm1d(width, affine=False)
            if batch
            else nn.LayerNorm(width, elementwise_affine=False)
        )
        self.scale, self.shift = nn.Linear(latent, width), nn.Linear(latent, width)
        for layer, start in ((self.scale, 1.0), (self.shift, 0.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, start)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """(b q width), (b latent) -> (b q width)."""
        y = self.norm(x.flatten(0, 1)).view_as(x)
        return y * self.scale(z)[:, None] + self.shift(z)[:, None]


class ResidualBlock(nn.Module):
    def __init__(self, latent: int, width: int, norm: str) -> None:
        super().__init__()
        self.before, self.between = (Modulated(latent, width, norm) for _ in range(2))
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        y = self.first(F.relu(self.before(x, z)))
        return x + self.second(F.relu(self.between(y, z)))


class Occupancy(FieldDecoder):
    """Residual layers on points, normalised, scaled and shifted as the code says.

    Paper: Mescheder, Oechsle, Niemeyer, Nowozin, Geiger: Occupancy networks, CVPR 2019: five blocks
    of 256, norm=batch, a code of 256. With these 2,106,625 parameters.
    Differs: the default is small.

    Args:
        width: channels.
        blocks: residual blocks of two layers.
        norm: "batch", or "layer", with which a shape's answer does not depend on the others.
    """

    def __init__(
        self,
        latent: int,
        spec: DataSpec,
        ask: int = 3,
        answer: int = 1,
        width: int = 128,
        blocks: int = 3,
        norm: str = "batch",
    ) -> None:
        super().__init__(latent, spec, ask, answer)
        if norm not in ("batch", "layer"):
            raise UserError(f"decoder.norm={norm} is not known: choose batch or layer.")
        self.first = nn.Linear(ask, width)
        self.blocks = nn.ModuleList(ResidualBlock(latent, width, norm) for _ in range(blocks))
        self.norm = Modulated(latent, width, norm)
        self.last = nn.Linear(width, answer)

    def forward(self, z: Tensor, query: Tensor | None = None) -> Tensor:
        assert query is not None
        x = self.first(query)
        for block in self.blocks:
            x = block(x, z)
        return self.last(F.relu(self.norm(x, z)))
