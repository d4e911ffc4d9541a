"""Meshes that are moved: solvers, Jacobians, the two tasks, ways between shapes."""

import json

import numpy as np
import pytest
import torch
from conftest import icosphere
from hydra.core.global_hydra import GlobalHydra
from scipy.spatial.transform import Rotation

from geodl.cli.main import run
from geodl.data.files import read_mesh, write_ply
from geodl.data.loaders import Loaders
from geodl.data.poses import Poses
from geodl.data.source import PATH, TEMPLATE, TRANSFER
from geodl.errors import UserError
from geodl.metrics import DeformedError, PathError, is_closed, volume
from geodl.nn.jacobians import Jacobians, applied, integrated
from geodl.nn.poisson import faces_of
from geodl.ops.align import rigid
from geodl.ops.crossing import crossing
from geodl.ops.deform import SOLVERS, arap, biharmonic, rbf, solve
from geodl.runs import record
from geodl.runs.build import build
from geodl.runs.compose import compose
from geodl.runs.interpolate import interpolate
from geodl.runs.mistakes import validate
from geodl.runs.predict import predict
from geodl.shape import GroupBatch, Shape, ShapeBatch
from geodl.shapespace.path import as_rigid_as_possible

TINY = ["data=poses", "data.train=2", "data.test=1", "data.poses=4", "data.vertices=150"]
NETWORK = ["encoder=diffusionnet", "encoder.width=8", "encoder.blocks=1", "encoder.k_eig=32"]
NJF = ["encoder=pointnet", "encoder.points=null", "task.local=features"]


def composed(*words):
    GlobalHydra.instance().clear()
    return compose([*TINY, *words])


def stretched_sphere(level=2):
    pos, face = icosphere(level)
    return pos * [1.0, 1.5, 0.7], face


TURN = Rotation.from_rotvec([0.3, 0.9, -0.4]).as_matrix()


# ---- without training ----


def test_solvers_go_through_their_handles_and_keep_what_they_promise():
    pos, face = stretched_sphere()
    handle = np.arange(0, len(pos), 12)
    moved = 0.1 * np.random.default_rng(0).standard_normal((len(handle), 3))
    for solver in SOLVERS.values():
        np.testing.assert_allclose(solver(pos, face, handle, moved)[handle], moved, atol=1e-6)
    goal = pos @ TURN.T + [1.0, 2.0, 3.0]
    step = (goal - pos)[handle]
    np.testing.assert_allclose(pos + arap(pos, face, handle, step), goal, atol=1e-4)
    np.testing.assert_allclose(pos + rbf(pos, face, handle, step), goal, atol=1e-6)
    shift = np.tile([1.0, -2.0, 0.5], (len(handle), 1))
    everywhere = np.tile(shift[0], (len(pos), 1))
    np.testing.assert_allclose(biharmonic(pos, face, handle, shift), everywhere)
    np.testing.assert_allclose(rigid(pos, pos[handle], goal[handle]), goal, atol=1e-9)


def test_surfaces_that_go_through_each_other_are_seen():
    pos, face = icosphere(2)
    assert not crossing(pos, face).any()
    both = np.concatenate([pos, pos + [1.0, 0.1, 0.05]])
    found = crossing(both, np.concatenate([face, face + len(pos)]))
    # Two unit spheres, their centres about one apart, meet in a circle where x is one half.
    center = both[np.concatenate([face, face + len(pos)])].mean(1)
    assert found.any() and np.abs(center[found][:, 0] - 0.5).max() < 0.35
    assert not found[np.abs(center[:, 0] - 0.5) > 0.5].any()
    both[0] = 50.0  # one vertex far away
    assert crossing(both, np.concatenate([face, face + len(pos)])).any()
    both[0] = np.nan
    assert crossing(both, np.concatenate([face, face + len(pos)])).all()
    apart = np.concatenate([pos, pos + [2.5, 0.0, 0.0]])
    assert not crossing(apart, np.concatenate([face, face + len(pos)])).any()


