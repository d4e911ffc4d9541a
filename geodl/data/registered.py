"""Shapes in vertex correspondence with one template: what such data sets share, and the user's own
folder of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from geodl.data import formats
from geodl.data.fetch import Paths
from geodl.data.files import read_mesh
from geodl.data.folder import own_folder
from geodl.data.layout import counted, files_of, layout
from geodl.data.preprocess import Preprocess
from geodl.data.source import PATH, TEMPLATE, Source
from geodl.errors import UserError
from geodl.ops.geometry import Backend
from geodl.ops.hierarchy import decimate
from geodl.shape import Shape
from geodl.spec import DataSpec, Item, Template

Mesh = tuple[NDArray[np.float64], NDArray[np.int64]]
SHARES = (0.25, 0.5, 0.75)  # of a way, at which the shapes between are compared
MILLIMETRES = {"mm": 1.0, "cm": 10.0, "m": 1000.0}


class RegisteredData(Source):
    """Base of data sets whose items all have the template's faces.

    A subclass answers ``mesh`` (the template as the files have it), ``vertices_of`` (the kept
    vertices of an item) and ``splits``, and sets ``protocol`` and ``millimetres`` (per unit of the
    files).
    All shapes go through one similarity, which centres the template and makes it one in radius:
    sizes and places keep their meaning. With ``vertices``, the template is simplified to that many
    of its own vertices, and every item to the same ones.
    """

    millimetres: float = 1.0
    up: Literal["y", "z"] = "y"
    protocol: str = ""

    def __init__(self, paths: Paths, vertices: int | None = None, backend: Backend = "cotan"):
        super().__init__(paths)
        self.vertices = vertices
        self.backend: Backend = backend

    def mesh(self) -> Mesh:
        """The template at full resolution."""
        raise NotImplementedError

    def vertices_of(self, item: Item) -> NDArray[np.floating]:
        """The vertices (v 3) of an item that are kept: those at ``selected[0]``."""
        raise NotImplementedError

    @cached_property
    def selected(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """The vertices of the files that are kept (v), the faces between them, their positions."""
        pos, face = self.mesh()
        used = np.unique(face)  # a vertex without a face is no part of the surface
        place = np.full(len(pos), -1)
        place[used] = np.arange(len(used))
        face = place[face]
        if self.vertices and self.vertices < len(used):
            kept, face = decimate(pos[used], face, self.vertices)
            used = used[kept]
        return used, face, pos[used]

    @cached_property
    def preprocess(self) -> Preprocess:  # pyright: ignore[reportIncompatibleVariableOverride]
        pos = self.selected[2]
        center = (pos.min(0) + pos.max(0)) / 2
        size = float(np.linalg.norm(pos - center, axis=1).max())
        x, y, z = (float(c) for c in center)
        return Preprocess(None, None, None, backend=self.backend, fixed=(x, y, z, size))

    @cached_property
    def spec(self) -> DataSpec:  # pyright: ignore[reportIncompatibleVariableOverride]
        _, face, pos = self.selected
        *center, size = self.preprocess.fixed or (0.0, 0.0, 0.0, 1.0)
        return DataSpec(
            template=Template(((pos - np.array(center)) / size).astype(np.float32), face),
            unit=size * self.millimetres,
            up=self.up,
            protocol=self.protocol,
        )

    # ---- shapes that deform ----

    def between(self, first: Item, second: Item, share: float) -> NDArray[np.float64] | None:
        """The true vertices (v 3) a share of the way between two shapes of a person, where they
        are known."""
        return None

    def carried(self, shape: Item, rest: Item) -> NDArray[np.float64] | None:
        """The true vertices (v 3) of somebody, known at rest, changed as another one is in a shape;
        None where they are not known."""
        return None

    def _persons(self, items: Sequence[Item]) -> list[list[Item]]:
        """The items person by person."""
        found: dict[str | None, list[Item]] = {}
        for item in items:
            found.setdefault(self.person(item), []).append(item)
        if None in found:
            super().ways(items)  # refused
        return list(found.values())

    def pairs(self, items: Sequence[Item], split: str) -> list[tuple[Item, Item]]:
        """Everybody at rest, with all other shapes of the same person."""
        return [(rest, other) for rest, *others in self._persons(items) for other in others]

    def ways(self, items: Sequence[Item]) -> list[tuple[Item, Item, Item]]:
        """Every shape but those at rest is an end of one way, the last of an odd number of none."""
        return [
            (rest, first, second)
            for rest, *others in self._persons(items)
            for first, second in zip(others[::2], others[1::2], strict=False)
        ]

    def transfers(self, items: Sequence[Item]) -> list[tuple[Item, Item, Item]]:
        """Every shape but those at rest, shown to the next person."""
        persons = self._persons(items)
        if len(persons) < 2:
            raise UserError("a transfer goes from one person to another: set data.test=2 or more.")
        if self.carried(persons[0][-1], persons[1][0]) is None:
            super().transfers(items)  # refused
        following = [*persons[1:], persons[0]]
        return [
            (other[0], rest, shape)
            for (rest, *shapes), other in zip(persons, following, strict=True)
            for shape in shapes
        ]

    def together(self, items: Sequence[Item], shapes: Sequence[Shape]) -> Sequence[Shape]:
        """Where they are known, the last shape of a way brings the true shapes between (v t 3), and
        that of a transfer the true shape of the first person (v 3)."""
        if len(items) < len(PATH):
            return shapes
        if self.person(items[0]) != self.person(items[1]):
            pos = self.carried(items[2], items[0])
            assert pos is not None
            return [*shapes[:-1], self._with(shapes[-1], "carried", pos)]
        true = [self.between(items[1], items[2], share) for share in SHARES]
        known = [pos for pos in true if pos is not None]
        if not known:
            return shapes
        return [*shapes[:-1], self._with(shapes[-1], "between", np.stack(known, 1))]

    def _with(self, shape: Shape, name: str, pos: NDArray[np.floating]) -> Shape:
        """A shape that also knows positions on the template (v ... 3), of the files' units."""
        *center, size = self.preprocess.fixed or (0.0, 0.0, 0.0, 1.0)
        own = torch.from_numpy((pos - np.array(center)) / size).float()
        return shape.replace(ops=shape.ops.added({name: own}, {name: TEMPLATE}))

    def read(self, item: Item) -> Shape:
        pos = np.asarray(self.vertices_of(item), np.float64)
        return Shape(pos=torch.from_numpy(pos), face=torch.from_numpy(self.selected[1]))


