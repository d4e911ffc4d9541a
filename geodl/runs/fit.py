"""``mode=fit``: the shape that pictures show."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from PIL import Image, UnidentifiedImageError

from geodl import viz
from geodl.atomic import atomic
from geodl.data.files import write_ply
from geodl.data.own import own_shape
from geodl.data.preprocess import Preprocess
from geodl.encoders.identity import Identity
from geodl.errors import UserError
from geodl.features import XYZ
from geodl.metrics import overlap
from geodl.ops.cache import Cache
from geodl.runs import record
from geodl.runs.build import allow, make, paths
from geodl.runs.predict import place
from geodl.schedules import Constant
from geodl.spec import DataSpec, Needs
from geodl.tasks.base import Setup
from geodl.tasks.rendering import Pictures, Rendering

log = logging.getLogger(__name__)
CAMERAS = "cameras.json"


def fit(cfg: DictConfig) -> str:
    """A sphere becomes the shape of ``input``: a mesh, whose pictures are taken first, or a folder
    of silhouettes (.png, white on black, square) with cameras.json, as this mode writes one for a
    mesh. Options are those of task=rendering. Writes the mesh, the pictures, and a sheet of the
    stages."""
    torch.set_num_threads(cfg.threads)
    source = Path(str(cfg.input)).expanduser()
    task = _task(cfg)
    center, size = np.zeros(3), 1.0
    if source.is_dir():
        if task.shading:
            raise UserError("task.shading compares normals, and a folder has silhouettes alone.")
        pictures = _read(source, task.size)
    else:
        shape = own_shape(source, Needs(), "whole", Preprocess(), Cache(paths(cfg).cache))
        pictures = task.pictures_of(shape.seen.pos, shape.seen.face)
        center, size = shape.center.numpy(), shape.size
    made_of = {
        "input": [str(source.resolve())],
        "options": OmegaConf.to_container(cfg.task) if _chosen(cfg) else {},
        "seed": cfg.seed,
    }
    target = place(cfg, "fit", made_of, "fit.json")
    stages = task.fitted(pictures, _tell)
    pos, face = stages[-1], task.face
    ours = Pictures.of(pos, face, pictures.views, task.size, False).silhouette > 0.5
    theirs = pictures.silhouette > 0.5
    iou = overlap(ours, theirs)
    own = pos.double().numpy() * size + center
    grey = np.full((len(own), 3), 160, np.uint8)
    with record.whole(target, "fit.json") as part:
        write_ply(part / "mesh.ply", own, face.numpy(), grey)
        viz.meshes([[(x.numpy(), face.numpy()) for x in stages]], part / "stages.png", cfg.up)
        viz.pictures([list(theirs.numpy()), list(ours.numpy())], part / "pictures.png")
        if not source.is_dir():
            _write(pictures, part / "views")
        record.write_json(part / "fit.json", [{"iou": round(float(iou), 4)} | made_of])
    return f"silhouettes overlap by {100 * float(iou):.1f} % (IoU)\n{target}"


def _tell(step: int, loss: float) -> None:
    if step % 50 == 0:
        log.info("step %d  loss %.4f", step, loss)


def _chosen(cfg: DictConfig) -> bool:
    """Whether the options of the command line are those of this task."""
    return str(cfg.task._target_).endswith(".Rendering")


def _task(cfg: DictConfig) -> Rendering:
    options: Any = {"_target_": f"{Rendering.__module__}.{Rendering.__name__}"}
    setup = Setup(
        spec=DataSpec(),
        features=XYZ(),
        encoder=functools.partial(Identity),
        optimizer=torch.optim.Adam,
        schedule=Constant(),
        seed=cfg.seed,
    )
    return make("task", cfg.task if _chosen(cfg) else options, allow=allow(cfg))(setup=setup)


def _write(pictures: Pictures, folder: Path) -> None:
    """Silhouettes as .png, and the cameras: rows right, up, towards the viewer."""
    record.make_folder(folder)
    for i, mask in enumerate(pictures.silhouette.numpy()):
        image = Image.fromarray((mask * 255).astype(np.uint8))
        with atomic(folder / f"{i:03d}.png") as part:
            image.save(part, format="PNG")
    rows = {f"{i:03d}.png": v.double().tolist() for i, v in enumerate(pictures.views)}
    record.write_json(folder / CAMERAS, rows)


def _read(folder: Path, size: int) -> Pictures:
    """Silhouettes and cameras of a folder.

    Raises:
        UserError: something is missing, or is no picture or rotation.
    """
    given: Any = record.read_json(folder / CAMERAS)
    if not isinstance(given, dict) or not given:
        raise UserError(
            f"{folder / CAMERAS} must say how every picture was taken: {{name: [[right], [up], "
            "[towards the viewer]]}; geodl mode=fit input=<a mesh> writes one."
        )
    masks: list[NDArray[Any]] = []
    views: list[NDArray[Any]] = []
    for name, rows in sorted(given.items()):
        file = folder / str(name)
        try:
            image = Image.open(file).convert("L")
        except (OSError, UnidentifiedImageError):
            raise UserError(f"{file}, which {CAMERAS} names, is no picture.") from None
        if image.width != image.height:
            raise UserError(f"{file} has {image.width} x {image.height} pixels: make it square.")
        image = image.resize((size, size), Image.Resampling.BOX)
        try:
            view = np.array(rows, np.float64).reshape(3, 3)
        except (ValueError, TypeError):
            view = np.zeros((3, 3))
        if not np.allclose(view @ view.T, np.eye(3), atol=1e-3) or np.linalg.det(view) < 0:
            raise UserError(
                f"{folder / CAMERAS}: {name} must have three orthogonal rows of length 1: right, "
                "up, towards the viewer (their cross product, not its opposite)."
            )
        masks.append(np.asarray(image) > 127)
        views.append(view)
    silhouette = torch.from_numpy(np.stack(masks)).float()
    return Pictures(silhouette, None, torch.from_numpy(np.stack(views)).float())
