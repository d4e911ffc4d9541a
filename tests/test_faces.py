"""Template pyramids, spirals, surface distances, morphable models, autoencoders."""

import pickle
from math import ceil

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import grid, icosphere, write_off
from scipy.sparse.csgraph import dijkstra

from geodl.carry import edges_of
from geodl.data.coma import EXPRESSIONS, PEOPLE, CoMA
from geodl.data.dfaust import DFAUST
from geodl.data.ellipsoids import Ellipsoids
from geodl.data.heads import Heads
from geodl.data.morphable import read_morphable
from geodl.data.registered import Registered
from geodl.data.views import SCAN
from geodl.decoders.linear import Linear
from geodl.errors import UserError
from geodl.losses import chamfer, inner, surface_distance, triangles
from geodl.metrics import SurfaceError, VertexError, to_surface
from geodl.nn.neighbors import nearest
from geodl.ops.align import similarity
from geodl.ops.check import repair
from geodl.ops.geometry import unique_edges
from geodl.ops.hierarchy import decimate, pyramid
from geodl.ops.remesh import remesh, subdivide
from geodl.ops.spirals import reference_spirals, spirals
from geodl.perturb import Holes, Shuffle, Unregister
from geodl.runs.build import build
from geodl.runs.compose import compose
from geodl.shape import Shape, ShapeBatch
from geodl.spec import EDGE, DataSpec, Template

# ---- pyramid ----


def dense(level, n):
    m = len(level.pos)
    up, down = np.zeros((n, m)), np.zeros((m, n))
    np.add.at(up, (np.arange(n)[:, None], level.up), level.weight)
    down[np.arange(m), level.down] = 1
    return up, down


@pytest.mark.parametrize("mesh", [icosphere(4), grid(40)], ids=["closed", "bounded"])
def test_pyramid_selects_and_interpolates(mesh):
    template = Template(mesh[0].astype(np.float32), mesh[1])
    n, sizes = len(template.pos), []
    for level in pyramid(template, (4, 4, 4)):
        up, down = dense(level, n)
        np.testing.assert_array_equal(down @ up, np.eye(len(level.pos)))
        np.testing.assert_allclose(up.sum(1), 1, atol=1e-6)
        assert up.min() >= 0 and up.max() <= 1
        constant = np.full((len(level.pos), 2), 3.25)
        np.testing.assert_allclose(up @ constant, 3.25, atol=1e-5)
        assert set(np.unique(level.face)) == set(range(len(level.pos)))
        sizes.append(len(level.pos))
        n = sizes[-1]
    n = len(template.pos)
    assert sizes == [ceil(n / 4), ceil(ceil(n / 4) / 4), ceil(ceil(ceil(n / 4) / 4) / 4)]
    fine = pyramid(template, (4, 4, 4))[0]
    up, _ = dense(fine, n)
    assert np.abs(up @ fine.pos - template.pos).max() < 0.08, "U stays near the surface"


def test_decimation_is_exact_or_refused():
    pos, face = icosphere(3)
    for m in (600, 333, 40):
        kept, small = decimate(pos, face, m)
        assert len(kept) == m == len(set(kept.tolist())) and small.max() == m - 1
    with pytest.raises(UserError, match="cannot be simplified to 2"):
        decimate(pos, face, 2)


# ---- spirals ----


def test_spirals_go_ring_by_ring_counter_clockwise():
    pos, face = grid(7)
    rows = spirals(pos, face, 7)
    middle = 3 * 7 + 3
    ring = rows[middle, 1:]
    around = pos[ring] - pos[middle]
    angle = np.unwrap(np.arctan2(around[:, 1], around[:, 0]))
    assert rows[middle, 0] == middle and (np.diff(angle) > 0).all() and np.ptp(angle) < 2 * np.pi
    long = spirals(pos, face, 19)[middle]
    assert len(set(long.tolist())) == 19, "no vertex twice"
    edge, _ = unique_edges(face)
    graph = sp.csr_matrix((np.ones(len(edge)), edge.T), (len(pos), len(pos)))
    hops = dijkstra(graph, directed=False, indices=middle)[long]
    assert hops.tolist() == [0] + [1] * 6 + [2] * 12, "one ring after the other"
    every_other = spirals(pos, face, 9, dilation=2)[middle]
    np.testing.assert_array_equal(every_other, spirals(pos, face, 18)[middle][::2])