def test_volumes_and_the_errors_of_deformed_meshes():
    pos, face = (torch.from_numpy(x) for x in icosphere(4))
    assert float(volume(pos, face)) == pytest.approx(4 / 3 * np.pi, rel=0.01)
    assert is_closed(face) and not is_closed(face[1:])
    meter = DeformedError()
    meter.update(1.1 * pos, pos, face, 10.0)
    found = {k: float(v) for k, v in meter.compute().items()}
    assert found["error"] == pytest.approx(1.0) and found["edges"] == pytest.approx(0.1)
    assert found["volume"] == pytest.approx(0.331) and found["normals"] < 1e-3
    assert found["crossings"] == 0


def test_errors_on_ways_do_not_see_where_a_mesh_stands():
    pos, face = (torch.from_numpy(x) for x in stretched_sphere())
    turn = torch.from_numpy(TURN)
    path = torch.stack([pos, pos @ turn.T + 1, pos])
    meter = PathError()
    meter.update(path, (pos, pos), path[1:2] @ turn, (0.5,), face, 1.0)
    found = {k: float(v) for k, v in meter.compute().items()}
    assert found["error"] < 1e-5 and found["ends"] == 0 and found["edges"] < 1e-6
    meter = PathError()
    meter.update(torch.stack([pos, 2 * pos, 3 * pos]), (pos, pos), None, (0.5,), face, 1.0)
    found = {k: float(v) for k, v in meter.compute().items()}
    assert found["edges"] == pytest.approx(1) and found["volume"] == pytest.approx(7)
    assert "error" not in found and found["ends"] > 0.5


def test_half_a_rotation_is_half_way_as_rigid_as_possible():
    pos, face = (torch.from_numpy(x) for x in stretched_sphere())
    angle = np.array([0.0, 0.0, 2.0])
    moved = pos @ torch.from_numpy(Rotation.from_rotvec(angle).as_matrix()).T
    half = pos @ torch.from_numpy(Rotation.from_rotvec(angle / 2).as_matrix()).T
    path = as_rigid_as_possible(pos, moved + 1, face, (0.0, 0.5, 1.0))
    for found, wanted in zip(path, (pos, half + 0.5, moved + 1), strict=True):
        torch.testing.assert_close(found, wanted, atol=5e-5, rtol=0)  # solved in single precision


# ---- Jacobians ----


def test_jacobians_integrate_to_the_mesh_they_are_of():
    pos, face = (torch.from_numpy(x) for x in stretched_sphere())
    batch = ShapeBatch.pack([Shape(pos=pos.float(), face=face)] * 2)
    faces = faces_of(batch)
    delta = torch.from_numpy(TURN).float() - torch.eye(3)
    y = integrated(applied(delta.expand(len(batch.face), 3, 3), batch.pos, faces), faces, batch)
    wanted = batch.pos @ delta.T
    wanted = wanted - batch.spread(batch.mean(wanted, faces.mass))
    torch.testing.assert_close(y, wanted, atol=1e-5, rtol=0)


def test_a_code_of_zero_deforms_nothing_and_at_first_none_does():
    torch.manual_seed(0)
    layer = Jacobians(5, 3, [8, 8])
    u, z = torch.randn(7, 5), torch.randn(7, 3)
    assert layer(u, z).abs().max() == 0
    torch.nn.init.normal_(layer.last.weight)
    z[3:] = 0
    found = layer(u, z)
    assert found[:3].abs().min() > 0 and found[3:].abs().max() == 0


