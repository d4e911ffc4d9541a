"""What every task has in common: how it is built, trained, measured and stored."""

from __future__ import annotations

import heapq
import logging
import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from geodl.data.own import OwnShape
from geodl.encoders.base import Encoder
from geodl.errors import UserError
from geodl.features import Feature
from geodl.ops.cache import Cache
from geodl.schedules import Schedule
from geodl.spec import DataSpec, Needs, Out

log = logging.getLogger(__name__)
WORST = 2  # shapes of a test set that are kept with their outputs
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


# A name, and surfaces or clouds to look at by name: positions (v 3), faces (f 3), colours (v 3) in
# [0, 1].
Scene = tuple[str, dict[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]]


@dataclass
class Prediction:
    """output: logits (rows classes), one row per shape or labelled element, or whatever else a task
    predicts; losses of the encoder."""

    output: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Setup:
    """What a task is built from, besides its own options."""

    spec: DataSpec
    features: Feature
    encoder: Callable[..., Encoder]
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Schedule
    seed: int = 0
    decoder: Callable[..., Any] | None = None
    cache: Cache | None = None  # for what a metric computes of a shape


@dataclass(frozen=True)
class Measure:
    """What a metric's number means.

    unit: "%" (the number is a share in [0, 1]), "mm", "x 100", or a word for what is counted |
    better: "more" or "less" of it | headline: the one to name a result by (the first of them that
    a result has)
    """

    unit: str = ""
    better: Literal["more", "less"] = "more"
    headline: bool = False


class NotFinite(UserError):
    """The loss became NaN or infinite."""