def test_spirals_at_boundaries_non_manifold_and_isolated_vertices():
    pos, face = grid(5)
    corner = spirals(pos, face, 9)[0]
    assert corner[0] == 0 and len(set(corner.tolist())) == 9
    two = np.concatenate([pos, pos[1:] + [0, 0, 1.0], [[9.0, 9, 9]]])  # fans that share a vertex
    other = np.where(face == 0, 0, face + len(pos) - 1)
    rows = spirals(two, np.concatenate([face, other]), 12)
    assert rows.shape == (len(two), 12) and (rows[:, 0] == np.arange(len(two))).all()
    assert (rows[0] >= 25).any() and (rows[0, 1:] < 25).any(), "both fans of the shared vertex"
    assert len(set(rows[-1].tolist())) == 12, "an isolated vertex takes the nearest in space"
    pos, face = icosphere(0)
    assert spirals(pos, face, 30).shape == (12, 30), "a mesh smaller than the spiral repeats"


def test_reference_spirals_start_towards_the_reference():
    pos, face = icosphere(3)
    rows = reference_spirals(pos, face, reference=7)
    to = np.linalg.norm(pos - pos[7], axis=1)
    far = to > 0.6
    assert (to[rows[far, 1]] < to[far]).mean() > 0.99
    assert (rows >= -1).all() and (rows == -1).any() and (rows[:, 0] == np.arange(len(pos))).all()


# ---- distances between surfaces ----


def double_sum(a, b, kind, sigma):
    (x, n), (y, m) = a, b
    k = torch.exp(-torch.cdist(x, y).square() / sigma**2)
    t = n @ m.T
    if kind == "varifold":
        t = t.square() / (n.norm(dim=1)[:, None] * m.norm(dim=1))
    return (k * t).sum()


