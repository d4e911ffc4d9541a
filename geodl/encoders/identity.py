"""No network at all: the features are the descriptors."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from geodl.encoders.base import Encoder, Encoding
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Out


class Identity(Encoder):
    """The features as they are: the axiomatic baseline of matching (HKS, WKS).

    Paper: Ovsjanikov et al.: Functional maps, SIGGRAPH 2012, with the descriptors of Sun et al.
    2009 and Aubry et al. 2011. Differs: nothing known.
    """

    learns: ClassVar[bool] = False
    outputs: ClassVar[tuple[Out, ...]] = ("vertex", "edge", "face")
    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation", "rotation", "translation"})

    def __init__(self, in_channels: int, spec: DataSpec, out: Out) -> None:
        super().__init__(in_channels, spec, out)
        self.channels = in_channels

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        return self.elements(x, batch)
