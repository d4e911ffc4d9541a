import json

import numpy as np
import pytest
import torch
import trimesh
from conftest import geodl, write_off
from test_tasks import task

from geodl.cli.main import run
from geodl.data.creatures import SPECIES, Creatures, distances, skeleton, surface
from geodl.data.fetch import Paths
from geodl.data.files import read_mesh
from geodl.data.loaders import Loaders
from geodl.data.views import Wishes
from geodl.decoders.field import DeepSDF, Occupancy
from geodl.decoders.vecset import VecSet
from geodl.encoders import vecset
from geodl.errors import UserError
from geodl.metrics import FieldError
from geodl.ops.distance import sample_fields, signed_distance, zero_level
from geodl.ops.geometry import Geometry, on_surface
from geodl.perturb import Holes
from geodl.runs.compose import compose
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Points, Samples
from geodl.tasks.implicit import Implicit


def sphere(radius=0.7):
    mesh = trimesh.creation.icosphere(4, radius)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def ball(points, radius=0.7):
    return np.linalg.norm(points, axis=-1) - radius


def parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


# ---- geometry ----


def test_signed_distances_of_a_sphere():
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    found = signed_distance(points, *sphere())
    assert np.abs(found - ball(points)).max() < 2e-3


def test_the_zero_level_of_a_sphere_is_closed_and_looks_outwards():
    pos, face = zero_level(ball, 64)
    assert np.abs(ball(pos)).max() < 1e-3
    mesh = trimesh.Trimesh(pos, face, process=False)
    assert mesh.is_watertight and abs(mesh.volume / (4 / 3 * np.pi * 0.7**3) - 1) < 0.01


def test_asking_a_coarse_grid_first_loses_nothing_but_thin_parts(monkeypatch):
    def two(points):  # a ball, and a rod through the corner of the cube
        rod = np.linalg.norm(points[:, :2] - 0.8, axis=1) - 0.12
        return np.minimum(ball(points, 0.4), rod)

    pos, _ = zero_level(two, 32)
    asked = []
    monkeypatch.setattr("geodl.ops.distance.COARSE", 1)
    everywhere, _ = zero_level(lambda p: asked.append(len(p)) or two(p), 32)
    assert np.allclose(pos[np.lexsort(pos.T)], everywhere[np.lexsort(everywhere.T)])


def test_a_surface_that_leaves_the_cube_is_closed_at_its_border():
    pos, face = zero_level(lambda p: p[:, 0] - 0.3, 16)
    assert trimesh.Trimesh(pos, face, process=False).is_watertight


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_function_of_one_sign_has_no_surface(sign):
    with pytest.raises(ValueError, match="no zero level"):
        zero_level(lambda p: np.full(len(p), sign), 16)


def test_samples_say_what_is_inside():
    found = sample_fields(Geometry.of(*sphere(0.7), "cotan"), 400, 300, 200)
    assert found["near"].shape == (400, 3) and found["cube"].shape == (300, 3)
    for name in ("near", "cube"):
        assert np.allclose(found[f"{name}_distance"], ball(found[name]), atol=3e-3)
    assert np.abs(ball(found["surface"])).max() < 3e-3
    aligned = (found["surface"] / 0.7 * found["surface_normal"]).sum(1)
    assert aligned.min() > 0.99
    assert np.abs(found["near_distance"]).mean() < 0.06 < np.abs(found["cube_distance"]).mean()


def test_a_shape_that_is_larger_than_the_cube_is_refused():
    with pytest.raises(UserError, match="scale=max_radius"):
        sample_fields(Geometry.of(*sphere(1.5), "cotan"), 10, 10, 10)


def test_samples_follow_what_turns_and_scales_a_shape_and_no_change_of_its_mesh(shapes):
    fields = Samples.fields
    ops = {n: torch.rand(5, *([3] if f.turns else [])) for n, f in fields.items()}
    shape = shapes[0].replace(ops=shapes[0].ops.added(ops, fields))
    assert torch.equal(shape.scaled(2.0).ops.near_distance, 2 * ops["near_distance"])
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert torch.allclose(shape.turned(quarter).ops.cube, ops["cube"] @ quarter.T)
    assert "near" in shape.ops.without("vertex", "face", "edge")


