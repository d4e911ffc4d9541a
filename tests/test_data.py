"""Every data set on a miniature of its layout, made here; no real file is touched."""

import gc
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from conftest import FACES_OF_TETRA as FACES
from conftest import TETRA, write_off
from hydra.core.global_hydra import GlobalHydra

from geodl.augment import SO3, Dropout, Jitter, RotateZ, Scale
from geodl.carry import sampled
from geodl.cli.main import run
from geodl.data import memory
from geodl.data.creatures import PARTS, SIZES, SPECIES, Creatures
from geodl.data.fetch import Archive, Paths, locate
from geodl.data.files import read_labels, read_mesh, write_ply
from geodl.data.folder import Folder
from geodl.data.human_seg import HumanSeg
from geodl.data.loaders import EpochBatches, Loaders
from geodl.data.memory import Memory
from geodl.data.modelnet import MODELNET10, MODELNET40, ModelNet
from geodl.data.preprocess import Preprocess
from geodl.data.princeton import NAMES, Princeton
from geodl.data.rna import RNA
from geodl.data.shapenetpart import CLASSES as SHAPENET
from geodl.data.shapenetpart import HDF5, TEXT, ShapeNetPart
from geodl.data.shrec11 import CLASSES as SHREC
from geodl.data.shrec11 import SHREC11
from geodl.data.source import checked_in_split, list_checksum, split_by_class
from geodl.data.views import View, Wishes
from geodl.errors import UserError
from geodl.ops import check as checks
from geodl.ops.geometry import unique_edges
from geodl.runs import record
from geodl.runs.compose import compose, config_dir
from geodl.shape import Shape
from geodl.spec import DataSpec, Gradient, Needs, Points, Spectrum


@pytest.fixture
def place(tmp_path):
    return Paths(tmp_path / "data", tmp_path / "cache", None)


# ---- creatures ----


def test_creatures_are_sound_labelled_and_reproducible(paths):
    data = Creatures(paths, size="tiny")
    assert {s: len(data.items(s)) for s in ("train", "val", "test")} == {
        "train": 16,
        "val": 8,
        "test": 8,
    }
    assert len(SPECIES) == 12 and sum(SIZES["standard"][0]) * SIZES["standard"][1] >= 400
    sizes = set()
    for item in data.items("train"):
        shape = data.load(item)
        defects = checks.check(shape.pos.numpy(), shape.face.numpy())
        assert not defects.fatal and not defects.mendable
        assert len(shape.label) == len(shape.pos) and shape.label.max() < len(PARTS)
        assert len(shape.label.unique()) >= 2
        assert shape.landmark.max() < len(shape.pos)
        assert shape.pos.norm(dim=1).max() == pytest.approx(1.0, abs=1e-4)
        sizes.add(len(shape.pos))
    assert len(sizes) > 8, "connectivity must differ"


def test_creatures_do_not_depend_on_the_cache(paths, place):
    item = Creatures(paths, size="tiny").items("test")[3]
    a, b = (Creatures(p, size="tiny").load(item) for p in (paths, place))
    assert torch.equal(a.pos, b.pos) and torch.equal(a.face, b.face)
    other = Creatures(place, size="tiny", generator_seed=1).load(item)
    assert other.pos.shape != a.pos.shape or not torch.equal(other.pos, a.pos)


def test_landmarks_mean_the_same_on_every_individual(paths):
    data = Creatures(paths, size="tiny")
    counts, agree = {}, {}
    for item in data.items("train"):
        shape = data.load(item)
        counts.setdefault(item.category, set()).add(len(shape.landmark))
        on_limb = shape.label[shape.landmark]  # the part that every landmark lies on
        agree.setdefault(item.category, []).append(on_limb)
    assert all(len(c) == 1 for c in counts.values()) and min(min(c) for c in counts.values()) > 50
    for labels in agree.values():
        assert (labels[0] == labels[1]).float().mean() > 0.85


# ---- miniature trees ----


