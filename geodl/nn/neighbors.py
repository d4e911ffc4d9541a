"""Neighbourhoods in the step: plain torch, on any device; deterministic (``means`` on CPUs).

Rows are packed: those of all shapes of a batch one after the other, ``sizes`` says how many each
has. Results are numbers of rows of the packed tensor. Pairwise values are computed shape by shape
and in blocks, so memory stays linear in the rows (:data:`BLOCK` entries beside the result), except
where a docstring says otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from geodl.shape import Operators, ShapeBatch

BLOCK = 2**18  # entries of a block of pairwise values: 1 MB in single precision, fits in a cache


def nearest(points: Tensor, among: Tensor) -> Tensor:
    """For every point (n c) the number (n) of the nearest row of ``among`` (m c).
    ``geodl.ops.neighbors.nearest`` is the same in double precision, for few columns."""
    with torch.autocast(points.device.type, enabled=False):  # eight bits order no neighbours
        points, among = points.float(), among.float()
        half = 0.5 * among.square().sum(1)
        parts = _blocks(points, len(among))
        return torch.cat([(half - part @ among.T).argmin(1) for part in parts])


def knn(
    points: Tensor,
    sizes: Sequence[int],
    k: int,
    among: Tensor | None = None,
    others: Sequence[int] | None = None,
) -> Tensor:
    """The k nearest rows (n k), nearest first, of every point (n c) among those of its own shape:
    the points themselves, or ``among`` (m c) with ``others`` rows per shape. A shape with fewer
    than k begins again with the nearest."""
    if among is None or others is None:
        among, others = points, sizes
    found: list[Tensor] = []
    for some, rows, start in _pairs(points, sizes, among, others):
        least = min(k, len(rows))
        for gap in _gaps(some, rows):
            index = gap.topk(least, dim=1, largest=False).indices + start
            found.append(index if least == k else index.repeat(1, -(-k // least))[:, :k])
    return torch.cat(found)


def ball(
    points: Tensor,
    sizes: Sequence[int],
    radius: float,
    k: int,
    among: Tensor,
    others: Sequence[int],
) -> Tensor:
    """The first k rows (n k) of ``among`` (m 3) within ``radius`` of every point (n 3), in their
    own order, and the first of them again where there are fewer (PointNet++'s ball query). A point
    that has none gets the nearest row."""
    found: list[Tensor] = []
    column = torch.arange(k, device=points.device)
    for some, rows, start in _pairs(points, sizes, among, others):
        for gap in _gaps(some, rows):
            inside = gap <= radius**2 / 2
            empty = ~inside.any(1)
            if empty.any():
                inside[empty, gap[empty].argmin(1)] = True
            index = inside.nonzero()[:, 1] + start
            count = inside.sum(1)[:, None]
            place = count.cumsum(0) - count
            found.append(index[place + column * (column < count)])
    return torch.cat(found)


def within(
    points: Tensor,
    sizes: Sequence[int],
    radius: float,
    k: int,
    among: Tensor,
    others: Sequence[int],
) -> Tensor:
    """The rows (n k) of ``among`` (m 3) nearer than ``radius`` to every point (n 3), nearest first,
    at most k; -1 where there are fewer. The last columns may be all -1 and are left out."""
    found: list[Tensor] = []
    for some, rows, start in _pairs(points, sizes, among, others):
        least = min(k, len(rows))
        for gap in _gaps(some, rows):
            gap, index = gap.topk(least, dim=1, largest=False)
            index = torch.where(gap < radius**2 / 2, index + start, -1)
            found.append(F.pad(index, (0, k - least), value=-1))
    index = torch.cat(found)
    return index[:, : max(1, int((index >= 0).sum(1).max()))]


def farthest(pos: Tensor, sizes: Sequence[int], m: int | Sequence[int]) -> tuple[Tensor, list[int]]:
    """Farthest point sampling: m rows of every shape (all of them where it has fewer), beginning
    with its first; their numbers, and how many each shape gave."""
    device, b = pos.device, len(sizes)
    wanted = [m] * b if isinstance(m, int) else m
    counts = [min(i, n) for i, n in zip(wanted, sizes, strict=True)]
    longest, steps = max(sizes), max(counts)
    start = torch.tensor([0, *itertools.accumulate(sizes)], device=device)[:b]
    # One plane per coordinate: a step is a few long additions.
    planes = pos.detach().new_zeros(3, b, longest)
    gap = pos.new_full((b, longest), torch.inf)
    for i, part in enumerate(pos.detach().split(list(sizes))):
        planes[:, i, : len(part)] = part.T
        gap[i, len(part) :] = -1
    chosen = torch.zeros((b, steps), dtype=torch.long, device=device)
    work = torch.empty_like(planes)
    last = chosen[:, :1]
    for step in range(1, steps):
        torch.sub(planes, planes.gather(2, last.expand(3, b, 1)), out=work).square_()
        torch.minimum(gap, work[0].add_(work[1]).add_(work[2]), out=gap)
        last = _argmax(gap)
        chosen[:, step : step + 1] = last
    rows = [chosen[i, :n] + start[i] for i, n in enumerate(counts)]
    return torch.cat(rows), counts


def _argmax(x: Tensor) -> Tensor:
    """(b 1): the first largest of each row. numpy's is several times as fast on a processor."""
    if x.device.type == "cpu":
        return torch.from_numpy(x.numpy().argmax(1, keepdims=True))
    return x.argmax(1, keepdim=True)


def owners(sizes: Sequence[int], device: torch.device) -> Tensor:
    """The number of the shape that every row belongs to."""
    lengths = torch.tensor(list(sizes), device=device)
    return torch.arange(len(sizes), device=device).repeat_interleave(lengths)


def edges(face: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Both ends (e) of the edges of faces (f 3) among n vertices, in both directions, by the
    first."""
    pairs = torch.cat([face[:, [0, 1]], face[:, [1, 2]], face[:, [2, 0]]])
    pairs = torch.cat([pairs, pairs.flip(1)])
    key = torch.unique(pairs[:, 0] * n + pairs[:, 1])
    return key // n, key % n


def cells(pos: Tensor, sizes: Sequence[int], size: float) -> tuple[Tensor, list[int]]:
    """Grid sampling: the number (n) of the occupied cell of width ``size`` in which every point
    lies, counted from 0 through all shapes, and how many cells each shape has."""
    place = torch.floor(pos.detach() / size).long()
    keys = torch.cat([owners(sizes, pos.device)[:, None], place], dim=1)
    found, cell = torch.unique(keys, dim=0, return_inverse=True)
    return cell, torch.bincount(found[:, 0], minlength=len(sizes)).tolist()


def means(x: Tensor, cell: Tensor, count: int) -> Tensor:
    """Mean (count c) of the rows (n c) of every cell."""
    total = x.new_zeros(count, x.shape[1]).index_add(0, cell, x)
    return total / torch.bincount(cell, minlength=count)[:, None].to(x)


def interpolated(
    x: Tensor, coarse: ShapeBatch, fine: ShapeBatch, k: int = 3, power: int = 2
) -> Tensor:
    """Features (m c) of the coarse cloud at the points of the fine one (n c): mean of the k
    nearest, weighted by one over a power of the distance (PointNet++, eq. 2: 2)."""
    index = knn(fine.pos, fine.sizes, k, coarse.pos, coarse.sizes)
    gap = (coarse.pos[index] - fine.pos[:, None]).square().sum(2)
    weight = 1 / (gap ** (power / 2) + 1e-8)
    weight = weight / weight.sum(1, keepdim=True)
    return (x[index] * weight[:, :, None]).sum(1)


def cloud(batch: ShapeBatch, pos: Tensor, sizes: list[int]) -> ShapeBatch:
    """A batch of coarser clouds in place of the shapes: positions (m 3), so many of each."""
    return ShapeBatch(
        pos=pos,
        face=batch.face.new_empty((0, 3)),
        ptr=torch.tensor([0, *itertools.accumulate(sizes)], device=pos.device),
        counts={"vertex": sizes, "face": [0] * len(sizes)},
        normal=None,
        ops=Operators(),
        label=None,
        category=batch.category,
        landmark=None,
        names=batch.names,
    )


def _blocks(points: Tensor, columns: int) -> tuple[Tensor, ...]:
    return points.split(max(1, BLOCK // max(1, columns)))


def _pairs(
    points: Tensor, sizes: Sequence[int], among: Tensor, others: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Shape by shape: its points, its rows, both from the first row on, and where these begin."""
    starts = itertools.accumulate(others, initial=0)
    parts = points.detach().float().split(list(sizes)), among.detach().float().split(list(others))
    for some, rows, start in zip(*parts, starts, strict=False):
        yield some - rows[:1], rows - rows[:1], start


def _gaps(points: Tensor, rows: Tensor) -> Iterator[Tensor]:
    """Half the squared distances of points (n c) to rows (m c), in blocks; in single precision
    whatever a layer computes in, since eight bits order no neighbours."""
    with torch.autocast(points.device.type, enabled=False):
        half = 0.5 * rows.square().sum(1)
        for part in _blocks(points, len(rows)):
            own = 0.5 * part.square().sum(1, keepdim=True)
            yield torch.addmm(half, part, rows.T, alpha=-1) + own
