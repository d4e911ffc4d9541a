"""DeltaConv: scalars and tangent vectors that meet through gradient, divergence and curl."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.encoders.dgcnn import SLOPE, layers
from geodl.errors import UserError
from geodl.nn.neighbors import knn, owners
from geodl.nn.rows import both_ways, product
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Normals, Out, Points

RIDGE = 1e-3  # of the least squares fits


class Calculus:
    """Gradient and divergence on a batch of points with normals: around each point a quadric is
    fitted to its k nearest points, itself among them (Wiersma et al. 2022, appendix A and B).

    Vectors are rows (2n c): two components in the tangent frame of each point. Operators are made
    in double precision and have no gradient.
    """

    def __init__(self, batch: ShapeBatch, k: int) -> None:
        assert batch.normal is not None
        with torch.no_grad():
            self.index = knn(batch.pos, batch.sizes, k)
            n, k = self.index.shape
            gradient, divergence = _fitted(
                batch.pos.double(), batch.normal.double(), self.index, batch.sizes
            )
            points = torch.arange(n, device=batch.pos.device)
            column = self.index[:, None].expand(n, 2, k).flatten()
            row = torch.arange(2 * n, device=points.device).repeat_interleave(k)
            self.forth = both_ways(row, column, gradient.flatten().float(), (2 * n, n))
            column = (2 * self.index[:, :, None] + torch.arange(2, device=points.device)).flatten()
            row = points.repeat_interleave(2 * k)
            self.back = both_ways(row, column, divergence.flatten().float(), (n, 2 * n))

    def grad(self, x: Tensor) -> Tensor:
        return product(x, *self.forth)

    def div(self, v: Tensor) -> Tensor:
        return product(v, *self.back)

    def curl(self, v: Tensor) -> Tensor:
        return -self.div(turned(v))

    def hodge(self, v: Tensor, div: Tensor, curl: Tensor) -> Tensor:
        """The Hodge Laplacian of v, whose divergence and curl are at hand."""
        return -(self.grad(div) + turned(self.grad(curl)))


def turned(v: Tensor) -> Tensor:
    """Vectors (2n c) turned by 90 degrees."""
    x, y = v.view(-1, 2, v.shape[1]).unbind(1)
    return torch.stack([-y, x], dim=1).flatten(0, 1)


def lengths(v: Tensor) -> Tensor:
    """(2n c) -> (n c)."""
    return v.view(-1, 2, v.shape[1]).norm(dim=1)


def _fitted(
    pos: Tensor, normal: Tensor, index: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """What the neighbours of each point count in its gradient (n 2 k) and its divergence (n k 2).
    Both are divided by the largest row of a cloud's gradient."""
    n, k = index.shape
    axis = torch.where(
        normal[:, :1].abs() > 0.9,
        normal.new_tensor([[0.0, 1, 0]]),
        normal.new_tensor([[1.0, 0, 0]]),
    )
    x = F.normalize(torch.linalg.cross(axis, normal), dim=1, eps=1e-5)
    y = F.normalize(torch.linalg.cross(normal, x), dim=1, eps=1e-5)
    step = pos[index] - pos[:, None]
    u, v = (step @ x[:, :, None])[..., 0], (step @ y[:, :, None])[..., 0]
    height = (step @ normal[:, :, None])[..., 0]
    distance = step.norm(dim=2)
    mean = torch.cat([part.mean()[None] for part in distance.split(list(sizes))])
    shape = owners(sizes, pos.device)
    weight = torch.exp(-(distance / mean[shape, None].clamp(min=1e-12)).square())
    weight = weight / weight.sum(1, keepdim=True)
    basis = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v], dim=2)
    weighted = (basis * weight[:, :, None]).transpose(1, 2)
    ridge = RIDGE * torch.eye(6, dtype=pos.dtype, device=pos.device)
    fit = torch.linalg.solve(weighted @ basis + ridge, weighted)  # (n 6 k)
    gradient = fit[:, 1:3]
    row = gradient.abs().sum(2).norm(dim=1)
    largest = torch.stack([part.max() for part in row.split(list(sizes))])
    gradient = gradient / torch.where(largest > 1e-5, largest, 1.0)[shape, None, None]
    # The fitted surface's slopes at the neighbours turn their vectors into the point's own plane.
    c = (fit @ height[:, :, None])[:, :, 0, None].unbind(1)
    hu = c[1] + 2 * c[3] * u + c[4] * v
    hv = c[2] + c[4] * u + 2 * c[5] * v
    along_u = x[:, None] + hu[:, :, None] * normal[:, None]
    along_v = y[:, None] + hv[:, :, None] * normal[:, None]
    there = torch.stack([x[index], y[index]], dim=3)  # (n k 3 2)
    mixed = torch.stack([along_u, along_v], dim=2) @ there  # (n k 2 2)
    metric = torch.stack([1 + hv * hv, -hu * hv, -hu * hv, 1 + hu * hu], dim=2)
    metric = (metric / (1 + hu * hu + hv * hv)[:, :, None]).view(n, k, 2, 2)
    divergence = gradient.transpose(1, 2)[:, :, None] @ (metric @ mixed)
    return gradient, divergence[:, :, 0]


