"""GEM-CNN: convolutions of tangent vectors that do not depend on how tangent planes are turned."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.neighbors import edges
from geodl.nn.rows import Bags, both_ways, product
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Out


@dataclass
class Edges:
    """Directed edges p -> q of a batch (e), every vertex with itself last among its own.

    q: neighbours | before, after: angles by which features of q are turned from q's frame into the
    direction of the edge, and from there into p's frame | rings (e 1+k): 1 for a vertex itself,
    and the share of each ring in the distance | mean: over the edges of each p
    """

    q: Tensor
    before: Tensor
    after: Tensor
    rings: Tensor
    mean: tuple[Bags, Bags]


def edges_of(batch: ShapeBatch, rings: int, turn: Tensor | None = None) -> Edges:
    """The edges of a batch's meshes. A vertex's frame: angle-weighted normal, first axis towards
    the nearest neighbour, turned by ``turn`` (v). Features are carried from q's plane to p's by the
    smallest rotation between the normals.

    Raises:
        UserError: it holds point clouds.
    """
    batch.need_faces("follows the edges of meshes", "dgcnn")
    pos, face, n = batch.pos.detach().double(), batch.face, len(batch.pos)
    corners = pos[face]
    sides = torch.stack([corners.roll(-1, 1) - corners, corners.roll(1, 1) - corners])
    unit = F.normalize(sides, dim=3)
    angle = (unit[0] * unit[1]).sum(2).clamp(-1, 1).acos()
    flat = F.normalize(torch.linalg.cross(sides[0, :, 0], sides[1, :, 0]), dim=1)
    weighted = (angle[:, :, None] * flat[:, None]).flatten(0, 1)
    normal = F.normalize(torch.zeros_like(pos).index_add(0, face.flatten(), weighted), dim=1)

    p, q = edges(face, n)
    step = pos[q] - pos[p]
    distance = step.norm(dim=1)
    # The nearest neighbour's direction, in the tangent plane.
    order = torch.argsort(distance).flip(0)
    first = torch.zeros_like(p[:n]).scatter_(0, p[order], order) if len(p) else p
    x = F.normalize(_tangent(step[first], normal), dim=1)
    y = torch.linalg.cross(normal, x)
    if turn is not None:
        c, s = turn.double().cos()[:, None], turn.double().sin()[:, None]
        x, y = c * x + s * y, c * y - s * x

    def angle_in(v: Tensor, at: Tensor) -> Tensor:
        return torch.atan2((v * y[at]).sum(1), (v * x[at]).sum(1))

    after = angle_in(step, p)
    carried = angle_in(_carried(x[q], normal[q], normal[p]), p)
    counts = _counts(p, batch)
    longest = torch.stack([d.amax() if len(d) else d.new_ones(()) for d in distance.split(counts)])
    share = distance / longest.repeat_interleave(torch.tensor(counts).to(p))
    places = torch.linspace(0, 1, rings, dtype=share.dtype, device=share.device)
    ring = (1 - (share[:, None] - places).abs() * (rings - 1)).clamp(min=0)
    itself = torch.arange(n, device=p.device)
    none = share.new_zeros(n)
    every = torch.cat([p, itself])
    sort = torch.argsort(every, stable=True)
    shares = torch.cat(
        [
            torch.cat([share.new_zeros(len(p), 1), ring], dim=1),
            torch.cat([share.new_ones(n, 1), share.new_zeros(n, rings)], dim=1),
        ]
    )
    count = torch.bincount(every, minlength=n).float()
    row = every[sort]
    return Edges(
        torch.cat([q, itself])[sort],
        torch.cat([carried - after, none])[sort].float(),
        torch.cat([after, none])[sort].float(),
        shares[sort].float(),
        both_ways(row, torch.arange(len(row), device=row.device), 1 / count[row], (n, len(row))),
    )


def _counts(p: Tensor, batch: ShapeBatch) -> list[int]:
    """Edges of each shape."""
    shape = torch.bucketize(p, batch.ptr[1:].to(p), right=True)
    return torch.bincount(shape, minlength=len(batch)).tolist()


def _tangent(v: Tensor, normal: Tensor) -> Tensor:
    return v - (v * normal).sum(1, keepdim=True) * normal


def _carried(v: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """v turned by the smallest rotation that takes one unit vector to another."""
    axis, cos = torch.linalg.cross(start, end), (start * end).sum(1, keepdim=True)
    along = (axis * v).sum(1, keepdim=True) * axis / (1 + cos).clamp(min=1e-9)
    return cos * v + torch.linalg.cross(axis, v) + along


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """Features (e c 2l+1) by angles (e): the pair of order l turns by l times the angle."""
    parts = [x[:, :, :1]]
    for order in range(1, (x.shape[2] + 1) // 2):
        c, s = ((order * angle).cos()[:, None], (order * angle).sin()[:, None])
        a, b = x[:, :, 2 * order - 1], x[:, :, 2 * order]
        parts.append(torch.stack([c * a - s * b, s * a + c * b], dim=2))
    return torch.cat(parts, dim=2)


class GemConv(nn.Module):
    """Mean over the edges of R(theta) (sum_k rho_k(r) W_k R(connection - theta) x_q + b), and
    of what commutes with all rotations for the vertex itself."""

    def __init__(
        self, in_channels: int, channels: int, in_order: int, order: int, rings: int
    ) -> None:
        super().__init__()
        i, o = 2 * in_order + 1, 2 * order + 1
        self.weight = nn.Parameter(torch.empty(rings, in_channels, i, channels, o))
        kernels = torch.zeros(2 * min(in_order, order) + 1, i, o)
        kernels[0, 0, 0] = 1
        for k in range(1, min(in_order, order) + 1):
            a, b = 2 * k - 1, 2 * k
            kernels[a, a, a] = kernels[a, b, b] = kernels[b, a, b] = 1
            kernels[b, b, a] = -1
        self.register_buffer("kernels", kernels, persistent=False)
        self.kernels: Tensor
        self.own = nn.Parameter(torch.empty(len(kernels), in_channels, channels))
        self.bias = nn.Parameter(torch.zeros(channels, o))
        for parameter in (self.weight, self.own):
            bound = math.sqrt(6 / (in_channels * i + channels * o))
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        """(v c 2l+1) -> (v channels 2m+1)."""
        own = torch.einsum("bji,bmn->jmin", self.own, self.kernels)[None]
        weight = torch.cat([own, self.weight])
        rings, c, i, channels, o = weight.shape
        z = turned(x[edges.q], edges.before).flatten(1)
        shares = (edges.rings[:, :, None] * z[:, None]).flatten(1)
        y = (shares @ weight.reshape(rings * c * i, channels * o)).view(-1, channels, o)
        other = 1 - edges.rings[:, :1, None]
        bias = torch.cat([self.bias[:, :1].expand(len(y), -1, 1), other * self.bias[:, 1:]], dim=2)
        y = turned(y + bias, edges.after)
        return product(y.flatten(1), *edges.mean).view(-1, channels, o)


class Regular(nn.Module):
    """ReLU at ``samples`` directions of the tangent plane: there and back by a Fourier transform,
    so it commutes with rotations by their angles, and with others nearly."""

    def __init__(self, order: int, samples: int) -> None:
        super().__init__()
        angle = torch.arange(samples) * 2 * math.pi / samples
        rows = [torch.ones(samples)]
        for k in range(1, order + 1):
            rows += [math.sqrt(2) * (k * angle).cos(), math.sqrt(2) * (k * angle).sin()]
        self.register_buffer("dft", torch.stack(rows) / math.sqrt(samples), persistent=False)
        self.dft: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.dft) @ self.dft.T


class Block(nn.Module):
    """Two convolutions with the non-linearity, added to what came in."""

    def __init__(
        self, in_channels: int, width: int, orders: tuple[int, int], rings: int, samples: int
    ) -> None:
        super().__init__()
        start, end = orders
        middle = max(orders)
        self.convs = nn.ModuleList(
            [
                GemConv(in_channels, width, start, middle, rings),
                GemConv(width, width, middle, end, rings),
            ]
        )
        self.relus = nn.ModuleList([Regular(middle, samples), Regular(end, samples)])
        # A bias would not turn with the frames, but the only input of another width is scalar.
        same = in_channels == width
        self.shortcut = nn.Identity() if same else nn.Linear(in_channels, width)

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        y = self.convs[1](self.relus[0](self.convs[0](x, edges)), edges)
        rest = self.shortcut(x.transpose(1, 2)).transpose(1, 2)
        o = min(y.shape[2], rest.shape[2])
        y = torch.cat([y[:, :, :o] + rest[:, :, :o], y[:, :, o:]], dim=2)
        return self.relus[1](y)


class GEMCNN(Encoder):
    """Features are scalars and tangent vectors of orders up to ``order``; a neighbour's are carried
    into a vertex's plane and convolved along the direction of the edge.

    Paper: de Haan, Weiler, Cohen, Welling: Gauge equivariant mesh CNNs, ICLR 2021.
    https://arxiv.org/abs/2003.05425
    Differs: the network is that of the authors' code for FAUST without pooling ("faust_direct"),
    1,835,226 parameters with xyz and 6,890 labels; with its weights the outputs are equal (1e-5).
    A vertex's convolution with itself, which that code has and does not use there, is used.
    Distances are measured by the longest edge of a shape, not of the batch, and the frame's axis
    points to the nearest neighbour instead of the first: the outputs depend on it as little as
    ``samples`` are many.

    Args:
        width: channels of every order.
        order: highest order of the tangent vectors.
        blocks: residual blocks, 2 or more.
        rings: of the distance.
        samples: directions of the non-linearity, odd.
        dropout: probability behind the hidden layer at the end.
    """

    small = MappingProxyType({"width": 4, "order": 1, "blocks": 2, "samples": 31})
    symmetries = frozenset({"permutation", "rotation", "translation"})
    counts = (Count(1_835_226, {}, 3, "vertex", 6890),)

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        width: int = 16,
        order: int = 2,
        blocks: int = 3,
        rings: int = 2,
        samples: int = 7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(in_channels, spec, out)
        if blocks < 2 or rings < 2 or not samples % 2 or samples <= 2 * order:
            raise UserError(
                f"encoder.blocks={blocks} and rings={rings} must be 2 or more, samples={samples} "
                f"odd and more than twice the order={order}."
            )
        self.rings = rings
        orders = [0, *[order] * (blocks - 1), 0]
        widths = [in_channels, *[width] * blocks]
        steps = zip(itertools.pairwise(widths), itertools.pairwise(orders), strict=True)
        self.blocks = nn.ModuleList(Block(i, o, pair, rings, samples) for (i, o), pair in steps)
        self.last = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Dropout(dropout))
        self.channels = 256

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        if "gem" not in batch.cache:
            batch.cache["gem"] = edges_of(batch, self.rings)
        y = x[:, :, None]
        for block in self.blocks:
            y = block(y, batch.cache["gem"])
        y = self.last(y[:, :, 0])
        if self.out == "whole":
            return Encoding(whole=batch.mean(y))
        return self.elements(y, batch)
