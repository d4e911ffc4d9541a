"""Deformations by what they do to every triangle."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geodl.nn.poisson import Faces
from geodl.shape import ShapeBatch

GROUPS = 4  # of channels that are normalised together


class Jacobians(nn.Module):
    """What a face is (f c) and a code per face (f d) -> by how much its Jacobian (f 3 3) differs
    from the identity: an MLP with GroupNorm and ReLU, minus what it says to the code zero, so that
    zero deforms nothing (the last layer begins at zero, so at first nothing deforms anything).

    Paper: Aigerman et al.: Neural Jacobian fields, SIGGRAPH 2022. Differs: theirs answers the
    Jacobian itself, from the difference of codes of source and target.

    Args:
        channels, code: columns of both inputs.
        widths: channels of the hidden layers, multiples of four.
    """

    def __init__(self, channels: int, code: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise([channels + code, *widths]):
            layers += [nn.Linear(i, o), nn.GroupNorm(GROUPS, o), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear([channels + code, *widths][-1], 9, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, u: Float[Tensor, "f c"], z: Float[Tensor, "f d"]) -> Float[Tensor, "f 3 3"]:
        told, silent = (self.layers(torch.cat([u, x], dim=1)) for x in (z, torch.zeros_like(z)))
        return self.last(told - silent).view(-1, 3, 3)


def applied(delta: Float[Tensor, "f 3 3"], pos: Tensor, faces: Faces) -> Tensor:
    """What the Jacobians do to the frames of their faces: gradients (2 f 3) of a displacement, one
    column for each of its coordinates."""
    return torch.einsum("fij,rfj->rfi", delta, faces.grad(pos))


STIFF = 100.0  # how much more a face counts that is to stay as it is


def integrated(
    gradient: Tensor, faces: Faces, batch: ShapeBatch, mask: Tensor | None = None
) -> Float[Tensor, "n 3"]:
    """The displacement, of mean zero on every shape, whose gradient is nearest to (2 f 3). With a
    mask (f), that of faces where it is zero is to be zero, and counts a hundred times: what is
    asked of the others does not fit together, and would pull them along."""
    weight = None if mask is None else 1 + (STIFF - 1) * (mask == 0)
    return faces.poisson(gradient, batch, weight)
