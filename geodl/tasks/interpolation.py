"""Ways between two shapes of a person that nothing has to learn, or a basis alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from geodl.data.source import PATH
from geodl.errors import UserError
from geodl.ops.geometry import face_areas
from geodl.shape import GroupBatch
from geodl.shapespace.match import Stage, matched
from geodl.shapespace.mean import tangent_pca
from geodl.shapespace.metric import H2
from geodl.shapespace.path import (
    as_rigid_as_possible,
    geodesic,
    geodesic_in,
)
from geodl.tasks.base import Measure, Prediction, Setup, Task
from geodl.tasks.ways import WAYS

TIMES = 9  # meshes of a shortest path
FLAT = H2(1.0, 1.0, 1.0, 1.0, 1.0, 0.0)  # in which directions of a basis are orthonormal
# For surfaces of area one, meshes of about a thousand vertices.
STAGES = (Stage(0.4, 1e4, 2, 40), Stage(0.15, 1e6, 2, 40), Stage(0.06, 1e8, 2, 60))


class Interpolation(Task):
    """From one shape of a person to another, on meshes in correspondence.

    "straight": every vertex goes straight ahead | "arap": every triangle turns and stretches evenly
    | "geodesic": the shortest path in an elastic metric | "basis": the ends are found, without
    correspondence, among the meshes that a basis of motions and identities reaches (tangent PCA of
    the training shapes), and the path is the shortest one there.

    What it is measured by: ``error`` to the true meshes between, where they are known (data=poses),
    ``edges`` and ``volume`` (see ``geodl.metrics.PathError``).

    Papers: Alexa, Cohen-Or, Levin 2000; Xu et al. 2005 (arap); Hartman et al. 2023 (geodesic);
    Hartman, Pierson, Bauer, Charon, Daoudi: BaRe-ESA, 2023 (basis). Differs: see
    ``geodl.shapespace.metric.H2``; the basis is built here, since the authors' code for it is not
    public.

    Args:
        form: one of the four.
        weights: of the metric: a0, a1, b1, c1, d1, a2 for shapes of area one.
        motions, identities: fields of the basis.
    """

    out = "vertex"
    inputs = PATH
    in_place = True
    metrics = MappingProxyType({"error": Measure("mm", "less", headline=True)} | WAYS)

    def __init__(
        self,
        setup: Setup,
        form: Literal["straight", "arap", "geodesic", "basis"] = "geodesic",
        weights: list[float] | tuple[float, ...] = (1.0, 4000.0, 4000.0, 1.0, 4.0, 1.0),
        motions: int = 40,
        identities: int = 7,
    ) -> None:
        if len(weights) != 6:
            raise UserError(f"task.weights={list(weights)} must be six: a0, a1, b1, c1, d1, a2.")
        template = setup.spec.template
        if template is None:
            raise UserError(
                "task=interpolation needs shapes in correspondence: choose data=poses or bodies."
            )
        self.outputs = 0
        super().__init__(setup)
        if self.encoder.learns:
            raise UserError(
                "task=interpolation learns nothing: take encoder=identity, or measure a learned "
                "model's ways by test=ways with task=reconstruction or deformation."
            )
        self.form, self.metric = form, H2(*weights)
        self.numbers = motions, identities
        self.face = torch.from_numpy(template.face)
        pos = template.pos.astype(float)
        self.size = float(face_areas(pos, template.face).sum() ** 0.5)
        fields = motions + identities if form == "basis" else 0
        self.register_buffer("mean", torch.zeros(pos.shape, dtype=torch.double))
        self.register_buffer("basis", torch.zeros((fields, *pos.shape), dtype=torch.double))
        self.mean: Tensor
        self.basis: Tensor

    def build_head(self) -> nn.Module:
        return nn.Identity()

    @torch.no_grad()
    def fit(self, loader: Iterable[GroupBatch]) -> None:
        if self.form != "basis":
            return
        rests: dict[str, Tensor] = {}
        motions: list[Tensor] = []
        for batch in loader:
            at_rest = self._meshes(batch.rest)
            rests |= dict(zip(batch.rest.names, at_rest, strict=True))
            for end in (batch.first, batch.second):
                motions += list(self._meshes(end) - at_rest)
        people = torch.stack(list(rests.values()))
        mean = people.mean(0)
        moves, others = self.numbers
        with torch.enable_grad():
            found = [
                tangent_pca(mean, torch.stack(motions), self.face, FLAT, moves)[0],
                tangent_pca(mean, people - mean, self.face, FLAT, others)[0],
            ]
        if (have := sum(map(len, found))) < moves + others:
            raise UserError(
                f"task.motions={moves} and identities={others} are more than the {have} directions "
                "of the training shapes: lower them."
            )
        self.mean.copy_(mean)
        self.basis.copy_(torch.cat(found))

    def _meshes(self, shapes: Any) -> Tensor:
        """Vertices (b v 3) of shapes, at the size for which the metric is meant."""
        return shapes.ops.target.double().view(len(shapes), -1, 3) / self.size

    def predict(self, batch: Any) -> Prediction:
        raise UserError("task=interpolation is measured by its ways alone.")

    def along(self, batch: GroupBatch, shares: Sequence[float]) -> Tensor:
        ends = zip(self._meshes(batch.first), self._meshes(batch.second), strict=True)
        ways = [self._way(q0, q1, shares) for q0, q1 in ends]
        return self.size * torch.cat(ways, dim=1).to(batch.first.pos)

    @torch.enable_grad()
    def _way(self, q0: Tensor, q1: Tensor, shares: Sequence[float]) -> Tensor:
        if self.form == "straight":
            return torch.stack([(1 - t) * q0 + t * q1 for t in shares])
        if self.form == "arap":
            return as_rigid_as_possible(q0, q1, self.face, shares)
        if self.form == "geodesic":
            path = geodesic(q0, q1, self.face, self.metric, (3, 5, TIMES), 50)
        else:
            x0, x1 = (self._found(q) for q in (q0, q1))
            path = geodesic_in(x0, x1, self.mean, self.basis, self.face, self.metric, TIMES)
        return torch.stack([_at(path, t) for t in shares])

    def _found(self, target: Tensor) -> Tensor:
        """The code (m) of the mesh that is nearest to a surface."""
        given = self.mean, self.face, target, self.face, self.metric, STAGES
        mesh = matched(*given, basis=self.basis)[-1]
        rows = self.basis.flatten(1).T
        return torch.linalg.lstsq(rows, (mesh - self.mean).flatten()[:, None]).solution[:, 0]

    def losses(self, prediction: Prediction, batch: Any) -> dict[str, Tensor]:
        return {}

    def make_meters(self) -> dict[str, Metric]:
        return {}

    def measure(self, meters: Any, prediction: Prediction, batch: Any) -> None:
        return

    def scores(self, meters: Any) -> dict[str, float]:
        return {}


def _at(path: Tensor, share: float) -> Tensor:
    """The mesh at a share of a path (t v 3), straight between those it has."""
    place = share * (len(path) - 1)
    low = min(int(place), len(path) - 2)
    return (low + 1 - place) * path[low] + (place - low) * path[low + 1]
