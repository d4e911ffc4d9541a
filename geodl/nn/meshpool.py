"""Edges of meshes as rows: their neighbours, collapses in the order of their features, and back."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geodl.nn.rows import Bags, both_ways, product
from geodl.shape import ShapeBatch


@dataclass
class Mesh:
    """One mesh as plain lists, which single steps change faster than arrays.

    ring, side: see ``geodl.ops.edges.rings``, four of an edge after four of another | ends: two
    vertices of every edge | at: edges of every vertex
    """

    ring: list[int]
    side: list[int]
    ends: list[int]
    at: list[list[int]]

    def __len__(self) -> int:
        return len(self.ends) // 2

    @classmethod
    def of(cls, ring: Tensor, side: Tensor, ends: Tensor, vertices: int) -> Mesh:
        at: list[list[int]] = [[] for _ in range(vertices)]
        pairs: list[int] = ends.flatten().tolist()
        for i, v in enumerate(pairs):
            at[v].append(i // 2)
        return cls(ring.flatten().tolist(), side.flatten().tolist(), pairs, at)


class Level:
    """The edges of a batch of meshes, and what a convolution gathers."""

    def __init__(self, meshes: Sequence[Mesh], device: torch.device) -> None:
        self.meshes = meshes
        self.device = device
        self.sizes = [len(m) for m in meshes]
        self.total = sum(self.sizes)
        starts = itertools.accumulate(self.sizes, initial=0)
        rings = [torch.tensor(m.ring, dtype=torch.long) for m in meshes]
        ring = torch.cat([r.where(r < 0, r + s) for r, s in zip(rings, starts, strict=False)])
        ring = ring.to(device)
        place = torch.arange(len(ring), device=device)[ring >= 0]
        self.maps = both_ways(place, ring[ring >= 0], None, (4 * self.total, self.total))

    @classmethod
    def of(cls, batch: ShapeBatch) -> Level:
        """The edges of a batch's meshes as they are (need ``Edges``)."""
        names = ("edge_ring", "edge_side", "edge")
        ring, side, ends = ([x.long().cpu() for x in batch.rows(n)] for n in names)
        meshes = [Mesh.of(*x) for x in zip(ring, side, ends, batch.sizes, strict=True)]
        return cls(meshes, batch.pos.device)

    def around(self, x: Tensor) -> Tensor:
        """Features (e c) of an edge and symmetric ones of its neighbours (e 5c): sums and absolute
        differences over the two faces, which do not depend on their order (Hanocka et al., 3.3)."""
        a, b, c, d = product(x, *self.maps).view(self.total, 4, -1).unbind(1)
        return torch.cat([x, a + c, b + d, (a - c).abs(), (b - d).abs()], dim=1)

    def mean(self, x: Tensor) -> Tensor:
        """(e c) -> (b c)."""
        return torch.stack([part.mean(0) for part in x.split(self.sizes)])


@dataclass
class Pooling:
    """From a level to one with fewer edges, ``after``: means over the edges that became one, and
    the way back."""

    after: Level
    down: tuple[Bags, Bags]
    up: tuple[Bags, Bags]

    def pool(self, x: Tensor) -> Tensor:
        return product(x, *self.down)

    def unpool(self, x: Tensor) -> Tensor:
        """An edge that went gets a share of those that it went into, less than their mean: the
        authors divide by how often its features were passed on, counting edges that went later."""
        return product(x, *self.up)


def collapsed(x: Tensor, level: Level, edges: int) -> Pooling:
    """Collapse the edges with the smallest features (e c) until every mesh has ``edges`` or fewer,
    or nothing is left that may be collapsed."""
    costs = x.detach().float().square().sum(1).cpu().split(level.sizes)
    meshes: list[Mesh] = []
    rows: list[int] = []
    columns: list[int] = []
    passed: list[float] = []
    for mesh, cost in zip(level.meshes, costs, strict=True):
        collapse = _Collapse(mesh, edges)
        collapse.run(cost.tolist())
        first, start = sum(map(len, meshes)), len(passed)
        meshes.append(collapse.rest())
        for row, e in enumerate(collapse.kept(), first):
            group = sorted(collapse.groups.get(e, (e,)))
            rows += [row] * len(group)
            columns += [start + old for old in group]
        passed += collapse.passed()
    row, column = (torch.tensor(i, dtype=torch.long, device=level.device) for i in (rows, columns))
    after = Level(meshes, level.device)
    count = torch.bincount(row, minlength=after.total).float()
    down = both_ways(row, column, 1 / count[row], (after.total, level.total))
    order = torch.argsort(column, stable=True)
    share = 1 / torch.tensor(passed, device=level.device)[column]
    up = both_ways(column[order], row[order], share[order], (level.total, after.total))
    return Pooling(after, down, up)


