"""From a shape to a latent code and back to the vertices of a template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from geodl.data.files import write_ply
from geodl.data.own import OwnShape
from geodl.errors import UserError
from geodl.losses import Kernel, chamfer, surface_distance, triangles
from geodl.metrics import SurfaceError, VertexError, to_surface
from geodl.nn.init import glorot
from geodl.shape import GroupBatch, ShapeBatch
from geodl.tasks.base import Evaluation, Measure, Prediction, Scene, Setup, Task
from geodl.tasks.ways import WAYS

REGISTERED = ("l1", "l2")  # compare vertices one by one
SURFACES = ("chamfer", "current", "varifold")  # compare surfaces


class Reconstruction(Task):
    """An autoencoder: encoder, one linear layer to the code, decoder.

    Registered encoders (spiral, Chebyshev) see normalised coordinates: each coordinate minus its
    mean over the training shapes, over a standard deviation; other encoders see the shape as it is.
    The decoder's answer is normalised too, and turned back here, so every number is in millimetres.
    Where no loss reads the correspondence, none is read to normalise either: the decoder's answer
    is a displacement of the template.

    Metrics: per vertex, where the input has the template's vertices underneath: ``error`` (mean),
    ``std``, ``median``, ``p90``; for an input with other vertices also ``surface`` (mean of
    ``scan_to_mesh`` and ``mesh_to_scan``, point-to-triangle distances).

    Paper: Besnier, Arguillere, Pierson, Daoudi: Toward mesh-invariant 3D generative deep learning
    with geometric measures, Computers & Graphics 2023 (losses current and varifold, displacement of
    a template).

    Args:
        latent: length of the code.
        losses: weights by name: ``l1``, ``l2`` (on normalised vertices, means over coordinates),
            ``chamfer``, ``current``, ``varifold`` (see ``geodl.losses``).
        normalize: "zscore" divides every coordinate by its own standard deviation (SpiralNet++,
            CoMA); "center" divides all by one, so that L1 and L2 weigh a millimetre the same
            everywhere.
        sigma: widths of the kernels of current and varifold, in units of the shape (about one in
            radius); several are summed.
    """

    out = "whole"
    metrics = MappingProxyType(
        {
            "surface": Measure("mm", "less", headline=True),
            "error": Measure("mm", "less", headline=True),
        }
        | WAYS
        | dict.fromkeys(
            ("std", "median", "p90", "scan_to_mesh", "mesh_to_scan"), Measure("mm", "less")
        )
    )
    decodes = True

    def __init__(
        self,
        setup: Setup,
        latent: int = 16,
        losses: Mapping[str, float] | None = None,
        normalize: Literal["zscore", "center"] = "zscore",
        sigma: list[float] | tuple[float, ...] = (0.2, 0.05),
    ) -> None:
        weights = {k: float(v) for k, v in (losses or {"l1": 1.0}).items() if v}
        known = (*REGISTERED, *SURFACES)
        for name in weights:
            if name not in known:
                raise UserError(f"task.losses.{name} is not known: choose {', '.join(known)}.")
        if not weights or latent < 1:
            raise UserError("task.losses needs at least one weight, task.latent at least 1.")
        if normalize not in ("zscore", "center"):
            raise UserError(f"task.normalize={normalize} is not known: choose zscore or center.")
        if not sigma or min(sigma) <= 0:
            raise UserError(f"task.sigma={list(sigma)} must be a list of positive widths.")
        if setup.decoder is None:
            raise UserError(
                "task=reconstruction needs a decoder: add decoder=spiral, chebnet, mlp or linear."
            )
        self.outputs = latent
        super().__init__(setup)
        self.weights = weights
        self.sigma = list(sigma)
        self.normalize = normalize
        self.decoder = setup.decoder(latent=latent, spec=setup.spec)
        if getattr(self.decoder, "template", None) is None:
            raise UserError(
                "task=reconstruction needs a decoder to a template's vertices, which "
                f"{type(self.decoder).__name__} is not: choose spiral, chebnet, mlp or linear."
            )
        self.template = self.decoder.template
        self.linear = not self.encoder.learns and self.decoder.projects
        if self.linear:
            self.head = nn.Identity()  # the code is the projection onto the basis
        else:  # drawn behind the decoder's weights
            head = cast(nn.Linear, self.head)
            head.reset_parameters()
            glorot(head)
        if self.encoder.registered and self.encoder.in_channels != 3:
            raise UserError("encoders on a template take features=xyz here.")
        pos = torch.from_numpy(self.template.pos)
        self.register_buffer("mean", pos.clone())
        self.register_buffer("scale", torch.ones(1, 1).expand_as(pos).clone())
        self.register_buffer("face", torch.from_numpy(self.template.face), persistent=False)
        self.mean: Tensor
        self.scale: Tensor
        self.face: Tensor

    # ---- before training ----

    def fit(self, loader: Iterable[ShapeBatch]) -> None:
        seen: list[Tensor] = []
        for batch in loader:
            seen.append(self.target(batch))
            if not self.reads_vertices and len(seen) * len(batch) > 100:
                break
        x = torch.cat(seen)
        self.decoder.fit(x, f"the training split ({self.spec.protocol})")
        if self.reads_vertices:
            self.mean.copy_(x.mean(0))
            if self.normalize == "center":
                self.scale.fill_(float((x - self.mean).square().mean().sqrt()))
            else:  # a coordinate that never moves: no division by zero
                self.scale.copy_(x.std(0).clamp(min=1e-6))
        else:
            from scipy.spatial import KDTree

            # How far the surfaces are from the template's, in any order of their vertices.
            tree = KDTree(self.template.pos)
            gaps = np.concatenate([tree.query(shape.numpy())[0] for shape in x])
            self.scale.fill_(float(np.sqrt(np.mean(gaps**2))))

    @property
    def reads_vertices(self) -> bool:
        return any(name in self.weights for name in REGISTERED)

    # ---- prediction ----

    def target(self, batch: ShapeBatch) -> Tensor:
        """True vertices (b v 3) of the template."""
        return batch.ops.target.view(len(batch), -1, 3)

    def encode(self, batch: ShapeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Codes (b latent)."""
        x = self.features(batch)
        if self.linear:
            return self.decoder.project(self.encoder(x, batch).at("whole")), {}
        if self.encoder.registered:
            rows = self.encoder.rows(x, batch)
            x = ((rows - self.mean) / self.scale).flatten(0, 1)
        encoding = self.encoder(x, batch)
        return self.head(encoding.at("whole")), encoding.losses

    def decode(self, code: Tensor) -> Tensor:
        """Vertices (b v 3) in the model's coordinates."""
        y = self.decoder(code)
        return y if self.decoder.absolute else self.mean + self.scale * y

    def predict(self, batch: ShapeBatch) -> Prediction:
        code, losses = self.encode(batch)
        return Prediction(self.decode(code), losses)

    def losses(self, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        y = prediction.output
        found: dict[str, Tensor] = {}
        if self.reads_vertices:
            gap = (y - self.target(batch)) / self.scale
            if "l1" in self.weights:
                found["l1"] = gap.abs().mean()
            if "l2" in self.weights:
                found["l2"] = gap.square().mean()
        names = [name for name in SURFACES if name in self.weights]
        if names:
            parts: dict[str, list[Tensor]] = {name: [] for name in names}
            for pos, (scan, face) in zip(y, scans(batch), strict=True):
                for name in names:
                    parts[name].append(self._surface_loss(name, pos, scan, face))
            found |= {name: torch.stack(values).mean() for name, values in parts.items()}
        return {k: self.weights[k] * v for k, v in found.items()} | prediction.losses

    def _surface_loss(self, name: str, pos: Tensor, scan: Tensor, face: Tensor) -> Tensor:
        if name == "chamfer":
            return chamfer(pos, scan)
        ours, theirs = triangles(pos, self.face), triangles(scan, face)
        kind: Kernel = "current" if name == "current" else "varifold"
        return torch.stack([surface_distance(ours, theirs, kind, s) for s in self.sigma]).sum()

    def along(self, batch: GroupBatch, shares: Sequence[float]) -> Tensor:
        """The decoded straight line between the codes."""
        first, second = (self.encode(end)[0] for end in (batch.first, batch.second))
        return torch.stack(
            [self.decode((1 - t) * first + t * second).flatten(0, 1) for t in shares]
        )

    # ---- metrics ----

    def make_meters(self) -> dict[str, Metric]:
        return {"vertex": VertexError(), "surface": SurfaceError()}

    def measure(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> None:
        y = prediction.output
        meters["vertex"].update(y, self.target(batch), self.spec.unit)
        if self.training:
            return
        for pos, (scan, face) in zip(y, scans(batch), strict=True):
            if len(face) and not torch.equal(face, self.face):  # not the template's own mesh
                meters["surface"].update((pos, self.face), (scan, face), self.spec.unit)

    def scores(self, meters: Any) -> dict[str, float]:
        vertex = meters["vertex"].compute()
        scores = {k: float(vertex[k]) for k in ("error", "std", "median", "p90")}
        if meters["surface"].update_called:
            scores |= {k: float(v) for k, v in meters["surface"].compute().items()}
        return scores

    def each(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        return {"error": meters["vertex"].rows[-1].mean(1)}

    def details(self, meters: Any) -> dict[str, Any]:
        vertex = meters["vertex"].compute()
        return {k: [round(float(e), 4) for e in vertex[k]] for k in ("quantiles", "per_vertex")}

    def split(self, output: Tensor, batch: ShapeBatch) -> list[Tensor]:
        return list(output)

    # ---- pictures ----

    def figures(self, evaluation: Evaluation, folder: Path, name: str) -> None:
        from geodl import viz

        face, up = self.template.face, self.spec.up
        rows = [
            (s.ops.scan.numpy(), s.ops.scan_face.numpy(), y.numpy(), s.ops.target.numpy())
            for s, y in evaluation.kept
        ]
        viz.reconstructions(rows, face, self.spec.unit, folder / f"gallery-{name}.png", up)
        per_vertex = np.array(evaluation.details["per_vertex"])
        heat = folder / f"error-{name}.png"
        viz.error_map(self.mean.cpu().numpy(), face, per_vertex, heat, up)
        viz.error_curve(evaluation.details["quantiles"], folder / f"curve-{name}.png")
        self._walks(evaluation, folder, name)

    def scenes(self, evaluation: Evaluation) -> list[Scene]:
        from geodl import viz

        face = self.template.face
        found: list[Scene] = []
        for shape, output in evaluation.kept:
            y, truth = output.numpy(), shape.ops.target.numpy()
            scan, scan_face = shape.ops.scan.numpy(), shape.ops.scan_face.numpy()
            error = np.linalg.norm(y - truth, axis=1) * self.spec.unit
            layers = {
                "prediction": (y, face, np.tile(viz.PLAIN, (len(y), 1))),
                "truth": (scan, scan_face, np.tile(viz.PLAIN, (len(scan), 1))),
                "error": (y, face, viz.heat(error, 5.0)),
            }
            found.append((f"{shape.name} (error: yellow is 5 mm)", layers))
        return found

    @torch.no_grad()
    def _walks(self, evaluation: Evaluation, folder: Path, name: str) -> None:
        """Interpolations between test shapes and samples around their codes."""
        from geodl import viz

        was_training = self.training
        self.eval()
        batch = ShapeBatch.pack([s for s, _ in evaluation.kept]).to(self.device)
        codes = self.encode(batch)[0]
        self.train(was_training)
        ends = [(0, 1), (2, 3), (4, 5)] if len(codes) > 5 else [(0, len(codes) - 1)]
        steps = torch.linspace(0, 1, 7, device=codes.device)[:, None]
        strips = [(1 - steps) * codes[a] + steps * codes[b] for a, b in ends]
        shown = [self.decode(strip).cpu().numpy() for strip in strips]
        face, up = self.template.face, self.spec.up
        viz.strips(shown, face, folder / f"interpolation-{name}.png", up)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(12, codes.shape[1], generator=generator).to(codes)
        spread = codes.std(0) if len(codes) > 1 else torch.zeros_like(codes[0])
        samples = self.decode(codes.mean(0) + noise * spread).cpu().numpy()
        viz.strips([samples[:6], samples[6:]], face, folder / f"samples-{name}.png", up)

    # ---- the user's own shapes ----

    def write(self, shapes: Sequence[OwnShape], place: Path) -> dict[str, Any]:
        """The reconstruction as .ply in the file's coordinates, coloured by its distance to the
        input (blue 0, yellow 3 mm), a picture, and a row with the code and the distances."""
        from geodl import viz

        (shape,) = shapes
        batch = ShapeBatch.pack([shape.ready]).to(self.device)
        with torch.no_grad():
            code, _ = self.encode(batch)
            y = self.decode(code)[0].cpu()
        face = self.face.cpu()
        scan = (shape.seen.pos, shape.seen.face)
        unit = self.spec.unit
        row: dict[str, Any] = {"file": shape.name, "mesh": f"{place.name}.ply"}
        errors: Any = None
        if not shape.seen.is_cloud:
            errors = (unit * to_surface(y, scan)).numpy()
            row |= {
                "scan_to_mesh": float(unit * to_surface(scan[0], (y, face)).mean()),
                "mesh_to_scan": float(errors.mean()),
            }
        color = np.tile(viz.PLAIN, (len(y), 1)) if errors is None else viz.heat(errors, 3.0)
        own = y.double().numpy() * shape.size + shape.center.numpy()
        triangles = face.numpy()
        painted = (color * 255).astype(np.uint8)
        write_ply(place.with_name(f"{place.name}.ply"), own, triangles, painted)
        viz.strips(
            [[scan[0].numpy()], [y.numpy()]],
            triangles,
            place.with_name(f"{place.name}.png"),
            self.spec.up,
            faces=[[scan[1].numpy()], [triangles]],
            colors=[[None], [color]],
        )
        return row | {"code": [round(float(c), 6) for c in code[0]]}

    def in_words(self, row: Mapping[str, Any]) -> str:
        far = f", {row['scan_to_mesh']:.2f} mm from the input" if "scan_to_mesh" in row else ""
        return f"{row['mesh']}{far}"


def scans(batch: ShapeBatch) -> list[tuple[Tensor, Tensor]]:
    """The surfaces that the input was taken from: positions and faces, shape by shape."""
    return list(zip(batch.rows("scan"), batch.rows("scan_face"), strict=True))
