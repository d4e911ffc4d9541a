"""Shapes from pictures: a sphere is moved until it looks like them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from geodl.data.own import OwnShape
from geodl.errors import UserError
from geodl.metrics import LooksError
from geodl.nn.large_steps import LargeSteps, UniformAdam, uniform_laplacian
from geodl.nn.render import cameras, rendered
from geodl.ops.geometry import on_surface
from geodl.progress import track
from geodl.shape import ShapeBatch
from geodl.spec import item_seed
from geodl.tasks.base import Evaluation, Measure, Prediction, Scene, Setup, Task

SHARP = 1e-6  # sigma of pictures that are compared
SOFT = (1e-3, 2e-4)  # of those that are moved: in the first half of the steps, in the second
HELD = 31  # views that the shape is judged by
SHOWN = 6  # stages of a shape in a picture


@dataclass
class Pictures:
    """Silhouettes (k s s), normals in camera coordinates (k s s 3) or None, cameras (k 3 3)."""

    silhouette: Tensor
    normal: Tensor | None
    views: Tensor

    @staticmethod
    def of(pos: Tensor, face: Tensor, views: Tensor, size: int, shade: bool) -> Pictures:
        """Of a mesh."""
        with torch.no_grad():
            soft, normal = rendered(pos, face, views, size, SHARP, shade)
        mask = (soft > 0.5).to(soft)
        return Pictures(mask, None if normal is None else normal * mask[..., None], views)


class Rendering(Task):
    """A sphere's vertices by gradient descent on what the mesh looks like, from ``views``
    directions: nothing is learned from other shapes.

    Metrics: ``iou`` of silhouettes in 31 other views; ``chamfer``: mean distance of the surfaces
    (mean of both directions), times 100, where a shape's radius is one; ``edges``: the longest edge
    over the median one, which is large where a mesh has crumpled.

    Papers: Liu et al.: Soft rasterizer, ICCV 2019; Nicolet et al.: Large steps in inverse rendering
    of geometry, SIGGRAPH Asia 2021. Differs: orthographic cameras, no textures, no light but the
    normals themselves.

    Args:
        method: "large_steps" (``weight``: lambda), "adam" on vertices, or "bilaplacian" (Adam, with
            ``weight`` times the mean square of the combinatorial Laplacian of the vertices).
        rate: of a step.
        weight: see ``method``.
        steps: of the descent.
        views: pictures; ``batch``: of each step; size: of a picture, a side.
        shading: weight of the mean difference of the normals that pictures show.
        level: subdivisions of the sphere: 3 is 642 vertices.
    """

    out = "vertex"
    outputs = 0
    metrics = MappingProxyType(
        {
            "iou": Measure("%", "more", headline=True),
            "chamfer": Measure("x 100", "less"),
            "edges": Measure("", "less"),
        }
    )

    def __init__(
        self,
        setup: Setup,
        method: Literal["large_steps", "adam", "bilaplacian"] = "large_steps",
        rate: float = 0.05,
        weight: float = 19.0,
        steps: int = 200,
        views: int = 12,
        batch: int = 6,
        size: int = 64,
        shading: float = 0.0,
        level: int = 3,
    ) -> None:
        import trimesh

        super().__init__(setup)
        if self.encoder.learns:
            raise UserError("task=rendering has nothing to learn: set encoder=identity.")
        if batch > views:
            raise UserError(f"task.batch={batch} is more than task.views={views}.")
        self.method, self.rate, self.weight = method, rate, weight
        self.steps, self.batch, self.size = steps, batch, size
        self.views, self.shading = views, shading
        ball: Any = trimesh.creation.icosphere(level, 0.5)
        self.start = torch.from_numpy(np.array(ball.vertices)).float()
        self.face = torch.from_numpy(np.array(ball.faces)).long()

    def build_head(self) -> nn.Module:
        return nn.Identity()

    # ---- the descent ----

    @torch.enable_grad()
    def fitted(
        self, pictures: Pictures, tell: Callable[[int, float], None] = lambda step, loss: None
    ) -> list[Tensor]:
        """The vertices (v 3) at ``SHOWN`` stages of the way, the last one the result."""
        face, n = self.face, len(self.start)
        large = LargeSteps(face.numpy(), n, self.weight) if self.method == "large_steps" else None
        rough: Any = None
        if self.method == "bilaplacian":
            rough = torch.from_numpy(uniform_laplacian(face.numpy(), n).toarray()).float()
        x = self.start if large is None else large.parameters_of(self.start)
        x = x.clone().requires_grad_()
        optimizer = (UniformAdam if large else torch.optim.Adam)([x], lr=self.rate)
        generator = torch.Generator().manual_seed(self.seed)
        stages = np.linspace(0, self.steps, SHOWN).round().astype(int).tolist()
        kept: list[Tensor] = []
        for step in track(range(self.steps + 1), self.steps + 1, "fit"):
            pos = large.vertices(x) if large else x
            if step in stages:
                kept.append(pos.detach().clone())
            if step == self.steps:
                break
            chosen = torch.randperm(len(pictures.views), generator=generator)[: self.batch]
            sigma = SOFT[int(2 * step >= self.steps)]
            shade = bool(self.shading) and pictures.normal is not None
            ours, normal = rendered(pos, face, pictures.views[chosen], self.size, sigma, shade)
            theirs = pictures.silhouette[chosen]
            both = (ours * theirs).sum((1, 2))
            either = (ours + theirs - ours * theirs).sum((1, 2))
            loss = (1 - both / either.clamp(min=1e-9)).mean()
            if shade and normal is not None and pictures.normal is not None:
                loss = loss + self.shading * (normal - pictures.normal[chosen]).abs().mean()
            total = loss if rough is None else loss + self.weight * (rough @ pos).square().mean()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            tell(step, float(loss.detach()))
        return kept

    def predict(self, batch: ShapeBatch) -> Prediction:
        found = [self.fitted(self.pictures_of(s.pos, s.face))[-1] for s in batch.unpack()]
        return Prediction(torch.stack(found))

    def pictures_of(self, pos: Tensor, face: Tensor) -> Pictures:
        """The pictures of a mesh that it is to be found from."""
        if not len(face):
            raise UserError("task=rendering draws surfaces, and this is a cloud: give a mesh.")
        views = torch.from_numpy(cameras(self.views)).float()
        return Pictures.of(pos.cpu(), face.cpu(), views, self.size, bool(self.shading))

    def losses(self, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        return {}

    # ---- metrics ----

    def make_meters(self) -> dict[str, Metric]:
        return {"looks": LooksError()}

    def measure(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> None:
        views = torch.from_numpy(cameras(HELD, 0.5)).float()
        for found, shape in zip(prediction.output, batch.unpack(), strict=True):
            ours, theirs = (
                Pictures.of(pos.cpu(), face.cpu(), views, self.size, False).silhouette > 0.5
                for pos, face in ((found, self.face), (shape.pos, shape.face))
            )
            rng = np.random.default_rng(item_seed(shape.name))
            points = [
                on_surface(pos.cpu().numpy(), face.cpu().numpy(), 4000, rng)[0]
                for pos, face in ((found, self.face), (shape.pos, shape.face))
            ]
            meters["looks"].update(ours, theirs, *points, found.cpu(), self.face)

    def scores(self, meters: Any) -> dict[str, float]:
        if not meters["looks"].update_called:
            return {}
        return {k: float(v) for k, v in meters["looks"].compute().items()}

    def split(self, output: Tensor, batch: ShapeBatch) -> list[Tensor]:
        return list(output)

    # ---- pictures ----

    def figures(self, evaluation: Evaluation, folder: Path, name: str) -> None:
        from geodl import viz

        kept = evaluation.kept[:8]
        shown = [(s.pos.numpy(), s.face.numpy()) for s, _ in kept]
        found = [(y.numpy(), self.face.numpy()) for _, y in kept]
        viz.meshes([shown, found], folder / f"gallery-{name}.png", self.spec.up, ["true", "found"])

    def scenes(self, evaluation: Evaluation) -> list[Scene]:
        from geodl import viz

        found: list[Scene] = []
        for shape, y in evaluation.kept[:6]:
            layers: dict[str, Any] = {}
            for name, pos, face in (
                ("prediction", y, self.face),
                ("truth", shape.pos, shape.face),
            ):
                layers[name] = (pos.numpy(), face.numpy(), np.tile(viz.PLAIN, (len(pos), 1)))
            found.append((shape.name, layers))
        return found

    # ---- the user's own shapes ----

    def check(self, shapes: Sequence[OwnShape]) -> None:
        raise UserError("task=rendering takes pictures: use mode=fit input=<a mesh, or pictures>.")