def test_human_seg_layout(place):
    root = place.data / "human_seg"
    lists = checked_in_split("human_seg")
    assert (len(lists["train"]), len(lists["test"])) == (381, 18)
    edge, of_face = unique_edges(FACES)
    labels = np.array([1, 1, 2, 2, 3, 3])
    for split in ("train", "test"):
        for name in lists[split][:400]:
            write_off(root / split / f"{name}.obj", TETRA, FACES)
    for folder in ("seg", "sseg"):
        (root / folder).mkdir()
    item = HumanSeg(place).items("test")[0]
    (root / "seg" / f"{item.name}.eseg").write_text("\n".join(map(str, labels)))
    soft = np.eye(8)[labels - 1] * 0.5
    np.savetxt(root / "sseg" / f"{item.name}.seseg", soft)
    shape = HumanSeg(place).load(item)
    votes = [np.bincount(labels[e] - 1, minlength=8).argmax() for e in of_face]
    assert shape.label.tolist() == votes
    assert shape.ops.edge.tolist() == edge.tolist()
    for e, faces in enumerate(shape.ops.edge_face.tolist()):
        assert sorted(faces) == [f for f in range(4) if e in of_face[f]]
    assert shape.ops.edge_area.sum() == pytest.approx(1.5 + 3**0.5 / 2, rel=1e-5)
    (root / "seg" / f"{item.name}.eseg").write_text("1\n2\n")
    with pytest.raises(UserError, match=rf"{item.name}.eseg has 2 lines, but .* has 6 edges"):
        HumanSeg(place).load(item)


def test_princeton_layout(place):
    for split in ("10-10", "16-4"):
        lists = checked_in_split(f"princeton-{split}")
        train, test = (int(n) for n in split.split("-"))
        assert (len(lists["train"]), len(lists["test"])) == (19 * train, 19 * test)
        assert not set(lists["train"]) & set(lists["test"])
    for i in (*range(1, 261), *range(281, 401)):
        write_off(place.data / f"princeton_segmentation/off/{i}.off", TETRA, FACES)
    data = Princeton(place)
    assert len(data.items("train")) == len(data.items("test")) == 190
    by_name = {i.name: NAMES[i.category] for s in ("train", "test") for i in data.items(s)}
    for name, cls in (("1", "human"), ("121", "octopus"), ("281", "armadillo"), ("400", "fourleg")):
        assert by_name[name] == cls
    assert data.load(data.items("test")[0]).face.shape == (4, 3)
    assert "1000v" in data.spec.protocol
    assert "original" in Princeton(place, preprocess=Preprocess()).spec.protocol
    (place.data / "princeton_segmentation/off/17.off").unlink()
    with pytest.raises(UserError, match=r"lacks 17.off"):
        Princeton(place).items("train")


def test_modelnet_off_layout_samples_on_the_fly(place):
    for cls in MODELNET10:
        for split in ("train", "test"):
            write_off(place.data / f"ModelNet10/{cls}/{split}/{cls}_0001.off", TETRA, FACES)
    data = ModelNet(place, classes=10, layout="off")
    assert len(data.items("train")) == 10 and data.spec.up == "z" and len(MODELNET40) == 40
    loaders = Loaders(data, Wishes(Needs.of(Points(128))))
    dataset = loaders.dataset("train", train=True)
    a, b, c = dataset[0, 3], dataset[0, 3], dataset[1, 3]
    assert a.pos.shape == (128, 3) and torch.equal(a.pos, b.pos) and not torch.equal(a.pos, c.pos)
    fixed = loaders.dataset("test")
    assert torch.equal(fixed[0, 3].pos, fixed[1, 3].pos)


def test_modelnet_hdf5_layout(place):
    import h5py

    root = place.data / "modelnet40_ply_hdf5_2048"
    root.mkdir(parents=True)
    (root / "shape_names.txt").write_text("\n".join(MODELNET40))
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        with h5py.File(root / f"ply_data_{split}0.h5", "w") as h5:
            h5["data"] = rng.standard_normal((5, 64, 3)).astype(np.float32)
            h5["label"] = np.arange(5)[:, None] * 9
        (root / f"{split}_files.txt").write_text(f"data/x/ply_data_{split}0.h5\n")
    data = ModelNet(place, classes=40)
    assert [i.category for i in data.items("test")] == [0, 9, 18, 27, 36]
    assert data.load(data.items("test")[2]).is_cloud
    loaders = Loaders(data, Wishes(Needs.of(Points(32))))
    shape = data.load(data.items("test")[2])
    assert torch.equal(loaders.dataset("test")[0, 2].pos, shape.pos[:32]), (
        "the first 32 for evaluation"
    )
    (root / "ply_data_test0.h5").write_bytes(b"no hdf5")
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        ModelNet(place, classes=40).items("test")


