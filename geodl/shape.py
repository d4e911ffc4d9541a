"""The one tensor layout: Shape, its operators, and the packed batch.

A batch is packed: the vertices of all its shapes stand one after the other, (sum of v, c), and
``ptr`` (b+1) says where each begins. Matrices are block diagonal. What a tensor does when shapes
are packed, turned or scaled, or get another mesh, is its :class:`geodl.spec.Field`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geodl.errors import UserError
from geodl.spec import Field


class Operators(Mapping[str, Tensor]):
    """Named tensors of a shape or a batch, each with its field.

    Read as attributes or items: ``ops.mass`` (v), ``ops.lap`` (v v), ``ops.evals`` (k),
    ``ops.evecs`` (v k), ``ops.grad_x``, ``ops.grad_y`` (v v), ``ops.carry`` and whatever else a
    declared need or a data set adds.
    """

    def __init__(
        self, values: Mapping[str, Tensor] | None = None, fields: Mapping[str, Field] | None = None
    ) -> None:
        self.values_: dict[str, Tensor] = dict(values or {})
        self.fields: dict[str, Field] = dict(fields or {})
        if self.values_.keys() != self.fields.keys():
            raise ValueError(
                f"operators {sorted(self.values_)} and their fields {sorted(self.fields)} differ"
            )

    def __getitem__(self, name: str) -> Tensor:
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__") or name in ("values_", "fields"):
            raise AttributeError(name)
        try:
            return self.values_[name]
        except KeyError:
            raise AttributeError(
                f"this shape has no operator {name!r}, it has {sorted(self.values_)}"
            ) from None

    def added(self, values: Mapping[str, Tensor], fields: Mapping[str, Field]) -> Operators:
        """A copy with more entries."""
        return Operators({**self.values_, **values}, {**self.fields, **fields})

    def without(self, *sets: str) -> Operators:
        """A copy without the entries that lie on, or point into, one of the element sets."""
        kept = {k: f for k, f in self.fields.items() if not set(f.sets) & set(sets)}
        return Operators({k: self.values_[k] for k in kept}, kept)

    def map(self, function: Callable[[Tensor, Field], Tensor]) -> Operators:
        changed = {k: function(v, self.fields[k]) for k, v in self.values_.items()}
        return Operators(changed, self.fields)


def _no_faces() -> Tensor:
    return torch.empty((0, 3), dtype=torch.long)


# Every shape's own tensors; what else it has is in ``ops``.
FIELDS = {
    "pos": Field(turns=True, scale=1),
    "face": Field("face", "index", into="vertex"),
    "normal": Field(turns=True),
    "label": Field("label"),
    "category": Field("whole", "whole"),
    "landmark": Field("landmark", "index", into="vertex"),
}


@dataclass
class Shape:
    """A mesh, or a point cloud (no faces).

    pos (v 3) | face (f 3) | normal (v 3) | ops | label: one integer per element (vertex, edge or
    face, as ``DataSpec.label_on`` says) | category: class of the shape | landmark (t): template
    point -> vertex | name
    """

    pos: Tensor
    face: Tensor = field(default_factory=_no_faces)
    normal: Tensor | None = None
    ops: Operators = field(default_factory=Operators)
    label: Tensor | None = None
    category: Tensor | None = None
    landmark: Tensor | None = None
    name: str = ""

    @property
    def is_cloud(self) -> bool:
        return self.face.shape[0] == 0

    def replace(self, **changes: Any) -> Shape:
        return replace(self, **changes)

    def tensors(self) -> Iterator[tuple[str, Field, Tensor]]:
        """Name, field and value of everything that it has."""
        for name, f in FIELDS.items():
            if (value := getattr(self, name)) is not None:
                yield name, f, value
        for name, f in self.ops.fields.items():
            yield name, f, self.ops[name]

    def map(self, function: Callable[[Tensor, Field], Tensor]) -> Shape:
        """The shape with every tensor changed by its field."""
        own = {
            n: None if (x := getattr(self, n)) is None else function(x, f)
            for n, f in FIELDS.items()
        }
        return replace(self, **own, ops=self.ops.map(function))

    def turned(self, rotation: Tensor) -> Shape:
        """Turned by a rotation (3 3). Operators are intrinsic (gradients live in the tangent
        frames, which turn along) and stay."""
        return self.map(lambda x, f: x @ rotation.T if f.turns else x)

    def scaled(self, s: float) -> Shape:
        """Scaled by a factor; operators are rescaled exactly."""
        return self.map(lambda x, f: x * s**f.scale if f.scale else x)

    def sizes(self) -> dict[str, int]:
        """Element set -> how many it has, from the fields that lie on it.

        Raises:
            ValueError: two fields disagree.
        """
        found: dict[str, int] = {}
        for name, f, value in self.tensors():
            known = [(f.on, value.shape[0])] if f.kind != "whole" else []
            if f.kind == "matrix":
                known.append((cast(str, f.into), value.shape[1]))
            for on, count in known:
                if found.setdefault(on, count) != count:
                    raise ValueError(
                        f"{self.name}: {name} has {count} rows for {found[on]} elements {on!r}"
                    )
        for name, f, _ in self.tensors():
            if lacking := set(f.sets) - found.keys() - {"whole"}:
                raise ValueError(f"{self.name}: {name} points into {lacking}, but there are none")
        return found


def block_diagonal(matrices: Sequence[Tensor]) -> Tensor:
    """Coalesced sparse COO matrices (r_i c_i) -> one coalesced COO matrix (sum r_i, sum c_i)."""
    indices, values = [], []
    rows = cols = 0
    for matrix in matrices:
        offset = torch.tensor([[rows], [cols]], device=matrix.device)
        indices.append(matrix.indices() + offset)
        values.append(matrix.values())
        rows += matrix.shape[0]
        cols += matrix.shape[1]
    return _sparse(torch.cat(indices, dim=1), torch.cat(values), (rows, cols))


def _sparse(index: Tensor, value: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(index, value, size, is_coalesced=True, check_invariants=False)


def _shifted(index: Tensor, f: Field, start: Mapping[str, int], sign: int) -> Tensor:
    """Indices moved by where their sets begin in the batch; negative ones stay."""
    if isinstance(f.into, str):
        by: Any = sign * start[f.into]
    else:
        by = torch.tensor([sign * start[name] for name in f.into], device=index.device)
    return torch.where(index < 0, index, index + by)


def _starts(counts: Mapping[str, Sequence[int]]) -> Iterator[dict[str, int]]:
    """Where every set begins, shape by shape."""
    sums = {name: [0, *itertools.accumulate(n)] for name, n in counts.items()}
    for i in range(len(counts["vertex"])):
        yield {name: total[i] for name, total in sums.items()}


def _pack(f: Field, values: list[Tensor], starts: Sequence[Mapping[str, int]]) -> Tensor:
    if f.kind == "row":
        return torch.cat(values)
    if f.kind == "whole":
        return torch.stack(values)
    if f.kind == "matrix":
        return block_diagonal(values)
    return torch.cat([_shifted(v, f, s, 1) for v, s in zip(values, starts, strict=True)])


def _joined(f: Field, values: list[Tensor], starts: Sequence[Mapping[str, int]]) -> Tensor:
    """``_pack`` of what is packed already."""
    return torch.cat(values) if f.kind == "whole" else _pack(f, values, starts)


@dataclass
class ShapeBatch:
    """Several shapes, packed. Fields as in :class:`Shape`, plus ``ptr`` (b+1), where the vertices
    of each begin, and ``counts``: element set -> how many each shape has.

    ``cache`` keeps what is derived from the batch once and used in several layers (padded
    eigenvectors, compressed gradients); it does not travel to another device.
    """

    pos: Tensor
    face: Tensor
    ptr: Tensor
    counts: dict[str, list[int]]
    normal: Tensor | None
    ops: Operators
    label: Tensor | None
    category: Tensor | None
    landmark: Tensor | None
    names: list[str]
    cache: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def pack(shapes: Sequence[Shape]) -> ShapeBatch:
        """Pack shapes; every one must have the same fields.

        Raises:
            ValueError: a field is present in some shapes only, or has the wrong number of rows.
        """
        if not shapes:
            raise ValueError("an empty list cannot be packed")
        fields = shapes[0].ops.fields
        for shape in shapes[1:]:
            if shape.ops.fields != fields:
                raise ValueError(
                    f"operators of {shapes[0].name!r} {sorted(fields)} and {shape.name!r} "
                    f"{sorted(shape.ops.fields)} differ"
                )
        sizes = [s.sizes() for s in shapes]
        sets = dict.fromkeys(name for size in sizes for name in size)
        counts = {name: [size.get(name, 0) for size in sizes] for name in sets}
        starts = list(_starts(counts))

        def gather(name: str) -> Tensor | None:
            values = [getattr(s, name) for s in shapes]
            present = [v for v in values if v is not None]
            if not present:
                return None
            if len(present) < len(values):
                missing = [s.name for s, v in zip(shapes, values, strict=True) if v is None]
                raise ValueError(f"{name} is missing in {missing} but not in the others")
            return _pack(FIELDS[name], present, starts)

        ops = {n: _pack(f, [s.ops[n] for s in shapes], starts) for n, f in fields.items()}
        return ShapeBatch(
            **cast("dict[str, Any]", {name: gather(name) for name in FIELDS}),
            ptr=torch.tensor([*(s["vertex"] for s in starts), sum(counts["vertex"])]),
            counts=counts,
            ops=Operators(ops, fields),
            names=[s.name for s in shapes],
        )

    @staticmethod
    def join(*batches: ShapeBatch) -> ShapeBatch:
        """One batch of the shapes of several, which have the same fields, in their order."""
        counts = {k: [n for b in batches for n in b.counts[k]] for k in batches[0].counts}
        totals = {k: [sum(b.counts[k]) for b in batches] for k in counts}
        starts = list(_starts(totals))

        def gather(name: str) -> Tensor | None:
            found = [x for b in batches if (x := getattr(b, name)) is not None]
            return _joined(FIELDS[name], found, starts) if len(found) == len(batches) else None

        fields = batches[0].ops.fields
        ops = {n: _joined(f, [b.ops[n] for b in batches], starts) for n, f in fields.items()}
        ptr = [b.ptr[:-1] + start["vertex"] for b, start in zip(batches, starts, strict=True)]
        return ShapeBatch(
            **cast("dict[str, Any]", {name: gather(name) for name in FIELDS}),
            ptr=torch.cat([*ptr, batches[-1].ptr[-1:] + starts[-1]["vertex"]]),
            counts=counts,
            ops=Operators(ops, fields),
            names=[name for b in batches for name in b.names],
        )

    def unpack(self) -> list[Shape]:
        """The shapes that were packed."""
        shapes: list[Shape] = []
        for i, start in enumerate(_starts(self.counts)):

            def part(x: Tensor, f: Field, i: int = i, start: dict[str, int] = start) -> Tensor:
                if f.kind == "whole":
                    return x[i]
                rows = slice(start[f.on], start[f.on] + self.counts[f.on][i])
                if f.kind == "matrix":
                    into = cast(str, f.into)
                    return _block(x, rows, start[into], self.counts[into][i])
                return _shifted(x[rows], f, start, -1) if f.kind == "index" else x[rows]

            own: dict[str, Any] = {
                name: None if (x := getattr(self, name)) is None else part(x, f)
                for name, f in FIELDS.items()
            }
            shapes.append(Shape(**own, ops=self.ops.map(part), name=self.names[i]))
        return shapes

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> list[int]:
        """Vertices of every shape."""
        return self.counts["vertex"]

    def need_faces(self, why: str, instead: str) -> None:
        """Raises UserError where a shape is a point cloud."""
        if 0 in (faces := self.counts["face"]):
            raise UserError(
                f"{self.names[faces.index(0)]} is a point cloud, but this encoder {why}: give "
                f"meshes, or take encoder={instead}."
            )

    def rows(self, name: str) -> list[Tensor]:
        """One of the operators, shape by shape; indices count from the shape's own elements."""
        f = self.ops.fields[name]
        parts = self.ops[name].split(self.counts[f.on])
        if f.kind != "index":
            return list(parts)
        return [_shifted(p, f, s, -1) for p, s in zip(parts, _starts(self.counts), strict=True)]

    def map(self, function: Callable[[Tensor, Field], Tensor]) -> ShapeBatch:
        """The batch with every tensor of its shapes changed by its field."""
        own = {
            n: None if (x := getattr(self, n)) is None else function(x, f)
            for n, f in FIELDS.items()
        }
        return replace(self, **own, ops=self.ops.map(function))

    def _moved(self, function: Callable[[Tensor], Tensor]) -> ShapeBatch:
        return replace(self.map(lambda x, _: function(x)), ptr=function(self.ptr), cache={})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ShapeBatch:
        return self._moved(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ShapeBatch:
        return self._moved(lambda x: x if x.is_sparse else x.pin_memory())

    def rotated(self, rotation: Tensor) -> ShapeBatch:
        """The batch turned by one rotation (3 3); operators are intrinsic and stay."""
        rotation = rotation.to(self.pos)
        return self.map(lambda x, f: x @ rotation.T if f.turns else x)

    # ---- per-shape views and reductions over packed rows (sum of v, c) ----

    @property
    def equal_sizes(self) -> bool:
        return len(set(self.sizes)) == 1

    def dense(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "b v c"]:
        """A view (b v c) of packed rows.

        Raises:
            ValueError: shapes differ in size (use ``padded``).
        """
        if not self.equal_sizes:
            raise ValueError(f"shapes of sizes {sorted(set(self.sizes))} have no dense view")
        return x.view(len(self), self.sizes[0], *x.shape[1:])

    def padded(self, x: Float[Tensor, "n c"]) -> tuple[Tensor, Tensor]:
        """(b vmax c) with zeros behind each shape's rows, and the mask (b vmax) of real rows."""
        b, longest = len(self), max(self.sizes)
        if self.equal_sizes:
            return self.dense(x), x.new_ones((b, longest), dtype=torch.bool)
        slot = self._slots()
        out = x.new_zeros((b * longest, *x.shape[1:])).index_copy(0, slot, x)
        mask = x.new_zeros(b * longest, dtype=torch.bool)
        mask[slot] = True
        return out.view(b, longest, *x.shape[1:]), mask.view(b, longest)

    def unpadded(self, x: Float[Tensor, "b vmax c"]) -> Float[Tensor, "n c"]:
        """The inverse of ``padded``."""
        flat = x.reshape(-1, *x.shape[2:])
        return flat if self.equal_sizes else flat.index_select(0, self._slots())

    def _slots(self) -> Int[Tensor, " n"]:
        """Row of every vertex in the padded layout."""
        if "slots" not in self.cache:
            longest = max(self.sizes)
            shift = torch.tensor(
                [i * longest - start for i, start in enumerate(self.ptr[:-1].tolist())],
                device=self.pos.device,
            )
            rows = torch.arange(self.pos.shape[0], device=self.pos.device)
            self.cache["slots"] = rows + shift.repeat_interleave(self._lengths())
        return self.cache["slots"]

    def _lengths(self) -> Int[Tensor, " b"]:
        return self.ptr[1:] - self.ptr[:-1]

    def mean(self, x: Float[Tensor, "n c"], weight: Tensor | None = None) -> Float[Tensor, "b c"]:
        """Mean over each shape, weighted by ``weight`` (n) if given (vertex areas, usually)."""
        parts = x.split(self.sizes)
        if weight is None:
            return torch.stack([p.mean(0) for p in parts])
        return torch.stack(
            [w @ p / w.sum() for p, w in zip(parts, weight.split(self.sizes), strict=True)]
        )

    def max(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "b c"]:
        """Largest value per channel over each shape."""
        if self.equal_sizes:
            return _largest(self.dense(x))
        return torch.cat([_largest(p[None]) for p in x.split(self.sizes)])

    def spread(self, whole: Float[Tensor, "b c"]) -> Float[Tensor, "n c"]:
        """One row per shape -> one row per vertex."""
        return whole.repeat_interleave(self._lengths(), dim=0, output_size=self.pos.shape[0])


def _largest(x: Tensor) -> Tensor:
    """Maximum (b c) over the rows of (b n c). torch's own is slow on a CPU where it must remember
    the rows for the gradient (a quarter of PointNet's step): so first 32 rows, then one of them."""
    step, n = 32, x.shape[1]
    if x.device.type != "cpu" or n < 8 * step:
        return x.max(1).values
    with torch.no_grad():
        whole = n // step * step
        tops = x[:, :whole].unflatten(1, (-1, step)).amax(2)
        if whole < n:
            tops = torch.cat([tops, x[:, whole:].amax(1, keepdim=True)], dim=1)
        first = step * tops.max(1, keepdim=True).indices
        rows = (first + torch.arange(step)[:, None]).clamp(max=n - 1)
        row = rows.gather(1, x.gather(1, rows).max(1, keepdim=True).indices)
    return x.gather(1, row)[:, 0]


def _block(matrix: Tensor, rows: slice, column: int, columns: int) -> Tensor:
    matrix = matrix.coalesce()
    index = matrix.indices()
    keep = (index[0] >= rows.start) & (index[0] < rows.stop)
    shift = torch.tensor([[rows.start], [column]], device=matrix.device)
    return _sparse(index[:, keep] - shift, matrix.values()[keep], (rows.stop - rows.start, columns))


class GroupBatch:
    """Batches that belong together, by name: source and target of a map, ... Read as attributes.

    The n-th shapes of all members are one group.
    """

    def __init__(self, **members: ShapeBatch) -> None:
        self.members = members

    def __getattr__(self, name: str) -> ShapeBatch:
        if name == "members" or name not in self.members:
            raise AttributeError(name)
        return self.members[name]

    @staticmethod
    def pack(groups: Sequence[Mapping[str, Shape]]) -> GroupBatch:
        """Pack the members of the groups, name by name."""
        return GroupBatch(**{n: ShapeBatch.pack([g[n] for g in groups]) for n in groups[0]})

    @property
    def names(self) -> list[str]:
        return [
            "-".join(group) for group in zip(*(m.names for m in self.members.values()), strict=True)
        ]

    def unpack(self) -> list[tuple[Shape, ...]]:
        """The groups that were packed, each in the order of the names."""
        return list(zip(*(m.unpack() for m in self.members.values()), strict=True))

    def __len__(self) -> int:
        return len(next(iter(self.members.values())))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GroupBatch:
        return GroupBatch(**{n: m.to(device, non_blocking) for n, m in self.members.items()})

    def pin_memory(self) -> GroupBatch:
        return GroupBatch(**{n: m.pin_memory() for n, m in self.members.items()})
