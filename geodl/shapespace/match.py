"""From a mesh to a surface that has other triangles: paths that end near it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from geodl.losses import Kernel, inner, triangles
from geodl.ops.hierarchy import coarser
from geodl.ops.remesh import simplify
from geodl.shapespace.metric import H2
from geodl.shapespace.path import Smoothing, minimised, resampled


@dataclass(frozen=True)
class Stage:
    """sigma: width of the kernel between surfaces | weight: of their squared distance beside the
    path's energy | times: meshes on the path | iterations: of L-BFGS, at most."""

    sigma: float
    weight: float
    times: int = 2
    iterations: int = 100


# For surfaces of area one: first where the limbs are, then the surface.
STAGES = (Stage(0.4, 1e4), Stage(0.15, 1e6), Stage(0.06, 1e8), Stage(0.03, 1e9, 3))


def matched(
    q0: Float[Tensor, "v 3"],
    face: Int[Tensor, "f 3"],
    target: Float[Tensor, "w 3"],
    target_face: Int[Tensor, "g 3"],
    metric: H2,
    stages: Sequence[Stage] = STAGES,
    kernel: Kernel = "varifold",
    basis: Float[Tensor, "m v 3"] | None = None,
    path: Float[Tensor, "t v 3"] | None = None,
) -> Float[Tensor, "t v 3"]:
    """A path of meshes from q0 whose end lies on the target, without correspondence: the energy of
    the path plus weight times the squared kernel distance between its end and the target, each
    stage from what the one before found (Hartman et al. 2023, 4.2; with a basis, the code retrieval
    of BaRe-ESA 2023, where meshes are q0 plus a combination of the m fields of the basis).

    Both surfaces should have about area one and stand in the same place. ``path``: one to begin
    with, without a basis.
    """
    other = triangles(target, target_face)
    start = q0 if basis is None else q0.new_zeros(len(basis))
    x = start[None] if path is None else path[1:]
    smooth = Smoothing(q0, face) if basis is None else None

    def meshes(x: Tensor) -> Tensor:
        later = x if basis is None else q0 + torch.tensordot(x, basis, 1)
        return torch.cat([q0[None], later])

    for stage in seen(stages, (q0, face), (target, target_face)):
        fixed = inner(*other, *other, kernel, stage.sigma)

        def objective(x: Tensor, stage: Stage = stage, fixed: Tensor = fixed) -> Tensor:
            found = meshes(x)
            own = triangles(found[-1], face)
            across = inner(*own, *other, kernel, stage.sigma)
            distance = inner(*own, *own, kernel, stage.sigma) - 2 * across + fixed
            return metric.energy(found, face) + stage.weight * distance

        x = resampled(torch.cat([start[None], x]), stage.times)[1:]
        x = minimised(objective, x, stage.iterations, smooth)
    return meshes(x)


def seen(stages: Sequence[Stage], *meshes: tuple[Tensor, Tensor]) -> list[Stage]:
    """The stages whose kernel is wider than the triangles of all meshes, and the first one: what
    lies between centres farther apart than sigma is not there, and the nearest surface is none."""
    finest = max(float(triangles(*mesh)[1].norm(dim=1).mean()) ** 0.5 for mesh in meshes)
    return [stage for i, stage in enumerate(stages) if not i or stage.sigma > finest]


LAST = (Stage(0.03, 1e9, 3, 30),)  # on all vertices, after STAGES on some
ENOUGH = 1000  # vertices with which a surface is found


def registered(
    q0: Float[Tensor, "v 3"],
    face: Int[Tensor, "f 3"],
    target: Float[Tensor, "w 3"],
    target_face: Int[Tensor, "g 3"],
    metric: H2,
) -> Float[Tensor, "v 3"]:
    """The mesh q0 on another surface: the end of ``matched``, found with a thousand vertices of
    each first. Areas and places as there."""
    fine = len(q0) > 3 * ENOUGH // 2
    few, few_faces = target, target_face
    if len(target) > 3 * ENOUGH // 2:
        small = simplify(target.cpu().numpy(), target_face.cpu().numpy(), ENOUGH)
        few, few_faces = (torch.from_numpy(np.ascontiguousarray(x)) for x in small)
        few = few.to(q0)
    if not fine:
        return matched(q0, face, few, few_faces, metric)[-1]
    level = coarser(q0.cpu().numpy(), face.cpu().numpy(), ENOUGH)
    down, up = torch.from_numpy(level.down), torch.from_numpy(level.up)
    path = matched(q0[down], torch.from_numpy(level.face), few, few_faces, metric)
    weight = torch.from_numpy(level.weight).to(q0)
    moved = ((path[-1] - path[0])[up] * weight[..., None]).sum(1)
    moved = Smoothing(q0, face, 0.05)(moved)  # without the creases of the coarse triangles
    path = torch.stack([q0, q0 + moved])
    return matched(q0, face, target, target_face, metric, LAST, path=path)[-1]
