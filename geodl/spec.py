"""What parts of geodl tell each other: needs (encoder -> data) and specification (data -> model).

Everything here is frozen, plain data; nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from geodl.errors import UserError

Kind = Literal["row", "index", "matrix", "whole"]


@dataclass(frozen=True)
class Field:
    """What a tensor of a shape is about. Packing, moving and carrying read this and nothing else.

    on      the element set whose rows it has: "vertex", "face", "edge", "label" (the labelled
            elements), "landmark", "template", "sample", ...; "whole" for the shape itself
    kind    row     one row per element; batches are concatenated
            index   numbers of elements of other sets; offset by those before, concatenated; a
                    negative number says none, and stays
            matrix  sparse; block diagonal
            whole   one entry per shape; stacked
    into    the set that indices point into, or that a matrix has columns for; one per column where
            the columns of an index differ
    turns   rows are vectors (.. 3) that turn with the shape
    scale   multiplied by s to this power when the shape is scaled by s
    """

    on: str = "vertex"
    kind: Kind = "row"
    into: str | tuple[str, ...] = ""
    turns: bool = False
    scale: int = 0

    def __post_init__(self) -> None:
        if (self.kind in ("index", "matrix")) != bool(self.into):
            raise ValueError(f"{self}: indices and matrices, and no others, say what is in them")

    @property
    def sets(self) -> tuple[str, ...]:
        """The element sets that it lies on or points into."""
        into = (self.into,) if isinstance(self.into, str) else self.into
        return (self.on, *(name for name in into if name))


# The sets that go when a shape gets another mesh, and those that its labels bring along.
MESH = ("vertex", "edge", "face")
LABELS = ("label", "label_edge")
SQUARE = Field("vertex", "matrix", into="vertex")
EDGE = Field("edge", "index", into="vertex")
Out = Literal["vertex", "edge", "face", "whole"]
LabelOn = Literal["vertex", "edge", "face", "whole"]

# The number of eigenpairs that is computed is one of these, whatever is asked for, and it is part
# of the cache key: bits never depend on what was asked for earlier.
SPECTRUM_BUCKETS = (32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Need:
    """One request to the geometry. Its parameters enter the cache key."""

    function: ClassVar[str] = ""  # "module:name" of the function in geodl.ops that answers it
    fields: ClassVar[dict[str, Field]] = {}  # what it adds to Shape.ops
    lengths: ClassVar[tuple[str, ...]] = ()  # its parameters that are lengths
    on_meshes: ClassVar[bool] = False  # whether point clouds are refused
    # Whether it is of the shape as the data have it, whatever a test set makes of the input: truth.
    of_truth: ClassVar[bool] = False

    def merge(self, other: Need) -> Need:
        """The one request that answers both (same class on both sides)."""
        if self != other:
            raise UserError(
                f"{self} and {other} cannot both be had: give the encoder and the features the "
                "same value."
            )
        return self

    @property
    def family(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Mass(Need):
    """Lumped vertex areas, (v)."""

    function: ClassVar[str] = "geodl.ops.laplacian:mass"
    fields: ClassVar[dict[str, Field]] = {"mass": Field(scale=2)}


@dataclass(frozen=True)
class Laplacian(Need):
    """Weak Laplacian (v v), positive semi-definite, with the vertex areas (v)."""

    function: ClassVar[str] = "geodl.ops.laplacian:laplacian_fields"
    fields: ClassVar[dict[str, Field]] = {"lap": SQUARE, "mass": Field(scale=2)}


@dataclass(frozen=True)
class Spectrum(Need):
    """The first k eigenpairs of the Laplacian, with the vertex areas (v)."""

    k: int = 128
    function: ClassVar[str] = "geodl.ops.spectrum:spectrum_fields"
    fields: ClassVar[dict[str, Field]] = {
        "evals": Field("whole", "whole", scale=-2),
        "evecs": Field(scale=-1),
        "mass": Field(scale=2),
    }

    def __post_init__(self) -> None:
        bucket = next((b for b in SPECTRUM_BUCKETS if b >= self.k), None)
        if self.k < 1 or bucket is None:
            raise UserError(
                f"k_eig={self.k} eigenpairs cannot be had: give 1 to {SPECTRUM_BUCKETS[-1]}."
            )
        object.__setattr__(self, "k", bucket)

    def merge(self, other: Need) -> Need:
        return Spectrum(max(self.k, cast(Spectrum, other).k))


@dataclass(frozen=True)
class Gradient(Need):
    """Tangent-frame gradient matrices (v v), two of them."""

    function: ClassVar[str] = "geodl.ops.gradient:gradient_fields"
    fields: ClassVar[dict[str, Field]] = dict.fromkeys(
        ("grad_x", "grad_y"), replace(SQUARE, scale=-1)
    )


@dataclass(frozen=True)
class Edges(Need):
    """The edges of a mesh (e 2), those of every face (f 3), the four neighbours (e 4) of each, the
    columns (e 4) where these list it, and five numbers about it (e 5)."""

    function: ClassVar[str] = "geodl.ops.edges:edge_fields"
    fields: ClassVar[dict[str, Field]] = {
        "edge": EDGE,
        "face_edge": Field("face", "index", into="edge"),
        "edge_ring": Field("edge", "index", into="edge"),
        "edge_side": Field("edge"),
        "edge_shape": Field("edge"),
    }
    on_meshes: ClassVar[bool] = True


@dataclass(frozen=True)
class LogMap(Need):
    """Where the vertices within a geodesic radius lie in each vertex's tangent plane: matrices
    (v v) of x and y as shares of the radius, the nearest vertex in the direction of x."""

    radius: float = 0.2
    function: ClassVar[str] = "geodl.ops.logmap:log_map_fields"
    fields: ClassVar[dict[str, Field]] = dict.fromkeys(("log_x", "log_y"), SQUARE)
    lengths: ClassVar[tuple[str, ...]] = ("radius",)
    on_meshes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise UserError(f"encoder.radius={self.radius}: give a length above zero.")


@dataclass(frozen=True)
class Samples(Need):
    """Points of space with their signed distances to a closed mesh, negative inside: ``near`` (n 3)
    and ``near_distance`` (n) around the surface, ``cube`` and ``cube_distance`` anywhere in
    [-1, 1]^3; ``surface`` (s 3), points on it, with normals."""

    near: int = 4000
    cube: int = 4000
    surface: int = 4000
    function: ClassVar[str] = "geodl.ops.distance:sample_fields"
    fields: ClassVar[dict[str, Field]] = {
        "near": Field("near", turns=True, scale=1),
        "near_distance": Field("near", scale=1),
        "cube": Field("cube", turns=True, scale=1),
        "cube_distance": Field("cube", scale=1),
        "surface": Field("surface", turns=True, scale=1),
        "surface_normal": Field("surface", turns=True),
    }
    on_meshes: ClassVar[bool] = True
    of_truth: ClassVar[bool] = True


@dataclass(frozen=True)
class Normals(Need):
    """Unit vertex normals; they live in ``Shape.normal`` and rotate with the shape."""


@dataclass(frozen=True)
class Points(Need):
    """The encoder sees n surface samples in place of the vertices.

    Redrawn every epoch for training, fixed per item for evaluation. Labels stay where they are:
    ``ops.carry`` says for every labelled element which sample answers for it.
    """

    n: int = 1024


N = TypeVar("N", bound=Need)


@dataclass(frozen=True)
class Needs:
    """A set of requests; the union merges requests of the same kind."""

    requests: tuple[Need, ...] = ()

    @classmethod
    def of(cls, *requests: Need | None) -> Needs:
        merged: dict[type[Need], Need] = {}
        for request in requests:
            if request is not None:
                kind = type(request)
                merged[kind] = merged[kind].merge(request) if kind in merged else request
        return cls(tuple(sorted(merged.values(), key=repr)))

    def __or__(self, other: Needs) -> Needs:
        return Needs.of(*self.requests, *other.requests)

    def __iter__(self) -> Iterator[Need]:
        return iter(self.requests)

    def __bool__(self) -> bool:
        return bool(self.requests)

    def find(self, kind: type[N]) -> N | None:
        return next((r for r in self.requests if isinstance(r, kind)), None)

    @property
    def computed(self) -> tuple[Need, ...]:
        """The requests about what the model sees that a function in ``geodl.ops`` answers and the
        cache keeps."""
        return tuple(r for r in self.requests if r.function and not r.of_truth)

    @property
    def truth(self) -> tuple[Need, ...]:
        """Those about the shape as the data have it."""
        return tuple(r for r in self.requests if r.of_truth)


@dataclass(frozen=True)
class Level:
    """One step of a mesh pyramid, from a fine mesh (n vertices) to a coarser one (m vertices).

    pos (m 3), face (f 3): the coarse mesh | down (m): the fine vertex that each coarse one is |
    up (n 3), weight (n 3): the coarse vertices between which a fine one lies, and barycentric
    weights. Matrices: ``D[i, down[i]] = 1`` and ``U[j, up[j]] = weight[j]``.
    """

    pos: NDArray[np.float32]
    face: NDArray[np.int64]
    down: NDArray[np.int64]
    up: NDArray[np.int64]
    weight: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Template:
    """The mesh that registered shapes share, in the model's coordinates: pos (v 3), face (f 3).

    ``levels`` keeps the pyramids that were asked for (see ``geodl.ops.hierarchy``), by their
    factors; they are stored with the template, so that a checkpoint does not depend on the library
    that simplified it.
    """

    pos: NDArray[np.float32]
    face: NDArray[np.int64]
    levels: dict[tuple[int, ...], tuple[Level, ...]] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        levels = [
            {"factors": list(k), "levels": [{n: a.tolist() for n, a in vars(x).items()} for x in v]}
            for k, v in self.levels.items()
        ]
        return {"pos": self.pos.tolist(), "face": self.face.tolist(), "levels": levels}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Template:
        levels = {
            tuple(entry["factors"]): tuple(
                Level(
                    np.asarray(x["pos"], np.float32),
                    np.asarray(x["face"], np.int64),
                    np.asarray(x["down"], np.int64),
                    np.asarray(x["up"], np.int64),
                    np.asarray(x["weight"], np.float32),
                )
                for x in entry["levels"]
            )
            for entry in plain.get("levels", [])
        }
        pos = np.asarray(plain["pos"], np.float32)
        return cls(pos, np.asarray(plain["face"], np.int64), levels)


@dataclass(frozen=True)
class DataSpec:
    """What a data set tells the model. Stored in the checkpoint as plain data.

    classes         names of the classes of whole shapes (classification)
    words           what can be said of each class, beside its name
    parts           names of the labels of elements (segmentation)
    label_on        the elements that carry part labels
    category_parts  which parts each class may have (ShapeNetPart's convention), or empty
    vertices        number of vertices if it is the same for every item
    registered      splits whose items are in vertex correspondence
    landmarks       number of landmarks (points of a common template) that every shape carries; 0 if
                    it depends on the class; null: none
    template        the mesh that registered shapes share
    unit            millimetres per unit of the model's coordinates (registered data)
    up              the vertical axis, "y" or "z"
    protocol        the name of the split and preparation that a result belongs to
    """

    classes: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()
    parts: tuple[str, ...] = ()
    label_on: LabelOn = "whole"
    category_parts: tuple[tuple[int, ...], ...] = ()
    landmarks: int | None = None
    template: Template | None = None
    unit: float = 1.0
    up: Literal["y", "z"] = "y"
    protocol: str = ""

    def to_plain(self) -> dict[str, Any]:
        names = [f.name for f in dataclasses.fields(self) if f.name != "template"]
        plain = {n: _lists(getattr(self, n)) for n in names}
        plain["template"] = self.template.to_plain() if self.template else None
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> DataSpec:
        plain = dict(plain)
        template = plain.pop("template", None)
        known = {f.name for f in dataclasses.fields(cls)}  # a checkpoint may have more, from before
        values = {k: _tuples(v) for k, v in plain.items() if k in known}
        if template is not None:
            values["template"] = Template.from_plain(template)
        return cls(**values)


@dataclass(frozen=True)
class Item:
    """One entry of a data set: a name, its class, and whatever the data set needs to load it."""

    name: str
    category: int | None = None
    source: Any = field(default=None, compare=False)


def item_seed(name: str) -> int:
    """A number that belongs to an item's name, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, (tuple, list)):
        return [_lists(v) for v in cast("Iterable[Any]", value)]
    return value


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(v) for v in cast("list[Any]", value))
    return value
