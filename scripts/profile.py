"""Speed, side by side with a peer in one process: medians of interleaved runs, as ratios.

    python scripts/profile.py --diffusion-net ~/diffusion-net --mesh a.off [--mesh b.off ...]

Needs the peer's own requirements (scikit-learn). One BLAS thread for the operators, ``--threads``
torch threads for the training step.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This file has the name of a standard module that torch imports: its folder must not be searched.
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]

import argparse
import importlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from geodl.runs.build import build_task
from geodl.runs.compose import compose
from geodl.data.views import attach
from geodl.data.files import read_mesh
from geodl.ops.cache import Cache
from geodl.ops.check import repair
from geodl.ops.geometry import Geometry
from geodl.ops.gradient import gradient
from geodl.ops.remesh import simplify
from geodl.ops.spectrum import spectrum
from geodl.shape import Shape, ShapeBatch
from geodl.spec import DataSpec, Gradient, Mass, Needs, Spectrum


def unit_mesh(path: Path, vertices: int | None = None) -> Geometry:
    pos, face = read_mesh(path)
    if vertices:
        pos, face = simplify(pos, face, vertices)
    mesh = repair(pos, face)
    pos = mesh.pos - mesh.pos.mean(0)
    return Geometry.of(pos / np.linalg.norm(pos, axis=1).max(), mesh.face)


def interleaved(peer: Callable[[], Any], ours: Callable[[], Any], runs: int) -> tuple[float, float]:
    """Median seconds of both, run in turn after one warm-up each."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for call, seconds in zip((peer, ours), times, strict=True):
            start = time.perf_counter()
            call()
            if run:
                seconds.append(time.perf_counter() - start)
    return float(np.median(times[0])), float(np.median(times[1]))


def operators(peer: Any, meshes: list[Geometry], runs: int) -> None:
    print("operators: Laplacian + 128 eigenpairs + gradients, one BLAS thread")
    for mesh in meshes:
        pos, face = torch.from_numpy(mesh.pos), torch.from_numpy(mesh.face)
        with threadpool_limits(1):
            a, b = interleaved(
                lambda pos=pos, face=face: peer.geometry.compute_operators(pos, face, 128),
                lambda mesh=mesh: (spectrum(mesh, 128), gradient(mesh)),
                runs,
            )
        print(f"  V={len(mesh.pos):6d}  peer {a:.3f} s  geodl {b:.3f} s  ratio {a / b:.2f}")


def training(peer: Any, paths: list[Path], vertices: int, batch: int, runs: int) -> None:
    """Training DiffusionNet (width 64, HKS, 30 classes): a step on one packed batch against
    steps on as many meshes one by one, which is how the authors train."""
    cache = Cache("~/.cache/geodl/profile")
    needs = Needs.of(Spectrum(128), Gradient(), Mass())
    meshes = [
        unit_mesh(paths[i % len(paths)], vertices + 7 * (i // len(paths))) for i in range(batch)
    ]
    shapes = [
        attach(
            Shape(
                torch.from_numpy(m.pos).float(),
                torch.from_numpy(m.face),
                category=torch.tensor(i % 30),
                name=str(i),
            ),
            needs,
            "cotan",
            cache,
        )
        for i, m in enumerate(meshes)
    ]
    cfg = compose(["encoder=diffusionnet", "encoder.width=64", "encoder.dropout=0", "features=hks"])
    task = build_task(cfg, DataSpec(classes=tuple(map(str, range(30)))))
    ours = torch.optim.Adam(task.parameters())
    model = peer.layers.DiffusionNet(16, 30, C_width=64, outputs_at="global_mean", dropout=False)
    theirs = torch.optim.Adam(model.parameters())
    columns = [
        (s.ops.mass, s.ops.evals, s.ops.evecs, s.ops.grad_x, s.ops.grad_y, s.category)
        for s in shapes
    ]

    def one_by_one() -> None:
        for mass, evals, evecs, gx, gy, category in columns:
            theirs.zero_grad()
            hks = peer.geometry.compute_hks_autoscale(evals, evecs, 16)
            logits = model(hks, mass, evals=evals, evecs=evecs, gradX=gx, gradY=gy)
            torch.nn.functional.cross_entropy(logits[None], category[None]).backward()
            theirs.step()

    def packed() -> None:
        ours.zero_grad()
        packed = ShapeBatch.pack(shapes)
        prediction = task.predict(packed)
        sum(task.losses(prediction, packed).values()).backward()
        ours.step()

    a, b = interleaved(one_by_one, packed, runs)
    sizes = [len(m.pos) for m in meshes]
    print(
        f"training step per mesh, V={min(sizes)}..{max(sizes)}, batch {batch}, "
        f"{torch.get_num_threads()} threads:  peer {1e3 * a / batch:.1f} ms  "
        f"geodl {1e3 * b / batch:.1f} ms  ratio {a / b:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--diffusion-net", type=Path, required=True, help="a checkout of the peer")
    parser.add_argument("--mesh", type=Path, action="append", required=True, help="meshes to use")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    sys.path.insert(0, str(options.diffusion_net / "src"))
    warnings.simplefilter("ignore")
    diffusion_net = importlib.import_module("diffusion_net")

    torch.set_num_threads(1)
    operators(diffusion_net, [unit_mesh(p) for p in options.mesh], options.runs)
    torch.set_num_threads(options.threads)
    for vertices, batch in ((640, 16), (5000, 4)):
        training(diffusion_net, options.mesh, vertices, batch, options.runs)


if __name__ == "__main__":
    main()