def test_truth_is_that_of_the_shape_before_it_is_changed(tmp_path):
    paths = Paths(data=tmp_path, cache=tmp_path)
    source = Creatures(paths, size="tiny")
    needs = Needs.of(Samples(50, 40, 30), Points(20))
    loaders = Loaders(source, Wishes(needs), batch_size=2)
    whole = next(iter(loaders.batches("test")))
    cut = next(iter(loaders.batches("test", [Holes(count=1, share=0.5)])))
    assert torch.equal(whole.ops.near, cut.ops.near)
    assert whole.sizes == [20, 20] and not torch.equal(whole.pos, cut.pos)


def test_signs_are_those_of_the_capsules_that_animals_are_made_of():
    rng = np.random.default_rng(0)
    bones = skeleton(SPECIES["quadruped"], rng)
    pos, face = surface(bones, rng, 50)
    points = rng.uniform(pos.min(0), pos.max(0), (3000, 3))
    true = distances(points, bones).min(1)
    found = signed_distance(points, pos, face)
    assert (found[true < -0.03] < 0).all() and (found[true > 0.1] > 0).all()
    assert (true < -0.03).sum() > 50


# ---- networks ----


def test_parameters_are_the_authors():
    spec = DataSpec()
    assert parameters(DeepSDF(256, spec, widths=[512] * 8, dropout=0.2)) == 1_843_195
    assert parameters(Occupancy(256, spec, width=256, blocks=5)) == 2_106_625
    encoder = vecset.VecSet(0, spec, "whole", width=512, count=512, waves=8, variance=True)
    decoder = VecSet(512 * 8, spec, width=512, depth=24, heads=8, waves=8)
    assert parameters(encoder, decoder) - 26_624 == 106_128_913  # one embedding of points less


@pytest.mark.parametrize("kind", [DeepSDF, Occupancy, VecSet])
def test_a_point_is_answered_whatever_is_asked_beside_it(kind):
    torch.manual_seed(0)
    decoder = kind(16, DataSpec(), ask=4, answer=3).eval()
    for weight in decoder.parameters():  # some begin at zero
        weight.data += 0.05 * torch.randn_like(weight)
    z, query = torch.randn(2, 16), torch.randn(2, 50, 4)
    whole = decoder(z, query)
    assert whole.shape == (2, 50, 3)
    assert torch.allclose(whole[:, 10:13], decoder(z, query[:, 10:13]), atol=1e-5)
    assert torch.allclose(whole[1:], decoder(z[1:], query[1:]), atol=1e-5)
    assert not torch.allclose(whole, decoder(z.flip(0), query), atol=1e-5)


def test_vectors_do_not_depend_on_the_other_shapes_of_a_batch(shapes):
    model = task("task=implicit", "encoder=vecset", "decoder=vecset", "task.latent=null")
    model = model.eval()
    together = model.code(ShapeBatch.pack(shapes[:2]))[0]
    alone = model.code(ShapeBatch.pack(shapes[1:2]))[0]
    assert torch.allclose(together[1:], alone, atol=1e-5)


def test_the_zero_level_of_a_learned_sphere_is_within_a_hundredth():
    torch.manual_seed(0)
    decoder = DeepSDF(4, DataSpec(), widths=[64, 64, 64, 64])
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    z = torch.zeros(1, 4)
    for _ in range(600):
        x = torch.rand(1, 512, 3) * 2 - 1
        near = x[:, :300] / x[:, :300].norm(dim=2, keepdim=True)
        x[:, :300] = near * (0.6 + 0.1 * torch.randn(1, 300, 1))
        true = x.norm(dim=2) - 0.6
        gap = decoder(z, x)[..., 0].clamp(-0.1, 0.1) - true.clamp(-0.1, 0.1)
        optimizer.zero_grad()
        gap.abs().mean().backward()
        optimizer.step()
        schedule.step()

    def field(points):
        with torch.no_grad():
            return decoder(z, torch.from_numpy(points).float()[None])[0, :, 0].numpy()

    pos, _ = zero_level(field, 48)
    assert np.abs(ball(pos, 0.6)).max() < 0.01


