"""From a file's coordinates to the model's: defects, simplification, centre, scale."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geodl.carry import carried
from geodl.errors import UserError
from geodl.ops import check as checks
from geodl.ops.cache import Arrays, Cache, digest
from geodl.ops.geometry import Backend, face_areas
from geodl.ops.neighbors import nearest
from geodl.ops.remesh import simplify
from geodl.shape import Shape
from geodl.spec import MESH


class BadShape(Exception):
    """A shape that cannot be used; the message names its defects."""


class Preprocessed(NamedTuple):
    """A shape as the model sees it; what was mended; the centre (3) that was taken off and the
    size that it was divided by."""

    shape: Shape
    mended: list[str]
    center: Tensor
    size: float


@dataclass(frozen=True)
class Preprocess:
    """From a file's coordinates to the model's. Plain data: it is stored in the checkpoint.

    center     "mean" of the vertices, middle of the "bbox", or null
    scale      largest distance from the centre ("max_radius") or the root of the "area" becomes
               one, or null
    vertices   simplify larger meshes to about this number, or null
    on_defect  what to do with a defective mesh: "raise" an error, "drop" it or "repair" it
    backend    Laplacian of meshes: "cotan" or "robust" (clouds always take the latter)
    fixed      one centre (x, y, z) and size for all shapes, in place of center and scale:
               registered shapes keep their sizes, places and vertices
    """

    center: Literal["mean", "bbox"] | None = "mean"
    scale: Literal["max_radius", "area"] | None = "max_radius"
    vertices: int | None = None
    on_defect: Literal["raise", "drop", "repair"] = "repair"
    backend: Backend = "cotan"
    fixed: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("center", ("mean", "bbox", None)),
            ("scale", ("max_radius", "area", None)),
            ("on_defect", ("raise", "drop", "repair")),
            ("backend", ("cotan", "robust")),
        ):
            if getattr(self, name) not in allowed:
                known = ", ".join("null" if a is None else a for a in allowed)
                raise UserError(
                    f"data.preprocess.{name}={getattr(self, name)} is not known: choose one of "
                    f"{known}."
                )

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    def __call__(self, shape: Shape, label_on: str, cache: Cache) -> Preprocessed:
        """The shape as the model sees it.

        Raises:
            BadShape: a defect that cannot be mended or, by ``on_defect``, may not be.
        """
        if self.fixed is not None:
            return self._place(shape, *self.fixed)
        mended: list[str] = []
        shape = self._mend(shape, label_on, mended, "")
        if self.vertices and not shape.is_cloud and shape.pos.shape[0] > self.vertices:
            pos = shape.pos.double().numpy()
            face = shape.face.numpy()

            def make() -> Arrays:
                small, triangles = simplify(pos, face, cast(int, self.vertices))
                return {"pos": small, "face": triangles}

            key = digest(pos, face.astype(np.int32), self.vertices)
            small = cache.get("simplify", key, make)
            shape = carried(shape, small["pos"], small["face"], label_on)
            shape = self._mend(shape, label_on, mended, " after simplification")
        points = shape.pos.double()
        center = torch.zeros(3, dtype=torch.float64)
        if self.center == "mean":
            center = points.mean(0)
        elif self.center == "bbox":
            center = (points.amin(0) + points.amax(0)) / 2
        points = points - center
        if self.scale == "area" and shape.is_cloud:
            raise BadShape("a cloud has no area: set data.preprocess.scale=max_radius")
        if self.scale == "max_radius":
            size = float(points.norm(dim=1).max())
        elif self.scale == "area":
            size = float(face_areas(points.numpy(), shape.face.numpy()).sum() ** 0.5)
        else:
            size = 1.0
        if not size > 0:
            raise BadShape("all its points are the same")
        points = points / size
        if float(np.ptp(points.numpy(), axis=0).max()) < 1e-4 * float(points.abs().max()):
            raise BadShape(
                "it lies so far from the origin that 32-bit coordinates lose its details: set "
                "data.preprocess.center=mean"
            )
        return Preprocessed(shape.replace(pos=points.float()), mended, center, size)

    def _place(self, shape: Shape, x: float, y: float, z: float, size: float) -> Preprocessed:
        defects = checks.check(shape.pos.double().numpy(), shape.face.numpy(), cloud=shape.is_cloud)
        if defects.fatal:
            raise BadShape(str(checks.Defects(defects.fatal)))
        center = torch.tensor([x, y, z], dtype=torch.float64)
        pos = ((shape.pos.double() - center) / size).float()
        return Preprocessed(shape.replace(pos=pos), [], center, size)

    def _mend(self, shape: Shape, label_on: str, mended: list[str], when: str) -> Shape:
        pos: NDArray[Any] = shape.pos.double().numpy()
        face: NDArray[Any] = shape.face.numpy()
        defects = checks.check(pos, face, cloud=shape.is_cloud)
        if defects.fatal:
            raise BadShape(str(checks.Defects(defects.fatal)))
        if shape.is_cloud or not defects.mendable:
            if defects and not shape.is_cloud:
                mended.append(f"kept {defects}{when}")
            return shape
        if self.on_defect != "repair":
            raise BadShape(str(defects))
        try:
            fixed = checks.repair(pos, face)
        except ValueError as error:
            raise BadShape(str(error)) from error
        mended.append(f"removed {checks.Defects(defects.mendable)}{when}")
        left = {k: n for k, n in defects.count.items() if k in checks.KEPT}
        if left:
            mended.append(f"kept {checks.Defects(left)}{when}")
        label = shape.label
        if any({"edge", "label_edge"} & set(f.sets) for f in shape.ops.fields.values()):
            raise BadShape(f"{defects}; a mesh with labels on edges is not repaired")
        if label is not None and label_on in ("vertex", "face"):
            label = label[
                torch.from_numpy(fixed.vertex if label_on == "vertex" else fixed.face_index)
            ]
        landmark = shape.landmark
        if landmark is not None:
            landmark = torch.from_numpy(nearest(pos[landmark.numpy()], fixed.pos))
        normal = None if shape.normal is None else shape.normal[torch.from_numpy(fixed.vertex)]
        return shape.replace(
            pos=torch.from_numpy(fixed.pos),
            face=torch.from_numpy(fixed.face),
            label=label,
            landmark=landmark,
            normal=normal,
            ops=shape.ops.without(*MESH),
        )


UNIT_RADIUS = Preprocess()
UNIT_AREA = Preprocess(scale="area", on_defect="raise")
