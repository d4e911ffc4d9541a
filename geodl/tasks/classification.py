"""One label per shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from geodl.augment import axis_rotation
from geodl.data.own import OwnShape
from geodl.errors import UserError
from geodl.shape import ShapeBatch
from geodl.tasks.base import Evaluation, Measure, Prediction, Scene, Setup, Task


class Classification(Task):
    """Cross-entropy on whole shapes.

    Args:
        label_smoothing: share of the target spread over all classes (torch's definition; the
            diffusion-net code spreads it over the *other* classes).
        class_weights: "balanced" weighs every class by the inverse of its frequency in training.
        votes: at test time, average the probabilities over this many rotations about the vertical.
    """

    out = "whole"
    metrics = MappingProxyType({"acc": Measure("%", headline=True), "class_acc": Measure("%")})
    columns = ("label", "probability")

    def __init__(
        self,
        setup: Setup,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | None = None,
        votes: int = 1,
    ) -> None:
        if not setup.spec.classes:
            raise UserError(
                "task=classification needs one class per shape, but this data set has none: choose "
                "task=segmentation or another data set."
            )
        if votes < 1:
            raise UserError(f"task.votes={votes} must be 1 or more.")
        self.outputs = len(setup.spec.classes)
        super().__init__(setup)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.votes = votes
        self.register_buffer(
            "weight", torch.ones(self.outputs), persistent=class_weights is not None
        )
        self.weight: Tensor

    def fit(self, loader: Iterable[ShapeBatch]) -> None:
        if self.class_weights:
            self.weight.copy_(balanced((b.category for b in loader), self.outputs))

    def losses(self, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        assert batch.category is not None
        loss = F.cross_entropy(
            prediction.output,
            batch.category,
            weight=self.weight if self.class_weights else None,
            label_smoothing=self.label_smoothing,
        )
        return {"cross_entropy": loss, **prediction.losses}

    def predict_eval(self, batch: ShapeBatch) -> Prediction:
        if self.votes == 1:
            return self.predict(batch)
        turns = [2 * math.pi * vote / self.votes for vote in range(self.votes)]
        votes = [self.predict(batch.rotated(axis_rotation(self.spec.up, t))) for t in turns]
        mean = torch.stack([v.output.float().softmax(1) for v in votes]).mean(0)
        return Prediction(mean.clamp(min=1e-12).log(), votes[0].losses)

    def probabilities(self, output: Tensor) -> Tensor:
        """(b classes)."""
        return output.softmax(1)

    def make_meters(self) -> dict[str, Metric]:
        n = self.outputs
        return {
            "acc": MulticlassAccuracy(n, average="micro"),
            "confusion": MulticlassConfusionMatrix(n),
        }

    def measure(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> None:
        assert batch.category is not None
        for meter in meters.values():
            meter.update(prediction.output, batch.category)

    def scores(self, meters: Any) -> dict[str, float]:
        return {
            "acc": float(meters["acc"].compute()),
            "class_acc": mean_recall(meters["confusion"].compute()),
        }

    def each(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        return {"acc": prediction.output.argmax(1) == batch.category}

    def details(self, meters: Any) -> dict[str, Any]:
        return confusion_details(meters["confusion"].compute(), self.spec.classes)

    def scenes(self, evaluation: Evaluation) -> list[Scene]:
        from geodl import viz

        found: list[Scene] = []
        for shape, logits in evaluation.kept:
            guess, true = int(logits.argmax()), int(shape.category)
            wrong = "" if guess == true else f", truly {self.spec.classes[true]}"
            pos, face = shape.pos.numpy(), shape.face.numpy()
            layers = {"shape": (pos, face, np.tile(viz.PLAIN, (len(pos), 1)))}
            found.append((f"{shape.name}: {self.spec.classes[guess]}{wrong}", layers))
        return found

    def write(self, shapes: Sequence[OwnShape], place: Path) -> dict[str, Any]:
        from geodl import viz

        (shape,) = shapes
        batch = ShapeBatch.pack([shape.ready]).to(self.device)
        with torch.no_grad():
            logits = self.predict_eval(batch).output.float().cpu()
        probability = self.probabilities(logits)[0].numpy()
        best = int(probability.argmax())
        label, p = self.spec.classes[best], float(probability[best])
        pos, face = shape.raw.pos.numpy(), shape.raw.face.numpy()
        picture = place.with_name(f"{place.name}.png")
        title = f"{shape.name}: {label} ({p:.0%})"
        viz.save_shape(pos, face, None, picture, title, up=self.spec.up)
        rounded = (round(float(x), 6) for x in probability)
        return {
            "file": shape.name,
            "label": label,
            "probability": round(p, 6),
            "probabilities": dict(zip(self.spec.classes, rounded, strict=True)),
        } | ({"caption": _caption(label, self.spec.words[best])} if self.spec.words else {})

    def in_words(self, row: Mapping[str, Any]) -> str:
        return f"{row.get('caption', row['label'])} ({row['probability']:.2f})"


def _caption(label: str, words: Sequence[str]) -> str:
    """What can be said of a class, in a sentence: "ant: 6 legs, 2 feelers"."""
    return f"{label}: {', '.join(words)}" if words else label


def balanced(labels: Iterable[Tensor | None], n: int) -> Tensor:
    """Weights (n) inversely proportional to how often a label occurs, mean 1 over the examples."""
    count = torch.zeros(n)
    for label in labels:
        assert label is not None
        count += torch.bincount(label.cpu(), minlength=n)
    weight = torch.where(count > 0, count.sum() / count.clamp(min=1), torch.zeros(()))
    return weight / (count > 0).sum()


def mean_recall(confusion: Tensor) -> float:
    """Mean over the classes that occur of the share that was recognised."""
    total = confusion.sum(1)
    seen = total > 0
    return float((confusion.diagonal()[seen] / total[seen]).mean())


def confusion_details(confusion: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """Confusion matrix (true rows, predicted columns) and a table per class, as plain data."""
    matrix = confusion.cpu().tolist()
    hit = confusion.diagonal()
    recall = hit / confusion.sum(1)
    precision = hit / confusion.sum(0)
    iou = hit / (confusion.sum(0) + confusion.sum(1) - hit)
    table = [
        {
            "name": name,
            "count": int(confusion[i].sum()),
            "recall": _number(recall[i]),
            "precision": _number(precision[i]),
            "iou": _number(iou[i]),
        }
        for i, name in enumerate(names)
    ]
    return {"confusion": matrix, "per_class": table}


def _number(value: Tensor) -> float | None:
    return round(float(value), 6) if torch.isfinite(value) else None
