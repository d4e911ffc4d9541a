"""The call that every decoder answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from geodl.nn.init import glorot
from geodl.nn.pyramid import check_sizes, template_of, unpool
from geodl.ops.hierarchy import pyramid
from geodl.spec import DataSpec


class Decoder(nn.Module):
    """Base: a latent code (b latent) and, for decoders that are functions of space, query points
    (b q 3) -> whatever it decodes to.

    Built as ``decoder(latent, spec, **its own options)``.
    """

    def __init__(self, latent: int, spec: DataSpec) -> None:
        super().__init__()
        self.latent = latent

    def fit(self, x: Tensor, names: str) -> None:
        """Called once before training with the training shapes (n v 3) in the model's coordinates,
        and the name of their data set."""

    def forward(self, z: Tensor, query: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class TemplateDecoder(Decoder):
    """Base of decoders to the vertices of the template: (b latent) -> normalised coordinates
    (b v 3).

    ``absolute`` ones answer in the model's coordinates instead, not normalised; ``projects`` ones
    have ``project``, which takes shapes (b 3v) to their codes without an encoder.

    Raises:
        UserError: the data set has no template.
    """

    absolute: ClassVar[bool] = False
    projects: ClassVar[bool] = False

    def __init__(self, latent: int, spec: DataSpec) -> None:
        super().__init__(latent, spec)
        self.template = template_of(spec, f"decoder {type(self).__name__}")
        self.vertices = len(self.template.pos)

    def project(self, x: Tensor) -> Tensor:
        """Codes (b latent) of shapes (b 3v)."""
        raise NotImplementedError


class PyramidDecoder(TemplateDecoder):
    """A linear layer, then unpooling, a convolution and ELU per level; a last convolution to three
    channels. A subclass adds ``convs``, from coarse to fine, and ``last``.

    Args:
        channels, factors: one entry per level, from fine to coarse.
        others: more options with one entry per level, checked to be as many.
    """

    convs: nn.ModuleList
    last: nn.Module

    def __init__(
        self,
        latent: int,
        spec: DataSpec,
        channels: Sequence[int],
        factors: Sequence[int],
        **others: list[int],
    ) -> None:
        super().__init__(latent, spec)
        check_sizes("decoder", channels=list(channels), factors=list(factors), **others)
        levels = pyramid(self.template, tuple(factors))
        self.coarsest = len(levels[-1].pos)
        self.first = nn.Linear(latent, self.coarsest * channels[-1])
        glorot(self.first)
        self.unpools = nn.ModuleList(unpool(level) for level in reversed(levels))
        self.widths = [channels[-1], *reversed(channels)]

    def forward(self, z: Tensor, query: Tensor | None = None) -> Tensor:
        x = self.first(z).view(len(z), self.coarsest, -1)
        for finer, conv in zip(self.unpools, self.convs, strict=True):
            x = F.elu(conv(finer(x)))
        return self.last(x)