@pytest.mark.parametrize("layout", ["simplified", "original"])
@pytest.mark.parametrize("train", [10, 16])
def test_shrec11_layouts(place, layout, train):
    if layout == "simplified":
        for cls in SHREC:
            for i in range(20):
                split = "train" if i < 16 else "test"
                write_off(place.data / f"shrec_16/{cls}/{split}/T{i}.obj", TETRA, FACES)
    else:
        root = place.data / "shrec11_original"
        lines, number = ["header", "header"], 0
        for cls in SHREC:
            lines += ["", f"{cls} 0 20"]
            for _ in range(20):
                write_off(root / f"raw/T{number}.off", TETRA, FACES)
                lines.append(str(number))
                number += 1
        (root / "categories.txt").write_text("\n".join(lines))
    data = SHREC11(place, layout=layout, train=train)
    assert len(data.items("train")) == 30 * train
    per_class = np.bincount([i.category for i in data.items("test")])
    assert (per_class == 20 - train).all() and len(per_class) == 30
    other = SHREC11(place, layout=layout, train=train, split_seed=1)
    assert other.split_checksum() != data.split_checksum()
    assert data.load(data.items("train")[7]).face.shape == (4, 3)


def test_rna_layout(place):
    root = place.data / "rna"
    for name in ("1ABC_A", "2ABC_B", "3ABC_C"):
        write_off(root / f"off/{name}.off", TETRA, FACES)
        (root / "labels").mkdir(exist_ok=True)
        (root / f"labels/{name}.txt").write_text("-1\n0\n257\n258\n")
    (root / "train.txt").write_text("1ABC_A.off\n2ABC_B.off\n")
    (root / "test.txt").write_text("3ABC_C.off\n")
    data = RNA(place)
    assert len(data.spec.parts) == 260
    shape = data.load(data.items("test")[0])
    assert shape.label.tolist() == [0, 1, 258, 259]
    (root / "labels/3ABC_C.txt").write_text("1\n2\n3\n")
    with pytest.raises(UserError, match="has 3 lines, but the mesh has 4 vertices"):
        data.load(data.items("test")[0])


def shapenetpart(place, layout="text"):
    """One made-up cloud of each class in every split."""
    rng = np.random.default_rng(0)
    if layout == "text":
        root = place.data / TEXT
        (root / "train_test_split").mkdir(parents=True)
        for split in ("train", "val", "test"):
            entries = []
            for synset, parts in SHAPENET.values():
                name = f"{synset}/{split}1"
                (root / synset).mkdir(exist_ok=True)
                rows = np.c_[rng.standard_normal((30, 6)), rng.choice(parts, 30)]
                np.savetxt(root / f"{name}.txt", rows)
                entries.append(f"shape_data/{name}")
            file = root / "train_test_split" / f"shuffled_{split}_file_list.json"
            file.write_text(json.dumps(entries))
    else:
        import h5py

        root = place.data / HDF5
        root.mkdir(parents=True)
        for split in ("train", "val", "test"):
            with h5py.File(root / f"{split}0.h5", "w") as h5:
                h5["data"] = rng.standard_normal((16, 30, 3))
                h5["label"] = np.arange(16)[:, None]
                h5["pid"] = np.stack([rng.choice(p, 30) for _, p in SHAPENET.values()])
            (root / f"{split}_hdf5_file_list.txt").write_text(f"{split}0.h5\n")


@pytest.mark.parametrize("layout", ["text", "hdf5"])
def test_shapenetpart_layouts(place, layout):
    spec = ShapeNetPart(place).spec
    assert len(spec.parts) == 50 and sum(map(len, spec.category_parts)) == 50
    shapenetpart(place, layout)
    data = ShapeNetPart(place, layout=layout)
    items = data.items("val")
    assert [i.category for i in items] == list(range(16))
    shape = data.load(items[10])
    assert shape.is_cloud and set(shape.label.tolist()) <= set(spec.category_parts[10])
    assert (shape.normal is not None) == (layout == "text")