class VectorLayer(nn.Module):
    """A linear map of the channels of vectors, whose lengths go through BatchNorm and ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, v: Tensor) -> Tensor:
        v = self.linear(v)
        length = lengths(v)
        scale = F.relu(self.norm(length)) / length.clamp(min=1e-8)
        scale = torch.where(length > 1e-8, scale, 0.0)  # no direction, and no gradient of 1e8
        return v * scale.repeat_interleave(2, dim=0)


class DeltaConv(nn.Module):
    """Scalars from the neighbours' scalars (their maximum), from the point's own and from its
    vectors; vectors from its vectors and the scalars' gradients."""

    def __init__(
        self, in_channels: int, channels: int, depth: int, first: bool, last: bool
    ) -> None:
        super().__init__()
        self.first = first
        deep = [channels] * depth
        self.neighbors = layers([in_channels, *deep])
        self.points = layers([4 * in_channels, *deep])
        wide = 0 if last else 2 * (2 * in_channels + channels)
        steps = [] if last else itertools.pairwise([wide, *deep])
        self.vectors = nn.Sequential(*(VectorLayer(i, o) for i, o in steps))

    def forward(self, x: Tensor, v: Tensor, calculus: Calculus) -> tuple[Tensor, Tensor]:
        n, k = calculus.index.shape
        near = calculus.index.flatten()
        if self.first:
            rows = self.neighbors((x[near].view(n, k, -1) - x[:, None]).flatten(0, 1))
        else:
            rows = self.neighbors(x)[near]
        div, curl = calculus.div(v), calculus.curl(v)
        own = self.points(torch.cat([x, div, curl, lengths(v)], dim=1))
        x = rows.view(n, k, -1).amax(1) + own
        if len(self.vectors):
            v = torch.cat([v, calculus.hodge(v, div, curl), calculus.grad(x)], dim=1)
            v = self.vectors(torch.cat([v, turned(v)], dim=1))
        return x, v


