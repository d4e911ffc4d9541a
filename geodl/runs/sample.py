"""``mode=sample``: new shapes of a trained model of task=generation, as words ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from geodl import viz
from geodl.data.files import write_ply
from geodl.errors import UserError
from geodl.runs import record
from geodl.runs.build import device
from geodl.runs.checkpoint import restore
from geodl.runs.predict import listed, place
from geodl.tasks.generation import Generation
from geodl.tasks.implicit import Surface


def sample(cfg: DictConfig) -> str:
    """``count`` meshes (clouds, of densities) as .ply in the model's coordinates, and a picture.
    ``words`` say what; without them the classes take turns."""
    checkpoint = Path(cfg.ckpt).expanduser()
    _, task, _ = restore(checkpoint, cfg)
    if not isinstance(task, Generation):
        raise UserError(
            f"ckpt={cfg.ckpt} is no model that draws shapes: train one with task=generation."
        )
    if task.draw != "flow":
        raise UserError(
            f"ckpt={cfg.ckpt} was made with task.draw={task.draw}, to be compared with, and has "
            "learned nothing: give a run with task.draw=flow."
        )
    task.eval().to(device(cfg))
    words = None if cfg.words is None else [str(w) for w in listed(cfg.words)]
    names = [task.classes[i % len(task.classes)] for i in range(cfg.count)]
    if words is None:
        told = torch.cat([task.spoken([name]) for name in names])
    else:
        told = task.spoken(words).expand(cfg.count, -1)
    said = names if words is None else [", ".join(words)] * cfg.count
    made_of = {
        "input": [record.valid_name("-".join(words or ["every class"]))],
        "checkpoint": f"{checkpoint.resolve()} {record.fingerprint(checkpoint)[:16]}",
        "seed": cfg.seed,
        "count": cfg.count,
        "asked_for": words,
    }
    name = f"{checkpoint.resolve().parent.name}-{checkpoint.stem}"
    target = place(cfg, f"sample/{record.valid_name(name)}", made_of, "samples.json")
    codes = task.sampled(told, cfg.seed)
    shown: list[Surface] = []
    rows: list[dict[str, Any]] = []
    with record.whole(target, "samples.json") as part:
        for i, z in enumerate(codes):
            found = task.surface(z)
            row: dict[str, Any] = {"words": said[i], "file": None, "code": z.cpu().tolist()}
            if found is not None:
                row["file"] = f"{i:03d}.ply"
                grey = np.full((len(found[0]), 3), 160, np.uint8)
                write_ply(part / row["file"], *found, grey)
                shown.append(found)
            rows.append(row)
        if not shown:
            raise UserError("none of the samples has a surface: the model has not learned enough.")
        lines = [shown[i : i + 8] for i in range(0, len(shown), 8)]
        viz.meshes(lines, part / "samples.png", task.spec.up)
        record.write_json(part / "samples.json", [row | made_of for row in rows])
    lost = len(rows) - len(shown)
    return f"{len(shown)} shapes{f', {lost} without a surface' if lost else ''}\n{target}"