@pytest.mark.parametrize(
    "name", sorted(f.stem for f in (config_dir() / "experiment" / "shapenetpart").glob("*.yaml"))
)
def test_shapenetpart_experiments_train_and_are_measured(place, name, tmp_path):
    shapenetpart(place)
    GlobalHydra.instance().clear()
    folders = [f"paths.data={place.data}", f"paths.cache={place.cache}"]
    cfg = compose(
        [f"experiment=shapenetpart/{name}", "epochs=1", "batch_size=8", "figures=false", *folders]
        + [f"paths.outputs={tmp_path}"]
    )
    run(cfg)
    result = json.loads((record.run_folder(cfg) / "result.json").read_text())
    assert 0 <= result["eval"]["clean"]["scores"]["instance_miou"] <= 1
    assert result["config"]["encoder"]["use_category"]


def test_folder_of_classes_has_folds(tmp_path, place):
    for cls in ("cat", "dog"):
        for i in range(6):
            write_off(tmp_path / f"mine/{cls}/{i}.off", TETRA + i, FACES)
    tests = []
    for fold in range(3):
        data = Folder(place, str(tmp_path / "mine"), folds=3, fold=fold)
        assert data.spec.classes == ("cat", "dog") and len(data.items("train")) == 8
        tests += [i.name for i in data.items("test")]
        assert sorted(i.category for i in data.items("test")) == [0, 0, 1, 1]
    assert len(set(tests)) == 12, "every shape is tested once"


@pytest.mark.parametrize(("count", "on"), [(4, "vertex"), (6, "edge")])
def test_folder_with_label_files(tmp_path, place, count, on):
    for split in ("train", "test"):
        write_off(tmp_path / f"mine/{split}/a.obj", TETRA, FACES)
        np.save(tmp_path / f"mine/{split}/a.labels.npy", np.arange(count) % 3)
    if count == 4:  # a tetrahedron has as many vertices as faces
        with pytest.raises(UserError, match="could be those of vertex or face: say data.label_on"):
            Folder(place, str(tmp_path / "mine"))
    data = Folder(place, str(tmp_path / "mine"), label_on=on if count == 4 else None)
    assert data.spec.label_on == on and len(data.spec.parts) == 3
    assert data.load(data.items("test")[0]).label.tolist() == [i % 3 for i in range(count)]
    write_off(tmp_path / "mine/train/b.obj", TETRA, FACES)
    with pytest.raises(UserError, match=r"b.obj has no label file b.txt"):
        Folder(place, str(tmp_path / "mine"), label_on=on)
    (tmp_path / "mine/train/b.txt").write_text("1\n2\n")
    broken = Folder(place, str(tmp_path / "mine"), label_on=on)
    with pytest.raises(UserError, match=r"b.txt has 2 labels, but b.obj has 4 vertices, 4 faces"):
        Loaders(broken).prepare()


