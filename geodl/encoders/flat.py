"""All coordinates of a registered shape as one vector, with no weights: the input of a PCA."""

from __future__ import annotations

from torch import Tensor

from geodl.encoders.base import Encoding
from geodl.encoders.template import TemplateEncoder
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Out


class Flat(TemplateEncoder):
    """The features of all template vertices, concatenated. With ``decoder=linear`` the task's head
    becomes the projection onto the basis: the classical morphable model.

    Paper: Blanz, Vetter: A morphable model for the synthesis of 3D faces, SIGGRAPH 1999.
    Differs: no texture.
    """

    learns = False

    def __init__(self, in_channels: int, spec: DataSpec, out: Out) -> None:
        super().__init__(in_channels, spec, out)
        self.channels = len(self.template.pos) * in_channels

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        return Encoding(whole=self.rows(x, batch).flatten(1))
