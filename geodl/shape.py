"""The one tensor layout: Shape, its operators, and the packed batch.

A batch is packed: the vertices of all its shapes stand one after the other, (sum of v, c), and
``ptr`` (b+1) says where each begins. Matrices are block diagonal. What a field does when shapes are
packed is its ``Kind`` (see :mod:`geodl.spec`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geodl.spec import Kind


class Operators(Mapping[str, Tensor]):
    """Named tensors of a shape or a batch, each with the kind that says how it batches.

    Read as attributes or items: ``ops.mass`` (v), ``ops.lap`` (v v), ``ops.evals`` (k),
    ``ops.evecs`` (v k), ``ops.grad_x``, ``ops.grad_y`` (v v), ``ops.carry`` and whatever else a
    declared need or a data set adds.
    """

    def __init__(
        self, values: Mapping[str, Tensor] | None = None, kinds: Mapping[str, Kind] | None = None
    ) -> None:
        self.values_: dict[str, Tensor] = dict(values or {})
        self.kinds: dict[str, Kind] = dict(kinds or {})
        if self.values_.keys() != self.kinds.keys():
            raise ValueError(
                f"operators {sorted(self.values_)} and their kinds {sorted(self.kinds)} differ"
            )

    def __getitem__(self, name: str) -> Tensor:
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__") or name in ("values_", "kinds"):
            raise AttributeError(name)
        try:
            return self.values_[name]
        except KeyError:
            raise AttributeError(
                f"this shape has no operator {name!r}, it has {sorted(self.values_)}"
            ) from None

    def added(self, values: Mapping[str, Tensor], kinds: Mapping[str, Kind]) -> Operators:
        """A copy with more entries."""
        return Operators({**self.values_, **values}, {**self.kinds, **kinds})

    def only(self, *names: str) -> Operators:
        """A copy with those of the named entries that are there."""
        kept = {k: v for k, v in self.values_.items() if k in names}
        return Operators(kept, {k: self.kinds[k] for k in kept})

    def map(self, function: Callable[[Tensor], Tensor]) -> Operators:
        return Operators({k: function(v) for k, v in self.values_.items()}, self.kinds)


def _no_faces() -> Tensor:
    return torch.empty((0, 3), dtype=torch.long)


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
    return torch.sparse_coo_tensor(
        torch.cat(indices, dim=1),
        torch.cat(values),
        (rows, cols),
        is_coalesced=True,
        check_invariants=False,
    )


def _pack(kind: Kind, values: list[Tensor], vertices: list[int]) -> Tensor:
    if kind == "row":
        return torch.cat(values)
    if kind == "shape":
        return torch.stack(values)
    if kind == "matrix":
        return block_diagonal(values)
    return torch.cat([v + o for v, o in zip(values, vertices, strict=True)])


@dataclass
class ShapeBatch:
    """Several shapes, packed. Fields as in :class:`Shape`, plus ``ptr`` (b+1) and its siblings.

    ``cache`` keeps what is derived from the batch once and used in several layers (padded
    eigenvectors, compressed gradients); it does not travel to another device.
    """

    pos: Tensor
    face: Tensor
    ptr: Tensor
    sizes: list[int]
    face_sizes: list[int]
    label_sizes: list[int]
    row_sizes: dict[str, list[int]]
    normal: Tensor | None
    ops: Operators
    label: Tensor | None
    category: Tensor | None
    landmark: Tensor | None
    landmark_sizes: list[int]
    names: list[str]
    cache: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def pack(shapes: Sequence[Shape]) -> ShapeBatch:
        """Pack shapes; every one must have the same fields.

        Raises:
            ValueError: a field is present in some shapes only.
        """
        if not shapes:
            raise ValueError("an empty list cannot be packed")
        sizes = [s.pos.shape[0] for s in shapes]
        face_sizes = [s.face.shape[0] for s in shapes]
        ptr = torch.zeros(len(shapes) + 1, dtype=torch.long)
        ptr[1:] = torch.cumsum(torch.tensor(sizes), 0)
        vertices = ptr[:-1].tolist()

        def gather(name: str, kind: Kind) -> Tensor | None:
            values = [getattr(s, name) for s in shapes]
            present = [v for v in values if v is not None]
            if not present:
                return None
            if len(present) < len(values):
                missing = [s.name for s, v in zip(shapes, values, strict=True) if v is None]
                raise ValueError(f"{name} is missing in {missing} but not in the others")
            return _pack(kind, present, vertices)

        kinds = shapes[0].ops.kinds
        for shape in shapes[1:]:
            if shape.ops.kinds != kinds:
                raise ValueError(
                    f"operators of {shapes[0].name!r} {sorted(kinds)} and {shape.name!r} "
                    f"{sorted(shape.ops.kinds)} differ"
                )
        values = {n: _pack(kind, [s.ops[n] for s in shapes], vertices) for n, kind in kinds.items()}
        rows = {
            n: [s.ops[n].shape[0] for s in shapes]
            for n, kind in kinds.items()
            if kind in ("row", "index")
        }
        pos = torch.cat([s.pos for s in shapes])
        face = torch.cat([s.face + v for s, v in zip(shapes, vertices, strict=True)])
        return ShapeBatch(
            pos=pos,
            face=face,
            ptr=ptr,
            sizes=sizes,
            face_sizes=face_sizes,
            label_sizes=[0 if s.label is None else s.label.shape[0] for s in shapes],
            row_sizes=rows,
            normal=gather("normal", "row"),
            ops=Operators(values, kinds),
            label=gather("label", "row"),
            category=gather("category", "shape"),
            landmark=gather("landmark", "index"),
            landmark_sizes=[0 if s.landmark is None else s.landmark.shape[0] for s in shapes],
            names=[s.name for s in shapes],
        )

    def unpack(self) -> list[Shape]:
        """The shapes that were packed."""
        shapes: list[Shape] = []
        vertex = face = label = mark = 0
        rows = dict.fromkeys(self.row_sizes, 0)
        for i, (v, f) in enumerate(zip(self.sizes, self.face_sizes, strict=True)):
            ops: dict[str, Tensor] = {}
            for name, kind in self.ops.kinds.items():
                value = self.ops[name]
                if kind == "shape":
                    ops[name] = value[i]
                elif kind == "matrix":
                    ops[name] = _block(value, vertex, v)
                else:
                    n = self.row_sizes[name][i]
                    part = value[rows[name] : rows[name] + n]
                    rows[name] += n
                    ops[name] = part - vertex if kind == "index" else part
            n, t = self.label_sizes[i], self.landmark_sizes[i]
            shapes.append(
                Shape(
                    pos=self.pos[vertex : vertex + v],
                    face=self.face[face : face + f] - vertex,
                    normal=None if self.normal is None else self.normal[vertex : vertex + v],
                    ops=Operators(ops, self.ops.kinds),
                    label=None if self.label is None else self.label[label : label + n],
                    category=None if self.category is None else self.category[i],
                    landmark=None
                    if self.landmark is None
                    else self.landmark[mark : mark + t] - vertex,
                    name=self.names[i],
                )
            )
            vertex, face, label, mark = vertex + v, face + f, label + n, mark + t
        return shapes

    def __len__(self) -> int:
        return len(self.sizes)

    def _map(self, function: Callable[[Tensor], Tensor]) -> ShapeBatch:
        def optional(x: Tensor | None) -> Tensor | None:
            return None if x is None else function(x)

        return replace(
            self,
            pos=function(self.pos),
            face=function(self.face),
            ptr=function(self.ptr),
            normal=optional(self.normal),
            ops=self.ops.map(function),
            label=optional(self.label),
            category=optional(self.category),
            landmark=optional(self.landmark),
            cache={},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ShapeBatch:
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ShapeBatch:
        return self._map(lambda x: x if x.is_sparse else x.pin_memory())

    def rotated(self, rotation: Tensor) -> ShapeBatch:
        """The batch turned by one rotation (3 3); operators are intrinsic and stay."""
        rotation = rotation.to(self.pos)
        normal = None if self.normal is None else self.normal @ rotation.T
        return replace(self, pos=self.pos @ rotation.T, normal=normal)

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
            return self.dense(x).max(1).values
        return torch.stack([p.max(0).values for p in x.split(self.sizes)])

    def spread(self, whole: Float[Tensor, "b c"]) -> Float[Tensor, "n c"]:
        """One row per shape -> one row per vertex."""
        return whole.repeat_interleave(self._lengths(), dim=0, output_size=self.pos.shape[0])


def _block(matrix: Tensor, start: int, size: int) -> Tensor:
    matrix = matrix.coalesce()
    rows = matrix.indices()[0]
    keep = (rows >= start) & (rows < start + size)
    return torch.sparse_coo_tensor(
        matrix.indices()[:, keep] - start,
        matrix.values()[keep],
        (size, size),
        is_coalesced=True,
        check_invariants=False,
    )


@dataclass
class PairBatch:
    """Two batches that belong together: source and target (matching), input and target."""

    source: ShapeBatch
    target: ShapeBatch

    @staticmethod
    def pack(pairs: Sequence[tuple[Shape, Shape]]) -> PairBatch:
        """Pack the sources and the targets of pairs."""
        return PairBatch(
            ShapeBatch.pack([a for a, _ in pairs]), ShapeBatch.pack([b for _, b in pairs])
        )

    @property
    def names(self) -> list[str]:
        both = zip(self.source.names, self.target.names, strict=True)
        return [f"{a}-{b}" for a, b in both]

    def unpack(self) -> list[tuple[Shape, Shape]]:
        """The pairs that were packed."""
        return list(zip(self.source.unpack(), self.target.unpack(), strict=True))

    def __len__(self) -> int:
        return len(self.source)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairBatch:
        return PairBatch(self.source.to(device, non_blocking), self.target.to(device, non_blocking))

    def pin_memory(self) -> PairBatch:
        return PairBatch(self.source.pin_memory(), self.target.pin_memory())