@pytest.mark.parametrize("kind", ["current", "varifold"])
def test_surface_distances_equal_the_double_sum_and_their_gradient(kind):
    torch.manual_seed(0)
    meshes = []
    for bend in (0.1, 0.3):
        pos, face = icosphere(2)
        pos = torch.from_numpy(pos) + bend * torch.randn(len(pos), 3, dtype=torch.float64)
        meshes.append((pos.requires_grad_(), torch.from_numpy(face)))
    a, b = (triangles(*m) for m in meshes)
    plain = (
        double_sum(a, a, kind, 0.4) - 2 * double_sum(a, b, kind, 0.4) + double_sum(b, b, kind, 0.4)
    )
    ours = surface_distance(a, b, kind, 0.4)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-9)
    inputs = [m[0] for m in meshes]
    for g, h in zip(
        torch.autograd.grad(ours, inputs, retain_graph=True),
        torch.autograd.grad(plain, inputs),
        strict=True,
    ):
        torch.testing.assert_close(g, h, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(inner(*a, *b, kind, 0.4), double_sum(a, b, kind, 0.4))


def test_orientation_matters_to_currents_only():
    pos, face = icosphere(2)
    pos = torch.from_numpy(pos)
    out, into = (triangles(pos, torch.from_numpy(f.copy())) for f in (face, face[:, ::-1]))
    assert surface_distance(out, into, "varifold", 0.3).abs() < 1e-9
    assert surface_distance(out, into, "current", 0.3) > 1


def test_varifolds_do_not_see_the_triangulation():
    """Re-meshed, the same surface stays where it is: 2 % of its own norm; Chamfer does not."""
    pos, face = icosphere(4)
    pos = pos * [1.0, 0.8, 1.2]
    mesh = repair(*remesh(pos, face, 2000, np.random.default_rng(0)))
    a = triangles(torch.from_numpy(pos), torch.from_numpy(face))
    b = triangles(torch.from_numpy(mesh.pos), torch.from_numpy(mesh.face))
    c = triangles(torch.from_numpy(pos) * 1.1, torch.from_numpy(face))
    norm = inner(*a, *a, "varifold", 0.2)
    assert (inner(*b, *b, "varifold", 0.2) / norm - 1).abs() < 0.02
    assert surface_distance(a, b, "varifold", 0.2) / norm < 0.02
    assert surface_distance(a, c, "varifold", 0.2) / norm > 0.1


def test_chamfer_is_the_mean_squared_gap_both_ways():
    torch.manual_seed(0)
    a, b = torch.randn(50, 3), torch.randn(70, 3)
    gaps = torch.cdist(a, b).square()
    torch.testing.assert_close(chamfer(a, b), gaps.amin(1).mean() + gaps.amin(0).mean())
    torch.testing.assert_close(nearest(a, b), gaps.argmin(1))


def test_errors_in_millimetres():
    metric = VertexError()
    true = torch.zeros(2, 5, 3)
    predicted = true + torch.tensor([3.0, 0, 4.0]) * torch.tensor([0.0, 1, 2, 3, 4])[:, None]
    metric.update(predicted, true, 2.0)
    found = metric.compute()
    assert (found["error"], found["median"]) == (20.0, 20.0)
    assert found["per_vertex"].tolist() == [0, 10, 20, 30, 40]
    pos, face = grid(3)
    surface = torch.from_numpy(pos).float(), torch.from_numpy(face)
    points = torch.tensor([[0.3, 0.4, 0.5], [2.0, 0.5, 0.0]])
    np.testing.assert_allclose(to_surface(points, surface), [0.5, 1.0], atol=1e-6)
    both = SurfaceError()
    both.update(surface, (surface[0] + torch.tensor([0, 0, 0.25]), surface[1]), 4.0)
    assert both.compute()["surface"] == pytest.approx(1.0)


# ---- morphable models ----


def toy_model(rng, v=20, k=6):
    return rng.standard_normal((v, 3)), rng.standard_normal((k, v, 3))


class Chumpy:  # pickled under the name that FLAME's file uses
    def __init__(self, x):
        self.x = x


def test_morphable_models_are_read_in_their_formats(tmp_path):
    rng = np.random.default_rng(0)
    mean, basis = toy_model(rng)
    np.savez(tmp_path / "m.npz", mean=mean, basis=basis)
    folder = tmp_path / "FaceXModel"
    write_off(folder / "generic_neutral_mesh.obj", mean, np.zeros((0, 3), int))
    for i, mode in enumerate(basis):
        write_off(folder / f"identity{i:03d}.obj", mean + mode, np.zeros((0, 3), int))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["shape/model/mean"] = mean.ravel()
        file["shape/model/pcaBasis"] = basis.reshape(6, -1).T / 2
        file["shape/model/pcaVariance"] = np.full(6, 4.0)
    content = {"v_template": mean, "shapedirs": np.moveaxis(basis, 0, -1), "f": np.zeros((1, 3))}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content, protocol=2))
    for name in ("m.npz", "FaceXModel", "m.h5", "m.pkl"):
        found = read_morphable(tmp_path / name)
        np.testing.assert_allclose(found[0], mean, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(found[1], basis, atol=1e-9, err_msg=name)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/geodl-was-here",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"v_template": Evil()}))
    with pytest.raises(UserError, match=r"evil.pkl.*system.*refused"):
        read_morphable(tmp_path / "evil.pkl")


def test_bad_morphable_models_are_named(tmp_path, shapes):
    rng = np.random.default_rng(0)
    mean, basis = toy_model(rng)
    np.savez(tmp_path / "bad.npz", mean=mean, basis=basis[:, :10])
    with pytest.raises(UserError, match=r"mean of 20 vertices.*expected \(k, 20, 3\)"):
        read_morphable(tmp_path / "bad.npz")
    np.savez(tmp_path / "m.npz", mean=mean, basis=basis)
    template = Template(shapes[0].pos.numpy(), shapes[0].face.numpy())
    with pytest.raises(UserError, match="has 20 vertices, but the data set's template has"):
        Linear(3, DataSpec(template=template), model=str(tmp_path / "m.npz"))
    small = Template(mean.astype(np.float32), np.array([[0, 1, 2]]))
    with pytest.raises(UserError, match="task.latent=9, but .* has 6 components"):
        Linear(9, DataSpec(template=small), model=str(tmp_path / "m.npz"))
    with pytest.raises(UserError, match="does not exist"):
        read_morphable(tmp_path / "none.npz")
    (tmp_path / "m.txt").write_text("1")
    with pytest.raises(UserError, match="no morphable model that geodl reads"):
        read_morphable(tmp_path / "m.txt")


def test_an_existing_model_is_moved_onto_the_template(tmp_path):
    """In another unit and pose: its own samples are reconstructed exactly."""
    rng = np.random.default_rng(0)
    mean, basis = toy_model(rng)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    np.savez(tmp_path / "m.npz", mean=1000 * mean @ turn + 7, basis=1000 * basis @ turn)
    found = similarity(1000 * mean @ turn + 7, mean)
    np.testing.assert_allclose(found[0], turn, atol=1e-9)
    spec = DataSpec(template=Template(mean.astype(np.float32), np.array([[0, 1, 2]])))
    decoder = Linear(6, spec, model=str(tmp_path / "m.npz"))
    shapes = torch.from_numpy(mean + np.tensordot(rng.standard_normal((4, 6)), basis, 1)).float()
    again = decoder(decoder.project(shapes.flatten(1)))
    torch.testing.assert_close(again, shapes, atol=1e-4, rtol=1e-4)


# ---- data ----


def test_ellipsoids_depend_on_three_numbers(paths):
    data = Ellipsoids(paths, train=12, test=2, subdivisions=2)
    items = data.items("train")
    shapes = [data.load(i) for i in items]
    x = torch.stack([s.pos for s in shapes]).flatten(1) * data.spec.unit
    assert x.shape == (12, 162 * 3)
    values = torch.linalg.svdvals(x - x.mean(0))
    assert values[2] > 10 and values[3] < 1e-2
    reach = torch.stack([s.pos.abs().amax(0) for s in shapes]) * data.spec.unit
    assert 45 < reach.min() and reach.max() <= 100.01
    twin = Ellipsoids(paths, train=12, test=2, subdivisions=2).load(items[0])
    assert torch.equal(twin.pos, shapes[0].pos)
    with pytest.raises(UserError, match="data.subdivisions=9 between 1 and 6"):
        Ellipsoids(paths, subdivisions=9)


def test_heads_are_registered_and_not_linear(paths):
    data = Heads(paths, size="tiny")
    items = data.items("train")
    assert (len(items), len(data.items("test"))) == (32, 8)
    first, second = data.load(items[0]), data.load(items[1])
    assert torch.equal(first.face, second.face) and not torch.equal(first.pos, second.pos)
    assert torch.equal(first.ops.target, first.pos)
    template = data.spec.template
    assert template is not None
    assert np.linalg.norm(template.pos, axis=1).max() == pytest.approx(1, abs=1e-5)
    assert 80 < data.spec.unit < 200, "millimetres"
    twin = Heads(paths, size="tiny").load(items[0])
    assert torch.equal(twin.pos, first.pos), "made from the seed alone"


def registered_tree(root, count=12, unit=1.0):
    rng = np.random.default_rng(0)
    pos, face = icosphere(2)
    for i in range(count):
        scale = 1 + 0.2 * rng.standard_normal(3)
        write_off(root / f"{i:02d}.obj", unit * pos * scale, face)
    return pos, face


def test_a_folder_of_registered_meshes(tmp_path, paths):
    pos, _ = registered_tree(tmp_path / "own", unit=0.1)
    data = Registered(paths, str(tmp_path / "own"), unit="m")
    assert (len(data.items("train")), len(data.items("test"))) == (11, 1)
    assert data.load(data.items("test")[0]).pos.shape == pos.shape
    assert 50 < data.spec.unit < 200
    small = Registered(paths, str(tmp_path / "own"), vertices=60)
    assert small.load(small.items("train")[3]).pos.shape == (60, 3)
    pos, face = icosphere(1)
    write_off(tmp_path / "own" / "03.obj", pos, face)
    with pytest.raises(UserError, match=r"03.obj has 42 vertices and 80 faces, .* has 162 and 320"):
        data.load(data.items("train")[3])
    pos, face = icosphere(2)
    write_off(tmp_path / "own" / "03.obj", pos, face[::-1])
    with pytest.raises(UserError, match=r"03.obj has as many faces .* but other ones"):
        data.load(data.items("train")[3])
    for options, message in (
        ({}, "needs data.folder"),
        ({"folder": str(tmp_path / "nowhere")}, "is no folder"),
        ({"folder": str(tmp_path / "own"), "unit": "inch"}, "choose mm, cm or m"),
    ):
        with pytest.raises(UserError, match=message):
            Registered(paths, **options)


@pytest.fixture
def coma_tree(tmp_path, paths):
    import trimesh

    from geodl.data.fetch import Paths

    pos, face = icosphere(1)
    for person in PEOPLE:
        for expression in EXPRESSIONS[:3]:
            folder = tmp_path / "coma" / person / expression
            folder.mkdir(parents=True)
            for i in range(4):
                trimesh.Trimesh(pos * (1 + 0.01 * i), face, process=False).export(
                    folder / f"{expression}.{i:06d}.ply"
                )
    return Paths(tmp_path, paths.cache)


def test_coma_splits_are_explicit(coma_tree):
    data = CoMA(coma_tree)
    assert (len(data.items("train")), len(data.items("test"))) == (124, 20)
    first = [i.name for i in data.items("test")[:10]]
    assert first[0] == f"{PEOPLE[0]}/bareteeth/bareteeth.000000.ply" and len(set(first)) == 10
    held = CoMA(coma_tree, split="expression", held_out="eyebrow")
    assert {i.name.split("/")[1] for i in held.items("test")} == {"eyebrow"}
    assert len(held.items("test")) == 48
    person = CoMA(coma_tree, split="identity", held_out=3)
    assert {i.name.split("/")[0] for i in person.items("test")} == {PEOPLE[3]}
    assert person.load(person.items("train")[0]).pos.shape == (42, 3)
    with pytest.raises(UserError, match="held_out=smirk is no expression"):
        CoMA(coma_tree, split="expression", held_out="smirk")


def test_coma_and_dfaust_say_what_to_put_where(tmp_path, paths):
    from geodl.data.fetch import Paths

    nowhere = Paths(tmp_path, paths.cache)
    with pytest.raises(UserError, match=r"coma is not in .*register at coma.is.tue.mpg.de"):
        CoMA(nowhere).items("train")
    with pytest.raises(UserError, match=r"dfaust is not in .*registrations_f.hdf5"):
        DFAUST(nowhere).items("train")


def test_dfaust_holds_people_out(tmp_path, paths):
    from geodl.data.fetch import Paths

    pos, face = icosphere(1)
    (tmp_path / "dfaust").mkdir()
    for name, subjects in (("f", ("50004", "50020")), ("m", ("50002", "50009"))):
        with h5py.File(tmp_path / "dfaust" / f"registrations_{name}.hdf5", "w") as file:
            file["faces"] = face
            for subject in subjects:
                file[f"{subject}_hips"] = np.repeat(pos[:, :, None], 25, 2)
    data = DFAUST(Paths(tmp_path, paths.cache), test_subjects=["50009"])
    assert {i.name for i in data.items("test")} == {f"50009_hips/{t:05d}" for t in (0, 10, 20)}
    assert len(data.items("train")) == 9
    assert data.load(data.items("test")[1]).pos.shape == (42, 3)
    with pytest.raises(UserError, match="leaves no test shapes: choose some of 50002, 50004"):
        DFAUST(Paths(tmp_path, paths.cache), test_subjects=["5"]).items("train")


# ---- transforms ----


def head_shape(paths):
    data = Heads(paths, size="tiny")
    return data, data.load(data.items("train")[0])


def test_unregister_keeps_the_surface_and_the_true_vertices(paths):
    data, shape = head_shape(paths)
    scans = [Unregister()(shape, np.random.default_rng(i), data.spec) for i in range(4)]
    assert len({len(s.pos) for s in scans}) == 4, "each in a way of its own"
    for scan in scans:
        assert torch.equal(scan.ops.target, shape.pos)
        assert to_surface(scan.pos, (shape.pos, shape.face)).mean() < 0.01
    holed = Unregister(holes=0.2)(shape, np.random.default_rng(0), data.spec)
    missing = to_surface(shape.pos, (holed.pos, holed.face))
    assert (missing > 0.05).float().mean() > 0.05
    for count in (1, 3):
        less = Holes(count, share=0.3)(shape, np.random.default_rng(0), data.spec)
        assert len(less.face) == pytest.approx(0.7 * len(shape.face), abs=2)
    with pytest.raises(UserError, match=r"low=2.0, high=1.4 must be positive, in this order"):
        Unregister(low=2.0)


def test_shuffle_loses_the_order_but_not_the_surface(paths):
    data, shape = head_shape(paths)
    edge = edges_of(shape.face)[0]
    shape = shape.replace(ops=shape.ops.added({"edge": edge}, {"edge": EDGE}))
    mixed = Shuffle()(shape, np.random.default_rng(0), data.spec)
    assert not torch.equal(mixed.pos, shape.pos) and torch.equal(mixed.ops.target, mixed.pos)
    torch.testing.assert_close(
        triangles(mixed.pos, mixed.face)[0], triangles(shape.pos, shape.face)[0]
    )
    assert torch.equal(mixed.pos[mixed.ops.edge], shape.pos[edge]), "labels stay with their edges"


# ---- the task ----

PCA = ["task=reconstruction", "data=heads", "data.size=tiny", "encoder=flat", "decoder=linear"]


def tiny(*overrides):
    lists = [
        f"{slot}.{k}={v}"
        for slot in ("encoder", "decoder")
        for k, v in (("channels", "[8,8]"), ("factors", "[4,4]"))
    ]
    spiral = [
        f"{s}.{k}" for s in ("encoder", "decoder") for k in ("length=[9,9]", "dilation=[1,1]")
    ]
    return build(
        compose(
            [
                "task=reconstruction",
                "data=heads",
                "data.size=tiny",
                "encoder=spiralnet",
                "decoder=spiral",
                "batch_size=8",
                *lists,
                *spiral,
                *overrides,
            ]
        )
    )


def batches(parts):
    return list(parts.loaders().batches("train"))


def test_pca_is_the_best_linear_model(paths):
    parts = build(compose([*PCA, "task.latent=5"]))
    found = batches(parts)
    parts.task.fit(found)
    x = torch.cat([parts.task.target(b) for b in found]).flatten(1).double()
    centred = x - x.mean(0)
    u, s, vt = torch.linalg.svd(centred, full_matrices=False)
    best = (u[:, :5] * s[:5]) @ vt[:5] + x.mean(0)
    ours = torch.cat([parts.task.predict(b).output for b in found]).flatten(1)
    torch.testing.assert_close(ours.double(), best, atol=1e-5, rtol=0)
    assert not any(p.requires_grad for p in parts.task.parameters())
    with pytest.raises(UserError, match="task.latent=40 needs more than 40 training shapes"):
        deep = build(compose([*PCA, "task.latent=40"]))
        deep.task.fit(batches(deep))


def test_an_autoencoder_learns_in_millimetres():
    parts = tiny("task.normalize=center", "optim.lr=0.005", "task.latent=8")
    found = batches(parts)
    task = parts.task
    task.fit(found)
    optimizer = task.configure_optimizers()
    before = task.evaluate(found).scores["error"]
    for _ in range(25):
        for batch in found:
            optimizer.zero_grad()
            sum(task.losses(task.predict(batch), batch).values()).backward()
            optimizer.step()
    after = task.evaluate(found)
    assert after.scores["error"] < 0.5 * before
    assert set(after.scores) >= {"error", "std", "median", "p90"} and "surface" not in after.scores
    batch = found[0]
    gap = (task.predict(batch).output - task.target(batch)).norm(dim=2).mean() * task.spec.unit
    scores = task.evaluate([batch]).scores
    assert scores["error"] == pytest.approx(float(gap.detach()), rel=1e-5)


@pytest.mark.parametrize("loss", ["chamfer", "current", "varifold"])
def test_losses_without_correspondence_do_not_read_it(loss):
    words = ["task=reconstruction", "data=heads", "data.size=tiny", "decoder=mlp", "batch_size=4"]
    words += ["task.losses.l1=0", f"task.losses.{loss}=1", "augment=unregister"]
    parts = build(compose(words))
    assert parts.task.weights == {loss: 1.0}
    data, task = parts.data, parts.task
    data._splits = {"train": data.items("train")[:4], "test": data.items("test")[:2]}
    loaders = parts.loaders()
    loaders.prepare()
    task.fit(loaders.batches("train"))
    assert torch.equal(task.mean, torch.from_numpy(task.template.pos)), "not the mean shape"
    batch = next(iter(loaders.train_batches()))
    assert batch.counts["scan"] != batch.counts["template"]
    prediction = task.predict(batch)
    value = task.losses(prediction, batch)[loss]
    mixed = batch.ops.target[torch.randperm(len(batch.ops.target))]
    batch.ops.values_["target"] = mixed
    assert task.losses(prediction, batch)[loss] == value > 0
    scores = task.evaluate([batch]).scores
    assert scores["surface"] == pytest.approx((scores["scan_to_mesh"] + scores["mesh_to_scan"]) / 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["decoder=none"], "task=reconstruction needs a decoder"),
        (["task.losses.l1=0"], "needs at least one weight"),
        (["+task.losses.l3=1"], "task.losses.l3 is not known: choose l1, l2, chamfer"),
        (["task.sigma=[0.1,-1]"], "must be a list of positive widths"),
        (["encoder.factors=[4,4000]"], "cannot be simplified to 1"),
        (["data=creatures"], "works on one template mesh, but this data set has none"),
    ],
)
def test_pairs_that_cannot_work_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        if "decoder=none" in overrides:
            build(compose(["task=reconstruction", "data=heads", "data.size=tiny"]))
        elif "data=creatures" in overrides:
            build(compose(["task=reconstruction", "decoder=mlp"]))
        else:
            tiny(*overrides)


