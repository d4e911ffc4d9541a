"""Geodesics, functional maps, the matching task and its data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import grid, icosphere, write_off

from geodl.cli.main import run
from geodl.data.correspondence import FAUST, Remeshed, read_vts
from geodl.data.fetch import Paths
from geodl.data.loaders import Loaders
from geodl.data.views import Wishes, attach
from geodl.errors import UserError
from geodl.metrics import MapError
from geodl.nn.fmap import from_fmap, functional_map, resolvent_mask, soft_fmap, to_fmap
from geodl.ops.geodesic import distances, edge_graph
from geodl.runs.build import build
from geodl.runs.compose import compose
from geodl.shape import GroupBatch, Operators, Shape, ShapeBatch
from geodl.spec import Gradient, Laplacian, Needs, Spectrum

# ---- geodesics ----


def test_distances_on_the_sphere_are_arcs():
    pos, face = icosphere(4)
    sources = np.array([0, 700, 2001])
    arc = np.arccos((pos[sources] @ pos.T).clip(-1, 1))
    far = arc > 0.3
    for method, bound, mean in (
        ("exact", 0.01, 0.002),
        ("dijkstra", 0.06, 0.02),
        ("heat", 0.05, 0.02),
    ):
        error = np.abs(distances(pos, face, sources, method) - arc)[far] / arc[far]
        assert error.max() < bound and error.mean() < mean, method


def test_the_graph_unfolds_pairs_of_triangles():
    pos = np.array([[0.0, 0, 0], [1, 0, 0], [0.5, 1, 0], [0.5, -0.6, 0.8]])
    face = np.array([[0, 1, 2], [1, 0, 3]])
    graph = edge_graph(pos, face)
    assert graph.nnz == 6 and graph[2, 3] == pytest.approx(2.0), "unfolded: 1 + 1, straight"
    assert np.linalg.norm(pos[2] - pos[3]) < 2.0
    shifted = pos.copy()
    shifted[3, 0] = 5.0  # the straight line leaves the two triangles
    assert edge_graph(shifted, face).nnz == 5
    flat, triangles = grid(11)
    found = distances(flat, triangles, np.array([0]))[0]
    true = np.linalg.norm(flat - flat[0], axis=1)
    assert (found >= true - 1e-6).all() and (found / np.maximum(true, 1e-9))[1:].max() < 1.06


@pytest.mark.parametrize("method", ["dijkstra", "exact", "heat"])
def test_another_component_is_infinitely_far(method):
    pos, face = icosphere(1)
    pos = np.concatenate([pos, pos + 5])
    face = np.concatenate([face, face + len(pos) // 2])
    found = distances(pos, face, np.array([0, 50]), method)
    assert np.isinf(found[0, 42:]).all() and np.isfinite(found[0, :42]).all()
    assert np.isinf(found[1, :42]).all() and np.isfinite(found[1, 42:]).all()
    with pytest.raises(UserError, match="geodesic=euclid is not known"):
        distances(pos, face, np.array([0]), "euclid")


# ---- functional maps ----


def shape_of(pos, face, cache, name="s", landmark=None):
    marks = torch.arange(len(pos)) if landmark is None else torch.as_tensor(landmark)
    bare = Shape(torch.from_numpy(pos).float(), torch.from_numpy(face), landmark=marks, name=name)
    return attach(bare, Needs.of(Spectrum(64), Laplacian()), "cotan", cache)


def bent(seed=0):
    """An irregular closed surface, and the same with its vertices in another order."""
    pos, face = icosphere(3)
    rng = np.random.default_rng(seed)
    pos = pos * [1.0, 0.7, 1.4] * (1 + 0.3 * np.sin(pos @ [[3.0], [2.0], [1.3]] + 0.4))
    order = rng.permutation(len(pos))
    place = np.argsort(order)
    return pos, face, pos[order], place[face], order, place


def test_the_solver_is_the_row_wise_one():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 9).double(), torch.randn(2, 5, 9).double()
    low, high = torch.rand(2, 5).double().sort(1)[0], torch.rand(2, 5).double().sort(1)[0]
    c = functional_map(a, b, low, high, 0.3)
    for n in range(2):
        for i in range(5):
            d = torch.diag((low[n] - high[n, i]) ** 2)
            row = torch.linalg.inv(a[n] @ a[n].T + 0.3 * d) @ (a[n] @ b[n, i])
            torch.testing.assert_close(c[n, i], row)


def matching(*overrides):
    words = [
        "task=matching",
        "data=creatures",
        "data.size=tiny",
        "encoder=identity",
        "features=wks",
    ]
    return build(compose([*words, "features.count=40", "features.k=64", *overrides])).task


@pytest.mark.parametrize("refine", ["null", "icp", "zoomout"])
def test_a_shape_is_mapped_onto_its_own_permutation(refine, cache):
    pos, face, pos2, face2, order, place = bent()
    a = shape_of(pos, face, cache, "a")
    b = shape_of(pos2, face2, cache, "b", place)
    task = matching("task.k=20", f"task.refine={refine}", "task.zoomout=60", "task.step=5")
    batch = GroupBatch.pack([{"source": a, "target": b}])
    prediction = task.predict(batch)
    assert prediction.output.shape == (1, 20, 20)
    found = task.maps(prediction, batch)[0]
    right = (found == torch.from_numpy(order)).float().mean()
    assert right > (0.95 if refine != "null" else 0.6), right
    true = task.true_maps(batch)[0]
    again = from_fmap(true, a.ops.evecs[:, :20], b.ops.evecs[:, :20])
    assert (again == torch.from_numpy(order)).float().mean() > 0.99
    back = to_fmap(torch.from_numpy(order), a.ops.evecs[:, :20], b.ops.evecs[:, :20], b.ops.mass)
    torch.testing.assert_close(back, true, atol=1e-3, rtol=0)
    scores = task.evaluate([batch]).scores
    assert scores["geodesic"] < 1.0 and scores["failed"] == 0 and scores["exact"] > 0.6
    assert scores["dirichlet"] == pytest.approx(1, abs=0.2) and scores["unreachable"] == 0


def test_losses_vanish_at_the_true_map(cache):
    pos, face, pos2, face2, _, place = bent()
    a, b = shape_of(pos, face, cache, "a"), shape_of(pos2, face2, cache, "b", place)
    batch = GroupBatch.pack([{"source": a, "target": b}])
    names = ("orthogonality", "commutativity", "supervised")
    task = matching("task.k=15", *(f"task.losses.{n}=1" for n in names))
    prediction = task.predict(batch)
    prediction.output = task.true_maps(batch)
    right = task.losses(prediction, batch)
    prediction.output = torch.roll(prediction.output, 1, dims=1)  # every function the next one's
    wrong = task.losses(prediction, batch)
    for name in names:
        assert right[name] < 1e-5, name
        assert name == "orthogonality" or wrong[name] > 1e-3, name
    prediction.output = 2 * task.true_maps(batch)
    assert task.losses(prediction, batch)["orthogonality"] > 0.1
    both = matching("task.k=15", "task.losses.bijectivity=1", "task.losses.supervised=0")
    forth = both.predict(batch)
    back = both.predict(GroupBatch(source=batch.target, target=batch.source)).output
    gap = (back @ forth.output - torch.eye(15)).square().mean()
    assert both.losses(forth, batch)["bijectivity"] == pytest.approx(float(gap), rel=1e-5)


def test_the_resolvent_mask_and_the_soft_map_are_their_definitions(monkeypatch):
    torch.manual_seed(0)
    low, high = (torch.rand(2, 5).double().sort(1)[0] for _ in range(2))
    mask = resolvent_mask(low, high, 0.5)
    for n in range(2):
        top = max(low[n].max(), high[n].max())
        for i, j in np.ndindex(5, 5):
            one, two = ((x / top) ** 0.5 for x in (low[n, j], high[n, i]))
            gap = 1 / (one - 1j) - 1 / (two - 1j)
            assert mask[n, i, j] == pytest.approx(abs(complex(gap)) ** 2, abs=1e-12)

    f, g = torch.randn(40, 6, requires_grad=True), torch.randn(30, 6, requires_grad=True)
    a, b, mass = torch.randn(40, 4), torch.randn(30, 4), torch.rand(30)
    monkeypatch.setattr("geodl.nn.fmap.BLOCK", 20)  # blocks of eight rows
    c = soft_fmap(f, g, a, b, mass, 0.3)
    cos = torch.nn.functional.normalize(g, dim=1) @ torch.nn.functional.normalize(f, dim=1).T
    plain = b.T @ torch.diag(mass) @ (cos / 0.3).softmax(1) @ a
    torch.testing.assert_close(c, plain)
    weight = torch.randn(4, 4)
    for x in (f, g):
        ours, theirs = (
            torch.autograd.grad((m * weight).sum(), x, retain_graph=True)[0] for m in (c, plain)
        )
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_descriptors_that_agree_align_and_their_nearest_give_the_map(cache, monkeypatch):
    pos, face, pos2, face2, order, place = bent()
    a, b = shape_of(pos, face, cache, "a"), shape_of(pos2, face2, cache, "b", place)
    batch = GroupBatch.pack([{"source": a, "target": b}])
    words = ["task.k=20", "task.losses.alignment=1", "task.losses.supervised=0", "task.tau=0.01"]
    task = matching(*words, "task.nearest=true", "task.resolvent=0.5", "task.regularization=10")
    torch.manual_seed(0)
    rows = torch.randn(len(pos), 40)
    own = {"a": rows, "b": rows[order]}
    monkeypatch.setattr(task, "describe", lambda shapes: ([own[shapes.names[0]]], {}))
    prediction = task.predict(batch)
    prediction.output = task.true_maps(batch)
    assert task.losses(prediction, batch)["alignment"] < 1e-3
    prediction.output = torch.roll(prediction.output, 1, dims=1)
    assert task.losses(prediction, batch)["alignment"] > 0.01
    found = task.maps(task.predict_eval(batch), batch)[0]
    assert (found == torch.from_numpy(order)).float().mean() > 0.99


def test_adaptation_to_a_pair_lowers_its_losses_and_leaves_the_weights(cache):
    pos, face, pos2, face2, _, place = bent()
    a = shape_of(pos, face, cache, "a")
    b = shape_of(pos2 * [1.0, 1.0, 0.9], face2, cache, "b", place)
    batch = GroupBatch.pack([{"source": a, "target": b}])
    words = ["task.k=15", "task.losses.alignment=1", "task.losses.orthogonality=1", "task.adapt=8"]
    words += ["task.losses.supervised=0", "task.regularization=1e-6"]
    task = matching("encoder=point_mlp", *words).eval()
    before = {k: v.clone() for k, v in task.state_dict().items()}
    plain = sum(task.losses(task.predict(batch), batch).values())
    adapted = sum(task.losses(task.predict_eval(batch), batch).values())
    assert adapted < 0.9 * plain
    assert all(torch.equal(v, before[k]) for k, v in task.state_dict().items())
    with pytest.raises(UserError, match="task.adapt needs"):
        matching("task.adapt=3")


def test_every_pair_keeps_its_error(cache):
    pos, face, pos2, face2, _, place = bent()
    a, b = shape_of(pos, face, cache, "a"), shape_of(pos2, face2, cache, "b", place)
    pairs = [{"source": x, "target": y} for x, y in ((a, b), (b, a), (a, a))]
    found = matching("task.k=15").evaluate([GroupBatch.pack(pairs[:2]), GroupBatch.pack(pairs[2:])])
    assert found.each.metric == "geodesic" and found.each.names == ["a-b", "b-a", "a-a"]
    assert np.mean(found.each.values) == pytest.approx(found.scores["geodesic"], rel=1e-6)
    assert found.worst[0][0][0].name == "ab"[int(np.argmax(found.each.values))]


@pytest.mark.parametrize("loss", ["supervised", "orthogonality"])
def test_shapes_without_landmarks_are_refused_whatever_the_loss_reads(cache, loss):
    pos, face, *_ = bent()
    shape = shape_of(pos, face, cache, "a").replace(landmark=None)
    batch = GroupBatch.pack([{"source": shape, "target": shape}])
    weights = [f"task.losses.{n}={float(n == loss)}" for n in ("supervised", "orthogonality")]
    with pytest.raises(UserError, match="a has no landmarks: maps go between meshes"):
        matching("task.k=15", *weights).evaluate([batch])


def test_the_categorical_form_names_template_points(cache):
    from dataclasses import replace

    from geodl.runs.build import build_task

    pos, face, pos2, face2, order, place = bent()
    a, b = shape_of(pos, face, cache, "a"), shape_of(pos2, face2, cache, "b", place)
    words = ["task=matching", "task.form=categorical", "encoder=point_mlp", "features=xyz"]
    cfg = compose([*words, "data=creatures", "data.size=tiny"])
    spec = replace(build(compose(["data.size=tiny"])).data.spec, landmarks=len(pos))
    task = build_task(cfg, spec)
    batch = GroupBatch.pack([{"source": a, "target": b}])
    prediction = task.predict(batch)
    assert prediction.output.shape == (len(pos), len(pos))
    assert task.losses(prediction, batch)["cross_entropy"] > 4
    prediction.output = torch.nn.functional.one_hot(torch.from_numpy(order), len(pos)).float()
    assert torch.equal(task.maps(prediction, batch)[0], torch.from_numpy(order))
    assert task.losses(prediction, batch)["cross_entropy"] < 6


def test_errors_of_maps_by_hand(cache):
    pos, face = grid(5)
    shape = shape_of(pos, face, cache, "flat", landmark=[0, 4, 20])
    metric = MapError("dijkstra")
    found = torch.arange(25)
    metric.update(found, shape, shape)
    perfect = metric.compute()
    assert perfect["geodesic"] == 0 and perfect["exact"] == 1 and perfect["auc"] == 1
    assert perfect["cover"] == 1 and perfect["dirichlet"] == pytest.approx(1, rel=1e-4)
    found[0] = 4  # one corner is sent to another: a distance of one on a unit square
    metric = MapError("exact", normalize="diameter")
    metric.update(found, shape, shape)
    moved = metric.compute()
    assert moved["geodesic"] == pytest.approx(100 / 3 / 2**0.5, rel=2e-3)
    assert moved["failed"] == 1 and moved["exact"] == pytest.approx(2 / 3)


def test_points_on_other_components_are_counted(cache):
    pos, face = icosphere(1)
    both, faces = np.concatenate([pos, pos + 3]), np.concatenate([face, face + 42])
    shape = shape_of(both, faces, cache, "two")
    found = torch.arange(84)
    found[:10] += 42
    metric = MapError()
    metric.update(found, shape, shape)
    scores = metric.compute()
    assert scores["unreachable"] == 10
    assert all(torch.isfinite(v).all() for v in scores.values())


# ---- the authors' weights ----


def authors_names(task):
    """Our state under the names of nmwsharp/diffusion-net."""
    state = {}
    for key, value in task.state_dict().items():
        word = key.replace("encoder.blocks.", "block_").replace("encoder.first", "first_lin")
        word = word.replace("head.", "last_lin.").replace(".time", ".diffusion.diffusion_time")
        word = word.replace(".real", ".gradient_features.A_re")
        word = word.replace(".imaginary", ".gradient_features.A_im")
        for layer, index in enumerate((0, 3, 6)):
            word = word.replace(f"mlp.{index}.", f"mlp.miniMLP_mlp_layer_{layer:03d}.")
        state["feature_extractor." + word] = value.clone()
    return state


def test_the_authors_weights_are_translated_and_refused_key_by_key():
    words = ["task=matching", "data=creatures", "data.size=tiny", "encoder=diffusionnet"]
    task = build(compose([*words, "features=hks"])).task
    theirs = authors_names(task)
    back = task.translate(theirs)
    task.load_strict(back, "weights")
    assert all(torch.equal(back[k], v) for k, v in task.state_dict().items())
    own = task.state_dict()
    assert task.translate(own) is own
    theirs.pop("feature_extractor.block_2.diffusion.diffusion_time")
    with pytest.raises(UserError, match=r"it lacks encoder.blocks.2.time"):
        task.load_strict(task.translate(theirs), "weights")
    wide = authors_names(task)
    wide["feature_extractor.first_lin.weight"] = torch.zeros(128, 3)
    with pytest.raises(UserError, match=r"encoder.first.weight has shape \(128, 3\), expected"):
        task.load_strict(task.translate(wide), "weights")


# ---- data ----


def matching_tree(root, meshes, maps, count=3, names=None):
    pos, face = icosphere(2)
    for i in range(count):
        name = (names or [f"tr_reg_{i:03d}" for i in range(count)])[i]
        write_off(root / meshes / f"{name}.off", pos * (1 + 0.1 * i), face)
        (root / maps).mkdir(parents=True, exist_ok=True)
        (root / maps / f"{name}.vts").write_text("".join(f"{v + 1}\n" for v in range(50)))


@pytest.mark.parametrize(
    ("meshes", "maps"),
    [
        ("Dataset/FAUST/vtx_5k", "Dataset/FAUST/vtx_5k/corres"),
        ("FAUST_r", "FAUST_r_vts"),
        ("FAUST_r/off", "FAUST_r/corres"),
    ],
)
def test_both_layouts_and_the_pairs(tmp_path, paths, meshes, maps):
    matching_tree(tmp_path / "faust_r", meshes, maps, count=100)
    data = Remeshed(Paths(tmp_path, paths.cache))
    assert (len(data.items("train")), len(data.items("test"))) == (80, 20)
    assert (len(Loaders(data).pairs("train")), len(Loaders(data).pairs("test"))) == (6320, 190)
    few = Loaders(Remeshed(Paths(tmp_path, paths.cache), train_pairs=100))
    assert len(set(few.pairs("train"))) == 100 and len(few.pairs("test")) == 190
    first = Loaders(data).pairs("test")[0]
    assert [i.name for i in first] == ["tr_reg_080", "tr_reg_081"]
    shape = data.load(first[0])
    assert data.spec.landmarks == 50 and shape.landmark.tolist() == list(range(50))
    area = torch.linalg.cross(
        shape.pos[shape.face[:, 1]] - shape.pos[shape.face[:, 0]],
        shape.pos[shape.face[:, 2]] - shape.pos[shape.face[:, 0]],
    )
    assert area.norm(dim=1).sum() / 2 == pytest.approx(1, abs=1e-4), "unit area"


def test_tosca_pairs_are_of_one_animal(tmp_path, paths):
    names = ["cat0", "cat1", "dog0", "dog1", "dog2"]
    where = "Dataset/TOSCA_Isometric/vtx_5k"
    matching_tree(tmp_path / "tosca", where, f"{where}/corres", 5, names)
    data = Remeshed(Paths(tmp_path, paths.cache), name="tosca")
    pairs = [(a.name, b.name) for a, b in Loaders(data).pairs("test")]
    assert pairs == [("cat0", "cat1"), ("dog0", "dog1"), ("dog0", "dog2"), ("dog1", "dog2")]
    assert data.spec.protocol == "tosca-pairs"
    (tmp_path / "tosca/Dataset/TOSCA_Isometric/test_pairs.txt").write_text("dog2\tdog0\n")
    data = Remeshed(Paths(tmp_path, paths.cache), name="tosca")
    assert [(a.name, b.name) for a, b in Loaders(data).pairs("test")] == [("dog0", "dog2")]
    assert data.spec.protocol == "tosca-pairs-official"


def test_test_shapes_are_not_trained_on(tmp_path):
    names = ["cat0", "cat1"]
    where = "Dataset/TOSCA_Isometric/vtx_5k"
    matching_tree(tmp_path / "tosca", where, f"{where}/corres", 2, names)
    words = ["task=matching", "data=tosca", "features=hks", "encoder=diffusionnet", "epochs=1"]
    places = [f"paths.data={tmp_path}", f"paths.outputs={tmp_path}/outputs"]
    with pytest.raises(UserError, match="2 of its 2 test shapes are training shapes"):
        run(compose([*words, *places]))


def test_tosca_pairs_across_animals(tmp_path, paths):
    names = ["8_gorilla_01", "8_gorilla_02", "8_man_01"]
    where = "Dataset/TOSCA_nonIsometric/vtx_5k"
    matching_tree(tmp_path / "tosca_noniso", where, f"{where}/corres", 3, names)
    data = Remeshed(Paths(tmp_path, paths.cache), name="tosca_noniso")
    pairs = [(a.name, b.name) for a, b in Loaders(data).pairs("test")]
    assert pairs == [("8_gorilla_01", "8_man_01"), ("8_gorilla_02", "8_man_01")]


def test_bad_correspondence_files_name_file_and_line(tmp_path, paths):
    matching_tree(tmp_path / "faust_r", "FAUST_r", "FAUST_r_vts", count=100)
    data = Remeshed(Paths(tmp_path, paths.cache))
    item = data.items("train")[1]
    file = tmp_path / "faust_r" / "FAUST_r_vts" / "tr_reg_001.vts"
    file.write_text("1\n2\n9999\n")
    with pytest.raises(UserError, match=r"tr_reg_001.vts, line 3: vertex 9999 does not exist.*162"):
        data.load(item)
    file.write_text("1\n2\n3\n")
    with pytest.raises(UserError, match=r"has 3 lines, the others have 50"):
        data.load(item)
    file.write_text("1\nx\n")
    with pytest.raises(UserError, match=r"line 2: 'x' is no vertex number"):
        read_vts(file)
    file.unlink()
    with pytest.raises(UserError, match=r"tr_reg_001.vts does not exist"):
        data.load(item)
    with pytest.raises(UserError, match=r"scape_r is not in .*GeomFMaps"):
        Remeshed(Paths(tmp_path, paths.cache), name="scape_r").items("test")
    with pytest.raises(UserError, match=r"faust is not in .*register at faust.is.tue.mpg.de"):
        FAUST(Paths(tmp_path, paths.cache)).items("test")


# ---- the task ----


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.refine=zoomout", "task.zoomout=200"], "task.zoomout=200 needs as many eigenpairs"),
        (["task.k=2000"], "eigenpairs cannot be had"),
        (["task.losses.supervised=0", "+task.losses.magic=1"], "task.losses.magic is not known"),
        (["task.geodesic=euclid"], "task.geodesic=euclid is not of type|is not known"),
        (["encoder=pointnet", "features=xyz"], "set encoder.points=null"),
        (["data=heads", "data.size=tiny"], "needs shapes with landmarks"),
        (["encoder=flat_mlp"], "gives one answer per whole"),
        (["task.form=categorical"], "needs one template for all shapes"),
    ],
)
def test_what_cannot_work_is_refused(overrides, message):
    words = ["task=matching", "data=creatures", "data.size=tiny", "encoder=diffusionnet"]
    with pytest.raises(UserError, match=message):
        build(compose([*words, "features=hks", *overrides]))


def test_creatures_of_one_species_are_matched_in_training():
    words = ["task=matching", "data=creatures", "data.size=tiny", "features=xyz_hks"]
    words += ["encoder=diffusionnet", "encoder.width=16", "encoder.blocks=1", "encoder.k_eig=32"]
    words += ["task.k=10", "task.losses.orthogonality=1", "task.losses.bijectivity=1"]
    parts = build(compose(words))
    data, task = parts.data, parts.task
    data._splits = {"train": data.items("train")[:4], "test": data.items("test")[:4]}
    loaders = Loaders(data, Wishes(task.needs), batch_size=2, inputs=task.inputs)
    for a, b in loaders.pairs("train"):
        assert a.category == b.category and a.name != b.name
    batches = list(loaders.train_batches())
    optimizer = task.configure_optimizers()
    first = last = 0.0
    for epoch in range(8):
        total = 0.0
        for batch in batches:
            optimizer.zero_grad()
            loss = sum(task.losses(task.predict(batch), batch).values())
            loss.backward()
            optimizer.step()
            total += loss.item()
        first, last = (total, total) if epoch == 0 else (first, total)
    assert last < first
    batch = batches[0]
    together = task.eval().predict(batch).output
    for i, (a, b) in enumerate(batch.unpack()):
        one = task.predict(
            GroupBatch(source=ShapeBatch.pack([a]), target=ShapeBatch.pack([b]))
        ).output[0]
        torch.testing.assert_close(one, together[i], atol=1e-3, rtol=1e-3)


def test_outputs_equal_the_authors():
    """A pair of small meshes of ours, random weights: descriptors and functional map as
    nmwsharp/diffusion-net gives them (its code was run once to make the fixture)."""
    stored = np.load(Path(__file__).parent / "fixtures" / "diffusion_net_fmap.npz")
    words = ["task=matching", "data=creatures", "data.size=tiny", "encoder=diffusionnet"]
    words += ["encoder.width=8", "encoder.blocks=2", "encoder.k_eig=32", "encoder.dropout=0"]
    words += ["features=hks", "features.k=32", "task.k=10", "task.descriptors=8"]
    task = build(compose(words)).task.eval()
    state = {k[6:]: torch.from_numpy(stored[k]) for k in stored if k.startswith("state/")}
    task.load_strict(task.translate(state), "fixture")
    face = torch.from_numpy(stored["face"]).long()
    shapes = []
    for side in "ab":
        n = len(stored[f"{side}/pos"])
        index = torch.from_numpy(stored[f"{side}/index"]).long()
        values = {
            name: torch.sparse_coo_tensor(
                index, torch.from_numpy(stored[f"{side}/{name}"]), (n, n), check_invariants=False
            ).coalesce()
            for name in ("grad_x", "grad_y")
        }
        rows = {k: torch.from_numpy(stored[f"{side}/{k}"]) for k in ("mass", "evals", "evecs")}
        fields = Spectrum(32).fields | Gradient().fields
        ops = Operators(rows | values, fields)
        pos = torch.from_numpy(stored[f"{side}/pos"])
        shapes.append(Shape(pos, face, ops=ops, landmark=torch.arange(n), name=side))
    batch = GroupBatch.pack([{"source": shapes[0], "target": shapes[1]}])
    with torch.no_grad():
        for side, half in (("a", batch.source), ("b", batch.target)):
            found = task.describe(half)[0][0]
            assert (found - torch.from_numpy(stored[f"{side}/descriptors"])).abs().max() < 1e-4
        c = task.predict(batch).output[0]
    expected = torch.from_numpy(stored["C"])
    assert (c - expected).abs().max() < 1e-3 * expected.abs().max()
