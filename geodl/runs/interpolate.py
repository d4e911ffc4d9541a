"""``mode=interpolate``: the shortest path between two meshes of the user's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from geodl import viz
from geodl.data import formats
from geodl.data.files import write_ply
from geodl.data.own import own_shape
from geodl.data.preprocess import Preprocess
from geodl.errors import UserError
from geodl.ops.cache import Cache
from geodl.ops.check import repair
from geodl.ops.geometry import face_areas
from geodl.runs import record
from geodl.runs.build import allow, device, make, paths
from geodl.runs.checkpoint import restore
from geodl.runs.predict import place
from geodl.shape import GroupBatch, ShapeBatch
from geodl.shapespace.match import registered
from geodl.shapespace.metric import H2
from geodl.shapespace.path import geodesic, resampled, straight
from geodl.tasks.deformation import Deformation
from geodl.tasks.interpolation import Interpolation

log = logging.getLogger(__name__)
Mesh = tuple[NDArray[np.float64], NDArray[np.int64]]
ITERATIONS = 50  # for each number of meshes on the way


def interpolate(cfg: DictConfig) -> str:
    """The way from the first mesh to the second, on the first one's vertices, as ``times`` meshes,
    a picture and a film. Meshes of the same faces correspond vertex by vertex; others are found
    without correspondence, and then the last mesh lies on the second one's surface. With ``ckpt``,
    the way of that model, in whose code both are."""
    began = time.monotonic()
    torch.set_num_threads(cfg.threads)
    metric: H2 = make("metric", cfg.metric, allow=allow(cfg))()
    files = [Path(str(one)).expanduser() for one in cfg.input]
    made_of = {
        "input": [str(f.resolve()) for f in files],
        "metric": OmegaConf.to_container(cfg.metric),
        "times": cfg.times,
        "ckpt": record.fingerprint(Path(cfg.ckpt).expanduser())[:16] if cfg.ckpt else None,
    }
    target = place(cfg, "interpolate", made_of, "path.json")
    found = by_model(cfg, files) if cfg.ckpt else shortest(cfg, files, metric)
    path, line, face = found.path, straight(found.path[0], found.path[-1], cfg.times), found.face
    meshes, between = (found.placed(p) for p in (path, line))
    triangles = face.numpy()

    energy, straight_energy = (float(metric.energy(p, face)) for p in (path, line))
    stops = resampled(path, 3)[1], resampled(line, 3)[1], path[-1]
    areas = [float(face_areas(pos.numpy(), triangles).sum()) for pos in stops]
    row: dict[str, Any] = {
        "energy": round(energy, 4),
        "energy_of_straight": round(straight_energy, 4),
        "area_halfway": round(areas[0], 4),
        "area_halfway_straight": round(areas[1], 4),
        "area_at_the_end": round(areas[2], 4),
        "same_faces": found.same,
        "seconds": round(time.monotonic() - began, 1),
    }
    color = viz.position_color(meshes[0])
    with record.whole(target, "path.json") as part:
        for i, pos in enumerate(meshes):
            painted = (color * 255).astype(np.uint8)
            write_ply(part / f"{i:02d}.ply", pos, triangles, painted)
        viz.strips(
            [meshes, between],
            triangles,
            part / "path.png",
            cfg.up,
            colors=[[color] * cfg.times] * 2,
            titles=["the model's" if cfg.ckpt else "shortest", "straight"],
        )
        viz.film(meshes, triangles, color, part / "path.gif", cfg.up)
        record.write_json(part / "path.json", [row | made_of])
    return (
        f"energy {energy:.4g} (straight: {straight_energy:.4g}), area half-way {areas[0]:.3f} "
        f"(straight: {areas[1]:.3f}) of the first mesh's\n{target}"
    )


@dataclass
class Way:
    """path (t v 3) on faces (f 3), in coordinates in which the first mesh has about area one; how
    to place it in those of the files; whether both files have the same faces."""

    path: Tensor
    face: Tensor
    placed: Callable[[Tensor], NDArray[np.float64]]
    same: bool


def shortest(cfg: DictConfig, files: list[Path], metric: H2) -> Way:
    """The geodesic of the metric."""
    first, second = _meshes(files)
    same = np.array_equal(first[1], second[1])
    # In the metric's coordinates: around the first one's centre, its area one.
    size, centers = _sizes(files, first, second)
    q0, q1 = (
        torch.from_numpy((pos - center) / size)
        for (pos, _), center in zip((first, second), centers, strict=True)
    )
    face, other = torch.from_numpy(first[1]), torch.from_numpy(second[1])
    if not same:
        log.info("other faces: the first mesh is fitted to the second one's surface")
        began = time.monotonic()
        q1 = registered(q0, face, q1, other, metric)
        log.info("fitted, %.0f s", time.monotonic() - began)
    counts = sorted({3, max(3, (cfg.times + 1) // 2), cfg.times})
    path = geodesic(q0, q1, face, metric, counts, ITERATIONS)
    shift = np.linspace(0, 1, cfg.times)[:, None, None] * (centers[1] - centers[0])
    return Way(path, face, lambda p: p.numpy() * size + centers[0] + shift, same)


@torch.no_grad()
def by_model(cfg: DictConfig, files: list[Path]) -> Way:
    """Between the codes of a trained model: meshes of its template, or the first file's own mesh
    deformed.

    Raises:
        UserError: the model knows no ways.
    """
    stored, task, meta = restore(Path(cfg.ckpt).expanduser(), cfg)
    task.eval().to(device(stored))
    own = isinstance(task, Deformation)
    if isinstance(task, Interpolation) or (own and not (task.learns and task.reads)):
        raise UserError(
            f"ckpt={cfg.ckpt} needs to know where vertices go, which files do not say: give a "
            "model that reads surfaces (experiment=deform/pandas, njf), or none."
        )
    given = Preprocess(**meta["preprocess"]), Cache(paths(cfg).cache)
    shapes = [own_shape(file, task.needs, task.out, *given) for file in files]
    first, second = (ShapeBatch.pack([s.ready]).to(task.device) for s in shapes)
    group = GroupBatch(rest=first, first=first, second=second)
    path = task.along(group, np.linspace(0, 1, cfg.times).tolist()).cpu().double()
    face = shapes[0].seen.face
    if not own:  # decoded, not deformed
        assert task.spec.template is not None
        face = torch.from_numpy(task.spec.template.face)
    size = float(face_areas(path[0].numpy(), face.numpy()).sum() ** 0.5)
    same = torch.equal(shapes[0].raw.face, shapes[1].raw.face)
    center = shapes[0].center.numpy()
    return Way(path / size, face, lambda p: p.numpy() * size * shapes[0].size + center, same)


def _meshes(files: list[Path]) -> list[Mesh]:
    """Positions and faces of both, mended; where they have the same faces, both in the same way."""
    raw = [formats.read(file) for file in files]
    for file, mesh in zip(files, raw, strict=True):
        if len(mesh.face) == 0:
            raise UserError(f"{file} is a point cloud, and a path is of meshes: give a mesh.")
    mended: list[Any] = []
    for file, mesh in zip(files, raw, strict=True):
        try:
            mended.append(repair(mesh.pos, mesh.face))
        except ValueError as error:
            raise UserError(f"{file} cannot be used: {error}.") from error
    a, b = raw
    if len(a.pos) == len(b.pos) and np.array_equal(_sorted(a.face), _sorted(b.face)):
        kept = mended[0]
        return [(np.asarray(m.pos, np.float64)[kept.vertex], kept.face) for m in raw]
    return [_welded(m.pos, m.face) for m in mended]


def _sorted(face: NDArray[np.int64]) -> NDArray[np.int64]:
    """Faces (f 3) as sets of vertices, in one order."""
    rows = np.sort(face, axis=1)
    return rows[np.lexsort(rows.T)]


def _welded(pos: NDArray[np.float64], face: NDArray[np.int64]) -> Mesh:
    """One vertex in every place: files with normals or textures split surfaces along seams."""
    places, one = np.unique(pos, axis=0, return_inverse=True)
    whole = repair(places, one.reshape(-1)[face])
    return whole.pos, whole.face


def _sizes(files: list[Path], first: Mesh, second: Mesh) -> tuple[float, list[NDArray[np.float64]]]:
    """The root of the first one's area, and the centres (3) of both surfaces.

    Raises:
        UserError: one is many times as large as the other.
    """
    areas = [face_areas(*mesh) for mesh in (first, second)]
    centers = [
        (area[:, None] * pos[face].mean(1)).sum(0) / area.sum()
        for area, (pos, face) in zip(areas, (first, second), strict=True)
    ]
    ratio = areas[1].sum() / areas[0].sum()
    if not 0.1 < ratio < 10:
        raise UserError(
            f"{files[1]} has {ratio:.3g} times the area of {files[0]}: give both in the same unit."
        )
    if not 0.8 < ratio < 1.25:
        log.info("areas differ by a factor of %.2f: metric=soft is for other sizes", ratio)
    return float(areas[0].sum() ** 0.5), centers
