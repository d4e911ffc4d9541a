"""Point-to-point maps between two shapes, by functional maps or by vertex classification."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from geodl.atomic import atomic
from geodl.data.files import write_ply
from geodl.data.own import OwnShape
from geodl.errors import UserError
from geodl.metrics import MapError
from geodl.nn.fmap import from_fmap, functional_map, soft_fmap, to_fmap
from geodl.nn.neighbors import nearest
from geodl.ops.geodesic import METHODS, Method
from geodl.shape import GroupBatch, ShapeBatch
from geodl.spec import Laplacian, Needs, Points, Spectrum
from geodl.tasks.base import Evaluation, Measure, Prediction, Scene, Setup, Task

LOSSES = ("supervised", "bijectivity", "orthogonality", "commutativity", "alignment")


@dataclass
class MapPrediction(Prediction):
    """Beside the maps: coefficients (b k d) and descriptors (v d) of source and target."""

    coefficients: tuple[Tensor, Tensor] | None = None
    descriptors: tuple[list[Tensor], list[Tensor]] | None = None


class Matching(Task):
    """Maps from the vertices of the target to those of the source.

    Form "fmap": descriptors of both shapes (features -> encoder -> one linear layer), their
    coefficients A (source) and B (target) in the first k eigenfunctions, and the functional map C
    that minimises |C A - B|^2 + lambda sum_ij C_ij^2 (source_j - target_i)^2 over the eigenvalues,
    row by row. The map: for every vertex of the target the nearest row of evecs_source C^T to its
    own row of evecs_target.

    Form "categorical": the linear layer names a template point for every vertex (cross-entropy at
    the landmarks).

    Metrics: the geodesic distance on the *source* between where a template point of the target is
    sent and where it belongs, x 100 and divided by the root of the area (or the diameter):
    ``geodesic`` is the mean over points, then pairs; ``median`` over pairs; ``failed`` pairs with
    more than 10; ``exact`` share of points sent exactly; ``auc`` of the share of points within
    0 to 25; ``cover`` share of the source's vertices that are hit; ``dirichlet`` energy of the map;
    ``unreachable`` points on another component (they count as the largest distance).

    Paper: Donati, Sharma, Ovsjanikov: Deep geometric functional maps, CVPR 2020, as in Sharp et
    al.: DiffusionNet, 2022 (k = 30, lambda = 1e-3). Unsupervised losses: Roufosse, Sharma,
    Ovsjanikov 2019. ZoomOut: Melzi et al. 2019,
    their loop, whose first map is of size k (pyFM begins at k + step). Unsupervised with
    "alignment": Cao, Roetzer, Bernard: Unsupervised learning of robust spectral shape matching
    (ULRSSM), TOG 2023; their losses are sums over both directions, here one direction of each pair
    (the other one is another pair).

    Args:
        form: "fmap" or "categorical".
        k: eigenfunctions of the functional map.
        descriptors: columns of the linear layer.
        regularization: lambda.
        losses: weights by name: "supervised" (mean squared difference to the C of the true map),
            "bijectivity", "orthogonality", "commutativity" (with the Laplacians), "alignment"
            (with the functional map of the soft map between descriptors). All but the first need no
            correspondence.
        resolvent: exponent of the resolvent mask in place of the eigenvalues' differences.
        tau: temperature of the soft map; null: 0.07.
        nearest: at test time, begin with the vertex of the nearest descriptor, made smooth by one
            functional map, instead of the functional map of the descriptors.
        adapt: at test time, so many steps of the losses without correspondence on each pair, from
            the trained weights each time (Adam, learning rate 0.001).
        refine: null, "icp" or "zoomout", of the map at test time.
        zoomout: size of the map after refinement; it grows by ``step``.
        geodesic: "dijkstra", "exact" or "heat", and every how-many-th template point is measured.
        normalize: "area" or "diameter".
    """

    out = "vertex"
    inputs = ("source", "target")
    metrics = MappingProxyType(
        {
            "geodesic": Measure("x 100", "less", headline=True),
            "median": Measure("x 100", "less"),
            "failed": Measure("pairs", "less"),
            "exact": Measure("%"),
            "auc": Measure("%"),
            "cover": Measure("%"),
            "dirichlet": Measure("", "less"),
            "unreachable": Measure("points", "less"),
        }
    )

    def __init__(
        self,
        setup: Setup,
        form: Literal["fmap", "categorical"] = "fmap",
        k: int = 30,
        descriptors: int = 128,
        regularization: float = 1e-3,
        losses: Mapping[str, float | None] | None = None,
        resolvent: float | None = None,
        tau: float | None = None,
        nearest: bool | None = None,
        adapt: int | None = None,
        refine: Literal["icp", "zoomout"] | None = None,
        zoomout: int = 120,
        step: int = 5,
        geodesic: Method = "dijkstra",
        every: int = 1,
        normalize: Literal["area", "diameter"] = "area",
    ) -> None:
        weights = {n: float(w) for n, w in (losses or {"supervised": 1.0}).items() if w}
        for name in weights:
            if name not in LOSSES:
                raise UserError(f"task.losses.{name} is not known: choose {', '.join(LOSSES)}.")
        for key, value, known in (
            ("form", form, ("fmap", "categorical")),
            ("refine", refine, (None, "icp", "zoomout")),
            ("geodesic", geodesic, METHODS),
            ("normalize", normalize, ("area", "diameter")),
        ):
            if value not in known:
                words = ", ".join("null" if x is None else x for x in known)
                raise UserError(f"task.{key}={value} is not known: choose {words}.")
        points = setup.spec.landmarks
        if points is None:
            raise UserError(
                "task=matching needs shapes with landmarks that correspond, but this data set has "
                "none: choose data=faust_r, scape_r, tosca, faust or creatures."
            )
        if form == "categorical" and not points:
            raise UserError("task.form=categorical needs one template for all shapes.")
        if min(k, descriptors, step, every) < 1:
            raise UserError("task.k, descriptors, step and every must be 1 or more.")
        self.outputs = descriptors if form == "fmap" else points
        super().__init__(setup)
        if form == "categorical" and not self.encoder.learns:
            raise UserError("encoder=identity learns nothing: use task.form=fmap.")
        free = form == "fmap" and self.encoder.learns and set(weights) - {"supervised"}
        if adapt and not free:
            raise UserError(
                "task.adapt needs task.form=fmap, an encoder that learns, and losses without "
                "correspondence (bijectivity, orthogonality, commutativity or alignment)."
            )
        if (tau is not None and tau <= 0) or (resolvent is not None and resolvent <= 0):
            raise UserError(f"task.tau={tau} and task.resolvent={resolvent} must be positive.")
        if self.encoder.needs.find(Points):
            raise UserError("task=matching maps the shapes' own vertices: set encoder.points=null.")
        spectrum = (super().needs | Needs.of(Spectrum(k))).find(Spectrum)
        assert spectrum is not None
        wanted = max(k, zoomout) if refine == "zoomout" else k
        if refine == "zoomout" and wanted > spectrum.k:
            raise UserError(
                f"task.zoomout={zoomout} needs as many eigenpairs, but {spectrum.k} are computed "
                "for the features and the encoder: lower it, or raise features.k."
            )
        self.form, self.k, self.regularization, self.weights = form, k, regularization, weights
        self.resolvent, self.tau = resolvent, 0.07 if tau is None else tau
        self.nearest, self.adapt = bool(nearest), adapt or 0
        self.refine, self.zoomout, self.step = refine, zoomout, step
        self.geodesic: Method = geodesic
        self.every = every
        self.normalize: Literal["area", "diameter"] = normalize
        self.memo: dict[str, Tensor] | None = None  # descriptors of shapes seen in an evaluation

    def build_head(self) -> nn.Module:
        return super().build_head() if self.encoder.learns else nn.Identity()

    @property
    def needs(self) -> Needs:
        return super().needs | Needs.of(Spectrum(self.k), Laplacian())

    # ---- prediction ----

    def describe(self, batch: ShapeBatch) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Descriptors (v d), shape by shape, and the encoder's own losses."""
        if self.memo is not None and len(batch) == 1 and batch.names[0] in self.memo:
            return [self.memo[batch.names[0]]], {}
        encoding = self.encoder(self.features(batch), batch)
        rows = self.head(encoding.at("vertex"))
        parts = list(rows.split(batch.sizes))
        if self.memo is not None and len(batch) == 1:
            self.memo[batch.names[0]] = rows
        return parts, encoding.losses

    def predict(self, batch: GroupBatch) -> Prediction:
        """Functional maps (b k k), or logits of the target's and the source's vertices."""
        a, losses = self.describe(batch.source)
        b, more = self.describe(batch.target)
        losses = {n: losses[n] + more[n] for n in losses if n in more}
        if self.form == "categorical":
            return Prediction(torch.cat(b), losses)
        coefficients = [
            torch.stack(
                [
                    phi.T @ (m[:, None] * x)
                    for phi, m, x in zip(evecs(s, self.k), masses(s), rows, strict=True)
                ]
            )
            for s, rows in ((batch.source, a), (batch.target, b))
        ]
        a_hat, b_hat = coefficients
        c = self._solved(a_hat, b_hat, batch.source, batch.target)
        return MapPrediction(c, losses, (a_hat, b_hat), (a, b))

    def _solved(self, a: Tensor, b: Tensor, source: ShapeBatch, target: ShapeBatch) -> Tensor:
        low, high = (s.ops.evals[:, : self.k] for s in (source, target))
        return functional_map(a, b, low, high, self.regularization, self.resolvent)

    def predict_eval(self, batch: GroupBatch) -> Prediction:
        prediction = self._adapted(batch) if self.adapt else self.predict(batch)
        if not self.nearest or not isinstance(prediction, MapPrediction):
            return prediction
        maps = [
            to_fmap(nearest(F.normalize(y, dim=1), F.normalize(x, dim=1)), a, b, m)
            for x, y, a, b, m in self._columns(prediction, batch)
        ]
        return replace(prediction, output=torch.stack(maps))

    def _columns(
        self, prediction: MapPrediction, batch: GroupBatch
    ) -> Iterable[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Pair by pair: descriptors and eigenfunctions of both shapes, masses of the target."""
        assert prediction.descriptors is not None
        bases = (evecs(s, self.k) for s in (batch.source, batch.target))
        return zip(*prediction.descriptors, *bases, masses(batch.target), strict=True)

    def _adapted(self, batch: GroupBatch) -> Prediction:
        """The prediction after some steps on this pair alone; the weights stay as they were."""
        before = {k: v.clone() for k, v in self.state_dict().items()}
        memo, self.memo = self.memo, None
        with torch.enable_grad():
            optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
            for _ in range(self.adapt):
                losses = self.free_losses(self.predict(batch), batch)
                optimizer.zero_grad()
                torch.stack(list(losses.values())).sum().backward()
                optimizer.step()
        prediction = self.predict(batch)
        self.load_state_dict(before)
        self.zero_grad(set_to_none=True)
        self.memo = memo
        return prediction

    def losses(self, prediction: Prediction, batch: GroupBatch) -> dict[str, Tensor]:
        for shapes in (batch.source, batch.target):
            spots(shapes)  # refused without landmarks, whatever the loss reads
        if self.form == "categorical":
            rows, marks = prediction.output, batch.target.landmark
            names = torch.arange(self.outputs, device=rows.device).repeat(len(batch))
            return {"cross_entropy": F.cross_entropy(rows[marks], names)} | prediction.losses
        found: dict[str, Tensor] = {}
        if "supervised" in self.weights:
            gap = (prediction.output - self.true_maps(batch)).square().mean()
            found["supervised"] = self.weights["supervised"] * gap
        return found | self.free_losses(prediction, batch) | prediction.losses

    def free_losses(self, prediction: Prediction, batch: GroupBatch) -> dict[str, Tensor]:
        """The losses that need no correspondence, weighted."""
        assert isinstance(prediction, MapPrediction)
        c = prediction.output
        found: dict[str, Tensor] = {}
        eye = torch.eye(self.k, device=c.device)
        if "bijectivity" in self.weights:
            assert prediction.coefficients is not None
            a_hat, b_hat = prediction.coefficients
            back = self._solved(b_hat, a_hat, batch.target, batch.source)
            found["bijectivity"] = (back @ c - eye).square().mean()
        if "orthogonality" in self.weights:
            found["orthogonality"] = (c.mT @ c - eye).square().mean()
        if "commutativity" in self.weights:
            source, target = (s.ops.evals[:, : self.k] for s in (batch.source, batch.target))
            # Relative to the largest eigenvalue, so that the weight means the same for all shapes.
            gap = (c * source[:, None] - target[:, :, None] * c) / source[:, -1, None, None]
            found["commutativity"] = gap.square().mean()
        if "alignment" in self.weights:
            columns = self._columns(prediction, batch)
            soft = torch.stack([soft_fmap(*column, self.tau) for column in columns])
            found["alignment"] = (c - soft).square().mean()
        return {n: self.weights[n] * v for n, v in found.items()}

    def true_maps(self, batch: GroupBatch) -> Tensor:
        """C (b k k) of the true correspondence: evecs_source C^T = evecs_target at the landmarks,
        in the least squares sense."""
        a, b = (
            [p[s] for p, s in zip(evecs(x, self.k), spots(x), strict=True)]
            for x in (batch.source, batch.target)
        )
        # A few landmarks hardly tell some eigenfunctions apart: those directions stay zero.
        inverse = [torch.linalg.pinv(p, rtol=0.05) for p in a]
        return torch.stack([(p @ q).T for p, q in zip(inverse, b, strict=True)])

    def maps(self, prediction: Prediction, batch: GroupBatch) -> list[Tensor]:
        """For every vertex of the target a vertex of the source, pair by pair."""
        if self.form == "categorical":
            named = prediction.output.argmax(1).split(batch.target.sizes)
            return [s[n] for s, n in zip(spots(batch.source), named, strict=True)]
        size = max(self.k, self.zoomout) if self.refine == "zoomout" else self.k
        columns = zip(
            prediction.output,
            evecs(batch.source, size),
            evecs(batch.target, size),
            masses(batch.target),
            strict=True,
        )
        return [self._refined(c, a, b, m) for c, a, b, m in columns]

    def _refined(self, c: Tensor, a: Tensor, b: Tensor, mass: Tensor) -> Tensor:
        if self.refine == "icp":
            for _ in range(10):
                c = to_fmap(from_fmap(c, a, b), a[:, : self.k], b[:, : self.k], mass)
                u, _, vt = torch.linalg.svd(c)
                c = u @ vt
        if self.refine == "zoomout":
            for size in (*range(self.k, a.shape[1], self.step), a.shape[1]):
                c = to_fmap(from_fmap(c, a, b), a[:, :size], b[:, :size], mass)
        return from_fmap(c, a, b)

    # ---- metrics ----

    @torch.no_grad()
    def evaluate(
        self,
        loader: Iterable[Any],
        precision: Callable[[], Any] | None = None,
        keep: Collection[int] = (),
        brief: bool = False,
    ) -> Evaluation:
        self.memo = {}
        try:
            return super().evaluate(loader, precision, keep, brief)
        finally:
            self.memo = None

    def make_meters(self) -> dict[str, Metric]:
        return {"map": MapError(self.geodesic, self.every, self.normalize, self.cache)}

    def measure(self, meters: Any, prediction: Prediction, batch: GroupBatch) -> None:
        if self.training:
            return  # distances on surfaces take too long for every step
        own = batch.to("cpu")
        pairs = zip(
            self.maps(prediction, batch), own.source.unpack(), own.target.unpack(), strict=True
        )
        for found, a, b in pairs:
            meters["map"].update(found.cpu(), a, b)

    def scores(self, meters: Any) -> dict[str, float]:
        if not meters["map"].update_called:
            return {}
        return {k: float(v) for k, v in meters["map"].compute().items() if v.dim() == 0}

    def each(self, meters: Any, prediction: Prediction, batch: GroupBatch) -> dict[str, Tensor]:
        return {"geodesic": 100 * torch.cat(meters["map"].pairs[-len(batch) :])}

    def details(self, meters: Any) -> dict[str, Any]:
        found = meters["map"].compute()
        table = [
            {"pair": name, "geodesic": round(float(e), 4)}
            for name, e in zip(meters["map"].names, found["pairs"].reshape(-1), strict=True)
        ]
        return {
            "pck": [round(float(x), 6) for x in found["pck"]],
            "per_class": table,
            "geodesic_method": f"{self.geodesic}, every {self.every}",
        }

    def split(self, output: Tensor, batch: GroupBatch) -> list[Tensor]:
        return self.maps(Prediction(output), batch.to(output.device))

    def figures(self, evaluation: Evaluation, folder: Path, name: str) -> None:
        from geodl import viz

        kept = evaluation.kept[:: max(1, len(evaluation.kept) // 6)][:6]
        errors = self._errors(kept)
        viz.transfers(kept, errors, folder / f"transfer-{name}.png", self.spec.up)
        viz.pck_curve(evaluation.details["pck"], folder / f"pck-{name}.png")

    def scenes(self, evaluation: Evaluation) -> list[Scene]:
        from geodl import viz

        kept = evaluation.kept[:: max(1, len(evaluation.kept) // 4)][:4]
        found: list[Scene] = []
        for ((source, target), sent), error in zip(kept, self._errors(kept), strict=True):
            color = viz.position_color(source.pos.numpy())
            on = (target.pos.numpy(), target.face.numpy())
            layers = {
                "prediction": (*on, color[sent.numpy()]),
                "source": (source.pos.numpy(), source.face.numpy(), color),
                "error": (*on, viz.heat(error, 10.0)),
            }
            name = f"{source.name} to {target.name} (error: yellow is 10)"
            found.append((name, layers))
        return found

    def _errors(self, kept: Sequence[Any]) -> list[NDArray[Any]]:
        """Geodesic errors x 100 at the vertices (v) of the targets of some pairs."""
        meter = self.make_meters()["map"]
        assert isinstance(meter, MapError)
        errors: list[Any] = []
        for (source, target), found in kept:
            own, spot = source.landmark[:: self.every], target.landmark[:: self.every]
            at_points, _ = meter.measure(own.numpy(), found[spot].numpy(), source)
            # Between the template points, the nearest one's error.
            near = nearest(target.pos, target.pos[spot]).numpy()
            errors.append(100 * at_points[near])
        return errors

    # ---- the user's own shapes ----

    def check(self, shapes: Sequence[OwnShape]) -> None:
        if self.form == "categorical":
            raise UserError(
                "task.form=categorical names points of the data's template, and where they are on "
                "meshes of your own is not known: give a model of task.form=fmap."
            )

    def write(self, shapes: Sequence[OwnShape], place: Path) -> dict[str, Any]:
        """The map as .csv (for every vertex of the target one of the source, from 0), both shapes
        as .ply with the source's colours carried over, and a picture."""
        from geodl import viz

        for shape in shapes:
            if shape.raw.is_cloud or len(shape.seen.pos) != len(shape.raw.pos):
                raise UserError(
                    f"{shape.name} is a cloud or needed repair, and a map is of a mesh's own "
                    "vertices: mend the file first (geodl mode=prepare names defects)."
                )
        pairs = zip(self.inputs, shapes, strict=True)
        batch = GroupBatch(**{n: ShapeBatch.pack([s.ready]) for n, s in pairs}).to(self.device)
        for shape in shapes:
            wanted = self.zoomout if self.refine == "zoomout" else self.k
            if self.form == "fmap" and len(shape.ready.pos) <= wanted:
                raise UserError(
                    f"{shape.name} has {len(shape.ready.pos)} vertices, too few for {wanted} "
                    "eigenfunctions: give a finer mesh, or lower task.k and task.zoomout."
                )
        with torch.no_grad():
            found = self.maps(self.predict_eval(batch), batch)[0].cpu().numpy()
        source, target = shapes
        color = viz.position_color(source.placed.pos.numpy())
        for name, shape, own in zip(self.inputs, shapes, (color, color[found]), strict=True):
            file = place.with_name(f"{place.name}-{name}.ply")
            painted = (own * 255).astype(np.uint8)
            write_ply(file, shape.raw.pos.numpy(), shape.raw.face.numpy(), painted)
        with atomic(place.with_name(f"{place.name}.csv")) as part:
            header = f"for every vertex of {target.name} a vertex of {source.name}, from 0"
            np.savetxt(part, found, fmt="%d", header=header)
        viz.strips(
            [[source.placed.pos.numpy(), target.placed.pos.numpy()]],
            source.raw.face.numpy(),
            place.with_name(f"{place.name}.png"),
            self.spec.up,
            faces=[[source.raw.face.numpy(), target.raw.face.numpy()]],
            colors=[[color, color[found]]],
        )
        return {
            "file": f"{source.name} to {target.name}",
            "map": f"{place.name}.csv",
            "cover": round(len(np.unique(found)) / len(source.raw.pos), 4),
        }

    def in_words(self, row: Mapping[str, Any]) -> str:
        return f"{row['map']}, {row['cover']:.0%} of the source's vertices are hit"


# ---- what a map needs of a shape ----


def evecs(batch: ShapeBatch, k: int) -> list[Tensor]:
    """The first k eigenfunctions (v k), shape by shape."""
    return [part[:, :k] for part in batch.ops.evecs.split(batch.sizes)]


def masses(batch: ShapeBatch) -> list[Tensor]:
    return list(batch.ops.mass.split(batch.sizes))


def spots(batch: ShapeBatch) -> list[Tensor]:
    """Landmarks (t) as vertices of their own shape, shape by shape."""
    if batch.landmark is None:
        raise UserError(
            f"{batch.names[0]} has no landmarks: maps go between meshes, so test=cloud is not for "
            "task=matching."
        )
    parts = batch.landmark.split(batch.counts["landmark"])
    return [part - start for part, start in zip(parts, batch.ptr[:-1], strict=True)]