def test_an_encoder_on_a_template_takes_normals():
    parts = tiny("features=normals")
    assert parts.task.encoder.in_channels == 3


def test_registered_encoders_refuse_unregistered_training():
    def check(parts):
        parts.loaders()
        parts.tests(list(parts.cfg.test))

    with pytest.raises(UserError, match="SpiralNet works on the template's own mesh.*Unregister"):
        check(tiny("augment=unregister"))
    with pytest.raises(UserError, match=r"Remesh \(test=remeshed\) takes away"):
        check(tiny("test=remeshed"))
    check(tiny("test=[noisy,rotated]"))
    with pytest.raises(UserError, match="task=classification has no decoder"):
        build(compose(["decoder=mlp", "data.size=tiny"]))


def test_scans_of_different_sizes_pack():
    pos, face = icosphere(1)
    shapes = []
    for k in (0, 1):
        p, f = (pos, face) if k == 0 else subdivide(pos, face)
        shape = Shape(torch.from_numpy(p).float(), torch.from_numpy(f), name=str(k))
        ops = shape.ops.added({"scan": shape.pos, "scan_face": shape.face}, SCAN)
        shapes.append(shape.replace(ops=ops))
    from geodl.tasks.reconstruction import scans

    batch = ShapeBatch.pack(shapes)
    for shape, (scan, scan_face) in zip(shapes, scans(batch), strict=True):
        assert torch.equal(scan, shape.pos) and torch.equal(scan_face, shape.face)
