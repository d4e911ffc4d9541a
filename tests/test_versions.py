"""Whoever changes what a part computes must say so: its ``VERSION`` is part of a run's name.

Every part that trains goes through a small fixed computation; the numbers are stored beside the
version that gave them. ``python tests/test_versions.py`` stores those of new parts and
versions.
"""

import importlib
import json
import re
import sys
import tempfile
from functools import partial
from pathlib import Path

import conftest  # settles where caches lie, also when this file is run by hand
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import geodl.features
import geodl.schedules
from geodl import augment, carry
from geodl.cli.main import run
from geodl.data.fetch import Paths
from geodl.data.poses import Poses
from geodl.data.preprocess import Preprocess
from geodl.data.views import attach
from geodl.ops.cache import Cache, compute
from geodl.ops.geometry import Geometry
from geodl.runs import record
from geodl.runs.compose import compose, config_dir
from geodl.shape import Shape, ShapeBatch
from geodl.spec import DataSpec, Gradient, Laplacian, Mass, Needs, Points, Spectrum, Template

STORED = Path(__file__).parent / "fixtures" / "versions.json"
NARROW = ["encoder=diffusionnet", "encoder.width=8", "encoder.blocks=1", "encoder.k_eig=32"]
CLASSES = ["data.size=tiny", "encoder.points=64", "batch_size=5"]
TOKENS = ["data.size=tiny", "features=none", "encoder=transformer", "encoder.count=8"]
TOKENS += ["encoder.k=8", "encoder.width=16", "encoder.depth=2", "batch_size=5"]
HEADS = ["task=reconstruction", "data=heads", "data.size=tiny", "task.latent=4"]
# Small steps, where large ones make last digits, which another processor has, into first ones.
CALM = ["optim.lr=0.00001"]
FIELD = ["task=implicit", "data.size=tiny", "task.queries=64", "task.latent=8", "batch_size=5"]
# module -> the command line of a training that goes through it
TRAININGS = {
    "tasks.base": [*CLASSES, "schedule=cosine", "schedule.warmup=0.5"],
    "tasks.classification": [*CLASSES, "task.label_smoothing=0.2"],
    "tasks.segmentation": [*CLASSES, "task=segmentation"],
    "tasks.matching": ["task=matching", "data.size=tiny", "features=hks", "features.k=32"]
    + ["task.k=10", *NARROW, *CALM],
    "tasks.reconstruction": [*HEADS, "encoder=spiralnet", "decoder=spiral"]
    + ["encoder.channels=[8,8]", "encoder.factors=[4,4]", "decoder.channels=[8,8]"]
    + ["decoder.factors=[4,4]", "encoder.length=[9,9]", "decoder.length=[9,9]"]
    + ["encoder.dilation=[1,1]", "decoder.dilation=[1,1]"],
    "tasks.deformation": ["task=deformation", "data=poses", "data.train=1", "data.test=1"]
    + ["data.poses=4", "data.vertices=150", *NARROW, "batch_size=2", *CALM],
    "tasks.implicit": [*FIELD, "encoder=identity", "decoder=deepsdf", *CALM]
    + ["decoder.widths=[16,16]"],
    "decoders.field": [*FIELD, "encoder.points=64", "decoder=occupancy", "decoder.width=16"]
    + ["task.field=occupancy", *CALM],
    "decoders.vecset": [*FIELD, "encoder.points=64", "decoder=vecset", "decoder.width=16", *CALM],
    "tasks.masked": [*TOKENS, "task=masked", "task.depth=1"],
    "losses": [
        *HEADS,
        "encoder=pointnet",
        "encoder.points=64",
        "decoder=mlp",
        "task.losses.chamfer=1",
    ],
    "data.loaders": [*CLASSES, "batch_size=3", "seed=1", *CALM],
    "data.views": ["data.size=tiny", *NARROW, "augment=jitter", "augment.copies=2"],
    "decoders.mlp": [*HEADS, "encoder=pointnet", "encoder.points=64", "decoder=mlp"],
    "decoders.spiral": [*HEADS, "encoder=pointnet", "encoder.points=64", "decoder=spiral"]
    + ["decoder.channels=[8,8]", "decoder.factors=[4,4]", "decoder.length=[9,9]"]
    + ["decoder.dilation=[1,1]"],
    "decoders.chebnet": [*HEADS, "encoder=chebnet", "decoder=chebnet"]
    + [
        f"{part}.{o}"
        for part in ("encoder", "decoder")
        for o in ("channels=[8,8]", "factors=[4,4]")
    ],
}


