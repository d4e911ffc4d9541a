"""Speed, side by side with a peer in one process: medians of interleaved runs, as ratios.

    python scripts/profile.py operators diffusionnet --peers ~/peers --mesh a.off --mesh b.off
    python scripts/profile.py all --peers ~/peers --mesh a.off --store

operators      Laplacian, 128 eigenpairs and gradients of each mesh (diffusion-net)
prepare        the operators of 100 copies of a mesh, two processes (diffusion-net, one by one)
diffusionnet   a training step on packed meshes (diffusion-net, one by one as its authors train)
pointnet       a training step, 24 clouds of 1,024 points (Pointnet_Pointnet2_pytorch)
pointnet2      a training step of PointNet++ (ssg), 24 clouds of 1,024 points (the same)
dgcnn          a training step, 24 clouds of 1,024 points (dgcnn.pytorch)
point_transformer  a training step, 8 clouds of 1,024 points (Point-Transformers, whose network is
               another one of the same paper)
meshcnn        a training step of the classifier, 16 meshes of 750 edges (MeshCNN)
deltaconv      a training step of the classifier, 8 clouds of 1,024 points (deltaconv)
neighbours     k nearest, ball, farthest points on 24 clouds of 1,024 (the same)
spirals        a training step of the SpiralNet++ autoencoder (spiralnet_plus)
pyramid        four levels below a mesh, each with a quarter of the vertices (spiralnet_plus)
warm           what was prepared is there: 100 meshes with 128 eigenpairs and gradients, no peer
overhead       a training of five minutes: the part of it that is no step, no peer
varifold       distance and gradient, 2 x 3,000 vertices (plain torch)
growth         seconds and memory against vertices, from 500 to 300,000: a picture, no peer
stream         an epoch over 2,000 shapes of 2,000 vertices with 0.2 GB of memory for them, and
               with enough for all (itself); peak memory is printed
skipped        a sweep of 200 finished runs (an empty Hydra application with the same 200 jobs)

``--peers`` holds checkouts of the peers under their repositories' names, with what they need
installed (scikit-learn, hydra; torch_geometric, torch_scatter and torch_sparse for deltaconv);
without torch_scatter, spiralnet_plus gets torch's index_add.
``--store`` puts the rows into docs/performance.md. One BLAS thread for the operators, ``--threads``
torch threads for steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This file has the name of a standard module that torch imports: its folder must not be searched.
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]

import argparse
import ctypes
import importlib
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import resource
import subprocess
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn import functional as F

from geodl.runs.build import build_task
from geodl.runs.compose import compose
from geodl.data.source import TEMPLATE
from geodl.data.views import attach
from geodl.data.files import read_mesh
from geodl.losses import surface_distance, triangles
from geodl.nn.neighbors import ball, farthest, knn
from geodl.nn.spiral import spirals_of
from geodl.ops.cache import Cache
from geodl.ops.check import repair
from geodl.ops.geometry import Geometry
from geodl.ops.gradient import gradient
from geodl.ops.hierarchy import pyramid
from geodl.ops.neighbors import surface_nearest
from geodl.ops.remesh import simplify
from geodl.ops.spectrum import spectrum
from geodl.shape import Shape, ShapeBatch
from geodl.spec import DataSpec, Edges, Gradient, Mass, Needs, Spectrum, Template

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"


class Row(NamedTuple):
    """One comparison: what was done, against what, and median seconds."""

    work: str
    peer: str
    theirs: float
    ours: float


def unit_mesh(path: Path, vertices: int | None = None) -> Geometry:
    pos, face = read_mesh(path)
    if vertices:
        pos, face = simplify(pos, face, vertices)
    mesh = repair(pos, face)
    pos = mesh.pos - mesh.pos.mean(0)
    return Geometry.of(pos / np.linalg.norm(pos, axis=1).max(), mesh.face)


def _allocator(ours: bool) -> None:
    """The C library's settings: geodl's own, or about those it starts with."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    defaults = ((-4, 65536), (-3, 32 << 20), (-1, 64 << 20))
    if mallopt is not None:
        for option, value in ((-4, 0), (-1, 2**31 - 1)) if ours else defaults:
            mallopt(option, value)