def test_joined_batches_are_packed_ones():
    pos, face = (torch.from_numpy(x) for x in stretched_sphere(1))
    shapes = [
        Shape(pos=(i + 1) * pos.float(), face=face[i:], category=torch.tensor(i)) for i in range(3)
    ]
    whole = ShapeBatch.pack(shapes)
    joined = ShapeBatch.join(ShapeBatch.pack(shapes[:1]), ShapeBatch.pack(shapes[1:]))
    for name in ("pos", "face", "ptr", "category"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name
    assert joined.counts == whole.counts and joined.names == whole.names


# ---- animals in poses ----


def test_poses_bend_at_joints_and_every_pose_between_is_known(paths):
    data = Poses(paths, train=1, test=2, poses=4, vertices=300)
    rest, first, second, *_ = data.items("test")
    assert len(data.items("test")) == 10 and data.person(rest) == data.person(second)
    assert [[i.name[-2:] for i in way] for way in data.ways(data.items("test"))[:2]] == [
        ["00", "01", "02"],
        ["00", "03", "04"],
    ]
    ends = [np.asarray(data.vertices_of(i)) for i in (first, second)]
    for share, wanted in ((0, ends[0]), (1, ends[1])):
        np.testing.assert_allclose(data.between(first, second, share), wanted, atol=1e-9)
    face = data.selected[1]
    at_rest = np.asarray(data.vertices_of(rest))

    def lengths(pos):
        return np.linalg.norm(pos[face[:, 0]] - pos[face[:, 1]], axis=1)

    half = data.between(first, second, 0.5)
    straight = (ends[0] + ends[1]) / 2
    gaps = [np.abs(lengths(x) / lengths(at_rest) - 1).mean() for x in (half, straight)]
    assert gaps[0] < 0.06 < gaps[1]  # bones keep their length
    assert np.linalg.norm(half - straight, axis=1).max() > 0.03
    other = np.asarray(data.vertices_of(data.items("test")[5]))
    assert np.linalg.norm(other - at_rest, axis=1).mean() > 0.01  # another individual


def test_ways_bring_the_true_meshes_between(paths):
    data = Poses(paths, train=1, test=1, poses=2, vertices=150)
    batch = next(iter(Loaders(data, batch_size=2).batches("test", inputs=PATH)))
    between = batch.second.ops.between
    assert between.shape == (len(batch.second.pos), 3, 3)
    ends = batch.first.pos + batch.second.pos
    assert 0 < (between[:, 1] - ends / 2).norm(dim=1).mean() < 0.1


def test_a_transfer_shows_everybody_to_the_next_one(paths):
    data = Poses(paths, train=1, test=3, poses=2, vertices=150)
    groups = data.transfers(data.items("test"))
    assert [[item.name[5:] for item in g] for g in groups[1:3]] == [
        ["001-00", "000-00", "000-02"],
        ["002-00", "001-00", "001-01"],
    ]
    batch = next(iter(Loaders(data, batch_size=6).batches("test", inputs=TRANSFER)))
    goal = batch.target.ops.carried.view(6, -1, 3)
    assert (goal[5] - batch.target.pos.view(6, -1, 3)[5]).norm(dim=1).mean() > 0.01
    # The same one's change, shown to itself, is its own shape.
    rest, first, _ = data.items("test")[:3]
    np.testing.assert_allclose(data.carried(first, rest), data.vertices_of(first), atol=1e-12)
    one = Poses(paths, train=1, test=1, poses=2, vertices=150)
    with pytest.raises(UserError, match=r"data.test=2 or more"):
        one.transfers(one.items("test"))


# ---- the tasks ----


@pytest.fixture
def finished(tmp_path):
    def go(*words):
        cfg = composed(*words, f"paths.outputs={tmp_path}", "epochs=1", "batch_size=2")
        run(cfg)
        folder = record.run_folder(cfg)
        return json.loads((folder / "result.json").read_text())["eval"], folder

    return go


def test_deformations_without_training(finished):
    scores = {
        solver: finished("task=deformation", "encoder=identity", f"task.solver={solver}", *more)[0][
            "clean"
        ]["scores"]
        for solver, more in {
            "none": (),
            "biharmonic": (),
            "arap": (),
            "rbf": (),
            "pca": ("task.components=7",),
        }.items()
    }
    errors = {solver: found["error"] for solver, found in scores.items()}
    assert errors["arap"] < errors["biharmonic"] < errors["none"] / 2
    assert errors["rbf"] < errors["none"] / 2 and errors["pca"] < errors["none"]
    assert scores["none"]["edges"] > scores["arap"]["edges"] > 0


@pytest.mark.parametrize(
    "words",
    [
        NETWORK,
        [*NETWORK, "task.pool=spectral", "task.losses.normal=0.1", "task.losses.jacobian=1"],
        NJF,
        [*NETWORK, "task.condition=handles"],
        ["encoder=pointnet", "encoder.points=null", "decoder=mlp"],
    ],
    ids=["pandas", "spectral", "njf", "handles", "simple"],
)
def test_deformations_that_learn(finished, words):
    found, folder = finished("task=deformation", *words, "test=[clean,ways]")
    clean, ways = found["clean"]["scores"], found["ways"]["scores"]
    assert clean["error"] > 0 and ways["error"] > 0 and ways["ends"] > 0
    assert ("locality" in clean) == ("decoder=mlp" not in words)
    assert (folder / "figures" / "gallery-clean.png").is_file()
    assert (folder / "figures" / "way-ways.gif").is_file()


@pytest.mark.parametrize("form", ["straight", "arap", "geodesic", "basis"])
def test_ways_without_training(finished, form):
    words = ["task.motions=8", "task.identities=1", "test.clean.split=train"]
    found, _ = finished("task=interpolation", "encoder=identity", f"task.form={form}", *words)
    scores = found["clean"]["scores"]
    assert scores["ends"] < (30 if form == "basis" else 0.2)
    if form != "straight":
        return
    assert scores["error"] > 1 and scores["edges"] > 0.02


def test_an_autoencoder_is_measured_on_ways_too(finished):
    words = ["task=reconstruction", "encoder=flat", "decoder=linear", "task.latent=4"]
    found, _ = finished(*words, "features=xyz", "test=[clean,ways]")
    assert found["ways"]["scores"]["ends"] == pytest.approx(
        found["clean"]["scores"]["error"], rel=0.2
    )


def model(*words):
    parts = build(composed("task=deformation", "features=xyz", *words))
    loaders = parts.loaders(train=False)
    return parts.task.eval(), next(iter(loaders.batches("test")))


def test_weights_keep_what_was_measured_when_they_were_trained():
    parts = build(composed("task=deformation", *NETWORK))
    task, loader = parts.task, parts.loaders(train=False).batches("train")
    task.fit(loader)
    before = task.whitening.clone()
    task.whitening.mul_(2)
    task.fit(loader)
    torch.testing.assert_close(task.whitening, 2 * before)


def test_handles_on_one_vertex_count_once():
    pos, face = stretched_sphere()
    handle = np.arange(0, len(pos), 12)
    moved = 0.1 * np.random.default_rng(0).standard_normal((len(handle), 3))
    twice = np.append(handle, handle[0])
    for name in SOLVERS:
        once = solve(name, pos, face, handle, moved)
        again = solve(name, pos, face, twice, np.append(moved, moved[:1], 0))
        np.testing.assert_allclose(again, once, atol=1e-8)
    with pytest.raises(UserError, match="four handles"):
        solve("rbf", pos, face, handle[:3], moved[:3])


def test_a_mask_leaves_the_rest_without_a_code():
    task, batch = model(*NETWORK)
    torch.nn.init.normal_(task.jacobians.last.weight)
    code = torch.randn(len(batch), 64)
    moved, gradient = task.moved(batch.source, code)
    low = batch.source.pos[batch.source.face].mean(1)[:, 1] < 0
    masked, part = task.moved(batch.source, code, low.float())
    assert part[:, ~low].abs().max() == 0
    torch.testing.assert_close(part[:, low], gradient[:, low])
    high = batch.source.pos[:, 1] > 0.3
    assert masked[high].norm(dim=1).mean() < 0.5 * moved[high].norm(dim=1).mean()
    nothing, _ = task.moved(batch.source, torch.zeros_like(code))
    assert nothing.abs().max() < 1e-6


def test_the_truth_of_a_source_on_another_mesh_is_carried_over():
    task, batch = model("encoder=identity")
    true = task.truth(batch)
    torch.testing.assert_close(true, batch.target.pos)
    shapes = batch.source.unpack()
    middles = [s.replace(pos=s.pos[s.face].mean(1), face=torch.tensor([[0, 1, 2]])) for s in shapes]
    other = GroupBatch(
        source=ShapeBatch.pack(middles), target=ShapeBatch.pack(batch.target.unpack())
    )
    wanted = torch.cat([t.pos[t.face].mean(1) for t in batch.target.unpack()])
    torch.testing.assert_close(task.truth(other), wanted, atol=1e-4, rtol=0)


def test_a_transfer_reads_the_code_of_the_one_who_is_shown():
    task, batch = model(*NETWORK)
    source, target = batch.source.unpack(), batch.target.unpack()
    carried = [s.pos + 0.1 for s in source]
    shown = [
        t.replace(ops=t.ops.added({"carried": c}, {"carried": TEMPLATE}))
        for t, c in zip(target, carried, strict=True)
    ]
    other = GroupBatch.pack(
        [
            {"source": s, "rest": r, "target": t}
            for s, r, t in zip(source[::-1], source, shown, strict=True)
        ]
    )
    torch.testing.assert_close(task._asked(other), task._asked(batch))
    torch.testing.assert_close(task.truth(other), torch.cat(carried))


def test_the_same_deformation_on_another_mesh_of_the_source(finished):
    found, _ = finished("task=deformation", *NETWORK, "test=[clean,remeshed]")
    clean, other = (found[name]["scores"]["error"] for name in ("clean", "remeshed"))
    assert other == pytest.approx(clean, rel=0.15)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["augment=so3"], "moves each on its own"),
        (["test=rotated"], "moves each on its own"),
        (["augment=shuffle"], "moves each on its own"),
        (["task.losses.vertex=0"], "needs a weight"),
        (["task.condition=handles", "test=transfer"], "a model that reads targets"),
        (["test=transfer"], "set data.test=2 or more"),
        (["test=remeshed", "+test.remeshed.ways=true"], "ways go between shapes as they are"),
        (["task.handles=landmarks"], "needs landmarks"),
        (["task.handles=5000"], "a shape has"),
        (["task.widths=[30]"], "multiples of 4"),
        (["decoder=linear"], "which Linear is not"),
        (["decoder=deepsdf"], "which DeepSDF is not"),
        (["encoder.points=64"], "points=null"),
        (["task.condition=handles", "task.local=features"], "asks no encoder for a code"),
        (["data=creatures", "data.size=tiny"], "where every vertex goes"),
        (["task=interpolation"], "learns nothing"),
        (["data.species=unicorn"], "biped"),
        (["task=classification", "test=ways", "data=creatures", "data.size=tiny"], "same person's"),
    ],
)
def test_mistakes_in_one_sentence(tmp_path, words, said):
    GlobalHydra.instance().clear()
    other = "data=creatures" in words
    first = ["task=deformation", *([] if other else TINY), "encoder=pointnet"]
    first.append("encoder.points=null")
    cfg = compose([*first, "epochs=1", f"paths.outputs={tmp_path}", *words])
    with pytest.raises(UserError, match=said):
        run(cfg)


