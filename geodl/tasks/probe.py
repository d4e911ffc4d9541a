"""What a frozen encoder knows: a linear classifier on it."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from geodl.errors import UserError
from geodl.shape import ShapeBatch
from geodl.tasks.base import Measure, Prediction, Setup
from geodl.tasks.classification import Classification


class Probe(Classification):
    """Logistic regression on what the encoder, left as it is, says of a shape
    (``Encoder.summary``), fitted to the training shapes before any epoch: use epochs=0, and
    ``init=`` for an encoder that has learned something. Without it, the untrained encoder is
    judged, which is the number to compare with.

    Metrics: ``acc``; with ``shots``, the mean over draws, and their deviation ``acc_std``
    (``class_acc`` and the confusion are those of all draws' mean probability).

    Args:
        shots: training shapes per class, drawn; null: all of them.
        draws: classifiers fitted, each to its own draw; the same draws in every run.
        decay: of the weights, added to the mean cross-entropy as decay / 2 |w|^2.
    """

    metrics = MappingProxyType(
        {"acc": Measure("%", headline=True), "class_acc": Measure("%"), "acc_std": Measure("%")}
    )

    def __init__(
        self, setup: Setup, shots: int | None = None, draws: int = 20, decay: float = 0.001
    ) -> None:
        if shots is not None and (shots < 1 or draws < 1):
            raise UserError("task.shots and task.draws must be 1 or more.")
        self.shots, self.draws, self.decay = shots, draws if shots else 1, decay
        super().__init__(setup)
        self.requires_grad_(False)

    def build_head(self) -> nn.Module:
        return nn.Linear(self.encoder.summary_channels, self.draws * self.outputs)

    def predict(self, batch: ShapeBatch) -> Prediction:
        """Logits (b draws*classes)."""
        return Prediction(self.head(self.encoder.summary(self.features(batch), batch)))

    @torch.no_grad()
    def fit(self, loader: Iterable[ShapeBatch]) -> None:
        was_training = self.training
        self.eval()
        rows: list[Tensor] = []
        labels: list[Tensor] = []
        for batch in loader:
            batch = batch.to(self.device)
            assert batch.category is not None
            rows.append(self.encoder.summary(self.features(batch), batch).float())
            labels.append(batch.category)
        self.train(was_training)
        x, y = torch.cat(rows), torch.cat(labels)
        mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)
        x = (x - mean) / spread
        found = [logistic(x[i], y[i], self.outputs, self.decay) for i in self._drawn(y)]
        weight = torch.cat([w for w, _ in found]) / spread
        bias = torch.cat([b for _, b in found]) - weight @ mean
        self.head.load_state_dict({"weight": weight, "bias": bias})

    def _drawn(self, labels: Tensor) -> list[Tensor]:
        """The shapes that each classifier is fitted to."""
        if self.shots is None:
            return [torch.arange(len(labels))]
        found: list[Tensor] = []
        for draw in range(self.draws):
            rng = np.random.default_rng(draw)
            order = torch.from_numpy(rng.permutation(len(labels)))
            first = [order[labels[order] == c][: self.shots] for c in range(self.outputs)]
            found.append(torch.cat(first))
        return found

    def losses(self, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        assert batch.category is not None
        logits = prediction.output.view(len(batch), self.draws, self.outputs)
        target = batch.category[:, None].expand(-1, self.draws).reshape(-1)
        return {"cross_entropy": F.cross_entropy(logits.flatten(0, 1), target)}

    def probabilities(self, output: Tensor) -> Tensor:
        return output.view(len(output), self.draws, self.outputs).softmax(2).mean(1)

    def make_meters(self) -> dict[str, Metric]:
        n = self.outputs
        each = {f"draw{i}": MulticlassAccuracy(n, average="micro") for i in range(self.draws)}
        return super().make_meters() | each

    def measure(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> None:
        assert batch.category is not None
        logits = prediction.output.view(len(batch), self.draws, self.outputs)
        for i in range(self.draws):
            meters[f"draw{i}"].update(logits[:, i], batch.category)
        prediction.output = self.probabilities(prediction.output)
        for name in ("acc", "confusion"):
            meters[name].update(prediction.output, batch.category)

    def each(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        """Nothing where several probes answer."""
        return super().each(meters, prediction, batch) if self.draws == 1 else {}

    def scores(self, meters: Any) -> dict[str, float]:
        scores = super().scores(meters)
        if self.shots is None:
            return scores
        each = torch.stack([meters[f"draw{i}"].compute() for i in range(self.draws)])
        return scores | {"acc": float(each.mean()), "acc_std": float(each.std(correction=0))}


def logistic(x: Tensor, y: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """Weights (classes c) and biases of the logistic regression of labels y (n) on rows x (n c)."""
    with torch.enable_grad():
        weight = x.new_zeros(classes, x.shape[1]).requires_grad_()
        bias = x.new_zeros(classes).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-5
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(x @ weight.T + bias, y) + decay / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return weight.detach(), bias.detach()