def interleaved(peer: Callable[[], Any], ours: Callable[[], Any], runs: int) -> tuple[float, float]:
    """Median seconds of both, run in turn after one warm-up each."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for call, seconds in zip((peer, ours), times, strict=True):
            _allocator(call is ours)
            start = time.perf_counter()
            call()
            if run:
                seconds.append(time.perf_counter() - start)
    return float(np.median(times[0])), float(np.median(times[1]))


def train(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """A training step with Adam."""
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


class Bench:
    """The suites; each yields rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.peers, self.paths, self.runs = options.peers, options.mesh, options.runs
        self.threads = options.threads

    def peer(self, place: str, module: str) -> Any:
        """A module of a peer's checkout, which finds its own modules first."""
        folder, top = str(self.peers / place), module.partition(".")[0]
        for name in [n for n in sys.modules if n.partition(".")[0] == top]:
            del sys.modules[name]  # another peer's of the same name
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(module)
        finally:
            sys.path.remove(folder)

    def operators(self) -> Iterator[Row]:
        peer = self.peer("diffusion-net/src", "diffusion_net")
        torch.set_num_threads(1)
        sizes = (640, 2000, None)
        meshes = [unit_mesh(self.paths[0], n) for n in sizes] + [
            unit_mesh(p) for p in self.paths[1:]
        ]
        for mesh in meshes:
            pos, face = torch.from_numpy(mesh.pos), torch.from_numpy(mesh.face)
            with threadpool_limits(1):
                times = interleaved(
                    lambda pos=pos, face=face: peer.geometry.compute_operators(pos, face, 128),
                    lambda mesh=mesh: (spectrum(mesh, 128), gradient(mesh)),
                    self.runs,
                )
            yield Row(
                f"operators, 128 eigenpairs, {len(mesh.pos):,} vertices", "diffusion-net", *times
            )

    def prepare(self, count: int = 100) -> Iterator[Row]:
        peer = self.peer("diffusion-net/src", "diffusion_net")
        torch.set_num_threads(1)
        mesh = unit_mesh(self.paths[0])
        rng = np.random.default_rng(0)
        meshes = [
            Geometry.of(mesh.pos + 1e-4 * rng.standard_normal(mesh.pos.shape), mesh.face)
            for _ in range(count)
        ]
        with threadpool_limits(1):
            start = time.perf_counter()
            for m in meshes:
                pos, face = torch.from_numpy(m.pos), torch.from_numpy(m.face)
                peer.geometry.compute_operators(pos, face, 128)
            theirs = time.perf_counter() - start
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, context) as pool:
            list(pool.map(_operators, meshes[:2]))  # started, and the modules are there
            start = time.perf_counter()
            list(pool.map(_operators, meshes))
            ours = time.perf_counter() - start
        yield Row(
            f"operators of {count} meshes of {len(mesh.pos):,}, two processes",
            "diffusion-net, serial",
            theirs,
            ours,
        )

    def diffusionnet(self) -> Iterator[Row]:
        for width, vertices, batch in ((64, 640, 16), (64, 5000, 4), (128, 5000, 4)):
            yield self._diffusionnet(width, vertices, batch)

    def _diffusionnet(self, width: int, vertices: int, batch: int) -> Row:
        """HKS, 30 classes: a step on one packed batch against steps on as many meshes one by one,
        which is how the authors train."""
        peer = self.peer("diffusion-net/src", "diffusion_net")
        cache = Cache("~/.cache/geodl/profile")
        needs = Needs.of(Spectrum(128), Gradient(), Mass())
        meshes = [
            unit_mesh(self.paths[0], vertices + 7 * i if vertices < 4000 else None)
            for i in range(batch)
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
        words = ["encoder=diffusionnet", f"encoder.width={width}", "encoder.dropout=0"]
        spec = DataSpec(classes=tuple(map(str, range(30))))
        task = build_task(compose([*words, "features=hks", f"threads={self.threads}"]), spec)
        model = peer.layers.DiffusionNet(
            16, 30, C_width=width, outputs_at="global_mean", dropout=False
        )
        columns = [
            (s.ops.mass, s.ops.evals, s.ops.evecs, s.ops.grad_x, s.ops.grad_y, s.category)
            for s in shapes
        ]

        def of_theirs(mass: Any, evals: Any, evecs: Any, gx: Any, gy: Any, category: Any) -> Any:
            hks = peer.geometry.compute_hks_autoscale(evals, evecs, 16)
            logits = model(hks, mass, evals=evals, evecs=evecs, gradX=gx, gradY=gy)
            return F.cross_entropy(logits[None], category[None])

        row: list[Any] = []
        step = train(model, lambda: of_theirs(*row))

        def one_by_one() -> None:
            for column in columns:
                row[:] = column
                step()

        times = interleaved(one_by_one, train(task, lambda: _loss(task, shapes)), self.runs)
        sizes = sorted(len(m.pos) for m in meshes)
        return Row(
            f"DiffusionNet step, width {width}, {batch} meshes of {sizes[0]:,}, "
            f"{self.threads} thread{'s' * (self.threads > 1)}",
            "diffusion-net",
            *times,
        )

    def pointnet(self) -> Iterator[Row]:
        peer = self.peer("Pointnet_Pointnet2_pytorch/models", "pointnet_cls")
        shapes = [Shape(torch.randn(1024, 3), category=torch.tensor(i)) for i in range(24)]
        x, y = torch.stack([s.pos.T for s in shapes]), torch.arange(24)
        for nets in (True, False):
            words = [f"encoder={'pointnet_tnets' if nets else 'pointnet'}", "encoder.points=1024"]
            spec = DataSpec(classes=tuple(map(str, range(40))))
            task = build_task(compose([*words, f"threads={self.threads}"]), spec)
            model, loss = peer.get_model(40, False), peer.get_loss()
            if not nets:
                model.feat.stn, model.feat.fstn = _Identity(3), _Identity(64)
            step = train(model, lambda model=model, loss=loss: loss(*_args(model(x), y)))
            times = interleaved(step, train(task, lambda task=task: _loss(task, shapes)), self.runs)
            yield Row(
                f"PointNet step, 24 x 1,024 points, with{'' if nets else 'out'} T-nets",
                "Pointnet_Pointnet2_pytorch",
                *times,
            )

    def pointnet2(self) -> Iterator[Row]:
        peer = self.peer("Pointnet_Pointnet2_pytorch/models", "pointnet2_cls_ssg")
        shapes = [Shape(_ball(1024), category=torch.tensor(i)) for i in range(24)]
        x, y = torch.stack([s.pos.T for s in shapes]), torch.arange(24)
        model, loss = peer.get_model(40, False), peer.get_loss()
        step = train(model, lambda: loss(*_args(model(x), y)))
        times = interleaved(step, self._classifier("pointnet2", "none", shapes), self.runs)
        yield Row("PointNet++ step, 24 x 1,024 points", "Pointnet_Pointnet2_pytorch", *times)

    def _classifier(self, encoder: str, features: str, shapes: list[Shape]) -> Callable[[], None]:
        spec = DataSpec(classes=tuple(map(str, range(40))))
        words = [f"encoder={encoder}", f"features={features}", f"threads={self.threads}"]
        task = build_task(compose(words), spec)
        return train(task, lambda: _loss(task, shapes))

    def dgcnn(self) -> Iterator[Row]:
        peer = types.ModuleType("dgcnn")
        code = (self.peers / "dgcnn.pytorch" / "model.py").read_text()
        exec(code.replace("torch.device('cuda')", "x.device"), vars(peer))
        shapes = [Shape(_ball(1024), category=torch.tensor(i)) for i in range(24)]
        x, y = torch.stack([s.pos.T for s in shapes]), torch.arange(24)
        model = peer.DGCNN_cls(types.SimpleNamespace(k=20, emb_dims=1024, dropout=0.5), 40)
        step = train(model, lambda: F.cross_entropy(model(x), y))
        times = interleaved(step, self._classifier("dgcnn", "xyz", shapes), self.runs)
        yield Row("DGCNN step, 24 x 1,024 points", "dgcnn.pytorch", *times)

    def point_transformer(self) -> Iterator[Row]:
        peer = self.peer("Point-Transformers", "models.Hengshuang.model")
        shapes = [Shape(_ball(1024), category=torch.tensor(i)) for i in range(8)]
        x, y = torch.stack([s.pos for s in shapes]), torch.arange(8)
        sizes = types.SimpleNamespace(nneighbor=16, nblocks=4, transformer_dim=512)
        cfg = types.SimpleNamespace(num_point=1024, num_class=40, input_dim=3, model=sizes)
        model = peer.PointTransformerCls(cfg)
        step = train(model, lambda: F.cross_entropy(model(x), y))
        times = interleaved(step, self._classifier("point_transformer", "xyz", shapes), self.runs)
        yield Row("Point Transformer step, 8 x 1,024 points", "Point-Transformers", *times)

    def deltaconv(self) -> Iterator[Row]:
        peer = self.peer("deltaconv", "deltaconv.models")
        shapes = [
            Shape(p := _ball(1024), normal=F.normalize(p), category=torch.tensor(i))
            for i in range(8)
        ]
        data = types.SimpleNamespace(
            pos=torch.cat([s.pos for s in shapes]),
            norm=torch.cat([F.normalize(s.pos) for s in shapes]),
            batch=torch.arange(8).repeat_interleave(1024),
        )
        y = torch.arange(8)
        model = peer.DeltaNetClassification(3, 40)
        step = train(model, lambda: F.cross_entropy(model(data), y))
        times = interleaved(step, self._classifier("deltaconv", "xyz", shapes), self.runs)
        yield Row("DeltaConv step, 8 x 1,024 points", "deltaconv", *times)

    def meshcnn(self) -> Iterator[Row]:
        peer = self.peer("MeshCNN", "models.networks")
        layers, prepare = (
            importlib.import_module(f"models.layers.{n}") for n in ("mesh", "mesh_prepare")
        )
        # Its cache of a mesh is a ragged array, which numpy refuses.
        prepare.np = types.SimpleNamespace(
            **{**vars(np), "savez_compressed": lambda *_, **__: None}
        )
        mesh, pool = torus(250), [600, 450, 300, 180]
        options = types.SimpleNamespace(
            num_aug=1, norm="group", num_groups=16, pool_res=pool, fc_n=100, resblocks=1
        )
        model = peer.define_classifier(
            5, [64, 128, 256, 256], 750, 40, options, [], "mconvnet", "normal", 0.02
        )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "torus.obj")
            lines = [f"v {x} {y} {z}" for x, y, z in mesh.pos]
            lines += [f"f {a} {b} {c}" for a, b, c in mesh.face + 1]
            file.write_text("\n".join(lines))

            def loaded() -> Any:  # a step uses meshes up
                meshes = [layers.Mesh(str(file), options, False, "") for _ in range(16)]
                return np.array(meshes, dtype=object)

            ready = [loaded() for _ in range(self.runs + 1)]
        noise = 0.01 * torch.randn(16, 5, 750)  # no two edges the same
        x = torch.from_numpy(ready[0][0].features).float() + noise
        x, y = (x - x.mean()) / x.std(), torch.arange(16)
        step = train(model, lambda: F.cross_entropy(model(x, ready.pop()), y))
        cache = Cache("~/.cache/geodl/profile")
        shapes = [
            attach(
                Shape(
                    torch.from_numpy(mesh.pos).float() + 0.01 * torch.randn(250, 3),
                    torch.from_numpy(mesh.face),
                    category=torch.tensor(i),
                ),
                Needs.of(Edges()),
                "cotan",
                cache,
            )
            for i in range(16)
        ]
        times = interleaved(step, self._classifier("meshcnn", "none", shapes), self.runs)
        yield Row("MeshCNN step, 16 x 750 edges", "MeshCNN", *times)

    def neighbours(self) -> Iterator[Row]:
        torch.set_num_threads(self.threads)
        name = "Pointnet_Pointnet2_pytorch"
        peer = self.peer(f"{name}/models", "pointnet2_utils")
        x, (b, n, m, k) = torch.stack([_ball(1024) for _ in range(24)]), (24, 1024, 512, 32)
        among, sizes = x.flatten(0, 1), [n] * b
        points, counts = x[:, :m].flatten(0, 1), [m] * b
        works = {
            "32 nearest": (
                lambda: peer.square_distance(x[:, :m], x).sort(dim=-1)[1][:, :, :k],
                lambda: knn(points, counts, k, among, sizes),
            ),
            "32 in a ball": (
                lambda: peer.query_ball_point(0.2, k, x, x[:, :m]),
                lambda: ball(points, counts, 0.2, k, among, sizes),
            ),
            "512 farthest": (
                lambda: peer.farthest_point_sample(x, m),
                lambda: farthest(among, sizes, m),
            ),
        }
        for what, (theirs, ours) in works.items():
            yield Row(f"{what} of 24 x 1,024 points", name, *interleaved(theirs, ours, self.runs))

    def spirals(self) -> Iterator[Row]:
        if importlib.util.find_spec("torch_scatter") is None:
            stub: Any = types.ModuleType("torch_scatter")
            stub.scatter_add = _scatter_add
            sys.modules["torch_scatter"] = stub
        peer = self.peer("spiralnet_plus", "reconstruction.network")
        mesh = unit_mesh(self.paths[0])
        template = Template(mesh.pos.astype(np.float32), mesh.face)
        words = ["task=reconstruction", "encoder=spiralnet", "decoder=spiral", "task.latent=16"]
        cfg = compose([*words, "data=heads", f"threads={self.threads}"])
        task = build_task(cfg, DataSpec(template=template, unit=1.0))
        levels = pyramid(template, (4, 4, 4, 4))
        convs = spirals_of(template, [4] * 4, [9] * 4, [1] * 4)
        rows = [len(template.pos), *(len(level.pos) for level in levels)]
        down = [_selection(level.down, n) for level, n in zip(levels, rows, strict=False)]
        up = [_barycentric(level) for level in levels]
        model = peer.AE(3, [32, 32, 32, 64], 16, [c.clamp(min=0) for c in convs], down, up)
        shapes = [
            Shape(torch.randn(len(mesh.pos), 3), torch.from_numpy(mesh.face)) for _ in range(16)
        ]
        for s in shapes:
            s.ops = s.ops.added({"target": s.pos}, {"target": TEMPLATE})
        x = torch.stack([s.pos for s in shapes])
        step = train(model, lambda: F.l1_loss(model(x), x))
        times = interleaved(step, train(task, lambda: _loss(task, shapes)), self.runs)
        yield Row(
            f"SpiralNet++ autoencoder step, 16 x {len(mesh.pos):,} vertices",
            "spiralnet_plus",
            *times,
        )

    def pyramid(self) -> Iterator[Row]:
        stub: Any = types.ModuleType("psbody.mesh")
        stub.Mesh = _Mesh
        sys.modules["psbody"], sys.modules["psbody.mesh"] = types.ModuleType("psbody"), stub
        # Its package asks for torch_geometric, this file of it does not.
        peer = self.peer("spiralnet_plus/utils", "mesh_sampling")
        mesh = unit_mesh(self.paths[0])
        template = (mesh.pos.astype(np.float32), mesh.face)
        theirs, ours = interleaved(
            lambda: peer.generate_transform_matrices(_Mesh(v=mesh.pos, f=mesh.face), [4] * 4),
            lambda: pyramid(Template(*template), (4, 4, 4, 4)),
            1,
        )
        yield Row(
            f"pyramid of four levels, {len(mesh.pos):,} vertices", "spiralnet_plus", theirs, ours
        )

    def warm(self, count: int = 100) -> Iterator[Row]:
        mesh = unit_mesh(self.paths[0])
        face = torch.from_numpy(mesh.face)
        rng = np.random.default_rng(0)
        jitter = (1e-4 * rng.standard_normal(mesh.pos.shape) for _ in range(count))
        shapes = [Shape(torch.from_numpy(mesh.pos + x).float(), face) for x in jitter]
        needs = Needs.of(Spectrum(128), Gradient(), Mass())
        with tempfile.TemporaryDirectory() as name, threadpool_limits(1):
            seconds: list[float] = []
            for _ in range(2):
                start = time.perf_counter()
                for shape in shapes:
                    attach(shape, needs, "cotan", Cache(name))
                seconds.append(time.perf_counter() - start)
        yield Row(f"{count} meshes of {len(mesh.pos):,} from the cache", "computing them", *seconds)

    def overhead(self, minutes: float = 5.0) -> Iterator[Row]:
        """PointNet on creatures: the epochs that fill the time, then all that is left of the wall
        time of `geodl` without start, data and steps."""
        words = ["encoder=pointnet", "test=[clean,rotated,remeshed]", "batch_size=16"]
        with tempfile.TemporaryDirectory() as name:
            geodl = [sys.executable, "-m", "geodl", *words, f"threads={self.threads}"]
            quiet: dict[str, Any] = {"cwd": name, "check": True, "capture_output": True}

            def run(epochs: int) -> tuple[float, float]:
                start = time.perf_counter()
                subprocess.run([*geodl, f"epochs={epochs}", f"seed={epochs}"], **quiet)
                wall = time.perf_counter() - start
                (curve,) = Path(name).glob(f"outputs/*/*/*/*-s{epochs}/metrics.csv")
                column = [line.split(",")[-1] for line in curve.read_text().splitlines()[1:]]
                return wall, sum(float(x) for x in column if x)

            _, of_three = run(3)
            wall, steps = run(max(4, round(60 * minutes / (of_three / 3))))
        yield Row("a training of five minutes, of which its epochs", "", wall, steps)

    def varifold(self) -> Iterator[Row]:
        meshes = [unit_mesh(self.paths[0], 3000) for _ in range(2)]
        pos = [torch.from_numpy(m.pos).float() for m in meshes]
        face = [torch.from_numpy(m.face) for m in meshes]
        pos[1] = pos[1] + 0.01 * torch.randn_like(pos[1])
        sigma = 0.1

        def plain(a: Any, b: Any) -> torch.Tensor:
            k = torch.exp(-torch.cdist(a[0], b[0]).square() / sigma**2)
            n, m = a[1].norm(dim=1), b[1].norm(dim=1)
            cos = (a[1] / n[:, None]) @ (b[1] / m[:, None]).T
            return (k * cos.square() * n[:, None] * m).sum()

        def run(distance: Callable[..., torch.Tensor]) -> Callable[[], None]:
            def once() -> None:
                moved = pos[0].clone().requires_grad_()
                distance(triangles(moved, face[0]), triangles(pos[1], face[1])).backward()

            return once

        torch.set_num_threads(self.threads)
        times = interleaved(
            run(lambda a, b: plain(a, a) - 2 * plain(a, b) + plain(b, b)),
            run(lambda a, b: surface_distance(a, b, "varifold", sigma)),
            self.runs,
        )
        yield Row("varifold and gradient, 2 x 3,000 vertices", "plain torch", *times)

    def growth(self) -> Iterator[Row]:
        """Operators, and a DiffusionNet (width 128) answering with them, each size in a process of
        its own; drawn to docs/images/growth.png with the exponents."""
        sizes = (500, 2000, 8000, 30_000, 100_000, 300_000)
        context = multiprocessing.get_context("spawn")
        found: list[tuple[float, ...]] = []
        for size in sizes:
            with ProcessPoolExecutor(1, context) as pool:
                found.append(pool.submit(_one_size, size, self.threads).result())
            print(
                "{:,.0f} vertices: operators {:.2f} s, forward {:.2f} s, {:.0f} MB".format(
                    *found[-1]
                ),
                flush=True,
            )
        _draw(np.array(found))
        yield from ()

    def stream(self, count: int = 2000) -> Iterator[Row]:
        """DiffusionNet, width 64, 64 eigenpairs; two epochs, of which the second is counted."""
        with tempfile.TemporaryDirectory() as name:
            there = Path(name)
            base, rng = torus(2000), np.random.default_rng(0)
            faces = "".join(f"3 {a} {b} {c}\n" for a, b, c in base.face)
            for i in range(count):
                file = there / "set" / ("train", "test")[i % 50 == 0] / "ab"[i % 2] / f"{i}.off"
                file.parent.mkdir(parents=True, exist_ok=True)
                pos = base.pos * rng.uniform(0.8, 1.2, 3) + 0.002 * rng.standard_normal(
                    base.pos.shape
                )
                rows = "".join(f"{x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in pos)
                file.write_text(f"OFF\n{len(pos)} {len(base.face)} 0\n{rows}{faces}")
            geodl = [sys.executable, "-m", "geodl", "data=folder", f"data.folder={there / 'set'}"]
            geodl += ["encoder=diffusionnet", "encoder.width=64", "encoder.k_eig=64", "epochs=2"]
            geodl += ["features=hks", "features.k=64", "figures=false", "batch_size=8"]
            quiet: dict[str, Any] = {"cwd": there, "check": True, "capture_output": True}
            quiet["env"] = os.environ | {"GEODL_CACHE": str(there / "cache")}
            subprocess.run([*geodl, "mode=prepare"], **quiet)
            seconds: list[float] = []
            for limit in ("64", "0.2"):
                words = [f"data.memory={limit}", f"paths.outputs=with{limit}"]
                subprocess.run([*geodl, *words], **quiet)
                (folder,) = there.glob(f"with{limit}/*/*/*/*")
                result = json.loads((folder / "result.json").read_text())
                last = (folder / "metrics.csv").read_text().splitlines()[-1]
                seconds.append(float(last.split(",")[-1]))
                print(
                    f"data.memory={limit}: {seconds[-1]:.1f} s, {result['peak_memory_mb']:.0f} MB"
                )
        yield Row(f"epoch over {count:,} shapes with 0.2 GB for them", "all in memory", *seconds)

    def skipped(self, count: int = 200) -> Iterator[Row]:
        with tempfile.TemporaryDirectory() as name:
            there = Path(name)
            words = ["encoder=pointnet", "epochs=1", "data.size=tiny", "encoder.points=64"]
            words += ["figures=false", f"seed=range(0,{count})"]
            geodl = [sys.executable, "-m", "geodl"]
            first = [w for w in words if not w.startswith("seed")]
            subprocess.run([*geodl, *first, "seed=0"], cwd=there, check=True, capture_output=True)
            (run,) = there.glob("outputs/*/*/*/*")
            for seed in range(1, count):  # as if it had been trained
                copy = run.parent / f"{run.name[:-3]}-s{seed}"
                copy.mkdir()
                text = (run / "result.json").read_text().replace('"seed": 0', f'"seed": {seed}')
                (copy / "result.json").write_text(text)
            (there / "empty.py").write_text(
                "import hydra\n"
                f"@hydra.main('1.3' and {str(ROOT / 'configs')!r}, 'run', '1.3')\n"
                "def main(cfg): pass\n"
                "main()\n"
            )
            quiet = {"cwd": there, "check": True, "capture_output": True}
            times = interleaved(
                lambda: subprocess.run([sys.executable, "empty.py", "-m", *words], **quiet),
                lambda: subprocess.run([*geodl, "-m", *words], **quiet),
                1,
            )
        yield Row(f"{count} finished runs skipped", "an empty Hydra application", *times)


def _operators(mesh: Geometry) -> int:
    with threadpool_limits(1):
        return len(spectrum(mesh, 128)[0]) + gradient(mesh)[0].nnz


def torus(vertices: int) -> Geometry:
    """A bumpy torus of about that many vertices."""
    n = max(8, round((vertices * 2.5) ** 0.5))
    m = max(8, round(vertices / n))
    a, b = (
        x.reshape(-1)
        for x in np.meshgrid(*(np.arange(k) * 2 * np.pi / k for k in (n, m)), indexing="ij")
    )
    r = 0.4 + 0.05 * np.sin(5 * a) * np.cos(3 * b)
    pos = np.stack(
        [(1 + r * np.cos(b)) * np.cos(a), (1 + r * np.cos(b)) * np.sin(a), r * np.sin(b)], 1
    )
    i, j = (x.reshape(-1) for x in np.meshgrid(np.arange(n), np.arange(m), indexing="ij"))
    p, q, s, t = (((i + x) % n) * m + (j + y) % m for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)))
    return Geometry.of(pos, np.concatenate([np.stack([p, q, s], 1), np.stack([p, s, t], 1)]))