def summary(*arrays):
    """A few numbers that any change would change."""
    numbers = []
    for array in arrays:
        x = np.asarray(array, float).reshape(-1)
        wave = np.cos(np.arange(len(x)))
        numbers += [float(x.mean()), float(np.abs(x).mean()), float((x * wave).mean())]
    return numbers


def trained(words, place):
    GlobalHydra.instance().clear()
    asked = ["epochs=1", "figures=false", "test=train", f"paths.outputs={place}"]
    asked.append(f"paths.cache={place / 'cache'}")  # signs of eigenvectors do not depend on others
    cfg = compose([*words, *asked])
    run(cfg)
    folder = record.run_folder(cfg)
    loss = json.loads((folder / "result.json").read_text())["train"]["train/loss"]
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    weights = [x.numpy() for _, x in sorted(state.items()) if x.dim() > 1]
    return [loss, *summary(*weights[:4])]


def surface():
    pos, face = conftest.icosphere(3)
    rng = np.random.default_rng(0)
    return pos * [1, 2, 0.7] + 0.1 * np.sin(3 * pos) + 0.01 * rng.random(pos.shape), face


def a_shape(place, needs=()):
    pos, face = surface()
    shape = Shape(pos=torch.from_numpy(pos).float(), face=torch.from_numpy(face), name="a")
    shape = shape.replace(label=torch.arange(len(pos)) % 4)
    return attach(shape, Needs.of(*needs), "cotan", Cache(place / "cache"))


def encoded(cls, options, place):
    from geodl.runs.build import make

    pos, face = surface()
    template = Template(pos.astype(np.float32), face)
    spec = DataSpec(classes=("a", "b"), template=template)
    out = "whole" if "whole" in cls.outputs else cls.outputs[0]
    torch.manual_seed(0)
    encoder = make("encoder", options)(in_channels=3, spec=spec, out=out).eval()
    shape = a_shape(place, (Spectrum(64), Gradient(), Laplacian(), *encoder.needs.requests))
    if encoder.needs.find(Points):
        shape = carry.sampled(shape, encoder.needs.find(Points).n, "vertex", None)
    batch = ShapeBatch.pack([shape, shape])
    with torch.no_grad():
        return summary(encoder(batch.pos, batch).at(out).numpy())


def of_ops(place):
    geometry = Geometry.of(*surface())
    found = {
        k: v for n in (Mass(), Laplacian(), Gradient()) for k, v in compute(n, geometry).items()
    }
    evals = compute(Spectrum(16), geometry)["evals"]
    return summary(*(v for k, v in sorted(found.items()) if not k.endswith("shape")), evals)


def of_preprocess(place):
    pos, face = surface()
    pos = np.concatenate([pos * 7 + 3, [[9, 9, 9]]])
    face = np.concatenate([face, face[:2]])
    shape = Shape(pos=torch.from_numpy(pos), face=torch.from_numpy(face))
    done = [
        Preprocess(**o)(shape, "vertex", Cache(place / "cache")).shape.pos.numpy()
        for o in ({}, {"center": "bbox", "scale": "area"}, {"vertices": 200})
    ]
    return summary(*done)


def of_augment(place):
    spec, found = DataSpec(), []
    kinds = (augment.SO3(), augment.RotateZ(), augment.Scale(), augment.Jitter(), augment.Dropout())
    for kind in kinds:
        found.append(kind(a_shape(place), np.random.default_rng(0), spec).pos.numpy())
    return summary(*found)


def of_features(place):
    shape = a_shape(place, (Spectrum(64),))
    batch = ShapeBatch.pack([shape])
    kinds = (geodl.features.XYZ(), geodl.features.HKS(k=64), geodl.features.WKS(k=64))
    return summary(*(kind(batch).numpy() for kind in kinds))


def of_schedules(place):
    kinds = (
        geodl.schedules.Step(every=2),
        geodl.schedules.Samples(every=30),
        geodl.schedules.Exponential(),
        geodl.schedules.Cosine(warmup=0.1),
    )
    return [kind.factor(e, 10, 10 * e) for kind in kinds for e in (0, 1, 4, 9)]