def turned(
    pos: NDArray[np.float64],
    share: NDArray[np.float64],
    turn: NDArray[np.float64],
    hinge: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Every vertex turned about the hinge (3) by its share (v) of the rotation vector ``turn``
    (radians about x, y, z): the jaws of the generated families."""
    angle = float(np.linalg.norm(turn))
    axis = turn / max(angle, 1e-12)
    angles = (share * angle)[:, None]
    arm = pos - hinge
    across = np.cross(axis, arm)
    along = (arm @ axis)[:, None] * axis
    return hinge + along + (arm - along) * np.cos(angles) + across * np.sin(angles)


def same_topology(file: Path, pos: NDArray[Any], face: NDArray[Any], template: Mesh) -> None:
    """Raises UserError when a file's mesh is not the template's."""
    if (len(pos), len(face)) != (len(template[0]), len(template[1])):
        raise UserError(
            f"{file} has {len(pos)} vertices and {len(face)} faces, but the template has "
            f"{len(template[0])} and {len(template[1])}: registered shapes share one mesh."
        )
    if len(face) and not np.array_equal(face, template[1]):
        raise UserError(
            f"{file} has as many faces as the template, but other ones: registered shapes share "
            "one mesh, vertex by vertex."
        )


class Registered(RegisteredData):
    """The user's folder of meshes in correspondence.

    ``train`` and ``test`` folders inside (see ``geodl.data.layout``) are the splits; otherwise
    every tenth file, in the order of their names, is a test shape. The template is ``template`` or
    the first training file.

    Args:
        folder: where it is; its content is part of a run's identity.
        template: a mesh with the same faces, or null.
        vertices: simplify the template, and with it every shape, to this many vertices.
        unit: of the files' coordinates: "mm", "cm" or "m".
        up: the vertical axis.
    """

    def __init__(
        self,
        paths: Paths,
        folder: str | None = None,
        template: str | None = None,
        vertices: int | None = None,
        unit: Literal["mm", "cm", "m"] = "mm",
        up: Literal["y", "z"] = "y",
        backend: Backend = "cotan",
    ) -> None:
        super().__init__(paths, vertices, backend)
        self.folder = own_folder("registered", folder)
        if unit not in MILLIMETRES:
            raise UserError(f"data.unit={unit} is not known: choose mm, cm or m.")
        self.template_file = Path(template).expanduser() if template else None
        self.up = up
        self.millimetres = MILLIMETRES[unit]
        every = files_of(self.folder)
        meshes = [f for f in every if f.suffix.lower() in (*formats.MESHES, ".npz")]
        found = layout(self.folder, meshes)
        self.ignored = [f for f in every if f not in meshes]
        self.protocol = "registered-fixed" if found.fixed else "registered-every10th"
        self.files = {s: [f for f, _ in members] for s, members in found.splits.items()}
        if not found.fixed:
            files = self.files.pop("all")
            train = [f for i, f in enumerate(files, 1) if i % 10]
            self.files = {"train": train, "test": files[9::10]}
        if not self.files["train"] or not self.files["test"]:
            raise UserError(
                f"data.folder={folder} has too few meshes: put them into train/ and test/, or ten "
                f"or more side by side ({' '.join(formats.MESHES)})."
            )

    @cached_property
    def _template(self) -> Mesh:
        file = self.template_file or self.files["train"][0]
        pos, face = read_mesh(file)
        if not len(face):
            raise UserError(f"{file} has no faces: registered shapes are meshes.")
        return pos, face

    def mesh(self) -> Mesh:
        return self._template

    def vertices_of(self, item: Item) -> NDArray[np.floating]:
        file = Path(str(item.source))
        pos, face = read_mesh(file)
        same_topology(file, pos, face, self._template)
        return pos[self.selected[0]]

    def found(self) -> str:
        lines = [super().found()]
        if self.ignored:
            lines.append(f"ignored: {counted(self.ignored, self.folder)}")
        return "\n".join(lines)

    def splits(self) -> dict[str, list[Item]]:
        return {
            split: [Item(str(f.relative_to(self.folder)), None, str(f)) for f in files]
            for split, files in self.files.items()
        }
