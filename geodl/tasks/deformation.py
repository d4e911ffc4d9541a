"""A mesh moved to where it belongs, from a few of its points or from a shape that shows it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from geodl.data.files import write_ply
from geodl.data.own import OwnShape
from geodl.decoders.base import TemplateDecoder
from geodl.encoders.base import Encoder
from geodl.errors import UserError
from geodl.metrics import DeformedError
from geodl.nn.jacobians import Jacobians, applied, integrated
from geodl.nn.neighbors import farthest
from geodl.nn.poisson import Faces, faces_of
from geodl.ops.deform import solve
from geodl.ops.hierarchy import barycentric
from geodl.shape import GroupBatch, Shape, ShapeBatch
from geodl.spec import Needs, Points, Spectrum
from geodl.tasks.base import BATCH_NORM, Evaluation, Measure, Prediction, Scene, Setup, Task
from geodl.tasks.ways import WAYS

LOSSES = ("vertex", "jacobian", "normal")
EIGENVECTORS = 4  # of spectral pooling
SAMPLE = 256  # pairs by which codes and Jacobians are scaled
# Of the largest variance of a code: directions with less are not stretched further. Those of a
# network move while it learns, and with more it does not.
FLAT = {"target": 1e-2, "handles": 1e-5}


@dataclass
class Deformed(Prediction):
    """output: displacements (n 3) of the source's vertices. Beside it the gradient (2 f 3) of the
    displacement before integration, and, in evaluation, what is left (n 3) where only the lower
    half was asked to move, with the vertices of the upper half (n)."""

    gradient: Tensor | None = None
    lower: Tensor | None = None
    upper: Tensor | None = None


class Deformation(Task):
    """Source and target of one person in, the source's mesh deformed to the target out.

    What is known of the target is a code: with ``condition="target"`` E(target) - E(source) of an
    encoder E that sees surfaces (they need no correspondence); with "handles" the displacements of
    a few vertices. What becomes of it: with a learning encoder and no decoder, Jacobians of all
    faces from a description of the face and the code, integrated by a Poisson equation (NJF,
    PaNDaS); with a decoder, displacements of the template's vertices (the simple model); with
    encoder=identity the ``solver``.

    With Jacobians a code of zero deforms nothing, and a mask on faces leaves the rest without a
    code. Codes are
    whitened by what they are for training pairs before training, because a difference of codes is
    small at first, and in most directions smaller still; losses are divided by the size of the
    displacements.

    Metrics, of the source's own mesh: ``error`` in millimetres, ``normals`` (degrees), ``edges``,
    ``volume``, ``crossings`` (see ``geodl.metrics.DeformedError``), ``locality``: how much the
    upper half moves when only the lower half is asked to, over how much it moves otherwise. A
    source on another mesh than the template's (test=remeshed) belongs where the nearest points do.

    Papers: Aigerman et al.: Neural Jacobian fields, SIGGRAPH 2022 (local="features"); Besnier et
    al.: PaNDaS, 2026 (local="encoder"); Besnier et al. 2023 (decoders, displacement of a given
    neutral). Differs: codes are whitened, Jacobians are changes of the identity and none for the
    code zero, the mean displacement is a linear function of the code; spectral pooling takes
    absolute values, because an eigenvector's sign means nothing. Parameters of PaNDaS: 469,568 per
    encoder there, 64 fewer here in the one that reads targets (a bias, which no difference has).

    Args:
        solver: without training: "none", "biharmonic", "arap", "rbf", or "pca" (the span of the
            training displacements, ridge regression to the handles).
        components: of the PCA.
        condition: "target" or "handles": what is known.
        handles: how many vertices, as far from each other as can be, or "landmarks": the data's.
        local: what describes a face: "encoder" (a network of the same kind as the one that reads
            targets) or "features".
        latent: length of the code, and of the description of a face.
        widths: hidden channels of the layers that answer Jacobians.
        pool: how the encoder's rows become a code: "mean" (whatever the encoder does for whole
            shapes) or "spectral" (areas times eigenvectors).
        losses: weights by name: "vertex" (squared distances), "jacobian" (squared differences of
            gradients, by area), "normal" (one minus the cosine between normals).
    """

    inputs = ("source", "target")
    decodes = True
    in_place = True
    metrics = MappingProxyType(
        {
            "error": Measure("mm", "less", headline=True),
            "normals": Measure("degrees", "less"),
            "locality": Measure("", "less"),
        }
        | WAYS
    )

    def __init__(
        self,
        setup: Setup,
        solver: Literal["none", "biharmonic", "arap", "rbf", "pca"] = "biharmonic",
        components: int = 50,
        condition: Literal["target", "handles"] = "target",
        handles: int | Literal["landmarks"] = 30,
        local: Literal["encoder", "features"] = "encoder",
        latent: int = 64,
        widths: list[int] | tuple[int, ...] = (128,) * 5,
        pool: Literal["mean", "spectral"] = "mean",
        losses: Mapping[str, float] | None = None,
    ) -> None:
        weights = {n: float(w) for n, w in (losses or {"vertex": 1.0}).items() if w}
        for name in weights:
            if name not in LOSSES:
                raise UserError(f"task.losses.{name} is not known: choose {', '.join(LOSSES)}.")
        if not weights or (setup.decoder is not None and weights.keys() == {"jacobian"}):
            raise UserError("task.losses needs a weight: of vertex, say.")
        template = setup.spec.template
        if template is None:
            raise UserError(
                "task=deformation needs shapes of which it is known where every vertex goes: "
                "choose data=poses, bodies or ict_expressions."
            )
        if any(w % 4 for w in widths):
            raise UserError(f"task.widths={list(widths)} must be multiples of 4.")
        if handles == "landmarks" and not setup.spec.landmarks:
            raise UserError("task.handles=landmarks needs landmarks: choose data=ict_expressions.")
        if isinstance(handles, int) and handles > len(template.pos):
            raise UserError(
                f"task.handles={handles}, but a shape has {len(template.pos)} vertices."
            )
        decoded = setup.decoder is not None
        self.local = local
        self.condition, self.pool = condition, pool
        face_rows = local == "encoder" and not decoded
        self.out = "face" if face_rows else "whole" if pool == "mean" else "vertex"
        self.outputs = latent
        super().__init__(setup)
        self.learns = self.encoder.learns
        self.reads = condition == "target"
        self.transfers = self.learns and self.reads
        # What ``tell`` sets: a code for all meshes, a mask, how much of the code.
        self.given: Tensor | None = None
        self.mask_file: Path | None = None
        self.amount = 1.0
        if self.encoder.needs.find(Points):
            raise UserError(
                "task=deformation moves the shapes' own vertices: set encoder.points=null."
            )
        if self.learns and condition == "handles" and not face_rows:
            raise UserError(
                "task.condition=handles asks no encoder for a code: leave out decoder=, and set "
                "task.local=encoder."
            )
        self.solver, self.weights, self.handles = solver, weights, handles
        self.reader: Encoder | None = None  # of targets, where another one describes faces
        pos = torch.from_numpy(template.pos)
        self.face = torch.from_numpy(template.face)
        number = 0 if handles == "landmarks" else handles
        spots = farthest(pos, [len(pos)], number)[0] if number else torch.empty(0, dtype=torch.long)
        self.register_buffer("spots", pos[spots], persistent=False)
        self.spots: Tensor
        count = number or int(setup.spec.landmarks or 0)
        if not self.learns:
            self.register_buffer("mean", torch.zeros(pos.numel()))
            self.register_buffer("basis", torch.zeros(components, pos.numel()))
            self.mean: Tensor
            self.basis: Tensor
            self.components = components
            return
        columns = latent if condition == "target" else 3 * count
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.register_buffer("whitening", torch.eye(columns))
        self.register_buffer("size", torch.ones(()))  # of displacements
        self.register_buffer("slope", torch.ones(()))  # of their gradients
        self.fitted: Tensor
        self.whitening: Tensor
        self.size: Tensor
        self.slope: Tensor
        read = condition == "target"
        if face_rows and read:
            self.reader = setup.encoder(
                in_channels=setup.features.channels, spec=setup.spec, out=self._read_at()
            )
        self.to_code = None
        if read:
            times = EIGENVECTORS if pool == "spectral" else 1
            width = (self.reader or self.encoder).channels
            self.to_code = nn.Linear(times * width, latent, bias=False)
        self.describe = nn.Linear(self.encoder.channels, latent) if face_rows else None
        self.decoder = self.jacobians = self.shift = None
        if setup.decoder is not None:
            self.decoder = setup.decoder(latent=latent, spec=setup.spec)
            kind = type(self.decoder)
            if not issubclass(kind, TemplateDecoder) or kind.absolute or kind.projects:
                raise UserError(
                    "task=deformation needs a decoder to displacements of a template's vertices, "
                    f"which {kind.__name__} is not: choose mlp, spiral or chebnet, or none."
                )
            return
        described = latent if face_rows else setup.features.channels
        self.jacobians = Jacobians(described, columns, list(widths))
        self.shift = nn.Linear(columns, 3, bias=False)
        nn.init.zeros_(self.shift.weight)

    def _read_at(self) -> Literal["whole", "vertex"]:
        return "whole" if self.pool == "mean" else "vertex"

    def build_head(self) -> nn.Module:
        return nn.Identity()

    @property
    def needs(self) -> Needs:
        pooled = Needs.of(Spectrum(EIGENVECTORS) if self.pool == "spectral" else None)
        return super().needs | (self.reader.needs if self.reader else Needs()) | pooled

    # ---- before training ----

    @torch.no_grad()
    def fit(self, loader: Iterable[GroupBatch]) -> None:
        if not self.learns:
            if self.solver == "pca":
                self._fit_basis(loader)
            return
        if self.fitted:  # weights that are given were trained with what was measured then
            return
        self.fitted.fill_(True)
        was_training = self.training
        self.eval()
        for module in self.modules():  # these have seen nothing yet
            if isinstance(module, BATCH_NORM):
                module.train()
        before = {k: v.clone() for k, v in self.state_dict().items()}
        codes: list[Tensor] = []
        sizes: list[Tensor] = []
        slopes: list[Tensor] = []
        for batch in loader:
            batch = batch.to(self.device)
            codes.append(self.code(batch.source, batch.target, batch))
            moved = self.truth(batch) - batch.source.pos
            sizes.append(moved.square().sum(1).mean())
            if self.jacobians is not None:
                faces = faces_of(batch.source)
                slopes.append(_by_area(faces.grad(moved), faces))
            if sum(map(len, codes)) >= SAMPLE:
                break
        self.load_state_dict(before)
        self.train(was_training)
        rows = torch.cat(codes).double()
        variance, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
        least = variance[-1].clamp(min=1e-24) * FLAT[self.condition]
        self.whitening.copy_(directions / variance.clamp(min=least).sqrt())
        self.size.fill_(float(torch.stack(sizes).mean().sqrt().clamp(min=1e-12)))
        if slopes:
            self.slope.fill_(float(torch.stack(slopes).mean().sqrt().clamp(min=1e-12)))

    def _fit_basis(self, loader: Iterable[GroupBatch]) -> None:
        rows = [
            (self.truth(batch) - batch.source.pos).view(len(batch), -1).double() for batch in loader
        ]
        moved = torch.cat(rows)
        if self.components >= len(moved):
            raise UserError(
                f"task.components={self.components} needs more than {self.components} training "
                f"pairs, but there are {len(moved)}."
            )
        mean = moved.mean(0)
        _, size, directions = torch.linalg.svd(moved - mean, full_matrices=False)
        spread = size / len(moved) ** 0.5
        self.mean.copy_(mean)
        self.basis.copy_(spread[: self.components, None] * directions[: self.components])

    # ---- prediction ----

    def truth(self, batch: GroupBatch) -> Tensor:
        """Where the source's vertices (n 3) belong: like the target, or as the data say that
        somebody else's change looks on it."""
        source, known = batch.source, batch.target.cache
        if "truth" not in known:
            found: list[Tensor] = []
            own = source.pos.split(source.sizes)
            goal = "carried" if "carried" in batch.target.ops else "target"
            ends = zip(source.rows("target"), batch.target.rows(goal), strict=True)
            for pos, (start, end) in zip(own, ends, strict=True):
                moved = end - start
                if pos.shape != start.shape or not torch.equal(pos, start):  # another mesh
                    points = pos.double().cpu().numpy()
                    corner, weight = barycentric(
                        points, start.double().cpu().numpy(), self.face.numpy()
                    )
                    shares = torch.from_numpy(weight).to(pos)[..., None]
                    moved = (moved[torch.from_numpy(corner).to(pos.device)] * shares).sum(1)
                found.append(pos + moved)
            known["truth"] = torch.cat(found)
        return known["truth"]

    def handle_rows(self, source: ShapeBatch) -> list[Tensor]:
        """The vertices (h) that are handles, shape by shape: those nearest to the template's."""
        if self.handles == "landmarks":
            assert source.landmark is not None
            parts = source.landmark.split(source.counts["landmark"])
            return [part - start for part, start in zip(parts, source.ptr[:-1], strict=True)]
        spots = self.spots
        near = torch.cdist(spots, torch.from_numpy(self._template()).to(spots)).argmin(1)
        return [
            torch.cdist(start[near], pos).argmin(1)
            for pos, start in zip(
                source.pos.split(source.sizes), source.rows("target"), strict=True
            )
        ]

    def _template(self) -> NDArray[np.float32]:
        assert self.spec.template is not None
        return self.spec.template.pos

    def code(self, source: ShapeBatch, target: ShapeBatch, batch: GroupBatch | None) -> Tensor:
        """What is known of the targets (b d), before it is scaled."""
        if self.condition == "handles" or not self.learns:
            assert batch is not None
            moved = (self.truth(batch) - batch.source.pos).split(source.sizes)
            rows = zip(moved, self.handle_rows(source), strict=True)
            return torch.stack([x[handle].flatten() for x, handle in rows])
        reader = self.reader or self.encoder
        both = ShapeBatch.join(source, target)
        encoding = reader(self.features(both), both).at(self._read_at())
        if self.pool == "spectral":
            evecs = both.ops.evecs[:, :EIGENVECTORS]
            evecs = torch.cat([evecs[:, :1].abs(), evecs[:, 1:]], 1)  # the first one is constant
            weighted = (encoding[:, None] * evecs[:, :, None]).flatten(1)
            sums = both.mean(weighted, both.ops.mass)
            encoding = torch.cat(
                [sums[:, : encoding.shape[1]], sums[:, encoding.shape[1] :].abs()], 1
            )
        assert self.to_code is not None
        before, behind = self.to_code(encoding).chunk(2)
        return behind - before

    def moved(
        self, source: ShapeBatch, code: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Displacements (n 3) of sources by codes (b d), and their gradients before integration;
        ``mask`` (faces): 1 where the code is heard, 0 where not."""
        if not self.learns:
            return self._solved(source, code), None
        z = code @ self.whitening
        if self.decoder is not None:
            for face, start, name in zip(
                source.face.split(source.counts["face"]), source.ptr, source.names, strict=False
            ):
                self._need_template(face - start, name, "decoder=")
            return self.size * self.decoder(z).flatten(0, 1), None
        assert self.jacobians is not None and self.shift is not None
        faces = faces_of(source)
        x = self.features(source)
        if self.describe is not None:
            u = self.describe(self.encoder(x, source).at("face"))
        else:
            u = faces.to_faces(x)
        counts = torch.tensor(source.counts["face"], device=z.device)
        told = z.repeat_interleave(counts, dim=0, output_size=len(u))
        if mask is not None:
            told = told * mask[:, None]
        gradient = self.slope * applied(self.jacobians(u, told), source.pos, faces)
        y = integrated(gradient, faces, source, mask)
        if mask is None or bool(mask.all()):
            return y + source.spread(self.size * self.shift(z)), gradient
        # What hears nothing stays where it is.
        still = faces.mass * (faces.to_vertices((mask == 0).to(y)[:, None])[:, 0] > 0.5)
        return y - source.spread(source.mean(y, still + 1e-9 * faces.mass)), gradient

    def _need_template(self, face: Tensor, name: str, what: str) -> None:
        if not torch.equal(face.cpu(), self.face):
            raise UserError(
                f"{what} moves the vertices of the template's mesh, and {name} is another: leave "
                "it out."
            )

    def _solved(self, source: ShapeBatch, code: Tensor) -> Tensor:
        if self.solver == "none":
            return torch.zeros_like(source.pos)
        found: list[Tensor] = []
        shapes = zip(source.unpack(), self.handle_rows(source), code, strict=True)
        for shape, handle, row in shapes:
            wanted = row.view(-1, 3).cpu()
            if self.solver == "pca":
                self._need_template(shape.face, shape.name, "task.solver=pca")
                found.append(self._projected(handle.cpu(), wanted).to(source.pos))
                continue
            pos, face = shape.pos.double().cpu().numpy(), shape.face.cpu().numpy()
            own = solve(self.solver, pos, face, handle.cpu().numpy(), wanted.double().numpy())
            found.append(torch.from_numpy(own).to(source.pos))
        return torch.cat(found)

    def _projected(self, handle: Tensor, wanted: Tensor) -> Tensor:
        """The likeliest displacement of the PCA's normal distribution, if handles are known to a
        hundredth of what they move by."""
        mean, basis = self.mean.cpu().view(-1, 3), self.basis.cpu().view(self.components, -1, 3)
        a = basis[:, handle].flatten(1).double()
        gap = (wanted - mean[handle]).flatten().double()
        noise = 1e-4 * a.square().sum(0).mean()
        weight = torch.linalg.solve(a @ a.T + noise * torch.eye(len(a)), a @ gap)
        return mean + torch.tensordot(weight.to(basis), basis, 1)

    def _asked(self, batch: GroupBatch) -> Tensor:
        """The codes (b d) of a batch: of targets, seen from the same person at rest."""
        return self.code(batch.members.get("rest", batch.source), batch.target, batch)

    def predict(self, batch: GroupBatch) -> Deformed:
        code = self._asked(batch)
        output, gradient = self.moved(batch.source, code)
        return Deformed(output, gradient=gradient)

    def predict_eval(self, batch: GroupBatch) -> Deformed:
        source = batch.source
        code = self._asked(batch)
        output, gradient = self.moved(source, code)
        prediction = Deformed(output, gradient=gradient)
        if not self.learns or self.decoder is not None:
            return prediction
        height = source.pos[:, 1 if self.spec.up == "y" else 2, None]
        low = (height < source.spread(source.mean(height)))[:, 0]
        mask = low[source.face].all(1).float()
        prediction.lower = self.moved(source, code, mask)[0]
        prediction.upper = ~low
        return prediction

    def along(self, batch: GroupBatch, shares: Sequence[float]) -> Tensor:
        """Meshes (t n 3) of the persons at rest on the way from the first shapes to the second, on
        which the code changes evenly."""
        ends = [
            self.code(batch.rest, end, GroupBatch(source=batch.rest, target=end))
            for end in (batch.first, batch.second)
        ]
        between = [(1 - t) * ends[0] + t * ends[1] for t in shares]
        return torch.stack([batch.rest.pos + self.moved(batch.rest, z)[0] for z in between])

    # ---- losses and metrics ----

    def losses(self, prediction: Prediction, batch: GroupBatch) -> dict[str, Tensor]:
        assert isinstance(prediction, Deformed)
        source, true = batch.source, self.truth(batch)
        wanted = true - source.pos
        if not self.learns:
            return {"vertex": (prediction.output - wanted).square().sum(1).mean()}
        found: dict[str, Tensor] = {}
        if "vertex" in self.weights:
            gap = (prediction.output - wanted).square().sum(1).mean()
            found["vertex"] = gap / self.size.square()
        faces = faces_of(source)
        if "jacobian" in self.weights and prediction.gradient is not None:
            gap = prediction.gradient - faces.grad(wanted)
            found["jacobian"] = _by_area(gap, faces) / self.slope.square()
        if "normal" in self.weights:
            ours, theirs = (
                torch.linalg.cross(*(x[source.face[:, i]] - x[source.face[:, 0]] for i in (1, 2)))
                for x in (source.pos + prediction.output, true)
            )
            found["normal"] = (1 - torch.cosine_similarity(ours, theirs, dim=1)).mean()
        return {n: self.weights[n] * v for n, v in found.items()}

    def make_meters(self) -> dict[str, Metric]:
        from torchmetrics import SumMetric

        return {"deformed": DeformedError(), "moved": SumMetric(), "left": SumMetric()}

    def measure(self, meters: Any, prediction: Prediction, batch: GroupBatch) -> None:
        if self.training:
            return
        assert isinstance(prediction, Deformed)
        source, true = batch.source, self.truth(batch)
        found = source.pos + prediction.output
        parts = (x.split(source.sizes) for x in (found, true))
        faces = source.face.split(source.counts["face"])
        for pos, goal, face, start in zip(*parts, faces, source.ptr[:-1], strict=True):
            meters["deformed"].update(pos, goal, face - start, self.spec.unit)
        if prediction.lower is not None and prediction.upper is not None:
            meters["moved"].update(prediction.output[prediction.upper].norm(dim=1).sum())
            meters["left"].update(prediction.lower[prediction.upper].norm(dim=1).sum())

    def scores(self, meters: Any) -> dict[str, float]:
        if not meters["deformed"].update_called:
            return {}
        scores = {k: float(v) for k, v in meters["deformed"].compute().items()}
        if meters["moved"].update_called:
            moved, left = (float(meters[name].compute()) for name in ("moved", "left"))
            scores["locality"] = left / max(moved, 1e-12)
        return scores

    def each(self, meters: Any, prediction: Prediction, batch: GroupBatch) -> dict[str, Tensor]:
        source = batch.source
        off = (source.pos + prediction.output - self.truth(batch)).norm(dim=1)
        return {"error": self.spec.unit * source.mean(off[:, None])[:, 0]}

    def split(self, output: Tensor, batch: GroupBatch) -> list[Tensor]:
        return list(output.split(batch.source.sizes))

    # ---- the user's own shapes ----

    def tell(self, code: Any, mask: str | None, amount: float) -> None:
        if not self.learns or self.decoder is not None or self.condition != "target":
            raise UserError(
                "code=, mask= and amount= need a model that reads targets and answers Jacobians: "
                "experiment=deform/pandas or njf."
            )
        self.amount = amount
        self.mask_file = None if mask is None else Path(mask).expanduser()
        if code is not None:
            self.given = _read_code(Path(str(code)).expanduser(), self.outputs)
            self.inputs = ("source",)  # pyright: ignore[reportAttributeAccessIssue]

    def check(self, shapes: Sequence[OwnShape]) -> None:
        source = shapes[0]
        if source.seen.is_cloud or not (self.learns and self.reads):
            what = "a cloud has none" if source.seen.is_cloud else "this model knows handles only"
            raise UserError(f"{source.name} is to be moved by its surface, and {what}.")
        self._mask(source)

    def _mask(self, source: OwnShape) -> Tensor | None:
        """Which faces (f) of a mesh of the user's hear the code: 1 or 0."""
        if self.mask_file is None:
            return None
        chosen = _read_mask(self.mask_file, len(source.raw.pos))
        if len(source.seen.pos) != len(source.raw.pos):
            raise UserError(f"{source.name} needed repair, so mask= would be of another mesh.")
        mask = chosen[source.seen.face].all(1).float()
        if not mask.any():
            raise UserError(
                f"mask={self.mask_file} holds no whole triangle: choose three vertices of one."
            )
        return mask.to(self.device)

    @torch.no_grad()
    def write(self, shapes: Sequence[OwnShape], place: Path) -> dict[str, Any]:
        """The source deformed as .ply, in the file's coordinates, coloured by how far its vertices
        went (yellow: a tenth of the template's radius), a picture, and a row with the code."""
        from geodl import viz

        source = shapes[0]
        batch = ShapeBatch.pack([source.ready]).to(self.device)
        code = self.given
        if code is None:
            code = self.code(batch, ShapeBatch.pack([shapes[1].ready]).to(self.device), None)
        mask = self._mask(source)
        moved = self.moved(batch, self.amount * code.to(self.device), mask)[0].cpu()
        pos, face = source.seen.pos + moved, source.seen.face.numpy()
        own = pos.double().numpy() * source.size + source.center.numpy()
        color = viz.heat(moved.norm(dim=1).numpy(), 0.1)
        painted = (color * 255).astype(np.uint8)
        write_ply(place.with_name(f"{place.name}.ply"), own, face, painted)
        drawn = [source.seen, source.seen.replace(pos=pos), *(s.seen for s in shapes[1:])]
        viz.strips(
            [[s.pos.numpy() for s in drawn]],
            face,
            place.with_name(f"{place.name}.png"),
            self.spec.up,
            faces=[[s.face.numpy() for s in drawn]],
            colors=[[None, color, *(None for _ in shapes[1:])]],
        )
        far = moved.norm(dim=1) * source.size
        return {
            "file": " to ".join(shape.name for shape in shapes),
            "mesh": f"{place.name}.ply",
            "moved": round(float(far.mean()), 6),
            "code": [round(float(c), 6) for c in code[0]],
        }

    def in_words(self, row: Mapping[str, Any]) -> str:
        return f"{row['mesh']}, vertices moved by {row['moved']:.4g} on average"

    # ---- pictures ----

    def figures(self, evaluation: Evaluation, folder: Path, name: str) -> None:
        from geodl import viz

        kept = [((group[0], _goal(group)), y) for group, y in evaluation.kept[:6]]
        rows = [[s.pos.numpy(), (s.pos + y).numpy(), t.pos.numpy()] for (s, t), y in kept]
        faces = [[s.face.numpy()] * 2 + [t.face.numpy()] for (s, t), _ in kept]
        colors: list[Any] = []
        for (s, t), y in kept:
            color: Any = None
            if len(t.pos) == len(s.pos):
                gap = (s.pos + y - t.pos).norm(dim=1).numpy()
                span = (t.pos - s.pos).norm(dim=1).max().item() / 2
                color = viz.heat(gap / max(span, 1e-9), 1.0)
            colors.append([None, color, None])
        viz.strips(
            [list(column) for column in zip(*rows, strict=True)],
            self.face.numpy(),
            folder / f"gallery-{name}.png",
            self.spec.up,
            faces=[list(column) for column in zip(*faces, strict=True)],
            colors=[list(column) for column in zip(*colors, strict=True)],
            titles=["source", "deformed", "target"],
        )

    def scenes(self, evaluation: Evaluation) -> list[Scene]:
        from geodl import viz

        found: list[Scene] = []
        for group, y in evaluation.kept[:6]:
            source, target = group[0], _goal(group)
            pos, face = (source.pos + y).numpy(), source.face.numpy()
            plain = np.tile(viz.PLAIN, (len(pos), 1))
            other = np.tile(viz.PLAIN, (len(target.pos), 1))
            layers = {
                "prediction": (pos, face, plain),
                "truth": (target.pos.numpy(), target.face.numpy(), other),
                "source": (source.pos.numpy(), face, plain),
            }
            found.append((f"{source.name} to {target.name}", layers))
        return found


def _goal(group: Sequence[Shape]) -> Shape:
    """The target of a group; of a transfer, what the source should become."""
    source, target = group[0], group[-1]
    if "carried" not in target.ops:
        return target
    return source.replace(pos=target.ops.carried, name=target.name)


def _read_code(file: Path, length: int) -> Tensor:
    """A code (1 d) from the predictions of this model on another pair."""
    try:
        content: Any = json.loads(file.read_text())
        row = content[0] if isinstance(content, list) and isinstance(content[0], dict) else content
        values = row["code"] if isinstance(row, dict) else row
        code = torch.tensor(values, dtype=torch.float32)[None]
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError):
        raise UserError(
            f"code={file} cannot be read: give the predictions.json that this model wrote for "
            "input=[source.ply,target.ply]."
        ) from None
    if code.shape != (1, length):
        raise UserError(f"code={file} has {code.numel()} numbers, this model takes {length}.")
    return code


