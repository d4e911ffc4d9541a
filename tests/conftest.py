"""Shapes in signatures are checked here, at no cost in use; caches stay in the checkout."""

import os
import subprocess
import sys
from pathlib import Path

from jaxtyping import install_import_hook

SCRATCH = Path(__file__).resolve().parent.parent / ".pytest_cache" / "geodl"
os.environ["GEODL_DATA"] = str(SCRATCH / "data")
os.environ["GEODL_CACHE"] = str(SCRATCH / "cache")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"

with install_import_hook(["geodl.shape", "geodl.features", "geodl.ops"], "beartype.beartype"):
    import geodl.features
    import geodl.ops.geometry
    import geodl.ops.gradient
    import geodl.ops.laplacian
    import geodl.ops.spectrum
    import geodl.shape

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from geodl.data.creatures import Creatures
from geodl.data.fetch import Paths
from geodl.data.views import attach
from geodl.ops.cache import Cache
from geodl.shape import Shape
from geodl.spec import Edges, Gradient, Laplacian, LogMap, Needs, Normals, Spectrum

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def paths() -> Paths:
    archives = os.environ.get("GEODL_ARCHIVES")
    return Paths(SCRATCH / "data", SCRATCH / "cache", Path(archives) if archives else None)


@pytest.fixture(scope="session")
def cache(paths: Paths) -> Cache:
    return Cache(paths.cache)


ALL = Needs.of(Spectrum(64), Edges(), Gradient(), Laplacian(), LogMap(), Normals())


@pytest.fixture(scope="session")
def shapes(paths: Paths, cache: Cache) -> list[Shape]:
    """Eight small shapes of different sizes, with every operator, labels on vertices."""
    data = Creatures(paths, size="tiny")
    loaded = [data.load(item) for item in data.items("train")[::2]]
    assert len({s.pos.shape[0] for s in loaded}) > 4
    return [attach(s, ALL, "cotan", cache) for s in loaded]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    return tmp_path


def geodl(*words, cwd, code=0):
    """A command line in a process of its own, which must end with this code."""
    command = [sys.executable, "-m", "geodl", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def labelled_on(shape: Shape, on: str) -> Shape:
    """The shape with labels on faces or edges instead of vertices."""
    from geodl.carry import edges_of
    from geodl.spec import EDGE

    if on == "vertex":
        return shape
    assert shape.label is not None
    if on == "face":
        return shape.replace(label=shape.label[shape.face[:, 0]])
    edge, _ = edges_of(shape.face)
    ops = shape.ops.added({"edge": edge}, {"edge": EDGE})
    return shape.replace(label=shape.label[edge[:, 0]], ops=ops)


def icosphere(subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A flat n x n square in the plane z = 0."""
    x, y = np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, n), indexing="ij")
    pos = np.stack([x, y, 0 * x], -1).reshape(-1, 3)
    i = np.arange(n * n).reshape(n, n)
    a, b, c, d = i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]
    face = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    return pos, face


TETRA = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
FACES_OF_TETRA = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


def write_off(path: Path, pos: np.ndarray, face: np.ndarray) -> None:
    """A mesh as .off, or as .obj by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".obj":
        lines = [f"v {x} {y} {z}" for x, y, z in pos] + [
            f"f {a + 1} {b + 1} {c + 1}" for a, b, c in face
        ]
    else:
        lines = ["OFF", f"{len(pos)} {len(face)} 0"]
        lines += [f"{x} {y} {z}" for x, y, z in pos] + [f"3 {a} {b} {c}" for a, b, c in face]
    path.write_text("\n".join(lines) + "\n")