class _Collapse:
    """The collapses of one mesh (Hanocka et al. 2019, 3.4, as in the authors' code).

    groups: the edges whose features an edge has; not there: its own | joins: what made them
    """

    def __init__(self, mesh: Mesh, target: int) -> None:
        self.ring, self.side = list(mesh.ring), list(mesh.side)
        self.at = [list(edges) for edges in mesh.at]
        self.ends = mesh.ends
        self.merged = list(range(len(mesh.at)))  # vertex -> the one that it became a part of
        self.left, self.target = len(mesh), target
        self.alive = [True] * self.left
        self.groups: dict[int, set[int]] = {}
        self.joins: list[tuple[int, int]] = []

    def run(self, cost: list[float]) -> None:
        """An edge that may not be collapsed at its turn is not tried again."""
        queue = [(c, e) for e, c in enumerate(cost)] if self.left > self.target else []
        heapq.heapify(queue)
        while queue and self.left > self.target:
            _, e = heapq.heappop(queue)
            if (
                self.alive[e]
                and not self._bounded(e)
                and self._clear(e, 0)
                and self._clear(e, 2)
                and self._simple(e)
            ):
                self._close(e, 0)
                self._close(e, 2)
                self._merge(e)

    def kept(self) -> list[int]:
        return [e for e, alive in enumerate(self.alive) if alive]

    def rest(self) -> Mesh:
        """The mesh that is left. The authors' code keeps the edges that ``_flatten`` takes away in
        ``at``, as edge 0, which forbids collapses around there later on: which ones depends on the
        first face of the file."""
        kept = self.kept()
        number = [0] * len(self.alive) + [-1]  # the last for -1
        for new, old in enumerate(kept):
            number[old] = new
        return Mesh(
            [number[n] for e in kept for n in self.ring[4 * e : 4 * e + 4]],
            [i for e in kept for i in self.side[4 * e : 4 * e + 4]],
            [v for e in kept for v in self._ends(e)],
            [[number[e] for e in edges if self.alive[e]] for edges in self.at],
        )

    def passed(self) -> list[float]:
        """How often the features of every edge were passed on, itself included."""
        total = [1.0] * len(self.alive)
        for source, into in reversed(self.joins):
            total[source] += total[into]
        return total

    def _vertex(self, v: int) -> int:
        while self.merged[v] != v:
            v = self.merged[v]
        return v

    def _ends(self, e: int) -> tuple[int, int]:
        return self._vertex(self.ends[2 * e]), self._vertex(self.ends[2 * e + 1])

    def _join(self, source: int, into: int) -> None:
        self.groups.setdefault(into, {into}).update(self.groups.get(source, (source,)))
        self.joins.append((source, into))

    def _link(self, i: int, j: int) -> None:
        """Two places in ``ring`` (four times the edge, plus the column) become neighbours."""
        self.ring[i], self.ring[j] = j // 4, i // 4
        self.side[i], self.side[j] = j % 4, i % 4

    def _facing(self, i: int) -> int:
        """The place that faces another one: where the neighbour at place i lists this edge."""
        return 4 * self.ring[i] + self.side[i]

    def _drop(self, *edges: int) -> None:
        for e in edges:
            self.alive[e] = False
        self.left -= len(edges)

    def _bounded(self, e: int) -> bool:
        around = self.ring[4 * e : 4 * e + 4]
        return -1 in around or any(-1 in self.ring[4 * n : 4 * n + 4] for n in around)

    def _beyond(self, i: int) -> int:
        """The first place of the neighbour at place i in its other face."""
        return 4 * self.ring[i] + 2 - (self.side[i] & 2)

    def _clear(self, e: int, half: int) -> bool:
        """Take the vertex opposite of an edge out as long as it has three edges only."""
        here = 4 * e + half
        while self.left > self.target:
            i, j = self._beyond(here), self._beyond(here + 1)
            both = set(self.ring[i : i + 2]) & set(self.ring[j : j + 2])
            if len(both) != 1 or e in both:  # more than one: two faces that lie on each other
                return not both
            self._flatten(here, i, j, both.pop())
            if self.left > self.target and self._bounded(e):
                return False
        return False

    def _flatten(self, here: int, i: int, j: int, m: int) -> None:
        """Three faces around a vertex become one; m is the third edge there."""
        e, a, b = here // 4, i // 4, j // 4
        x, y = (self._facing(n + (self.ring[n] == m)) for n in (i, j))
        self._link(here, x)
        self._link(here + 1, y)
        self._link(x ^ 1, y ^ 1)
        for source, into in ((a, e), (b, e), (a, x // 4), (m, x // 4), (b, y // 4), (m, y // 4)):
            self._join(source, into)
        self._drop(a, b, m)

    def _simple(self, e: int) -> bool:
        """Whether the ends have just the two opposite vertices in common."""
        ends = self._ends(e)
        v, w = ({n for i in self.at[end] for n in self._ends(i)} for end in ends)
        return len((v & w).difference(ends)) == 2

    def _close(self, e: int, half: int) -> None:
        """The two other edges of a face become the first of them."""
        here = 4 * e + half
        a, b = self.ring[here : here + 2]
        i, j = 4 * a + (self.side[here] & 2), self._beyond(here + 1)
        self._link(i, self._facing(j))
        self._link(i + 1, self._facing(j + 1))
        self._join(b, a)
        self._join(e, a)
        self._drop(b)
        for end in self._ends(b):
            self.at[end].remove(b)

    def _merge(self, e: int) -> None:
        v, w = self._ends(e)
        self.at[v].remove(e)
        self.at[w].remove(e)
        self.merged[w] = v
        self.at[v] += self.at[w]
        self._drop(e)