def test_folder_mistakes(tmp_path, place):
    with pytest.raises(UserError, match="needs data.folder="):
        Folder(place)
    with pytest.raises(UserError, match="is no folder"):
        Folder(place, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no shapes"):
        Folder(place, str(tmp_path / "empty"))
    write_off(tmp_path / "loose/a.off", TETRA, FACES)
    with pytest.raises(UserError, match=r"neither a label file \(a.txt\) nor a class folder"):
        Folder(place, str(tmp_path / "loose"))


# ---- files ----


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".off", ".stl"])
def test_meshes_are_read_in_order(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    if suffix in (".obj", ".off"):
        write_off(file, TETRA, FACES)
    else:
        import trimesh

        trimesh.Trimesh(TETRA, FACES, process=False).export(file)
    pos, face = read_mesh(file)
    assert pos.shape == (4, 3) and face.shape == (4, 3)
    if suffix != ".stl":
        np.testing.assert_allclose(pos, TETRA)
        assert face.tolist() == FACES.tolist()


def test_clouds_and_coloured_ply(tmp_path):
    np.save(tmp_path / "c.npy", TETRA)
    assert read_mesh(tmp_path / "c.npy")[1].shape == (0, 3)
    color = np.tile(np.uint8([[255, 0, 9]]), (4, 1))
    write_ply(tmp_path / "c.ply", TETRA, FACES[:0], color)
    assert read_mesh(tmp_path / "c.ply")[0].shape == (4, 3)
    write_ply(tmp_path / "m.ply", TETRA, FACES, color)
    import trimesh

    assert (trimesh.load(tmp_path / "m.ply").visual.vertex_colors[:, :3] == color).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.off", "OFF\n4 4 6\n0 0 0\n", "cannot be read as .off"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\n", "zero faces"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "cannot be read|out of range"),
        ("a.xyz", "not numbers", "cannot be read as .xyz: point 0 is not"),
        ("a.docx", "x", "no mesh or cloud"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        pos, face = read_mesh(tmp_path / name)
        defects = checks.check(pos, face)
        raise UserError(f"{tmp_path / name}: {defects}")
    assert name in str(error.value) and "\n" not in str(error.value)


def test_labels_must_be_whole_numbers(tmp_path):
    (tmp_path / "a.txt").write_text("1\n2.5\n")
    with pytest.raises(UserError, match="has 2.5 as label 1: labels are whole numbers"):
        read_labels(tmp_path / "a.txt")
    with pytest.raises(UserError, match="does not exist"):
        read_labels(tmp_path / "b.txt")


# ---- archives ----


def test_archives_are_verified_and_unpacked_whole(tmp_path):
    import hashlib

    (tmp_path / "set/off").mkdir(parents=True)
    (tmp_path / "set/off/1.off").write_text("OFF")
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with tarfile.open(shelf / "set.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "set", "set")
    good = hashlib.sha256((shelf / "set.tar.xz").read_bytes()).hexdigest()
    paths = Paths(tmp_path / "data", tmp_path / "cache", shelf)

    def get(sha, top="set"):
        return locate("mine", paths, (Archive("set.tar.xz", sha, top),), ("off",), "put it there")

    with pytest.raises(UserError, match=r"checksum .* expected 000000000000"):
        get("0" * 64)
    with pytest.raises(UserError, match="no folder 'other'"):
        get(good, "other")
    assert not (tmp_path / "data/mine").exists()
    assert (get(good) / "off/1.off").read_text() == "OFF"
    whole = (shelf / "set.tar.xz").read_bytes()
    (shelf / "set.tar.xz").write_bytes(whole[: len(whole) // 2])
    cut = hashlib.sha256((shelf / "set.tar.xz").read_bytes()).hexdigest()
    paths = Paths(tmp_path / "data2", tmp_path / "cache", shelf)
    with pytest.raises(UserError, match="cannot be unpacked"):
        locate("mine", paths, (Archive("set.tar.xz", cut, "set"),), ("off",), "put it there")
    assert not list((tmp_path / "data2").iterdir()), "nothing half-written stays"


@pytest.mark.parametrize("kind", ["bomb.zip", "bomb.tar.xz"])
def test_archives_that_unpack_to_far_too_much_are_refused(kind, tmp_path):
    import io
    import zipfile

    from geodl.data.fetch import unpack

    size = 64 << 20
    if kind.endswith("zip"):
        with zipfile.ZipFile(tmp_path / kind, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("set/a", bytes(size))
    else:
        with tarfile.open(tmp_path / kind, "w:xz") as tar:
            member = tarfile.TarInfo("set/a")
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))
    with pytest.raises(UserError, match=r"bomb.* unpacks to more than \d+ MB"):
        unpack(tmp_path / kind, "set", tmp_path / "data/set")
    assert not list((tmp_path / "data").iterdir())


def test_what_is_missing_is_said(place):
    with pytest.raises(UserError, match=r"put human_seg.tar.xz into .*GEODL_ARCHIVES.*\.eseg"):
        HumanSeg(place).items("train")
    (place.data / "human_seg/train").mkdir(parents=True)
    with pytest.raises(UserError, match="lacks test, seg, sseg"):
        HumanSeg(place).items("train")


# ---- splits, sampling, batches ----


def test_split_lists_match_their_checksums(tmp_path, monkeypatch):
    import geodl.data.source as base

    names = sorted(p.stem for p in base.SPLITS.glob("*.json"))
    assert names == ["human_seg", "princeton-10-10", "princeton-16-4"]
    for name in names:
        assert checked_in_split(name)
    content = json.loads((base.SPLITS / "human_seg.json").read_text())
    content["splits"]["test"][0] = "another"
    (tmp_path / "human_seg.json").write_text(json.dumps(content))
    monkeypatch.setattr(base, "SPLITS", tmp_path)
    with pytest.raises(UserError, match="does not match its own checksum"):
        checked_in_split("human_seg")
    assert list_checksum({"a": ["1"]}) != list_checksum({"a": ["2"]})


def test_splits_by_class_are_disjoint_and_complete():
    names = {c: [f"{c}{i}" for i in range(20)] for c in "xyz"}
    split = split_by_class(names, 16, 3)
    assert len(split["train"]) == 48 and len(split["test"]) == 12
    assert len({n for pairs in split.values() for _, n in pairs}) == 60
    assert split == split_by_class(names, 16, 3) != split_by_class(names, 16, 4)


def test_samples_lie_on_the_surface_and_carry_labels_back(shapes):
    shape = shapes[0]
    cloud = sampled(shape, 2000, "vertex", np.random.default_rng(0))
    assert cloud.is_cloud and cloud.label is shape.label and cloud.normal.shape == (2000, 3)
    near = cloud.pos[cloud.ops.carry]
    assert (near - shape.pos).norm(dim=1).max() < 0.15
    distance = torch.cdist(shape.pos, cloud.pos).min(1).values
    torch.testing.assert_close((near - shape.pos).norm(dim=1), distance, atol=1e-4, rtol=1e-2)
    small = sampled(cloud, 3000, "vertex", None)
    assert small.pos.shape == (3000, 3)


def test_points_of_an_ordered_cloud_are_drawn():
    line = Shape(pos=torch.arange(300.0).view(100, 3), name="line")
    first = sampled(line, 10, "whole", None, shuffled=True)
    assert torch.equal(first.pos, line.pos[:10])
    drawn = sampled(line, 10, "whole", None)
    assert drawn.pos[:, 0].max() > 150 and torch.equal(
        drawn.pos, sampled(line, 10, "whole", None).pos
    )


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    assert memory.available() == 8000 * 1024, "no container"
    for name, text in (("max", "5000000"), ("current", "4000000"), ("stat", "inactive_file 1000")):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    assert memory.available() == 1_001_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() == 8000 * 1024


def test_batches_depend_on_seed_and_epoch_alone():
    first = list(EpochBatches(33, 8, seed=1, epoch=0))
    assert [len(b) for b in first] == [8, 8, 8, 9], "no batch of one"
    assert sorted(i for b in first for _, i in b) == list(range(33))
    second = list(EpochBatches(33, 8, seed=1, epoch=1))
    assert second == list(EpochBatches(33, 8, seed=1, epoch=1)) and {
        e for b in second for e, _ in b
    } == {1}
    assert [i for b in first for _, i in b] != [i for b in second for _, i in b]
    shares = [EpochBatches(33, 8, 1, 0, rank, 2) for rank in (0, 1)]
    assert {len(b) for s in shares for b in s} <= {4, 5}
    seen = {i for s in shares for b in s for _, i in b}
    assert seen == set(range(33)) and len(shares[0]) == len(shares[1])
    shares = [EpochBatches(7, 4, rank=rank, world=2) for rank in (0, 1)]
    assert sorted(i for s in shares for b in s for _, i in b) == list(range(7)), "once each"
    assert list(EpochBatches(5, 2)) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]


# ---- memory ----


def test_memory_keeps_what_fits_and_forgets_with_the_owner(paths):
    data = Creatures(paths, size="tiny")
    items, wishes = data.items("train"), Wishes(Needs.of(Spectrum(8)))
    free = View(data, items, wishes, train=True, memory=Memory(1 << 40))
    for i in range(16):
        assert free[0, i] is free[1, i], "kept"
    whole = free.memory.used
    memory = Memory(whole // 2)
    tight = View(data, items, wishes, train=True, memory=memory)
    for epoch in range(2):
        for i in range(16):
            assert torch.equal(tight[epoch, i].ops.evecs, free[epoch, i].ops.evecs)
    kept = sum(tight[0, i] is tight[1, i] for i in range(16))
    assert memory.used <= memory.limit and 5 <= kept <= 11, "about half of them"
    assert pickle.loads(pickle.dumps(memory)).used == 0, "another process begins with nothing"
    used = memory.used
    del tight
    gc.collect()
    assert 0 < memory.used < used, "what belongs to the source is left"


# ---- augmentation ----


def test_augmentations_that_spoil_operators_need_copies(paths, place):
    data = Creatures(paths, size="tiny")
    needs = Needs.of(Spectrum(32), Gradient())
    for keep in (SO3(), RotateZ(), Scale()):
        Wishes(needs, (keep,))
    for spoil in (Jitter(), Dropout()):
        with pytest.raises(UserError, match=rf"{type(spoil).__name__} changes .*augment.copies=n"):
            Wishes(needs, (spoil,))
        Wishes(Needs(), (spoil,))
    wishes = Wishes(needs, (Jitter(0.02), SO3()), copies=2)
    dataset = View(data, data.items("train")[:1], wishes, train=True)
    seen = {dataset[epoch, 0].ops.evals[5].item() for epoch in range(12)}
    assert len(seen) == 2
    data = Loaders(Creatures(place, size="tiny"), wishes)
    assert data.prepare(splits=["train"]).misses == 16 * (1 + 2 * 2)
    assert data.prepare(splits=["train"]).misses == 0, "every copy is prepared"


def test_random_numbers_do_not_depend_on_workers_or_order(paths):
    source = Creatures(paths, size="tiny")
    wishes = Wishes(augment=(SO3(), Scale(), Jitter()), seed=3)
    data = Loaders(source, wishes, batch_size=4)
    plain = {n: p for b in data.train_batches() for n, p in zip(b.names, b.unpack(), strict=True)}
    for batch in Loaders(source, wishes, batch_size=2, workers=1).train_batches():
        for name, shape in zip(batch.names, batch.unpack(), strict=True):
            assert torch.equal(shape.pos, plain[name].pos)
    other = Loaders(source, Wishes(augment=(SO3(),), seed=4), batch_size=4)
    other = next(iter(other.train_batches()))
    assert not torch.equal(other.unpack()[0].pos, plain[other.names[0]].pos)


def test_rotations_turn_normals_along(shapes):
    shape = SO3()(shapes[0], np.random.default_rng(0), DataSpec(up="y"))
    before = (shapes[0].normal * shapes[0].pos).sum(1)
    torch.testing.assert_close((shape.normal * shape.pos).sum(1), before, atol=1e-5, rtol=1e-4)
    upright = RotateZ()(shapes[0], np.random.default_rng(0), DataSpec(up="z"))
    torch.testing.assert_close(upright.pos[:, 2], shapes[0].pos[:, 2])
    assert not torch.allclose(upright.pos[:, 0], shapes[0].pos[:, 0], atol=1e-3)


# ---- defects and policies ----


@pytest.fixture
def flawed(tmp_path):
    root = tmp_path / "flawed"
    for i in range(6):
        write_off(root / f"train/a/{i}.off", TETRA + i, FACES)
        write_off(root / f"test/a/{i}.off", TETRA + i, FACES)
    write_off(root / "train/b/0.off", TETRA, FACES)
    write_off(root / "test/b/0.off", TETRA, FACES)
    write_off(root / "train/a/nan.off", TETRA * [np.nan, 1, 1], FACES)
    double = np.concatenate([FACES, FACES[:1], [[0, 0, 1]]])
    write_off(root / "train/a/double.off", np.concatenate([TETRA, [[7, 7, 7]]]), double)
    return root


def test_one_bad_mesh_is_in_the_report_and_the_others_continue(flawed, place):
    data = Loaders(Folder(place, str(flawed)), Wishes(Needs.of(Spectrum(32))))
    report = data.prepare()
    assert report.shapes == 16 and list(report.dropped) == ["train/a/nan.off"]
    assert "NaN" in report.dropped["train/a/nan.off"]
    assert "duplicate faces" in report.mended["train/a/double.off"]
    assert "unreferenced vertices" in report.mended["train/a/double.off"]
    assert len(data.items("train")) == 8 and "1 repaired, 1 dropped" in str(report)


def test_policies_of_defects(flawed, place):
    with pytest.raises(UserError, match=r"shape train/a/double.off .*duplicate faces"):
        Loaders(Folder(place, str(flawed), preprocess=Preprocess(on_defect="raise"))).prepare()
    leaving_out = Folder(place, str(flawed), preprocess=Preprocess(on_defect="drop"))
    dropped = Loaders(leaving_out).prepare().dropped
    assert set(dropped) == {"train/a/nan.off", "train/a/double.off"}
    with pytest.raises(UserError, match="data.preprocess.on_defect=ignore is not known"):
        Preprocess(on_defect="ignore")


def test_many_shapes_are_prepared_in_processes(paths, place, monkeypatch):
    import geodl.data.loaders as module

    ticks = iter(np.arange(0, 1e6, 50.0))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    data = Loaders(Creatures(place, size="tiny"), Wishes(Needs.of(Spectrum(32))))
    report = data.prepare(splits=["train"])
    assert report.misses == 32 and data.source.cache.misses < 32, "most were made elsewhere"
    assert data.prepare(splits=["train"]).misses == 0
