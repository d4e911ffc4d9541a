"""Ways from one shape of a person to another: how they are measured, whatever task they are of."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geodl.data.registered import SHARES
from geodl.errors import UserError
from geodl.metrics import PathError
from geodl.shape import GroupBatch
from geodl.tasks.base import Evaluation, Measure, Scene, Task

STEPS = 7  # meshes of a way in a picture
# What is measured of ways, beside the "error" to the true meshes between, where they are known.
WAYS = MappingProxyType(
    {
        "edges": Measure("%", "less", headline=True),
        "volume": Measure("%", "less"),
        "crossings": Measure("%", "less"),
        "ends": Measure("mm", "less"),
    }
)


@torch.no_grad()
def evaluate_ways(
    task: Task, loader: Iterable[GroupBatch], keep: Collection[int] = ()
) -> Evaluation:
    """The meshes that a task puts at the shares ``SHARES`` of the ways of a loader, against the
    true ones. Ways whose places are in ``keep`` come back as meshes (t v 3)."""
    template = task.spec.template
    if template is None:
        raise UserError("ways go between meshes in correspondence: choose data=poses or bodies.")
    face = torch.from_numpy(template.face)
    was_training = task.training
    task.eval()
    meter = PathError()
    kept: list[tuple[Any, Tensor]] = []
    count = 0
    shown = sorted({*SHARES, *np.linspace(0, 1, STEPS).tolist()})
    for batch in loader:
        batch = batch.to(task.device)
        wanted = any(place in keep for place in range(count, count + len(batch)))
        times = shown if wanted else [0.0, *SHARES, 1.0]
        paths = task.along(batch, times).cpu().view(len(times), len(batch), -1, 3)
        ends = [end.ops.target.cpu().view(len(batch), -1, 3) for end in (batch.first, batch.second)]
        between = batch.second.ops.get("between")
        known = None if between is None else between.cpu().view(len(batch), -1, len(SHARES), 3)
        measured = [times.index(t) for t in (0.0, *SHARES, 1.0)]
        for i in range(len(batch)):
            true = None if known is None else known[i].transpose(0, 1)
            path = paths[measured, i]
            meter.update(path, (ends[0][i], ends[1][i]), true, SHARES, face, task.spec.unit)
            if count + i in keep:
                steps = [times.index(t) for t in np.linspace(0, 1, STEPS).tolist()]
                name = f"{batch.first.names[i]} to {batch.second.names[i]}"
                kept.append(((name, face), paths[steps, i]))
        count += len(batch)
    task.train(was_training)
    scores = {k: float(v) for k, v in meter.compute().items()}
    return Evaluation(scores, {}, count, kept)


def scenes_of_ways(evaluation: Evaluation) -> list[Scene]:
    """Some ways for the report's viewer, which plays them: layers by their share of the way."""
    from geodl import viz

    found: list[Scene] = []
    for (name, face), path in evaluation.kept[:3]:
        color = viz.position_color(path[0].numpy())
        layers = {
            f"{100 * i / (STEPS - 1):.0f} %": (pos.numpy(), face.numpy(), color)
            for i, pos in enumerate(path)
        }
        found.append((name, layers))
    return found


def draw_ways(task: Task, evaluation: Evaluation, folder: Path, name: str) -> None:
    """Some ways as rows, and the first one as a film."""
    from geodl import viz

    assert task.spec.template is not None
    face, kept = task.spec.template.face, evaluation.kept[:4]
    rows = [list(path.numpy()) for _, path in kept]
    viz.strips(rows, face, folder / f"ways-{name}.png", task.spec.up)
    color = viz.position_color(task.spec.template.pos)
    film = folder / f"way-{name}.gif"
    viz.film(kept[0][1].numpy(), face, color, film, task.spec.up)
