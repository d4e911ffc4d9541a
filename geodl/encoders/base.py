"""The call that every architecture answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from geodl.errors import UserError
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out


@dataclass
class Encoding:
    """What an encoder returns: rows where it was asked for them, and losses of its own.

    vertex (n c) | edge (e c) | face (f c) | whole (b c) | losses: name -> scalar
    """

    vertex: Tensor | None = None
    edge: Tensor | None = None
    face: Tensor | None = None
    whole: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)

    def at(self, out: Out) -> Tensor:
        value: Tensor | None = getattr(self, out)
        if value is None:
            raise ValueError(f"the encoder returned nothing at {out!r}")
        return value


class Count(NamedTuple):
    """Parameters of the authors' network: with these options, channels in, output, and classes or
    parts (the last linear layer, which is the task's head here, is part of it)."""

    total: int
    options: Mapping[str, Any]
    in_channels: int
    out: Out
    classes: int


class Encoder(nn.Module):
    """Base of all architectures.

    A subclass is built as ``encoder(in_channels, spec, out, **its own options)`` and builds only
    the branch that ``out`` asks for. It sets ``channels`` (columns of what it returns) and, if it
    reads geometry, ``needs``.

    Class attributes:
        outputs: the values of ``out`` it can answer.
        registered: whether it takes shapes in vertex correspondence with the template only.
        small: options of a network that takes no time: for tests and first looks.
        counts: numbers of parameters of the authors' networks, which the tests compare with.
        featureless: whether it works with features=none: it looks at positions or edges itself.
        learns: whether it has weights; without them a task's head stands aside.
        symmetries: what its output does not depend on ("permutation", "rotation", "translation"),
            declared here and tested for every encoder; rotation is understood for features that
            do not turn with the shape.

    Raises:
        UserError: ``out`` is not among ``outputs``; no features for a network that sees only them.
    """

    outputs: ClassVar[tuple[Out, ...]] = ("vertex", "edge", "face", "whole")
    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})
    registered: ClassVar[bool] = False
    small: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    counts: ClassVar[tuple[Count, ...]] = ()
    featureless: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    categories: int = 0  # classes that it must be told apart from the shape, if any
    channels: int
    needs: Needs

    def __init__(self, in_channels: int, spec: DataSpec, out: Out) -> None:
        super().__init__()
        if out not in self.outputs:
            able = " or ".join(self.outputs)
            raise UserError(
                f"encoder {type(self).__name__} gives one answer per {able}, but this task needs "
                f"one per {out}: choose another encoder (geodl mode=list) or another task."
            )
        if in_channels < 1 and not self.featureless:
            raise UserError(
                f"encoder {type(self).__name__} sees a shape's features alone, and features=none "
                "leaves it nothing: take features=xyz or hks."
            )
        self.in_channels = in_channels
        self.out: Out = out
        self.needs = Needs()

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        """Features (n in_channels) on the vertices of the batch -> Encoding with ``out`` filled."""
        raise NotImplementedError

    def tell(self, use_category: bool, spec: DataSpec) -> None:
        """Set ``categories``, of networks that are given a shape's class when they label elements.

        Raises:
            UserError: the shapes of this data set have no classes.
        """
        if use_category and not spec.classes:
            raise UserError("encoder.use_category=true needs a data set whose shapes have classes.")
        self.categories = len(spec.classes) if use_category and self.out != "whole" else 0

    def one_hot(self, batch: ShapeBatch) -> Tensor:
        """The classes of the shapes as rows of zeros with a one (b categories)."""
        assert batch.category is not None
        return F.one_hot(batch.category, self.categories).float()

    @property
    def summary_channels(self) -> int:
        """Columns of ``summary``."""
        return self.channels

    def summary(self, x: Tensor, batch: ShapeBatch) -> Tensor:
        """What a linear classifier on this encoder looks at (b c): its answer for the whole shape,
        unless layers at its end belong to a task."""
        return self(x, batch).at("whole")

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the authors' code under the names of a task with this encoder ("encoder." and
        "head."); those that it does not recognise come back as they are."""
        return state

    def rows(self, x: Tensor, batch: ShapeBatch) -> Tensor:
        """Features (b v c) of shapes that are the template's own mesh (``registered`` encoders)."""
        raise NotImplementedError

    def elements(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        """Vertex rows (n c) as the encoding at ``out``: averaged over the corners of each face or
        the ends of each edge. Where surface samples stand in for vertices (``Points``), every
        element takes the row of its nearest sample."""
        if "carry" in batch.ops:
            rows = x[batch.ops.carry]
        elif self.out == "vertex":
            rows = x
        elif self.out == "face":
            rows = x[batch.face].mean(dim=1)
        else:
            rows = x[batch.ops.edge].mean(dim=1)
        encoding = Encoding()
        setattr(encoding, self.out, rows)
        return encoding
