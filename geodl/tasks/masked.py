"""Learning without labels: parts of a cloud from the rest of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from geodl.data.files import write_ply
from geodl.data.own import OwnShape
from geodl.encoders.transformer import Transformer
from geodl.errors import UserError
from geodl.nn.attention import Blocks
from geodl.shape import ShapeBatch
from geodl.spec import item_seed
from geodl.tasks.base import Evaluation, Measure, Prediction, Setup, Task


class Decoder(nn.Module):
    """Visible tokens and one learned token in place of every masked one -> the masked patches."""

    def __init__(self, width: int, heads: int, depth: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.place = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.blocks = Blocks(width, heads, depth, 0.1)
        self.norm = nn.LayerNorm(width)
        self.points = nn.Linear(width, 3 * k)

    def forward(self, visible: Tensor, at: Tensor, masked: Tensor) -> Tensor:
        """visible (b t width) at centres (b t 3), centres of the masked (b m 3) -> (b*m k 3)."""
        b, m = masked.shape[:2]
        tokens = torch.cat([visible, self.token.expand(b, m, -1)], dim=1)
        y = self.blocks(tokens, self.place(torch.cat([at, masked], dim=1)))
        return self.points(self.norm(y[:, -m:])).view(b * m, self.k, 3)


class Masked(Task):
    """Point-MAE: the encoder sees some of the patches, a small decoder draws the others; the loss
    is the Chamfer distance between drawn and true points of each.

    Paper: Pang et al.: Masked autoencoders for point cloud self-supervised learning, ECCV 2022.
    With encoder=transformer_base and features=none 29,006,432 parameters beside the encoder's
    layers for classification, which stand aside here.

    What it learns goes on by ``init=`` into task=classification, or is judged by task=probe.
    Metric: ``chamfer``, squared distances in both directions added, times 1,000, with masks that
    belong to the shapes' names.

    Args:
        ratio: share of the patches that is masked.
        depth: of the decoder.

    Raises:
        UserError: the encoder has no patches.
    """

    out = "whole"
    outputs = 0
    metrics = MappingProxyType({"chamfer": Measure("x 1000", "less", headline=True)})
    columns = ("chamfer",)

    def __init__(self, setup: Setup, ratio: float = 0.6, depth: int = 4) -> None:
        if not 0 < ratio < 1:
            raise UserError(f"task.ratio={ratio} must lie between 0 and 1.")
        self.depth = depth
        super().__init__(setup)
        assert isinstance(self.encoder, Transformer)
        self.masked = math.floor(ratio * self.encoder.count)
        if not 0 < self.masked < self.encoder.count:
            raise UserError(f"task.ratio={ratio} of {self.encoder.count} patches leaves none.")
        for part in (self.encoder.last, self.encoder.token, self.encoder.token_place):
            part.requires_grad_(False)

    def build_head(self) -> nn.Module:
        if not isinstance(self.encoder, Transformer):
            raise UserError("task=masked hides patches, which only encoder=transformer has.")
        return Decoder(self.encoder.width, self.encoder.heads, self.depth, self.encoder.k)

    def rebuilt(self, batch: ShapeBatch) -> dict[str, Tensor]:
        """drawn and true points (b m k 3) of the masked patches, relative to their centres (b m 3),
        and the visible patches (b t k 3) with theirs."""
        encoder = self.encoder
        assert isinstance(encoder, Transformer)
        rows, centres = encoder.patches(self.features(batch), batch)
        tokens, place = encoder.embedded(rows, centres)
        b, t = tokens.shape[:2]
        mask = self._mask(batch, t)
        at = centres.dense(centres.pos)
        points = rows[:, :, :3].view(b, t, encoder.k, 3)

        def part(x: Tensor, which: Tensor) -> Tensor:
            return x[which].view(b, -1, *x.shape[2:])

        visible = encoder.norm(encoder.blocks(part(tokens, ~mask), part(place, ~mask)))
        drawn = self.head(visible, part(at, ~mask), part(at, mask))
        return {
            "drawn": drawn.view(b, self.masked, encoder.k, 3),
            "true": part(points, mask),
            "masked": part(at, mask),
            "visible": part(points, ~mask),
            "at": part(at, ~mask),
        }

    def _mask(self, batch: ShapeBatch, t: int) -> Tensor:
        """Which patches (b t) are hidden: drawn anew in training, a shape's own otherwise."""
        if self.training:
            order = torch.rand(len(batch), t, device=batch.pos.device)
        else:
            draw = [np.random.default_rng(item_seed(name)).random(t) for name in batch.names]
            order = torch.from_numpy(np.stack(draw)).to(batch.pos.device)
        return order.argsort(1).argsort(1) < self.masked

    def predict(self, batch: ShapeBatch) -> Prediction:
        found = self.rebuilt(batch)
        drawn, true = found["drawn"].flatten(0, 1), found["true"].flatten(0, 1)
        gap = (drawn[:, :, None] - true[:, None]).square().sum(3)  # (b*m k k)
        both = gap.amin(2).mean(1) + gap.amin(1).mean(1)
        per_shape = both.view(len(batch), -1).mean(1, keepdim=True)
        return Prediction(per_shape, {"chamfer": per_shape.mean()})

    def losses(self, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        return prediction.losses

    def make_meters(self) -> dict[str, Metric]:
        return {"chamfer": MeanMetric()}

    def measure(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> None:
        meters["chamfer"].update(1000 * prediction.output)

    def scores(self, meters: Any) -> dict[str, float]:
        return {"chamfer": float(meters["chamfer"].compute())}

    # ---- pictures ----

    @torch.no_grad()
    def _clouds(self, shape: Any) -> list[np.ndarray]:
        """Whole, visible part, visible part with what was drawn."""
        found = self.rebuilt(ShapeBatch.pack([shape]).to(self.device))
        seen = (found["visible"] + found["at"][:, :, None]).reshape(-1, 3)
        drawn = (found["drawn"] + found["masked"][:, :, None]).reshape(-1, 3)
        return [x.cpu().numpy() for x in (shape.pos, seen, torch.cat([seen, drawn]))]

    def figures(self, evaluation: Evaluation, folder: Path, name: str) -> None:
        from geodl import viz

        was_training = self.training
        self.eval()
        columns = [self._clouds(shape) for shape, _ in evaluation.kept[:6]]
        self.train(was_training)
        rows = [[column[i] for column in columns] for i in range(3)]
        none = np.empty((0, 3), np.int64)
        viz.strips(rows, none, folder / f"gallery-{name}.png", self.spec.up)

    # ---- the user's own shapes ----

    def write(self, shapes: Sequence[OwnShape], place: Path) -> dict[str, Any]:
        """The cloud whose hidden patches were drawn, as .ply in the model's coordinates, and a
        picture."""
        from geodl import viz

        (shape,) = shapes
        whole, seen, drawn = self._clouds(shape.ready)
        none = np.empty((0, 3), np.int64)
        grey = np.full((len(drawn), 3), 160, np.uint8)
        write_ply(place.with_name(f"{place.name}.ply"), drawn, none, grey)
        picture = place.with_name(f"{place.name}.png")
        viz.strips([[whole], [seen], [drawn]], none, picture, self.spec.up)
        with torch.no_grad():
            batch = ShapeBatch.pack([shape.ready]).to(self.device)
            error = 1000 * float(self.predict(batch).output)
        return {"file": shape.name, "cloud": f"{place.name}.ply", "chamfer": round(error, 4)}

    def in_words(self, row: Mapping[str, Any]) -> str:
        return f"{row['cloud']}, Chamfer x 1000 of the hidden patches {row['chamfer']:.2f}"