def _one_size(vertices: int, threads: int) -> tuple[float, ...]:
    mesh = torus(vertices)
    start = time.perf_counter()
    shape = Shape(torch.from_numpy(mesh.pos).float(), torch.from_numpy(mesh.face))
    with tempfile.TemporaryDirectory() as name:
        needs = Needs.of(Spectrum(128), Gradient(), Mass())
        shape = attach(shape, needs, "cotan", Cache(name))
    operators = time.perf_counter() - start
    words = ["encoder=diffusionnet", "features=hks", "task=segmentation", f"threads={threads}"]
    task = build_task(compose(words), DataSpec(parts=tuple("abcdefgh"))).eval()
    batch = ShapeBatch.pack([shape])
    start = time.perf_counter()
    with torch.no_grad():
        task.predict(batch)
    forward = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return len(mesh.pos), operators, forward, peak


def _draw(found: np.ndarray) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    large = found[:, 0] >= 8000
    for axis, columns, title in (
        (
            axes[0],
            ((1, "Laplacian, 128 eigenpairs, gradients"), (2, "DiffusionNet, width 128, forward")),
            "seconds",
        ),
        (axes[1], ((3, "largest memory of the process"),), "MB"),
    ):
        for column, label in columns:
            slope = np.polyfit(np.log(found[large, 0]), np.log(found[large, column]), 1)[0]
            axis.loglog(found[:, 0], found[:, column], "o-", label=f"{label} (V^{slope:.2f})")
        axis.set(xlabel="vertices V", title=title)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(ROOT / "docs" / "images" / "growth.png", dpi=110)