# ---- the user's own meshes ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    GlobalHydra.instance().clear()
    words = [*TINY, "task=deformation", *NETWORK, "epochs=1", "batch_size=2", "figures=false"]
    cfg = compose([*words, f"paths.outputs={place}"])
    run(cfg)
    return record.run_folder(cfg) / "last.ckpt"


@pytest.fixture
def own(paths, tmp_path):
    """Three meshes of a person, as files, and the source painted red above its middle."""
    data = Poses(paths, train=2, test=1, poses=4, vertices=150)
    grey = np.full((len(data.selected[0]), 3), 200, np.uint8)
    for name, item in zip(("rest", "a", "b"), data.items("test"), strict=False):
        pos = np.asarray(data.vertices_of(item))
        write_ply(tmp_path / f"{name}.ply", pos, data.selected[1], grey)
        if name == "rest":
            red = np.where(pos[:, 1:2] > 0, [255, 0, 0], grey).astype(np.uint8)
            write_ply(tmp_path / "painted.ply", pos, data.selected[1], red)
    return tmp_path


def asked(trained, *words):
    GlobalHydra.instance().clear()
    cfg = compose(["mode=predict", f"ckpt={trained}", *words])
    validate(cfg)
    return predict(cfg)


def test_a_mesh_of_the_users_is_deformed_by_a_target_or_a_code(trained, own):
    asked(trained, f"input=[{own}/rest.ply,{own}/a.ply]", f"output={own}/first")
    (row,) = json.loads((own / "first" / "predictions.json").read_text())
    assert (
        row["code_file"] is None
        and len(row["code"]) == 64
        and (own / "first" / "rest-a.png").is_file()
    )
    whole = read_mesh(own / "first" / "rest-a.ply")[0]
    start = read_mesh(own / "rest.ply")[0]
    code = f"code={own}/first/predictions.json"
    asked(trained, f"input={own}/rest.ply", code, f"output={own}/second")
    again = read_mesh(own / "second" / "rest.ply")[0]
    np.testing.assert_allclose(again, whole, atol=1e-4)
    asked(trained, f"input={own}/rest.ply", code, "amount=0", f"output={own}/none")
    np.testing.assert_allclose(read_mesh(own / "none" / "rest.ply")[0], start, atol=1e-5)
    mask = f"mask={own}/painted.ply"
    asked(trained, f"input={own}/rest.ply", code, mask, f"output={own}/upper")
    gap = np.linalg.norm(read_mesh(own / "upper" / "rest.ply")[0] - start, axis=1)
    numbers = np.flatnonzero(start[:, 1] > 0)
    (own / "numbers.txt").write_text("\n".join(map(str, numbers)))
    mask = f"mask={own}/numbers.txt"
    asked(trained, f"input={own}/rest.ply", code, mask, f"output={own}/numbered")
    other = np.linalg.norm(read_mesh(own / "numbered" / "rest.ply")[0] - start, axis=1)
    np.testing.assert_allclose(gap, other, atol=1e-6)
    assert gap[start[:, 1] < -0.3].mean() < 0.5 * gap[start[:, 1] > 0.3].mean()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["code=rest.ply"], "cannot be read"),
        (["code=short.json"], "has 2 numbers"),
        (["code=good.json", "mask=a.txt"], "does not exist"),
        (["code=good.json", "mask=far.txt"], "vertex numbers from 0 to"),
        (["code=good.json", "mask=rest.ply"], "chooses no vertex"),
        (["code=good.json", "mask=one.txt"], "no whole triangle"),
        (["code=other.json"], "of another model"),
        (["amount=abc"], "must be a number"),
        ([], "takes 2 shapes"),
    ],
)
def test_mistakes_about_codes_and_masks(trained, own, monkeypatch, words, said):
    monkeypatch.chdir(own)
    (own / "short.json").write_text("[1, 2]")
    (own / "good.json").write_text(json.dumps([{"code": [0.1] * 64}]))
    (own / "far.txt").write_text("0 1 100000")
    (own / "one.txt").write_text("3")
    (own / "other.json").write_text(json.dumps([{"code": [0.1] * 64, "checkpoint": "b"}]))
    with pytest.raises(UserError, match=said):
        asked(trained, "input=rest.ply", "output=out", *words)
    assert not (own / "out").exists()


def test_a_mistake_in_the_second_of_several_meshes_leaves_nothing(trained, own):
    (own / "good.json").write_text(json.dumps([{"code": [0.1] * 64}]))
    pos, face = icosphere(1)
    write_ply(own / "small.ply", pos, face, np.full((len(pos), 3), 200, np.uint8))
    words = [f"input=[{own}/rest.ply,{own}/small.ply]", f"code={own}/good.json"]
    with pytest.raises(UserError, match="42 vertices|the source has"):
        asked(trained, *words, f"mask={own}/painted.ply", f"output={own}/out")
    assert not (own / "out").exists()


def test_the_way_of_a_model_between_two_meshes(trained, own):
    GlobalHydra.instance().clear()
    words = ["mode=interpolate", f"ckpt={trained}", "times=3", f"output={own}/way"]
    cfg = compose([*words, f"input=[{own}/a.ply,{own}/b.ply]"])
    validate(cfg)
    interpolate(cfg)
    first = read_mesh(own / "way" / "00.ply")[0]
    np.testing.assert_allclose(first, read_mesh(own / "a.ply")[0], atol=1e-4)
    assert (own / "way" / "path.gif").is_file()
