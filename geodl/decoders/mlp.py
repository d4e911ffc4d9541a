"""A fully connected decoder."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from geodl.decoders.base import TemplateDecoder
from geodl.spec import DataSpec


class MLP(TemplateDecoder):
    """Linear layers with ReLU between them, to all coordinates at once.

    Paper: the decoder of Besnier et al.'s point-cloud autoencoder (AE-base): one hidden layer.

    Args:
        widths: channels of the hidden layers.
    """

    def __init__(
        self, latent: int, spec: DataSpec, widths: list[int] | tuple[int, ...] = (128,)
    ) -> None:
        super().__init__(latent, spec)
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise([latent, *widths]):
            layers += [nn.Linear(i, o), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear([latent, *widths][-1], 3 * self.vertices))

    def forward(self, z: Tensor, query: Tensor | None = None) -> Tensor:
        return self.layers(z).view(len(z), self.vertices, 3)