def of_carry(place):
    shape = a_shape(place)
    few = carry.sampled(shape, 50, "vertex", np.random.default_rng(0))
    moved = carry.carried(shape, *conftest.icosphere(1), "vertex")
    return summary(few.pos, few.ops.carry, moved.label)


def of_shape(place):
    batch = ShapeBatch.pack([a_shape(place, (Mass(),)), a_shape(place, (Mass(),))])
    return summary(batch.pos, batch.face, batch.mean(batch.pos, batch.ops.mass))


def of_probe(place):
    from geodl.tasks.probe import logistic

    torch.manual_seed(0)
    return summary(*logistic(torch.randn(60, 5), torch.arange(60) % 3, 3, 0.1))


def of_generation(place):
    from geodl.tasks.generation import CodeFlow

    torch.manual_seed(0)
    flow = CodeFlow(6, 5, 16, 2)
    for weight in flow.parameters():  # some begin at zero
        weight.data += 0.1 * torch.randn_like(weight)
    return summary(flow(torch.randn(4, 6), torch.rand(4), torch.eye(4, 5)).detach())


def generated(name):
    module = importlib.import_module(f"geodl.data.{name}")
    cls = getattr(module, name.capitalize())

    def made(place):
        data = cls(Paths(place / "data", place / "cache"), size="tiny")
        return summary(*(data.load(i).pos for i in data.items("train")[:2]))

    return made


def of_poses(place):
    data = Poses(Paths(place / "data", place / "cache"), train=1, test=1, poses=1, vertices=150)
    return summary(*(data.load(i).pos for i in data.items("test")))


def parts():
    """Module -> the function of a folder that gives its numbers."""
    found = {n: partial(trained, words) for n, words in TRAININGS.items()}
    for file in sorted((config_dir() / "encoder").glob("[!_]*.yaml")):
        GlobalHydra.instance().clear()
        options = dict(compose([f"encoder={file.stem}"]).encoder)
        module, _, name = options["_target_"].rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        words = {**options, **cls.small}
        if cls.learns:
            found[module.removeprefix("geodl.")] = partial(encoded, cls, words)
    found |= {"ops": of_ops, "data.preprocess": of_preprocess, "augment": of_augment}
    found |= {"features": of_features, "schedules": of_schedules, "carry": of_carry}
    found |= {"shape": of_shape, "tasks.probe": of_probe, "data.poses": of_poses} | {
        "tasks.generation": of_generation
    }
    found |= {f"data.{n}": generated(n) for n in ("creatures", "heads")}
    return found


PARTS = parts()


def version(module):
    return record.later_version(module) or record.FIRST.get(module, 1)


@pytest.mark.parametrize("module", PARTS)
def test_other_numbers_come_with_another_version(module, tmp_path):
    stored = json.loads(STORED.read_text())[module]
    numbers = PARTS[module](tmp_path)
    same = len(numbers) == len(stored["numbers"])
    same = same and np.allclose(numbers, stored["numbers"], rtol=2e-3, atol=1e-5)
    assert same == (version(module) == stored["version"]), (
        f"{module} was at version {stored['version']} with other numbers: raise VERSION in "
        f"geodl/{module.replace('.', '/')}.py (or __init__.py), then python tests/test_versions.py"
    )


def test_every_part_that_a_name_knows_is_watched():
    for module in record.SHARED:
        assert module in PARTS or module == "nn", module
    package = Path(geodl.features.__file__).parent
    for folder in ("encoders", "decoders", "tasks"):
        for file in (package / folder).glob("*.py"):
            abstract = file.stem in ("__init__", "base", "template")
            # Nothing is trained in them.
            abstract |= file.stem in (
                "flat",
                "identity",
                "linear",
                "interpolation",
                "ways",
                "rendering",
            )
            assert abstract or f"{folder}.{file.stem}" in PARTS, file


if __name__ == "__main__":
    content = json.loads(STORED.read_text())
    for module, made in sorted(PARTS.items()):
        if module in content and content[module]["version"] == version(module):
            continue  # those of another machine stay
        with tempfile.TemporaryDirectory() as folder:
            numbers = [float(f"{x:.7g}") for x in made(Path(folder))]
        content[module] = {"version": version(module), "numbers": numbers}
    content = {module: content[module] for module in sorted(PARTS)}
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[[^\]]*\]", lambda m: " ".join(m[0].split()), text)
    STORED.write_text(text + "\n")
    sys.stdout.write(f"{len(content)} parts: {STORED}\n")
