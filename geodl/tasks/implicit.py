"""Shapes as functions of space: distance, inside or outside, density."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from geodl.data.files import write_ply
from geodl.data.own import OwnShape
from geodl.decoders.field import DeepSDF, FieldDecoder
from geodl.errors import UserError
from geodl.metrics import FieldError
from geodl.ops.distance import zero_level
from geodl.ops.geometry import on_surface
from geodl.shape import ShapeBatch
from geodl.spec import Needs, Samples, item_seed
from geodl.tasks.base import Evaluation, Measure, Prediction, Scene, Setup, Task

Surface = tuple[NDArray[np.float64], NDArray[np.int64]]
AT_ONCE = 32_768  # points that a decoder is asked about
RAMP = 100  # epochs over which the penalty on codes grows
NONE = np.empty((0, 3), np.int64)


class Codes(nn.Module):
    """A code (n latent) for every training shape, by its name."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.empty(0, dtype=torch.long))
        self.table = nn.Parameter(torch.empty(0, latent))
        self.keys: Tensor

    def grow(self, names: Sequence[str]) -> None:
        self.keys = torch.tensor(sorted(map(_key, names)), device=self.keys.device)
        latent = self.table.shape[1]
        start = torch.randn(len(names), latent) / latent**0.5
        self.table = nn.Parameter(start.to(self.table))

    def rows(self, names: Sequence[str]) -> Tensor | None:
        """The codes of some shapes, or None where one is not known."""
        wanted = torch.tensor([_key(n) for n in names], device=self.keys.device)
        place = torch.searchsorted(self.keys, wanted).clamp(max=max(0, len(self.keys) - 1))
        known = len(self.keys) > 0 and bool((self.keys[place] == wanted).all())
        return self.table[place] if known else None

    def make_room(self, count: int) -> None:
        self.keys = torch.zeros(count, dtype=torch.long, device=self.keys.device)
        self.table = nn.Parameter(self.table.new_empty(count, self.table.shape[1]))


def _key(name: str) -> int:
    return item_seed(name) >> 1  # fits into 63 bits


