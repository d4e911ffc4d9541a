"""The call that every decoder answers."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from geodl.encoders.template import template_of
from geodl.spec import DataSpec


class Decoder(nn.Module):
    """Base: a latent code (b latent) -> normalised coordinates (b v 3) of the template's vertices.

    Built as ``decoder(latent, spec, **its own options)``. ``absolute`` decoders answer in the
    model's coordinates instead, not normalised.

    Raises:
        UserError: the data set has no template.
    """

    absolute: ClassVar[bool] = False

    def __init__(self, latent: int, spec: DataSpec) -> None:
        super().__init__()
        self.template = template_of(spec, f"decoder {type(self).__name__}")
        self.latent = latent
        self.vertices = len(self.template.pos)

    def fit(self, x: Tensor, names: str) -> None:
        """Called once before training with the training shapes (n v 3) in the model's coordinates,
        and the name of their data set."""

    def forward(self, z: Tensor) -> Tensor:
        raise NotImplementedError
