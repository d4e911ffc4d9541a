"""DGCNN: edge convolutions on a graph that is rebuilt in feature space."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.neighbors import knn
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points

SLOPE = 0.2  # of the leaky ReLU, everywhere


class EdgeConv(nn.Module):
    """max_j h([x_j - x_i, x_i]) over the neighbours j of i; h: layers without bias, each with
    BatchNorm and LeakyReLU."""

    def __init__(self, in_channels: int, *widths: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * in_channels, widths[0], bias=False)
        self.norm = nn.BatchNorm1d(widths[0])
        self.rest = layers(list(widths))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """x (n c), index (n k) -> (n out)."""
        n, k = index.shape
        a, b = self.linear.weight.chunk(2, dim=1)
        # The layer is linear before its norm: multiply points, not edges.
        rows = (x @ a.T).index_select(0, index.reshape(-1)).view(n, k, -1)
        edges = self.norm((rows + (x @ (b - a).T)[:, None]).flatten(0, 1))
        edges = self.rest(F.leaky_relu(edges, SLOPE, inplace=True))
        return edges.view(n, k, -1).amax(1)


def layers(widths: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear without bias, BatchNorm and LeakyReLU (and dropout) for each step of ``widths``."""
    found: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        found += [nn.Linear(i, o, bias=False), nn.BatchNorm1d(o), nn.LeakyReLU(SLOPE, True)]
        if dropout:
            found.append(nn.Dropout(dropout))
    return nn.Sequential(*found)


class Alignment(nn.Module):
    """Predicts a (3 3) matrix per shape from the graph of its positions; starts as the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = EdgeConv(3, 64, 128)
        self.points = layers([128, 1024])
        self.whole = layers([1024, 512, 256])
        self.matrix = nn.Linear(256, 9)
        nn.init.zeros_(self.matrix.weight)
        with torch.no_grad():
            self.matrix.bias.copy_(torch.eye(3).flatten())

    def forward(self, x: Tensor, index: Tensor, batch: ShapeBatch) -> Tensor:
        """x (n 3) -> (n 3)."""
        whole = batch.max(self.points(self.edges(x, index)))
        matrix = self.matrix(self.whole(whole)).view(-1, 3, 3)
        return (x[:, None] @ batch.spread(matrix.flatten(1)).view(-1, 3, 3))[:, 0]


class DGCNN(Encoder):
    """Edge convolutions, each on the graph of the nearest neighbours in the features before it.

    Whole shapes: four of them through a shared layer, maximum and mean over the points, two layers.
    Elements: three of them, the maximum over the points beside each point's own, three layers.

    Paper: Wang, Sun, Liu, Sarma, Bronstein, Solomon: Dynamic graph CNN for learning on point
    clouds, TOG 2019. https://arxiv.org/abs/1801.07829
    Differs: nothing known from AnTao97's PyTorch version for classification, 1,809,576 parameters
    with 40 classes; with its weights the outputs are equal (3e-8). For elements the network is its
    form for ShapeNetPart: 1,460,361 parameters with ``align`` and the class given, and 50 more
    here, where the last layer (the task's head) has a bias. Its k is 40 there. The form for scenes
    is not here.

    Args:
        points: number of surface samples to look at; null: the shape's own vertices.
        k: neighbours of a point, itself among them.
        widths: channels of the edge convolutions of the form for whole shapes.
        dropout: probability behind both hidden layers.
        align: predict a 3 x 3 matrix for the positions in the form for elements (features must be
            xyz alone).
        use_category: give the shape's class as a one-hot vector to the form for elements.
    """

    small = MappingProxyType({"points": None, "k": 8, "widths": [16, 16, 32, 32]})
    counts = (
        Count(1_809_576, {}, 3, "whole", 40),
        Count(1_460_361 + 50, {"align": True, "use_category": True}, 3, "vertex", 50),
    )

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int | None = 1024,
        k: int = 20,
        widths: Sequence[int] = (64, 64, 128, 256),
        dropout: float = 0.5,
        align: bool = False,
        use_category: bool = False,
    ) -> None:
        super().__init__(in_channels, spec, out)
        if align and in_channels != 3:
            raise UserError("encoder.align=true needs features=xyz.")
        self.tell(use_category, spec)
        if k < 1 or not widths:
            raise UserError("encoder.k must be 1 or more, encoder.widths not empty.")
        self.needs = Needs.of(Points(points) if points else None)
        self.k = k
        if out != "whole":
            self.align = Alignment() if align else None
            self.convs = nn.ModuleList(
                [EdgeConv(in_channels, 64, 64), EdgeConv(64, 64, 64), EdgeConv(64, 64)]
            )
            self.shared = layers([192, 1024])
            self.category = layers([self.categories, 64]) if use_category else None
            wide = 1024 + 192 + (64 if use_category else 0)
            self.last = nn.Sequential(
                *layers([wide, 256, 256], dropout=dropout), *layers([256, 128])
            )
            self.channels = 128
            return
        steps = itertools.pairwise([in_channels, *widths])
        self.convs = nn.ModuleList(EdgeConv(i, o) for i, o in steps)
        self.shared = layers([sum(widths), 1024])
        self.last = nn.Sequential(
            *layers([2048, 512], dropout=dropout),
            nn.Linear(512, 256),
            nn.BatchNorm1d(256),
            nn.LeakyReLU(SLOPE),
            nn.Dropout(dropout),
        )
        self.channels = 256

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        if self.out != "whole" and self.align is not None:
            x = self.align(x, knn(x, batch.sizes, self.k), batch)
        levels: list[Tensor] = []
        for conv in self.convs:
            x = conv(x, knn(x, batch.sizes, self.k))
            levels.append(x)
        x = self.shared(torch.cat(levels, dim=1))
        if self.out == "whole":
            return Encoding(whole=self.last(torch.cat([batch.max(x), batch.mean(x)], dim=1)))
        whole = batch.max(x)
        if self.category is not None:
            whole = torch.cat([whole, self.category(self.one_hot(batch))], dim=1)
        return self.elements(self.last(torch.cat([batch.spread(whole), *levels], dim=1)), batch)
