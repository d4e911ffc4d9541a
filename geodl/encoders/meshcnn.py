"""MeshCNN: convolutions on the edges of a mesh, and pooling that collapses the least useful."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.meshpool import Level, Pooling, collapsed
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Edges, Needs, Out

GROUPS = 16  # of channels that are normalised together in the classifier


def normalised(
    x: Tensor, level: Level, groups: int, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Group norm of (e c) over the edges of each mesh."""
    parts = x.split(level.sizes)
    return torch.cat([F.group_norm(p.T[None], groups, weight, bias)[0].T for p in parts])


class Conv(nn.Module):
    """A linear map of an edge and its four neighbours."""

    def __init__(self, in_channels: int, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(5 * in_channels, channels, bias)

    def forward(self, x: Tensor, level: Level) -> Tensor:
        return self.linear(level.around(x))


class Residual(nn.Module):
    """A convolution, and more of them behind ReLU and batch norm, around which goes one shortcut;
    a group norm."""

    def __init__(self, in_channels: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.first = Conv(in_channels, channels, bias=False)
        self.bns = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(blocks))
        self.convs = nn.ModuleList(Conv(channels, channels, bias=False) for _ in range(blocks))
        self.norm = nn.GroupNorm(GROUPS, channels)

    def forward(self, x: Tensor, level: Level) -> Tensor:
        x = shortcut = self.first(x, level)
        for bn, conv in zip(self.bns, self.convs, strict=True):
            x = conv(bn(F.relu(x)), level)
        x = F.relu(x + shortcut)
        return F.relu(normalised(x, level, GROUPS, self.norm.weight, self.norm.bias))


class Stage(nn.Module):
    """A convolution and residual ones, each with an instance norm; ``x`` can come from a coarser
    level, with what the level had on the way down beside it."""

    def __init__(
        self, in_channels: int, channels: int, blocks: int, up: bool = False, skip: int = 0
    ) -> None:
        super().__init__()
        self.up = Conv(in_channels, channels) if up else None
        self.first = Conv((channels if up else in_channels) + skip, channels)
        self.convs = nn.ModuleList(Conv(channels, channels) for _ in range(blocks))

    def forward(
        self, x: Tensor, level: Level, back: tuple[Pooling, Tensor] | None = None
    ) -> Tensor:
        if self.up is not None:
            x = self.up(x, back[0].after if back else level)
        if back:
            x = torch.cat([back[0].unpool(x), back[1]], dim=1)
        x = self.first(x, level)
        x = F.relu(normalised(x, level, x.shape[1]))
        for conv in self.convs:
            y = conv(x, level)
            x = F.relu(normalised(y, level, y.shape[1]) + x)
        return x


class MeshCNN(Encoder):
    """Five numbers about every edge (``geodl.ops.edges``; no other features are used), convolutions
    over its four neighbours, and edge collapses in the order of the features' size. For whole
    shapes a mean over the edges that are left, for elements a U-net that undoes the collapses.

    Paper: Hanocka, Hertz, Fish, Giryes, Fleishman, Cohen-Or: MeshCNN, a network with an edge, 2019.
    https://arxiv.org/abs/1809.05910
    Differs: meshes of fewer edges are not filled up with zero edges, which the authors' norms and
    means count; the five numbers are normalised by a batch norm without parameters instead of
    statistics of the training set. Parameters: 1,323,386 with 30 classes, as the authors'; for 8
    parts 2,279,720, their whole network, whose last stage has a channel per part and ends in a
    ReLU, and the task's linear head behind it. Equal outputs on the same weights where no mesh
    needs to be filled up, once the oversight is put back that forbids collapses around the place of
    a vertex of three edges (``geodl.nn.meshpool``). Edges with equal features are collapsed in the
    order of the faces. The five numbers stay what they were when a shape is scaled in training.

    Args:
        widths: channels per level; null: the authors', 64, 128, 256, 256 for whole shapes and 32,
            64, 128, 256 for elements.
        pool: edges that are left after each level but the last, for whole shapes after that too if
            there are as many numbers; null: the authors', 600, 450, 300, 180 and 1,800, 1,350, 600.
        blocks: residual convolutions per level; null: 1 and 3.
    """

    small = MappingProxyType({"widths": [16, 16], "pool": [150], "blocks": 1})
    symmetries = frozenset({"permutation", "rotation", "translation"})
    featureless = True
    counts = (Count(1_323_386, {}, 3, "whole", 30),)

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        widths: Sequence[int] | None = None,
        pool: Sequence[int] | None = None,
        blocks: int | None = None,
    ) -> None:
        super().__init__(in_channels, spec, out)
        whole = out == "whole"
        if widths is None:
            widths = (64, 128, 256, 256) if whole else (32, 64, 128, 256)
        if pool is None:
            pool = (600, 450, 300, 180) if whole else (1800, 1350, 600)
        if blocks is None:
            blocks = 1 if whole else 3
        if not widths or blocks < 0 or any(w < 1 or w % GROUPS for w in widths):
            raise UserError(
                f"encoder.widths={list(widths)} must be multiples of {GROUPS}, one for each level, "
                f"and encoder.blocks={blocks} 0 or more."
            )
        levels = len(widths) - 1
        if len(pool) not in ((levels, levels + 1) if whole else (levels,)) or any(
            n < 1 for n in pool
        ):
            raise UserError(
                f"encoder.pool={list(pool)} must have a number of edges for each step to the next "
                f"level, {levels} of them{' or one more' if whole else ''} with these widths."
            )
        self.needs = Needs.of(Edges())
        self.pool, self.blocks = list(pool), blocks
        self.look = nn.BatchNorm1d(5, eps=1e-8, affine=False)
        steps = list(itertools.pairwise([5, *widths]))
        self.ups = nn.ModuleList()
        if whole:
            self.downs = nn.ModuleList(Residual(i, o, blocks) for i, o in steps)
            self.last = nn.Sequential(nn.Linear(widths[-1], 100), nn.ReLU())
            self.channels = 100
            return
        self.downs = nn.ModuleList(Stage(i, o, blocks) for i, o in steps)
        back = itertools.pairwise(widths[::-1])
        self.ups.extend(Stage(i, o, blocks, up=True, skip=o) for i, o in back)
        self.channels = len(spec.parts) or widths[0]
        self.ups.append(Stage(widths[0], self.channels, blocks, up=True))

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        batch.need_faces("is made of the edges of meshes", "dgcnn")
        if "level" not in batch.cache:
            batch.cache["level"] = Level.of(batch)
        level: Level = batch.cache["level"]
        x = self.look(batch.ops.edge_shape)
        came: list[tuple[Level, Pooling, Tensor]] = []
        for stage, edges in itertools.zip_longest(self.downs, self.pool):
            x = stage(x, level)
            if edges is not None:
                pooling = collapsed(x, level, edges)
                came.append((level, pooling, x))
                x, level = pooling.pool(x), pooling.after
        if self.out == "whole":
            return Encoding(whole=self.last(level.mean(x)))
        for stage in self.ups:
            if came:
                level, pooling, skip = came.pop()
                x = stage(x, level, (pooling, skip))
            else:
                x = stage(x, level)
        if self.out == "edge":
            return Encoding(edge=x)
        if self.out == "face":
            return Encoding(face=x[batch.ops.face_edge].mean(1))
        ends = batch.ops.edge.flatten()
        count = torch.bincount(ends, minlength=len(batch.pos)).clamp(min=1)
        total = x.new_zeros(len(batch.pos), x.shape[1])
        total = total.index_add(0, ends, x.repeat_interleave(2, dim=0))
        return Encoding(vertex=total / count[:, None])

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The names of ranahanocka/MeshCNN, for ``init=``: the mean and deviation of the five
        numbers are in a file of its own there, and are found in training here."""
        if not any(".conv.weight" in key for key in state):
            return state
        names = {
            "encoder.convs.": "encoder.downs.",
            "decoder.up_convs.": "encoder.ups.",
            "decoder.final_conv.": f"encoder.ups.{len(self.ups) - 1}.",
            ".up_conv.": ".up.",
            ".conv1.": ".first.",
            ".conv2.": ".convs.",
            ".conv.": ".linear.",
        }
        if self.out == "whole":
            names = {".conv.": ".linear.", ".conv0.": ".first."}
            levels, blocks = range(len(self.downs)), range(self.blocks)
            names |= {f"conv{i}.": f"encoder.downs.{i}." for i in levels}
            names |= {f"norm{i}.": f"encoder.downs.{i}.norm." for i in levels}
            names |= {f".bn{j + 1}.": f".bns.{j}." for j in blocks}
            names |= {f".conv{j + 1}.": f".convs.{j}." for j in blocks}
            names |= {"fc1.": "encoder.last.0.", "fc2.": "head."}
        translated: dict[str, Tensor] = {}
        for key, value in state.items():
            for theirs, ours in names.items():
                if theirs[0] == "." or key.startswith(theirs):
                    key = key.replace(theirs, ours, 1)
            # (out in 1 5) -> (out 5 in): part by part.
            translated[key] = (
                value[:, :, 0].transpose(1, 2).flatten(1) if value.ndim == 4 else value
            )
        return translated