def _loss(task: Any, shapes: list[Shape]) -> torch.Tensor:
    batch = ShapeBatch.pack(shapes)
    return torch.stack(list(task.losses(task.predict(batch), batch).values())).sum()


def _ball(n: int) -> torch.Tensor:
    """Points in the unit ball."""
    return F.normalize(torch.randn(n, 3), dim=1) * torch.rand(n, 1)


def _args(output: tuple[Any, Any], y: torch.Tensor) -> tuple[Any, Any, Any]:
    return output[0], y, output[1]


class _Identity(torch.nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.eye(self.k).expand(len(x), self.k, self.k)


def _scatter_add(x: torch.Tensor, index: torch.Tensor, dim: int, dim_size: int) -> torch.Tensor:
    shape = list(x.shape)
    shape[dim] = dim_size
    return x.new_zeros(shape).index_add(dim, index, x)


class _Mesh:
    """As much of psbody's Mesh as spiralnet_plus asks for."""

    def __init__(self, v: Any, f: Any) -> None:
        self.v, self.f = np.asarray(v, np.float64), np.asarray(f, np.int64)

    def compute_aabb_tree(self) -> _Mesh:
        return self

    def nearest(self, points: Any, _: bool) -> tuple[Any, Any, Any]:
        on, at = surface_nearest(self.v, self.f, points)
        return on, np.zeros_like(on), at.reshape(-1)


def _selection(down: Any, rows: int) -> torch.Tensor:
    index = torch.stack([torch.arange(len(down)), torch.as_tensor(down).long()])
    return torch.sparse_coo_tensor(index, torch.ones(len(down)), (len(down), rows)).coalesce()


def _barycentric(level: Any) -> torch.Tensor:
    n, k = level.up.shape
    index = torch.stack(
        [torch.arange(n).repeat_interleave(k), torch.as_tensor(level.up).long().flatten()]
    )
    weight = torch.as_tensor(level.weight).float().flatten()
    return torch.sparse_coo_tensor(index, weight, (n, len(level.pos))).coalesce()


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file() and (
        found := re.search(r"model name\s*: (.+)", info.read_text())
    ):
        cpu = found[1]
    return f"{os.cpu_count()} cores, {cpu}, torch {torch.__version__}"


def store(row: Row) -> None:
    """Put a row into the page's table, in place of an older one of the same work."""
    head, *old = PAGE.read_text().split("\n| work |")
    lines = {
        line.split("|")[1].strip(): line
        for line in (old[0].splitlines()[2:] if old else [])
        if line.startswith("|")
    }
    lines[row.work] = (
        f"| {row.work} | {row.peer} | {row.theirs:.3g} | {row.ours:.3g} | "
        f"{row.theirs / row.ours:.2f} | {machine()} |"
    )
    table = ["| work | peer | peer, s | geodl, s | ratio | machine |", "|---|---|---|---|---|---|"]
    PAGE.write_text("\n".join([head.rstrip("\n") + "\n", *table, *lines.values()]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    suites = [n for n in vars(Bench) if not n.startswith("_") and n != "peer"]
    parser.add_argument("suite", nargs="+", choices=[*suites, "all"])
    parser.add_argument("--peers", type=Path, help="the folder of checkouts")
    parser.add_argument("--mesh", type=Path, action="append", default=[], help="meshes to use")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--store", action="store_true", help="put the rows into docs/performance.md"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for suite in suites if "all" in options.suite else options.suite:
        for row in getattr(Bench(options), suite)():
            print(
                f"{row.work}: {row.peer} {row.theirs:.3f} s, geodl {row.ours:.3f} s, "
                f"ratio {row.theirs / row.ours:.2f}",
                flush=True,
            )
            if options.store:
                store(row)


if __name__ == "__main__":
    main()
