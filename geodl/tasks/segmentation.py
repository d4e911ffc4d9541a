"""One label per vertex, face or edge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from geodl.atomic import atomic
from geodl.carry import elements
from geodl.data.files import write_ply
from geodl.data.own import OwnShape
from geodl.errors import UserError
from geodl.metrics import BodyAccuracy, Confusion, PartIoU, Pointing
from geodl.ops.neighbors import nearest
from geodl.ops.pointing import areas, medoid
from geodl.shape import ShapeBatch
from geodl.tasks.base import Evaluation, Measure, Prediction, Scene, Setup, Task
from geodl.tasks.classification import balanced, confusion_details


class Segmentation(Task):
    """Cross-entropy on the labelled elements: vertices, faces or edges, as the data set has them.

    Metrics: ``acc`` (share of all elements), ``miou`` (mean over the parts that occur); with parts
    that depend on the class, ShapeNetPart's ``instance_miou`` and ``class_miou``; with edge labels,
    ``face_acc``, ``hard_edge_acc``, ``soft_edge_acc`` (see ``geodl.metrics``). ``pointing``: share
    of the parts of the shapes for which the element that stands for the predicted part (its medoid
    by area) is in the true one; ``pointing_center``: the same for the element that is nearest to
    the predicted part's centre.

    Args:
        label_smoothing: share of the target spread over all parts.
        class_weights: "balanced" weighs every part by the inverse of its frequency in training.
    """

    metrics = MappingProxyType(
        {"acc": Measure("%", headline=True)}
        | dict.fromkeys(
            (
                *("miou", "instance_miou", "class_miou", "face_acc", "hard_edge_acc"),
                *("soft_edge_acc", "pointing", "pointing_center"),
            ),
            Measure("%"),
        )
    )

    def __init__(
        self,
        setup: Setup,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | None = None,
    ) -> None:
        if not setup.spec.parts:
            raise UserError(
                "task=segmentation needs labels on vertices, faces or edges, but this data set has "
                "none: choose task=classification or another data set."
            )
        self.out = setup.spec.label_on
        self.outputs = len(setup.spec.parts)
        super().__init__(setup)
        self.words: tuple[str, ...] = ()  # parts to point at in predictions
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.register_buffer(
            "weight", torch.ones(self.outputs), persistent=class_weights is not None
        )
        self.weight: Tensor

    def fit(self, loader: Iterable[ShapeBatch]) -> None:
        if self.class_weights:
            self.weight.copy_(balanced((b.label for b in loader), self.outputs))

    def losses(self, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        assert batch.label is not None
        loss = F.cross_entropy(
            prediction.output,
            batch.label,
            weight=self.weight if self.class_weights else None,
            label_smoothing=self.label_smoothing,
        )
        return {"cross_entropy": loss, **prediction.losses}

    def make_meters(self) -> dict[str, Metric]:
        n = self.outputs
        meters: dict[str, Metric] = {
            "acc": MulticlassAccuracy(n, average="micro"),
            "confusion": Confusion(n),
        }
        if self.spec.category_parts:
            meters["parts"] = PartIoU(self.spec.category_parts)
        meters["pointing"] = Pointing()
        return meters | ({"body": BodyAccuracy()} if self.out in ("face", "edge") else {})

    @staticmethod
    def _found(meters: Any, prediction: Prediction, batch: ShapeBatch) -> Tensor:
        """Predicted parts (m), where shapes have classes among those of the class."""
        logits = prediction.output
        if "parts" not in meters:
            return logits.argmax(1)
        assert batch.category is not None
        pairs = zip(logits.split(batch.counts["label"]), batch.category.tolist(), strict=True)
        return torch.cat([meters["parts"].restrict(part, category) for part, category in pairs])

    def measure(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> None:
        assert batch.label is not None
        logits, predicted = prediction.output, self._found(meters, prediction, batch)
        if "parts" in meters:
            assert batch.category is not None
            for part, label, category in zip(
                logits.split(batch.counts["label"]),
                batch.label.split(batch.counts["label"]),
                batch.category.tolist(),
                strict=True,
            ):
                meters["parts"].update(part, label, category)
        meters["acc"].update(predicted, batch.label)
        meters["confusion"].update(predicted, batch.label)
        if not (self.training or self.brief):
            for shape, guess in zip(
                batch.to("cpu").unpack(), predicted.cpu().split(batch.counts["label"]), strict=True
            ):
                assert shape.label is not None
                place, area = elements(shape, self.out), areas(shape, self.out)
                meters["pointing"].update(place, area, guess.numpy(), shape.label.numpy())
        if "body" in meters and "edge_soft" in batch.ops:
            names = ("edge_soft", "edge_area", "edge_face", "edge_label")
            columns = [batch.rows(n) for n in names if n in batch.ops]
            for part, label, edges in zip(
                logits.split(batch.counts["label"]),
                batch.label.split(batch.counts["label"]),
                zip(*columns, strict=True),
                strict=True,
            ):
                meters["body"].update(part, label, *edges)

    def scores(self, meters: Any) -> dict[str, float]:
        confusion = meters["confusion"].compute()
        hit = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hit
        occurs = confusion.sum(1) > 0
        scores = {
            "acc": float(meters["acc"].compute()),
            "miou": float((hit[occurs] / union[occurs]).mean()),
        }
        for name in ("parts", "body", "pointing"):
            if name in meters and meters[name].update_called:
                scores |= {k: float(v) for k, v in meters[name].compute().items()}
        return scores

    def each(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        assert batch.label is not None
        hit = (self._found(meters, prediction, batch) == batch.label).float()
        return {"acc": torch.stack([x.mean() for x in hit.split(batch.counts["label"])])}

    def details(self, meters: Any) -> dict[str, Any]:
        return confusion_details(meters["confusion"].compute(), self.spec.parts)

    def scenes(self, evaluation: Evaluation) -> list[Scene]:
        from geodl import viz

        colors = viz.palette(len(self.spec.parts))
        found: list[Scene] = []
        for shape, logits in evaluation.kept:
            assert shape.label is not None
            guess, truth = logits.argmax(1).numpy(), shape.label.numpy()
            wrong = np.where((guess == truth)[:, None], viz.PLAIN, (0.85, 0.1, 0.1))
            rows = {"prediction": colors[guess], "truth": colors[truth], "error": wrong}
            pos, face = shape.pos.numpy(), shape.face.numpy()
            on = self.spec.label_on
            layers = {n: (pos, face, viz.of_elements(c, shape, on)) for n, c in rows.items()}
            found.append((shape.name, layers))
        return found

    def point_at(self, words: Sequence[str]) -> None:
        if unknown := [word for word in words if word not in self.spec.parts]:
            raise UserError(
                f"words={', '.join(unknown)}: this model knows {', '.join(self.spec.parts)}."
            )
        self.words = tuple(words)

    def write(self, shapes: Sequence[OwnShape], place: Path) -> dict[str, Any]:
        """Labels as numbers, probabilities, a coloured .ply, a picture; where the words given with
        the command point to, in the file's coordinates."""
        from geodl import viz

        (shape,), spec = shapes, self.spec
        batch = ShapeBatch.pack([shape.ready]).to(self.device)
        with torch.no_grad():
            logits = self.predict_eval(batch).output.float().cpu()
        if spec.category_parts and shape.seen.category is not None:
            others = torch.ones(len(spec.parts), dtype=torch.bool)
            others[list(spec.category_parts[int(shape.seen.category)])] = False
            logits[:, others] = -torch.inf
        probability = logits.softmax(1).numpy()
        # From the model's elements back onto those of the user's mesh.
        target = elements(shape.placed, self.out)
        if len(probability) != len(target):
            probability = probability[nearest(target, elements(shape.seen, self.out))]
        if self.out == "face" and shape.polygons != len(target):
            probability = _mean_of(probability, shape.polygon, shape.polygons)
        own = probability.argmax(1)
        on_triangles = own[shape.polygon] if self.out == "face" else own
        pos, face = shape.raw.pos.numpy(), shape.raw.face.numpy()
        vertex = viz.on_vertices(viz.palette(len(spec.parts))[on_triangles], shape.placed, self.out)
        color = (vertex * 255).astype(np.uint8)
        write_ply(place.with_name(f"{place.name}.ply"), pos, face, color)
        with atomic(place.with_name(f"{place.name}.csv")) as partial:
            np.savetxt(partial, own, fmt="%d", header=f"{self.out} labels: {list(spec.parts)}")
        with atomic(place.with_name(f"{place.name}.npy")) as partial, partial.open("wb") as stream:
            np.save(stream, probability.astype(np.float32))
        picture = place.with_name(f"{place.name}.png")
        points: dict[str, Any] = {}
        if self.words:
            there, area = elements(shape.seen, self.out), areas(shape.seen, self.out)
            seen = logits.argmax(1).numpy()
            for word in self.words:
                at = medoid(there, area, seen == spec.parts.index(word))
                found = None if at is None else there[at] * shape.size + shape.center.numpy()
                points[word] = None if found is None else [round(float(c), 6) for c in found]
        marked = np.array([p for p in points.values() if p is not None]).reshape(-1, 3)
        viz.save_shape(pos, face, vertex, picture, shape.name, spec.parts, spec.up, marked)
        share = np.bincount(own, minlength=len(spec.parts)) / len(own)
        return {
            "file": shape.name,
            "labels_on": self.out,
            "labels": f"{place.name}.csv",
            "probabilities_of_parts": f"{place.name}.npy",
            "parts": {n: round(float(s), 4) for n, s in zip(spec.parts, share, strict=True)},
        } | ({"points": points} if points else {})

    def in_words(self, row: Mapping[str, Any]) -> str:
        if "points" in row:
            return ", ".join(
                f"{word} {'not found' if at is None else f'at {at}'}"
                for word, at in row["points"].items()
            )
        return ", ".join(f"{k} {v:.0%}" for k, v in row["parts"].items() if v)


def _mean_of(
    values: NDArray[np.float32], group: NDArray[np.int64], groups: int
) -> NDArray[np.float32]:
    """Means (groups c) of the rows (n c) of each group; an empty group gets equal shares."""
    total = np.zeros((groups, values.shape[1]), np.float32)
    np.add.at(total, group, values)
    count = np.bincount(group, minlength=groups)[:, None]
    return np.where(count > 0, total / np.maximum(count, 1), 1 / values.shape[1])