class Implicit(Task):
    """Shape in, code, and a function of space out, whose surface is the shape: its signed distance,
    whether a point is inside, or how likely points are on it (as the velocity that carries noise to
    the surface).

    With encoder=identity there is no encoder: every training shape has a code that is learned along
    with the decoder, and that of another shape is found by ``steps`` of optimisation on its
    distances (an auto-decoder).

    Metrics, in units in which a shape's radius is one: ``iou`` of the volumes, at points of the
    cube that nothing was learned from; ``chamfer``: mean distance to the nearest point, mean of
    both directions (L1), of points on the surfaces (densities: of clouds), times 100; ``normals``:
    mean absolute cosine of the normals of nearest points. ``lost``: shapes without a surface, which
    count as 100 in the one and 0 in the other.

    Papers: Park et al.: DeepSDF, CVPR 2019 (encoder=identity, decoder=deepsdf, field=distance);
    Mescheder et al.: Occupancy networks, CVPR 2019 (encoder=pointnet, decoder=occupancy); Zhang et
    al.: 3DShape2VecSet, SIGGRAPH 2023 (encoder=vecset, decoder=vecset); Chang et al.: 3D shape
    tokenization via latent flow matching, 2024 (field=density). Differs: every shape has fixed
    points in space, of which each step draws some.

    Args:
        field: what the decoder answers.
        latent: length of the code; null: the encoder's answer is the code (with ``kl``, half of it
            is, and the other half the logarithms of variances).
        queries: points of each shape in a step.
        clamp: distances beyond it count as it (both the true one and the answer).
        penalty: on the mean length of learned codes, growing over 100 epochs.
        kl: weight of the divergence of codes from a normal distribution; above zero, codes are
            drawn around what the encoder says.
        steps, rate: of the optimisation of codes, by Adam; a tenth of the rate in the second half.
        cells: of the grid a surface is found on, a side.
    """

    decodes = True
    metrics = MappingProxyType(
        {
            "iou": Measure("%", "more", headline=True),
            "chamfer": Measure("x 100", "less", headline=True),
            "normals": Measure("%", "more"),
            "lost": Measure("shapes", "less"),
        }
    )

    def __init__(
        self,
        setup: Setup,
        field: Literal["distance", "occupancy", "density"] = "distance",
        latent: int | None = 32,
        queries: int = 1024,
        clamp: float = 0.1,
        penalty: float = 1e-4,
        kl: float = 0.0,
        steps: int = 300,
        rate: float = 5e-3,
        cells: int = 64,
    ) -> None:
        if setup.decoder is None or "answer" not in inspect.signature(setup.decoder).parameters:
            raise UserError(
                "task=implicit needs a decoder that is a function of space: choose "
                "decoder=deepsdf, occupancy or vecset."
            )
        if cells < 8 or cells % 4:
            raise UserError(f"task.cells={cells} must be a multiple of 4, 8 or more.")
        learns = getattr(inspect.unwrap(setup.encoder), "learns", True)
        self.out = "whole" if learns else "vertex"
        self.latent, self.kl = latent, kl
        super().__init__(setup)
        density = field == "density"
        if not learns and (latent is None or density or kl):
            raise UserError(
                "encoder=identity leaves codes to be learned: give task.latent, a field that is "
                "not density, and no task.kl."
            )
        self.field, self.queries, self.clamp, self.penalty = field, queries, clamp, penalty
        self.steps, self.rate, self.cells = steps, rate, cells
        length = latent or self.encoder.channels // (2 if kl else 1)
        self.codes = None if learns else Codes(length)
        kind = {"ask": 4, "answer": 3} if density else {}
        self.decoder: FieldDecoder = setup.decoder(latent=length, spec=setup.spec, **kind)
        if field == "occupancy" and isinstance(self.decoder, DeepSDF):
            raise UserError(
                "decoder=deepsdf answers distances between -1 and 1, which are no logits: choose "
                "task.field=distance, or decoder=occupancy."
            )

    def build_head(self) -> nn.Module:
        if not self.encoder.learns or self.latent is None:
            return nn.Identity()
        return nn.Linear(self.encoder.channels, self.latent * (2 if self.kl else 1))

    @property
    def needs(self) -> Needs:
        return super().needs | Needs.of(Samples() if self.field != "density" else None)

    # ---- codes ----

    def fit(self, loader: Iterable[ShapeBatch]) -> None:
        if self.codes is None:
            return
        names = [name for batch in loader for name in batch.names]
        if self.codes.rows(names) is None:  # else they came with weights that were given
            self.codes.grow(names)

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        if self.codes is not None and (table := state.get("codes.table")) is not None:
            self.codes.make_room(len(table))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Codes take twice the steps of weights."""
        if self.codes is None:
            return super().configure_optimizers()
        groups = [
            {"params": [p for n, p in self.named_parameters() if not n.startswith("codes.")]},
            {"params": [self.codes.table]},
        ]
        optimizer = self.make_optimizer(groups)
        optimizer.param_groups[1]["lr"] *= 2
        return optimizer

    def code(self, batch: ShapeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Codes (b latent), and losses of the encoder."""
        if self.codes is not None:
            found = self.codes.rows(batch.names)
            return (self.found(batch) if found is None else found), {}
        encoding = self.encoder(self.features(batch), batch)
        z, losses = self.head(encoding.at("whole")), encoding.losses
        if not self.kl:
            return z, losses
        z, log = z.chunk(2, dim=1)
        log = log.clamp(-20, 10)
        gap = 0.5 * (z.square() + log.exp() - 1 - log).mean()
        if self.training:
            z = z + (log / 2).exp() * torch.randn_like(z)
        return z, losses | {"kl": self.kl * gap}

    @torch.enable_grad()
    def found(self, batch: ShapeBatch) -> Tensor:
        """Codes (b latent) by optimisation on the shapes' own distances."""
        if "near" not in batch.ops:
            raise UserError(
                f"{batch.names[0] or 'the input'} is a cloud, and a model without an encoder finds "
                "codes from distances to meshes: give a mesh, or train with an encoder."
            )
        z = torch.zeros(len(batch), self.decoder.latent, device=self.device, requires_grad=True)
        optimizer = torch.optim.Adam([z], self.rate)
        points, distance = self._known(batch)
        generator = torch.Generator().manual_seed(0)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.rate * (0.1 if 2 * step >= self.steps else 1)
            chosen = torch.randperm(points.shape[1], generator=generator)[: self.queries]
            gap = self._gap(self.decoder(z, points[:, chosen])[..., 0], distance[:, chosen])
            loss = gap + self.penalty * z.norm(dim=1).mean()
            (z.grad,) = torch.autograd.grad(len(batch) * loss, [z])
            optimizer.step()
        return z.detach()

    def _known(self, batch: ShapeBatch) -> tuple[Tensor, Tensor]:
        """Points (b q 3) to learn from and their distances (b q): all near ones, half of those in
        the cube; the others are for measuring."""
        b, ops = len(batch), batch.ops
        cube, cube_distance = ops.cube.view(b, -1, 3), ops.cube_distance.view(b, -1)
        half = cube.shape[1] // 2
        points = torch.cat([ops.near.view(b, -1, 3), cube[:, :half]], dim=1)
        return points, torch.cat([ops.near_distance.view(b, -1), cube_distance[:, :half]], dim=1)

    def _gap(self, answer: Tensor, distance: Tensor) -> Tensor:
        if self.field == "occupancy":
            return F.binary_cross_entropy_with_logits(-answer, (distance < 0).to(answer))
        limits = -self.clamp, self.clamp
        return (answer.clamp(*limits) - distance.clamp(*limits)).abs().mean()

    # ---- prediction ----

    def predict(self, batch: ShapeBatch) -> Prediction:
        return Prediction(*self.code(batch))

    def losses(self, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        z = prediction.output
        generator = None if self.training else torch.Generator().manual_seed(0)
        if self.field == "density":
            return prediction.losses | {"density": self._flow_gap(z, batch, generator)}
        points, distance = self._known(batch)
        chosen = torch.randperm(points.shape[1], generator=generator)[: self.queries]
        answer = self.decoder(z, points[:, chosen])[..., 0]
        losses = {self.field: self._gap(answer, distance[:, chosen])}
        if self.codes is not None and self.training:
            ramp = min(1.0, self.current_epoch / RAMP)
            losses["code"] = self.penalty * ramp * z.norm(dim=1).mean()
        return prediction.losses | losses

    # ---- densities: noise is carried to the surface (flow matching on straight lines) ----

    def _flow_gap(self, z: Tensor, batch: ShapeBatch, generator: torch.Generator | None) -> Tensor:
        if not batch.equal_sizes:
            raise UserError(
                f"task.field=density takes as many points of every shape, and these have "
                f"{min(batch.sizes)} to {max(batch.sizes)}: set encoder.points."
            )
        end = batch.dense(batch.pos)
        if end.shape[1] > self.queries:
            end = end[:, torch.randperm(end.shape[1], generator=generator)[: self.queries]]
        start, t = (torch.randn(end.shape[:k], generator=generator) for k in (3, 2))
        start, t = start.to(end), t.sigmoid().to(end)[..., None]  # half-way is asked most often
        at = (1 - t) * start + t * end
        return (self.decoder(z, torch.cat([at, t], dim=2)) - (end - start)).square().mean()

    @torch.no_grad()
    def drawn(self, z: Tensor, count: int, seed: int = 0, steps: int = 30) -> Tensor:
        """Points (b count 3) of the densities of codes (b latent), by Euler's method."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(z), count, 3, generator=generator).to(z)
        for step in range(steps):
            t = x.new_full((*x.shape[:2], 1), step / steps)
            x = x + self.decoder(z, torch.cat([x, t], dim=2)) / steps
        return x

    @torch.no_grad()
    def surface(self, z: Tensor) -> Surface | None:
        """The mesh of a code (latent), closed, faces outwards; None where there is none. Of a
        density: a cloud."""
        if self.field == "density":
            return self.drawn(z[None], 2048)[0].cpu().double().numpy(), NONE

        def field(points: NDArray[np.float64]) -> NDArray[np.float64]:
            rows = torch.from_numpy(points).to(z)[None].split(AT_ONCE, dim=1)
            return torch.cat([self.decoder(z[None], r)[0, :, 0] for r in rows]).cpu().numpy()

        try:
            return zero_level(field, self.cells)
        except ValueError:
            return None

    def shown(self, z: Tensor) -> Surface:
        """The surface for a picture: a point where there is none."""
        return self.surface(z.to(self.device)) or (np.zeros((1, 3)), NONE)

    # ---- metrics ----

    def make_meters(self) -> dict[str, Metric]:
        return {"field": FieldError()}

    def measure(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> None:
        if self.training:
            return
        z, b = prediction.output, len(batch)
        if self.field == "density":
            clouds = batch.pos.split(batch.sizes)
            for code, cloud in zip(z, clouds, strict=True):
                drawn = self.drawn(code[None], len(cloud))[0]
                meters["field"].update(drawn.cpu().numpy(), cloud.cpu().numpy())
            return
        cube, distance = batch.ops.cube.view(b, -1, 3), batch.ops.cube_distance.view(b, -1)
        half = cube.shape[1] // 2
        answer = self.decoder(z, cube[:, half:])[..., 0]
        surfaces = batch.rows("surface"), batch.rows("surface_normal")
        for i, (pos, normal) in enumerate(zip(*surfaces, strict=True)):
            inside = (answer[i] < 0, distance[i, half:] < 0)
            if self.brief:
                meters["field"].update(None, None, None, inside)
                continue
            ours: Any = (None, None)
            if (found := self.surface(z[i])) is not None:
                rng = np.random.default_rng(item_seed(batch.names[i]))
                ours = on_surface(*found, len(pos), rng)
            theirs = pos.cpu().numpy(), normal.cpu().numpy()
            meters["field"].update(ours[0], theirs[0], (ours[1], theirs[1]), inside)

    def scores(self, meters: Any) -> dict[str, float]:
        if not meters["field"].update_called:
            return {}
        return {k: float(v) for k, v in meters["field"].compute().items()}

    def each(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        known = meters["field"].iou
        return {"iou": torch.cat(known[-len(batch) :])} if known else {}

    def split(self, output: Tensor, batch: ShapeBatch) -> list[Tensor]:
        return list(output)

    # ---- pictures ----

    def figures(self, evaluation: Evaluation, folder: Path, name: str) -> None:
        from geodl import viz

        kept = evaluation.kept[:8]
        shown = [(s.pos.numpy(), s.face.numpy()) for s, _ in kept]
        found = [self.shown(z) for _, z in kept]
        titles = ["input", "found"]
        viz.meshes([shown, found], folder / f"gallery-{name}.png", self.spec.up, titles)
        ends = [z for _, z in kept[:2]]
        if len(ends) == 2:
            steps = torch.linspace(0, 1, 7).tolist()
            row = [self.shown((1 - t) * ends[0] + t * ends[1]) for t in steps]
            viz.meshes([row], folder / f"interpolation-{name}.png", self.spec.up)

    def scenes(self, evaluation: Evaluation) -> list[Scene]:
        from geodl import viz

        found: list[Scene] = []
        for shape, z in evaluation.kept[:6]:
            surface = self.surface(z.to(self.device))
            layers: dict[str, Any] = {}
            for name, mesh in (
                ("prediction", surface),
                ("truth", (shape.pos.numpy(), shape.face.numpy())),
            ):
                if mesh is not None:
                    layers[name] = (*mesh, np.tile(viz.PLAIN, (len(mesh[0]), 1)))
            found.append((shape.name, layers))
        return found

    # ---- the user's own shapes ----

    @torch.no_grad()
    def write(self, shapes: Sequence[OwnShape], place: Path) -> dict[str, Any]:
        """The surface as .ply in the file's coordinates (of a density: a cloud), a picture, and a
        row with the code and, for a mesh, the distances of the surfaces.

        Raises:
            UserError: there is none.
        """
        from geodl import viz

        (shape,) = shapes
        batch = ShapeBatch.pack([_with_truth(shape)]).to(self.device)
        z = self.code(batch)[0]
        found = self.surface(z[0])
        if found is None:
            raise UserError(f"{shape.name}: the model's function has no surface in the cube.")
        pos, face = found
        own = pos * shape.size + shape.center.numpy()
        grey = np.full((len(pos), 3), 160, np.uint8)
        write_ply(place.with_name(f"{place.name}.ply"), own, face, grey)
        seen = shape.seen.pos.numpy(), shape.seen.face.numpy()
        viz.meshes([[seen], [found]], place.with_name(f"{place.name}.png"), self.spec.up)
        row: dict[str, Any] = {"file": shape.name, "mesh": f"{place.name}.ply"}
        meter = FieldError()
        rng = np.random.default_rng(0)
        near = pos if not len(face) else on_surface(pos, face, 4000, rng)[0]
        goal = seen[0] if not len(seen[1]) else on_surface(*seen, 4000, rng)[0]
        meter.update(near, goal)
        row["chamfer"] = round(float(meter.compute()["chamfer"]), 4)
        return row | {"code": [round(float(c), 6) for c in z[0]]}

    def in_words(self, row: Mapping[str, Any]) -> str:
        return f"{row['mesh']}, {row['chamfer']:.2f} % of the radius from the input on average"


def _with_truth(shape: OwnShape) -> Any:
    """What the model sees of a file, with what is known of a mesh."""
    known = {n: x for n, x in shape.seen.ops.items() if n not in shape.ready.ops}
    fields = {n: shape.seen.ops.fields[n] for n in known}
    return shape.ready.replace(ops=shape.ready.ops.added(known, fields))