class Task(L.LightningModule):
    """Base of all tasks: features -> encoder -> one linear head.

    A batch is a ShapeBatch, or a GroupBatch for tasks with several ``inputs``. A subclass sets
    ``out`` (where it wants the encoding) and ``outputs`` (columns of the head), and
    answers ``losses`` and the metric calls.

    ``metrics``: what its numbers mean, by name, the headline first; ``inputs``: the names of the
    shapes that one prediction takes (its batches are groups if there are several); ``decodes``:
    whether it builds the decoder of the config; ``in_place``: whether the shapes of a group are
    compared where they stand; ``columns``: of predictions.csv.
    """

    out: Out
    outputs: int
    metrics: ClassVar[Mapping[str, Measure]]
    inputs: ClassVar[tuple[str, ...]] = ("shape",)
    decodes: ClassVar[bool] = False
    in_place: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()
    transfers = False  # whether it reads from one person what is to become of another

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        if not any(m.headline for m in self.metrics.values()):
            raise TypeError(f"{type(self).__name__}.metrics has no headline")
        if setup.decoder is not None and not self.decodes:
            raise UserError(
                f"task={type(self).__name__.lower()} has no decoder: leave decoder= out, or choose "
                "task=reconstruction."
            )
        self.spec = setup.spec
        self.features = setup.features
        self.make_optimizer = setup.optimizer
        self.schedule = setup.schedule
        self.seed = setup.seed
        self.cache = setup.cache
        self.encoder = setup.encoder(
            in_channels=setup.features.channels, spec=setup.spec, out=self.out
        )
        self.head = self.build_head()
        self.started = False  # whether it began with weights that were given
        self.brief = False  # whether an evaluation is to leave out what takes long
        self.seen = 0  # shapes seen in training, for schedules that count them
        self.epoch_meters: list[nn.ModuleDict] = []  # in a list: no part of the model's state

    @property
    def needs(self) -> Needs:
        return self.features.needs | self.encoder.needs

    def build_head(self) -> nn.Module:
        """From the encoding's columns to the answer's: one linear layer."""
        return nn.Linear(self.encoder.channels, self.outputs)

    # ---- what a subclass answers ----

    def losses(self, prediction: Prediction, batch: Any) -> dict[str, Tensor]:
        """Named losses; their sum is minimised."""
        raise NotImplementedError

    def make_meters(self) -> dict[str, Metric]:
        """Fresh metrics for one split."""
        raise NotImplementedError

    def measure(self, meters: Any, prediction: Prediction, batch: Any) -> None:
        """Update the metrics with one batch."""
        raise NotImplementedError

    def scores(self, meters: Any) -> dict[str, float]:
        """Metrics as numbers by name (accuracies in [0, 1])."""
        raise NotImplementedError

    def each(self, meters: Any, prediction: Prediction, batch: Any) -> dict[str, Tensor]:
        """A metric of every shape (b) of the batch that was measured last, by its name: what shapes
        are ranked by; empty where a task has none."""
        return {}

    def details(self, meters: Any) -> dict[str, Any]:
        """What a number cannot hold: confusion matrix, per-class table."""
        return {}

    def fit(self, loader: Iterable[Any]) -> None:
        """Called once before training with the training batches, without augmentation."""

    def figures(self, evaluation: Evaluation, folder: Path, name: str) -> None:
        """Pictures of the evaluation of the test set ``name``."""
        from geodl import viz

        names = self.spec.classes if self.out == "whole" else self.spec.parts
        if "confusion" in evaluation.details:
            viz.confusion(evaluation.details["confusion"], names, folder / f"confusion-{name}.png")
        viz.gallery(evaluation.kept, self.spec, folder / f"gallery-{name}.png")

    def scenes(self, evaluation: Evaluation) -> list[Scene]:
        """The kept shapes as coloured surfaces by name ("prediction", "truth", "error"), for the
        report's viewer; none where there is nothing to see on a surface."""
        return []

    # ---- ways between shapes ----

    def along(self, batch: Any, shares: Sequence[float]) -> Tensor:
        """Meshes (t n 3) at shares of the way from the first shapes of a group to the second.

        Raises:
            UserError: this task knows no ways.
        """
        raise UserError(
            f"task={type(self).__name__.lower()} knows no way from one shape to another: choose "
            "task=reconstruction, deformation or interpolation."
        )

    # ---- the user's own shapes ----

    def tell(self, code: Any, mask: str | None, amount: float) -> None:
        """What to do to meshes of the user's, where, and how much of it.

        Raises:
            UserError: this model does nothing to meshes.
        """
        raise UserError(
            "code=, mask= and amount= are for models that deform meshes (task=deformation)."
        )

    def point_at(self, words: Sequence[str]) -> None:
        """Parts to point at.

        Raises:
            UserError: this model knows no parts, or not these.
        """
        raise UserError("words= points at parts: it needs a model of task=segmentation.")

    def check(self, shapes: Sequence[OwnShape]) -> None:
        """Raises UserError where ``write`` could not do its work; called for all inputs before
        anything is written."""

    def write(self, shapes: Sequence[OwnShape], place: Path) -> dict[str, Any]:
        """Predict for the shapes of one input (one, or as many as ``inputs``); write files that
        begin with ``place``; a row for predictions.json."""
        raise NotImplementedError

    def in_words(self, row: Mapping[str, Any]) -> str:
        """A row of ``write`` for the terminal."""
        raise NotImplementedError

    # ---- prediction ----

    def predict(self, batch: Any) -> Prediction:
        encoding = self.encoder(self.features(batch), batch)
        return Prediction(self.head(encoding.at(self.out)), encoding.losses)

    def forward(self, batch: Any) -> Tensor:
        return self.predict(batch).output

    # ---- training ----

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())

    def on_train_start(self) -> None:
        self.base_rates = [g.get("initial_lr", g["lr"]) for g in self._optimizer().param_groups]
        for group, rate in zip(self._optimizer().param_groups, self.base_rates, strict=True):
            group["initial_lr"] = rate  # stored with the optimiser, so a resumed run finds it

    def on_train_epoch_start(self) -> None:
        self.epoch_meters = [nn.ModuleDict(self.make_meters()).to(self.device)]
        self.loss_sum: dict[str, Tensor] = {}
        self.steps = 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Every generator starts from (seed, epoch, step): a resumed run draws what an unbroken one
        # would, whatever Lightning drew in between.
        words = [self.seed, self.current_epoch, batch_idx, self.global_rank]
        state = int(np.random.SeedSequence(words).generate_state(1)[0])
        torch.manual_seed(state)
        random.seed(state)
        steps = max(1, int(self.trainer.num_training_batches))
        epoch = self.current_epoch + batch_idx / steps
        factor = self.schedule.factor(epoch, self.trainer.max_epochs or 1, self.seen)
        for group, rate in zip(self._optimizer().param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        # BatchNorm's running statistics start anew in every epoch: the mean over its first ten
        # batches, then the usual moving average. With a constant 0.1 a short training is evaluated
        # with the initial ones (mean 0, variance 1): perfect in training, chance in evaluation.
        for module in self.modules():
            if isinstance(module, BATCH_NORM):
                module.momentum = max(0.1, 1 / (1 + batch_idx))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        prediction = self.predict(batch)
        losses = self.losses(prediction, batch)
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise NotFinite(
                f"the loss is {loss.item()} at step {self.global_step} (epoch "
                f"{self.current_epoch}) for {', '.join(batch.names)}: look at these shapes, or "
                "lower optim.lr; last.ckpt holds the epoch before."
            )
        for name, value in (losses | {"loss": loss}).items():
            total = self.loss_sum.get(name)
            self.loss_sum[name] = value.detach() if total is None else total + value.detach()
        self.steps += 1
        self.seen += len(batch) * self.trainer.world_size
        with torch.no_grad():
            prediction.output = prediction.output.detach().float()
            self.measure(self.epoch_meters[0], prediction, batch)
        return loss

    def epoch_scores(self) -> dict[str, float]:
        """Training losses (means over steps) and metrics of the epoch that just ended."""
        sums = {k: float(v) for k, v in self.loss_sum.items()} | {"steps": float(self.steps)}
        steps = max(1.0, (sums := _over_processes(sums)).pop("steps"))
        losses = {k: v / steps for k, v in sums.items()}
        return losses | self.scores(self.epoch_meters[0])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seen"] = self.seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen = int(checkpoint.get("seen", 0))

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.trainer.optimizers[0]

    # ---- evaluation: a plain loop, the same for val, test and every named test set ----

    @torch.no_grad()
    def evaluate(
        self,
        loader: Iterable[Any],
        precision: Callable[[], Any] | None = None,
        keep: Collection[int] = (),
        brief: bool = False,
    ) -> Evaluation:
        """Metrics over all batches of a loader, in eval mode; the shapes whose places in the loader
        are in ``keep`` come back with their outputs. Of several processes, each brings its share of
        the shapes, and all get the same numbers. ``brief``: after an epoch, without what takes
        long."""
        was_training = self.training
        self.eval()
        self.brief = brief
        meters = nn.ModuleDict(self.make_meters()).to(self.device)
        losses: dict[str, float] = {}
        shapes = 0
        kept: list[tuple[Any, Tensor]] = []
        each, worst = Each(), dict[int, tuple[Any, Tensor]]()
        for batch in loader:
            batch = batch.to(self.device)
            with precision() if precision else torch.autocast("cpu", enabled=False):
                prediction = self.predict_eval(batch)
                prediction.output = prediction.output.float()
                for name, value in self.losses(prediction, batch).items():
                    losses[name] = losses.get(name, 0.0) + float(value) * len(batch)
            self.measure(meters, prediction, batch)
            if not (brief or dist.is_initialized()):
                for metric, values in self.each(meters, prediction, batch).items():
                    each.metric, each.better = metric, self.metrics[metric].better
                    each.names += batch.names
                    each.values += values.double().tolist()
            places, bad = range(shapes, shapes + len(batch)), each.worst(WORST)
            if any(place in keep or place in bad for place in places):
                rows = self.split(prediction.output.cpu(), batch)
                pairs = zip(batch.to("cpu").unpack(), rows, strict=True)
                for place, pair in zip(places, pairs, strict=True):
                    if place in keep:
                        kept.append(pair)
                    if place in bad:
                        worst[place] = pair
            worst = {place: worst[place] for place in bad}
            shapes += len(batch)
        self.train(was_training)
        sums = _over_processes(losses | {"shapes": float(shapes)})
        shapes = int(sums.pop("shapes"))
        if shapes == 0:
            raise UserError("this split has no shapes: choose another test set.")
        scores = {k: v / shapes for k, v in sums.items()}
        scores["loss"] = sum(scores.values())
        scores |= self.scores(meters)
        details = {} if dist.is_initialized() else self.details(meters)
        return Evaluation(scores, details, shapes, kept, each, list(worst.values()))

    def predict_eval(self, batch: Any) -> Prediction:
        """``predict``, with whatever a task does at test time only (voting)."""
        return self.predict(batch)

    def split(self, output: Tensor, batch: Any) -> list[Tensor]:
        """Outputs per shape."""
        if self.out == "whole":
            return list(output.split(1))
        return list(output.split(batch.counts["label"]))

    # ---- weights ----

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another code under this model's names; its own come back as they are."""
        own = self.state_dict()
        translated = self.encoder.translate(state)
        if translated is not state:  # buffers that follow from the configuration
            translated |= {k: v for k, v in own.items() if k.startswith("features.")}
        return translated

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Called before weights are loaded, for tensors whose size follows from the data."""

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **rest: Any) -> Any:
        self.make_room(state_dict)
        return super().load_state_dict(state_dict, *args, **rest)

    def load_strict(self, state: dict[str, Tensor], source: Path | str) -> None:
        """Load a state dict key by key.

        Raises:
            UserError: keys or shapes differ; it names the first ones.
        """
        self.make_room(state)
        own = self.state_dict()
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or extra:
            raise UserError(
                f"{source} does not fit this model: {_some('it lacks', missing)}"
                f"{' and ' if missing and extra else ''}{_some('it has unknown', extra)}; choose "
                "the encoder, features and task it was made with."
            )
        for key, value in own.items():
            if state[key].shape != value.shape:
                raise UserError(
                    f"{source} does not fit this model: {key} has shape "
                    f"{tuple(state[key].shape)}, expected {tuple(value.shape)}; set the encoder's "
                    "sizes (points, width, ...) to those of the weights."
                )
        self.load_state_dict(state)


@dataclass
class Each:
    """A metric of every shape of a test set, in the order of the test set."""

    metric: str = ""
    better: Literal["more", "less"] = "more"
    names: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def worst(self, count: int) -> list[int]:
        """Places in the test set, the worst one first; what is no number is worst of all."""
        sign = 1 if self.better == "more" else -1
        bad = [-math.inf if math.isnan(v) else sign * v for v in self.values]
        return heapq.nsmallest(count, range(len(bad)), bad.__getitem__)


@dataclass
class Evaluation:
    """Result of one pass over one test set: some of its shapes with their outputs, and the worst
    ones (``each`` says by what)."""

    scores: dict[str, float]
    details: dict[str, Any]
    shapes: int
    kept: list[tuple[Any, Tensor]]
    each: Each = field(default_factory=Each)
    worst: list[tuple[Any, Tensor]] = field(default_factory=list)


def _over_processes(values: dict[str, float]) -> dict[str, float]:
    """Sums over the processes that train together; the values themselves where there is one."""
    if not dist.is_initialized():
        return values
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, values)
    names = dict.fromkeys(name for one in found for name in one)
    return {name: sum(one.get(name, 0.0) for one in found) for name in names}


def _some(words: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return f"{words} {', '.join(keys[:2])}{more}"


def headline(metrics: Mapping[str, Measure], scores: Mapping[str, float]) -> str:
    """The metric that a result is named by.

    Raises:
        KeyError: none was measured; not StopIteration, which ends Lightning's training silently.
    """
    found = [n for n, m in metrics.items() if m.headline and n in scores]
    if not found:
        raise KeyError(f"of {', '.join(metrics)}, none that names a result was measured")
    return found[0]