class DeltaNet(Encoder):
    """A stream of scalars and one of tangent vectors on points with normals: neighbours' maxima for
    the first, differential operators between the two.

    Whole shapes: all layers' scalars through a shared one, maximum and mean over the points, two
    layers. Elements: the maximum over the points beside all layers' scalars, three layers.

    Paper: Wiersma, Nasikun, Eisemann, Hildebrandt: DeltaConv, anisotropic operators for geometric
    deep learning on point clouds, 2022. https://arxiv.org/abs/2111.08799
    Differs: nothing known in the definition. Parameters: 2,045,672 with 40 classes, and with eight
    convolutions of width 128, ``embedding`` 512 and 8 parts 2,224,392; the authors' 2,045,928 and
    2,225,288 have 256 and 896 that are not used. On their weights outputs are equal (1e-7). Normals
    come from the data; clouds without have those of their 30 nearest points, of either sign.

    Args:
        points: number of surface samples to look at; null: the shape's own vertices.
        k: neighbours of a point, itself among them.
        widths: channels of the convolutions.
        depth: layers in each part of a convolution.
        embedding: channels before the maximum over the points.
        dropout: probability behind both hidden layers.
        use_category: give the shape's class as a one-hot vector to the form for elements.
    """

    small = MappingProxyType({"points": None, "k": 8, "widths": [16, 32], "embedding": 32})
    symmetries = frozenset({"permutation", "translation"})
    counts = (
        Count(2_045_928 - 256, {}, 3, "whole", 40),
        Count(2_225_288 - 896, {"widths": [128] * 8, "embedding": 512}, 3, "vertex", 8),
    )

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int | None = 1024,
        k: int = 20,
        widths: Sequence[int] = (64, 64, 128, 256),
        depth: int = 1,
        embedding: int = 1024,
        dropout: float = 0.5,
        use_category: bool = False,
    ) -> None:
        super().__init__(in_channels, spec, out)
        self.tell(use_category, spec)
        if k < 1 or depth < 1 or not widths:
            raise UserError("encoder.k and depth must be 1 or more, encoder.widths not empty.")
        self.needs = Needs.of(Points(points) if points else None, Normals())
        self.k = k
        steps = list(itertools.pairwise([in_channels, *widths]))
        self.convs = nn.ModuleList(
            DeltaConv(a, b, depth, first=i == 0, last=i == len(steps) - 1)
            for i, (a, b) in enumerate(steps)
        )
        self.shared = layers([sum(widths), embedding])
        if out == "whole":
            self.last = layers([2 * embedding, 512, 256], dropout)
            self.channels = 256
            return
        self.category = layers([self.categories, 64]) if use_category else None
        wide = embedding + sum(widths) + (64 if use_category else 0)
        self.last = nn.Sequential(
            *layers([wide, 256, 256], dropout), nn.Linear(256, 128), nn.LeakyReLU(SLOPE)
        )
        self.channels = 128

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        if "calculus" not in batch.cache:
            batch.cache["calculus"] = Calculus(batch, self.k)
        calculus: Calculus = batch.cache["calculus"]
        v = calculus.grad(x)
        levels: list[Tensor] = []
        for conv in self.convs:
            x, v = conv(x, v, calculus)
            levels.append(x)
        x = self.shared(torch.cat(levels, dim=1))
        if self.out == "whole":
            return Encoding(whole=self.last(torch.cat([batch.max(x), batch.mean(x)], dim=1)))
        whole = batch.max(x)
        if self.category is not None:
            whole = torch.cat([whole, self.category(self.one_hot(batch))], dim=1)
        return self.elements(self.last(torch.cat([batch.spread(whole), *levels], dim=1)), batch)

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The names of rubenwiersma/deltaconv."""
        if not any(key.startswith("deltanet_base.") for key in state):
            return state
        names = {"s_mlp_max": "neighbors", "s_mlp": "points", "v_mlp": "vectors"}
        hidden = {"0": 0, "2": 1}  # of the head, whose odd entries are dropout
        per_layer = 4 if isinstance(self.last[3], nn.Dropout) else 3
        translated: dict[str, Tensor] = {}
        for key, value in state.items():
            part, *rest = key.split(".")
            end = rest[-1]
            if part == "deltanet_base":
                _, conv, theirs, layer, place = rest[:5]
                if theirs == "v_mlp" and rest[4:] == ["1", "bias"]:
                    continue  # which is not used there
                number = f"{3 * int(layer) + int(place)}"
                if theirs == "v_mlp":
                    number = f"{layer}.{'linear' if place == '0' else 'norm'}"
                key = f"encoder.convs.{conv}.{names[theirs]}.{number}.{end}"
            elif part in ("lin_embedding", "lin_global", "lin_categorical"):
                ours = "category" if part == "lin_categorical" else "shared"
                key = f"encoder.{ours}.{rest[1]}.{end}"
            elif rest[0] in hidden:
                key = f"encoder.last.{per_layer * hidden[rest[0]] + int(rest[2])}.{end}"
            elif part == "segmentation_head" and rest[0] == "4":
                key = f"encoder.last.{2 * per_layer}.{end}"
            else:
                key = f"head.{end}"
            translated[key] = value
        return translated