def _read_mask(file: Path, vertices: int) -> Tensor:
    """Which of the vertices (v) are chosen: named by number, from 0, in a text file, or painted in
    a mesh (a colour that is not grey).

    Raises:
        UserError: it cannot be read, is of another mesh, or chooses nothing.
    """
    chosen = np.zeros(vertices, bool)
    if not file.is_file():
        raise UserError(f"mask={file} does not exist: give a painted mesh, or vertex numbers.")
    if file.suffix.lower() == ".ply":
        import trimesh

        try:
            mesh: Any = trimesh.load(file, process=False, force="mesh")
            colors = np.asarray(mesh.visual.vertex_colors)[:, :3].astype(int)
        except (ValueError, AttributeError, IndexError, KeyError) as error:
            raise UserError(f"mask={file} cannot be read: give a .ply with colours.") from error
        if len(colors) != vertices:
            raise UserError(
                f"mask={file} has {len(colors)} vertices, the source has {vertices}: paint that."
            )
        chosen = np.ptp(colors, axis=1) > 50
    else:
        words = file.read_text(errors="replace").replace(",", " ").split()
        if not all(w.isdecimal() and int(w) < vertices for w in words):
            raise UserError(f"mask={file} must hold vertex numbers from 0 to {vertices - 1}.")
        chosen[[int(w) for w in words]] = True
    if not chosen.any():
        raise UserError(f"mask={file} chooses no vertex: paint some in a colour, or name some.")
    return torch.from_numpy(chosen)


def _by_area(gradient: Tensor, faces: Faces) -> Tensor:
    """Mean square of gradients (2 f 3) over the surface."""
    return (gradient.square().sum((0, 2)) * faces.area).sum() / faces.area.sum()