# ---- the task ----


def measured(found, true):
    meter = FieldError()
    meter.update(found[0], true[0], (found[1], true[1]))
    return {k: float(v) for k, v in meter.compute().items()}


def test_metrics_of_two_spheres():
    rng = np.random.default_rng(0)
    small, large = (on_surface(*sphere(r), 3000, rng) for r in (0.5, 0.6))
    found = measured(small, large)
    assert 9.5 < found["chamfer"] < 11 and found["normals"] > 0.99 and found["lost"] == 0
    assert measured(small, small)["chamfer"] == 0
    meter = FieldError()
    meter.update(None, large[0], (None, large[1]), (torch.tensor([True, False, True]),) * 2)
    lost = meter.compute()
    assert (lost["iou"], lost["chamfer"], lost["normals"], lost["lost"]) == (1, 100, 0, 1)


def implicit(*words):
    return task("task=implicit", "decoder=deepsdf", "decoder.widths=[16,16]", *words)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["task=implicit", "decoder=none"], "needs a decoder that is a function of space"),
        (["task=implicit", "decoder=mlp"], "needs a decoder that is a function of space"),
        (["task=implicit", "decoder=deepsdf", "task.cells=30"], "multiple of 4"),
        (
            ["task=implicit", "decoder=deepsdf", "encoder=identity", "task.field=density"],
            "a field that is",
        ),
        (["task=implicit", "encoder=vecset", "decoder=vecset", "task.latent=33"], "must divide"),
        (["task=implicit", "decoder=deepsdf", "task.field=occupancy"], "which are no logits"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_a_sentence(words, match):
    with pytest.raises(UserError, match=match):
        task(*words)


def with_samples(shape, near=200, cube=200, surface=100):
    geometry = Geometry.of(shape.pos.numpy(), shape.face.numpy(), "cotan")
    found = sample_fields(geometry, near, cube, surface)
    ops = {n: torch.from_numpy(x).float() for n, x in found.items()}
    return shape.replace(ops=shape.ops.added(ops, Samples.fields))


def test_codes_of_known_shapes_are_looked_up_and_others_are_found(shapes):
    model = implicit("encoder=identity", "task.latent=4", "task.steps=20")
    batch = ShapeBatch.pack([with_samples(s) for s in shapes[:3]])
    model.fit([batch])
    z = model.code(batch)[0]
    assert z.shape == (3, 4) and z.requires_grad
    other = batch.to("cpu")
    other.names = ["x", "y", "z"]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = model.eval().code(other)[0]
    assert not found.requires_grad and torch.equal(found, model.code(other)[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    points, distance = model._known(other)
    start = model._gap(model.decoder(torch.zeros(3, 4), points)[..., 0], distance)
    assert model._gap(model.decoder(found, points)[..., 0], distance) < start


def test_stored_codes_come_back_whatever_their_number(shapes):
    model = implicit("encoder=identity", "task.latent=4")
    batch = ShapeBatch.pack([with_samples(s) for s in shapes[:3]])
    model.fit([batch])
    again = implicit("encoder=identity", "task.latent=4")
    again.load_strict(model.state_dict(), "a file")
    assert torch.equal(again.code(batch)[0], model.code(batch)[0])
    lightning = implicit("encoder=identity", "task.latent=4")
    lightning.load_state_dict(model.state_dict())
    assert torch.equal(lightning.codes.keys, model.codes.keys)
    again.fit([batch])  # a training that begins with given weights keeps their codes
    assert torch.equal(again.codes.table, model.codes.table)
    again.fit([ShapeBatch.pack([with_samples(s) for s in shapes[:2]])])
    assert torch.equal(again.codes.table, model.codes.table), "and of the others too"
    again.fit([ShapeBatch.pack([with_samples(s) for s in shapes[:5]])])
    assert len(again.codes.table) == 5


def test_pictures_change_no_model(tmp_path, monkeypatch):
    """One that is asked in training mode would move its running means before the next test set."""
    monkeypatch.chdir(tmp_path)
    cfg = compose(
        [
            *("task=implicit", "task.field=occupancy", "data.size=tiny", "encoder.points=32"),
            *("decoder=occupancy", "decoder.width=16", "task.cells=16", "epochs=1"),
            *("test=[clean,scan]", "task.queries=64"),
        ]
    )
    seen = []

    def looked(self, evaluation, folder, name):
        assert not self.training
        seen.append(name)

    monkeypatch.setattr(Implicit, "figures", looked)
    run(cfg)
    assert seen == ["clean", "scan"]


def test_half_of_the_points_in_the_cube_are_for_measuring_alone(shapes):
    model = implicit("encoder=identity", "task.latent=4")
    batch = ShapeBatch.pack([with_samples(shapes[0])])
    known = model._known(batch)[0][0]
    held = batch.ops.cube[100:]
    assert len(known) == 300 and not (torch.cdist(known, held) == 0).any()


def test_carrying_noise_by_the_true_velocity_ends_on_the_shape(shapes, monkeypatch):
    model = task("task=implicit", "task.field=density", "decoder=occupancy", "task.latent=8")
    goal = torch.tensor([0.3, -0.2, 0.5])

    def velocity(z, query):  # of noise that is carried to one point
        at, t = query[..., :3], query[..., 3:]
        return (goal - at) / (1 - t)

    monkeypatch.setattr(model.decoder, "forward", velocity)
    drawn = model.drawn(torch.zeros(2, 8), 40)
    assert torch.allclose(drawn, goal.expand(2, 40, 3), atol=1e-4)


@pytest.mark.parametrize(
    "words",
    [
        ["encoder=identity", "decoder=deepsdf", "task.steps=5"],
        ["encoder=pointnet", "decoder=occupancy", "task.field=occupancy", "encoder.points=64"],
        [
            *("encoder=vecset", "decoder=vecset", "task.field=occupancy", "encoder.points=64"),
            *("task.latent=null", "encoder.variance=true", "task.kl=0.001", "encoder.count=8"),
        ],
        ["encoder=pointnet", "decoder=occupancy", "task.field=density", "encoder.points=64"],
    ],
)
def test_every_kind_trains_and_predicts(words, tmp_path, shapes):
    density = "task.field=density" in words
    tests = "clean" if "encoder=identity" in words else "[clean,cloud]"
    given = [
        *("task=implicit", "data=creatures", "data.size=tiny", "task.cells=16", *words),
        *("batch_size=4", "epochs=1", f"test={tests}", "task.queries=256"),
    ]
    folder = tmp_path / geodl(*given, cwd=tmp_path).stdout.splitlines()[-1]
    scores = json.loads((folder / "result.json").read_text())["eval"]["clean"]["scores"]
    assert ("iou" in scores) != density and scores["chamfer"] > 0
    assert (folder / "figures" / "gallery-clean.png").is_file()
    write_off(tmp_path / "own.off", shapes[0].pos.numpy() * 30 + [100, 0, 0], shapes[0].face)
    ask = ["mode=predict", f"ckpt={folder}/last.ckpt", "input=own.off", "output=out"]
    if scores.get("lost", 0):  # after an epoch, nothing may be inside
        return
    geodl(*ask, cwd=tmp_path)
    row = json.loads((tmp_path / "out" / "predictions.json").read_text())[0]
    cloud = trimesh.load(tmp_path / "out" / row["mesh"], process=False)
    assert abs(cloud.vertices[:, 0].mean() - 100) < 45 and row["chamfer"] > 0
    assert density or cloud.is_watertight
