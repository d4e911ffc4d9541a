"""New shapes: codes of a model that is trained already, drawn by flow matching, as words ask."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from geodl.data.own import OwnShape
from geodl.errors import UserError
from geodl.metrics import CloudSets, compared
from geodl.ops.geometry import on_surface
from geodl.shape import ShapeBatch
from geodl.tasks.base import Evaluation, Measure, Prediction, Scene, Setup
from geodl.tasks.implicit import NONE, Implicit, Surface

NOTHING_SAID = 0.1  # share of training codes whose words are left out
AVERAGED = 0.999  # how much of the averaged weights stays in a step


class CodeFlow(nn.Module):
    """The velocity of codes on their way from noise: residual layers, scaled and shifted as time
    and words say."""

    def __init__(self, latent: int, words: int, width: int, blocks: int) -> None:
        super().__init__()
        self.words = nn.Linear(words, width, bias=False)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("rates", 0.1 * 1.25 ** torch.arange(32), persistent=False)
        self.rates: Tensor
        self.first, self.last = nn.Linear(latent, width), nn.Linear(width, latent)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.told = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(blocks)
        )
        for layer in self.told:
            nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]

    def forward(self, z: Tensor, t: Tensor, said: Tensor) -> Tensor:
        """Codes (b latent), times (b) in [0, 1], words (b words) -> (b latent)."""
        angle = t[:, None] * self.rates * 6.28
        told = F.silu(self.time(torch.cat([angle.sin(), angle.cos()], 1)) + self.words(said))
        x = self.first(z)
        for layer, modulation in zip(self.layers, self.told, strict=True):
            scale, shift = modulation(told).chunk(2, dim=1)
            x = x + layer(self.norm(x) * (1 + scale) + shift)
        return self.last(self.norm(x))


class Generation(Implicit):
    """Draws codes of shapes, for a trained model of task=implicit (``init=``), which stays as it
    is, by flow matching on straight lines from noise; its decoder makes shapes of them. Words say
    what is wanted: the name of a class, and what else the data say of it (``DataSpec.words``); in
    training, some of them.

    Metrics, over as many samples of every class as there are test shapes, means over classes and
    ``rounds`` draws: ``nna``: share of a leave-one-out nearest-neighbour test that tells samples
    from test shapes, best 50 %; ``cov``: share of test shapes that are nearest to some sample;
    ``mmd``: mean over test shapes of the distance to the nearest sample, times 1,000;
    ``agreement``: share of samples whose nearest test shape is of the class in whose
    place they stand (with ask="another", not the one that was asked for).
    Distance: Chamfer, squared, both directions added, between ``points`` points of the surfaces.

    Papers: Lipman et al.: Flow matching, ICLR 2023; Esser et al. 2024 (times from a logistic normal
    distribution); Yang et al.: PointFlow, ICCV 2019 (the metrics). Differs: codes, not points or
    pixels; the average of weights warms up, or a short training leaves much of the first ones.

    Args:
        field, latent, kl, cells: of the model that ``init`` names.
        draw: what is measured: samples of the "flow", of a "gaussian" fitted to the codes of every
            class, or, to compare with, codes of training shapes ("decoded"), or these shapes
            themselves ("training").
        guidance: how much further than to where nothing is said; 1: not.
        ask: "own": samples are asked for by the words of their class; "another": by those of the
            next class, to see whether words are heard.
        width, blocks: of the flow.
        times: drawn for every training shape of a batch.
        points: of a surface, for distances.
        rounds: draws to measure.
        euler: steps from noise to a code.
    """

    metrics = MappingProxyType(
        {
            "nna": Measure("%", "less", headline=True),
            "cov": Measure("%", "more"),
            "mmd": Measure("x 1000", "less"),
            "agreement": Measure("%", "more"),
            "lost": Measure("shapes", "less"),
        }
    )

    def __init__(
        self,
        setup: Setup,
        field: Literal["distance", "occupancy", "density"] = "distance",
        latent: int | None = 32,
        kl: float = 0.0,
        cells: int = 32,
        draw: Literal["flow", "gaussian", "decoded", "training"] = "flow",
        guidance: float = 1.0,
        ask: Literal["own", "another"] = "own",
        width: int = 256,
        blocks: int = 3,
        times: int = 16,
        points: int = 256,
        rounds: int = 5,
        euler: int = 50,
    ) -> None:
        super().__init__(setup, field=field, latent=latent, kl=kl, cells=cells)
        self.requires_grad_(False)
        self.draw, self.guidance, self.times = draw, guidance, times
        self.points, self.rounds, self.euler = points, rounds, euler
        self.classes = self.spec.classes or ("shape",)
        told = self.spec.words or ((),) * len(self.classes)
        self.said = [(name, *more) for name, more in zip(self.classes, told, strict=True)]
        self.vocabulary = sorted({word for words in self.said for word in words})
        self.ask = ask
        length = self.decoder.latent
        self.flow = CodeFlow(length, len(self.vocabulary), width, blocks)
        self.average = copy.deepcopy(self.flow).requires_grad_(False)
        self.register_buffer("taken", torch.zeros((), dtype=torch.long))  # steps
        # Training shapes: codes, classes, points on them.
        self.register_buffer("bank", torch.empty(0, length))
        self.register_buffer("bank_class", torch.empty(0, dtype=torch.long))
        self.register_buffer("bank_cloud", torch.empty(0, points, 3, dtype=torch.half))
        self.taken: Tensor
        self.bank: Tensor
        self.bank_class: Tensor
        self.bank_cloud: Tensor

    # ---- before training ----

    @torch.no_grad()
    def fit(self, loader: Iterable[ShapeBatch]) -> None:
        if not self.started:
            raise UserError(
                "task=generation draws codes for a model that is trained already: give its "
                "checkpoint, or the words of its run, as init=."
            )
        was_training = self.training
        self.eval()
        rows = [
            (self.code(b)[0], self._classes(b), self._clouds(b).half())
            for b in (batch.to(self.device) for batch in loader)
        ]
        self.train(was_training)
        self.bank, self.bank_class, self.bank_cloud = (
            torch.cat(parts) for parts in zip(*rows, strict=True)
        )

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        super().make_room(state)
        for name in ("bank", "bank_class", "bank_cloud"):
            if (stored := state.get(name)) is not None:
                setattr(self, name, getattr(self, name).new_zeros(stored.shape))

    def _classes(self, batch: ShapeBatch) -> Tensor:
        if self.spec.classes and batch.category is not None:
            return batch.category
        return torch.zeros(len(batch), dtype=torch.long, device=self.device)

    def _clouds(self, batch: ShapeBatch) -> Tensor:
        """Points (b points 3) of the shapes' surfaces."""
        if self.field == "density":
            clouds = [cloud[: self.points] for cloud in batch.pos.split(batch.sizes)]
        else:
            clouds = [cloud[: self.points] for cloud in batch.rows("surface")]
        if min(map(len, clouds)) < self.points:
            raise UserError(f"task.points={self.points} is more than a shape has.")
        return torch.stack(clouds)

    # ---- words ----

    def spoken(self, words: Sequence[str]) -> Tensor:
        """What the flow is told (1 words).

        Raises:
            UserError: a word that is not known.
        """
        if unknown := [word for word in words if word not in self.vocabulary]:
            raise UserError(f"{', '.join(unknown)}: this model knows {', '.join(self.vocabulary)}.")
        return self._told([words])

    def _told(self, said: Sequence[Sequence[str]]) -> Tensor:
        """A row per list of words: their mean."""
        rows = torch.zeros(len(said), len(self.vocabulary), device=self.device)
        for row, words in zip(rows, said, strict=True):
            for word in words:
                row[self.vocabulary.index(word)] = 1 / len(words)
        return rows

    def _some_words(self, classes: Tensor) -> Tensor:
        """What is said of training codes: all that is known of their classes, some of it, or
        nothing."""
        draw = np.random.default_rng(int(torch.randint(2**31, ()).item()))
        said: list[list[str]] = []
        for c in classes.tolist():
            words = [w for w in self.said[c] if draw.random() < 0.5]
            all_of_them = not words or draw.random() < 0.5
            said.append(list(self.said[c]) if all_of_them else words)
            if draw.random() < NOTHING_SAID:
                said[-1] = []
        return self._told(said)

    # ---- training ----

    def predict(self, batch: ShapeBatch) -> Prediction:
        return Prediction(torch.zeros(len(batch), 1, device=self.device))

    def losses(self, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        if self.draw != "flow":
            return {"flow": torch.zeros((), device=self.device)}
        count = self.times * len(batch)
        if not self.training:
            torch.manual_seed(0)  # the same numbers in every evaluation
        chosen = torch.randint(len(self.bank), (count,))
        end = self.standard(self.bank[chosen])
        start, t = torch.randn_like(end), torch.randn(count).sigmoid().to(end)
        at = (1 - t)[:, None] * start + t[:, None] * end
        flow = self.flow if self.training else self.average
        answer = flow(at, t, self._some_words(self.bank_class[chosen]))
        return {"flow": (answer - (end - start)).square().mean()}

    def standard(self, z: Tensor) -> Tensor:
        """Codes of mean zero and variance one."""
        return (z - self.bank.mean(0)) / self.bank.std(0).clamp(min=1e-6)

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.taken += 1
        kept = min(AVERAGED, (1 + float(self.taken)) / (10 + float(self.taken)))
        for mean, now in zip(self.average.parameters(), self.flow.parameters(), strict=True):
            mean.lerp_(now, 1 - kept)

    # ---- sampling ----

    @torch.no_grad()
    def sampled(self, told: Tensor, seed: int = 0) -> Tensor:
        """Codes (b latent) for words (b words)."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(len(told), self.decoder.latent, generator=generator).to(self.bank)
        silence = torch.zeros_like(told)
        for step in range(self.euler):
            t = z.new_full((len(z),), step / self.euler)
            v = self.average(z, t, told)
            if self.guidance != 1:
                nothing = self.average(z, t, silence)
                v = nothing + self.guidance * (v - nothing)
            z = z + v / self.euler
        return z * self.bank.std(0).clamp(min=1e-6) + self.bank.mean(0)

    def _asked(self, c: int) -> int:
        """The class that is asked for in the place of a class."""
        another = self.draw == "flow" and self.ask == "another"
        return (c + another) % len(self.said)

    @torch.no_grad()
    def codes_of(self, classes: Tensor, seed: int) -> Tensor:
        """Codes (n latent) of samples, by ``draw``."""
        if self.draw == "flow":
            words = [self.said[self._asked(c)] for c in classes.tolist()]
            return self.sampled(self._told(words), seed)
        generator = torch.Generator().manual_seed(seed)
        found = self.bank.new_zeros(len(classes), self.bank.shape[1])
        for c in classes.unique().tolist():
            rows, wanted = self.bank[self.bank_class == c], (classes == c).nonzero()[:, 0]
            if self.draw == "decoded":
                found[wanted] = rows[_some(len(rows), len(wanted), generator)]
                continue
            gap = (rows - rows.mean(0)).double()
            spread = gap.T @ gap / max(1, len(rows) - 1)
            spread += 1e-6 * spread.diagonal().mean() * torch.eye(len(spread)).to(spread)
            noise = torch.randn(len(wanted), len(spread), generator=generator).to(spread)
            found[wanted] = (rows.mean(0) + noise @ torch.linalg.cholesky(spread).T).to(found)
        return found

    def clouds_of(self, classes: Tensor, seed: int) -> tuple[Tensor, int]:
        """Points (n points 3) of samples, and how many have no surface (all points in one)."""
        if self.draw == "training":
            generator = torch.Generator().manual_seed(seed)
            found = self.bank_cloud.new_zeros(len(classes), self.points, 3)
            for c in classes.unique().tolist():
                rows, wanted = self.bank_cloud[self.bank_class == c], (classes == c).nonzero()[:, 0]
                found[wanted] = rows[_some(len(rows), len(wanted), generator)]
            return found.float(), 0
        codes = self.codes_of(classes, seed)
        if self.field == "density":
            parts = [self.drawn(z, self.points, seed) for z in codes.split(64)]
            return torch.cat(parts), 0
        rng = np.random.default_rng(seed)
        lost, clouds = 0, []
        for z in codes:
            found = self.surface(z)
            lost += found is None
            cloud = (
                np.zeros((self.points, 3))
                if found is None
                else on_surface(*found, self.points, rng)[0]
            )
            clouds.append(torch.from_numpy(cloud).to(z))
        return torch.stack(clouds), lost

    # ---- metrics ----

    def make_meters(self) -> dict[str, Metric]:
        return {"clouds": CloudSets()}

    def measure(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> None:
        if not self.training:
            meters["clouds"].update(self._clouds(batch), self._classes(batch))

    def scores(self, meters: Any) -> dict[str, float]:
        if not meters["clouds"].update_called:
            return {}
        true, classes = meters["clouds"].compute()
        order = classes.argsort(stable=True)
        true, classes = true[order], classes[order]
        rounds: list[dict[str, float]] = []
        for seed in range(1 if self.brief else self.rounds):
            clouds, lost = self.clouds_of(classes, seed)
            rounds.append(compared(clouds, true, classes) | {"lost": float(lost)})
        return {k: float(np.mean([r[k] for r in rounds])) for k in rounds[0]}

    def each(self, meters: Any, prediction: Prediction, batch: ShapeBatch) -> dict[str, Tensor]:
        """Nothing: sets of shapes are compared."""
        return {}

    def split(self, output: Tensor, batch: ShapeBatch) -> list[Tensor]:
        return list(output.split(1))

    # ---- pictures ----

    def gallery(self, per_class: int = 6, most: int = 8) -> dict[str, list[Surface]]:
        """Samples by class, and what they were asked to be where that is another one."""
        rows: dict[str, list[Surface]] = {}
        for c in range(min(most, len(self.classes))):
            if not (self.bank_class == c).any():
                continue
            classes = torch.full((per_class,), c, device=self.device)
            asked = self._asked(c)
            name = self.classes[c] if asked == c else f"{self.classes[asked]} for {self.classes[c]}"
            if self.draw == "training":
                clouds = self.clouds_of(classes, 0)[0].cpu().double().numpy()
                rows[name] = [(cloud, NONE) for cloud in clouds]
                continue
            rows[name] = [self.shown(z) for z in self.codes_of(classes, 0)]
        return rows

    def figures(self, evaluation: Evaluation, folder: Path, name: str) -> None:
        from geodl import viz

        rows = self.gallery()
        file = folder / f"gallery-{name}.png"
        viz.meshes(list(rows.values()), file, self.spec.up, list(rows))

    def scenes(self, evaluation: Evaluation) -> list[Scene]:
        from geodl import viz

        return [
            (f"{name} {i}", {"sample": (*mesh, np.tile(viz.PLAIN, (len(mesh[0]), 1)))})
            for name, row in self.gallery(2, 6).items()
            for i, mesh in enumerate(row)
        ]

    # ---- the user's own shapes ----

    def check(self, shapes: Sequence[OwnShape]) -> None:
        raise UserError("task=generation takes no shapes: use mode=sample words=...")


def _some(n: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Numbers below n, none twice while there are others."""
    rounds = -(-wanted // n)
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(rounds)])[:wanted]
