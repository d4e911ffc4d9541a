"""The user's own folders: what is found in them, said, and drawn."""

import re
from pathlib import Path

import numpy as np
import pytest

from geodl.data.fetch import Paths
from geodl.data.folder import Folder
from geodl.data.layout import files_of, layout, ranges, split_name
from geodl.data.registered import Registered
from geodl.errors import UserError
from geodl.runs.record import fingerprint

TETRA = "4 4 6\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 1 2 3\n3 0 3 2\n"
PLANE = "OFF\n5 4 8\n0 0 0\n1 0 0\n0 1 0\n1 1 0\n2 2 1\n3 0 1 2\n3 1 3 2\n3 1 4 3\n3 2 3 4\n"


def shape(file: Path, scale: float = 1.0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"OFF\n{TETRA.replace('1 0 0', f'{scale} 0 0', 1)}")
    return file


def fill(root: Path, *folders: str, count: int = 3) -> Path:
    for folder in folders:
        for i in range(count):
            shape(root / folder / f"{i}.off", 1 + i)
    return root


@pytest.fixture
def place(tmp_path):
    return Paths(tmp_path / "data", tmp_path / "cache")


def opened(place, root, **options) -> Folder:
    return Folder(place, str(root), **options)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(n, "train") for n in ("train", "Train", "TRAINING", "train_set", "training data")],
        *[(n, "val") for n in ("val", "valid", "Validation", "dev", "val-set")],
        *[(n, "test") for n in ("test", "TEST", "testing", "TestSet", "test_split")],
        *[(n, "test") for n in ("02_test", "Test ")],
        *[(n, None) for n in ("trainer", "tests of mine", "ball", "valley", "contest")],
    ],
)
def test_names_of_splits(name, split):
    assert split_name(name) == split


@pytest.mark.parametrize(
    "folders",
    [
        ["train/ball", "train/rod", "test/ball", "test/rod"],
        ["Train/ball", "Train/rod", "Test/ball", "Test/rod"],
        ["training/ball", "training/rod", "testing/ball", "testing/rod"],
        ["ball/train", "ball/test", "rod/train", "rod/test"],
        ["ball/TRAIN", "ball/TEST", "rod/TRAIN", "rod/TEST"],
        ["set/ball/train", "set/ball/test", "set/rod/train", "set/rod/test"],
        ["set/train/ball", "set/train/rod/deep", "set/test/ball", "set/test/rod"],
    ],
)
def test_split_folders_are_splits_and_never_classes(folders, tmp_path, place):
    data = opened(place, fill(tmp_path / "mine", *folders))
    assert data.spec.classes == ("ball", "rod") and data.spec.protocol == "folder-fixed"
    assert {s: len(i) for s, i in data.splits().items()} == {"train": 6, "test": 6}
    assert {i.category for i in data.items("test")} == {0, 1}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train/ball", "val/ball"], "split folders train, val, but none for test"),
        (["Training/a", "a"], "split folders Training, but none for test"),
        (
            ["train/a", "training/a", "test/a"],
            "several folders for the split train",
        ),
        (["a/train", "a/valid"], "split folders train, valid, but none for test"),
    ],
)
def test_splits_that_are_not_whole_are_refused(folders, message, tmp_path, place):
    with pytest.raises(UserError, match=message):
        opened(place, fill(tmp_path / "mine", *folders))


def test_hidden_files_do_not_exist_for_anybody(tmp_path, place):
    root = fill(tmp_path / "mine", "ball", "rod", count=5)
    before = opened(place, root), fingerprint(root)
    hidden = (".ipynb_checkpoints", "ball/.hidden", "__MACOSX/ball", ".git/x")
    fill(root, *hidden)
    for name in ("._0.off", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / "ball" / name).write_text("x")
    after = opened(place, root), fingerprint(root)
    assert after[1] == before[1], "one function decides for the name of a run as well"
    assert after[0].found() == before[0].found() and "ignored" not in after[0].found()
    assert after[0].split_checksum() == before[0].split_checksum()


def test_links_are_followed_and_circles_end(tmp_path, place):
    fill(tmp_path / "elsewhere", "ball", "rod", count=5)
    root = tmp_path / "mine"
    root.mkdir()
    (root / "ball").symlink_to(tmp_path / "elsewhere/ball")
    fill(root, "rod", count=5)
    (root / "rod/again").symlink_to(root)
    data = opened(place, root)
    assert len(data.layout.files) == 10 and fingerprint(root)
    (root / "gone.off").symlink_to(tmp_path / "nowhere.off")
    assert len(files_of(root)) == 10


def test_what_is_found_is_said(tmp_path, place):
    root = fill(tmp_path / "mine", "train/ball", "train/rod", "test/ball", "test/Rod", "extra/x")
    shape(root / "train/cone/0.off")
    for name in ("a.mtl", "b.mtl", "README.md", "train/ball/0.png"):
        (root / name).write_text("x")
    (root / "train/notes.txt").write_text("these are my shapes\n")
    said = opened(place, root).found()
    assert f"{root}: 13 shapes, split as its folders say" in said
    assert re.search(r"^  ball +3 +3$", said, re.M) and re.search(r"^  cone +1 +0$", said, re.M)
    assert "2 .mtl (a.mtl, b.mtl)" in said and "1 .md (README.md)" in said and "notes.txt" in said
    assert "outside of the split folders, not used: 3 .off (extra/x/0.off" in said
    assert "classes Rod and rod differ by case or accents only" in said
    assert "class cone has a single shape" in said
    assert "class rod has no shape in test" in said and "class Rod has no shape in train" in said


def test_a_val_split_is_drawn_from_the_training_shapes(tmp_path, place):
    fixed = fill(tmp_path / "a", "train/ball", "train/rod", "test/ball", "test/rod", count=10)
    data = opened(place, fixed, val=0.2)
    splits = data.splits()
    assert {s: len(i) for s, i in splits.items()} == {"train": 16, "val": 4, "test": 20}
    assert {i.category for i in splits["val"]} == {0, 1}
    assert data.spec.protocol == "folder-fixed-seed0-val0.2"
    names = {s: {i.name for i in items} for s, items in splits.items()}
    assert not names["train"] & names["val"]
    again = opened(place, fixed, val=0.2, split_seed=1).splits()["val"]
    assert {i.name for i in again} != names["val"], "the seed draws others"
    drawn = opened(place, fill(tmp_path / "b", "ball", "rod", count=10), val=0.25)
    assert {s: len(i) for s, i in drawn.splits().items()} == {"train": 12, "val": 4, "test": 4}
    assert drawn.spec.protocol == "folder-5fold0-seed0-val0.25"
    with pytest.raises(UserError, match="has a val split: leave it out"):
        opened(place, fill(fixed, "val/ball", "val/rod"), val=0.2)
    with pytest.raises(UserError, match="must lie between 0 and 1"):
        opened(place, tmp_path / "b", val=2.0)


def test_shapes_in_text_files_and_labels_beside_clouds(tmp_path, place):
    points = "".join(f"{i} {i % 3} {i % 5}\n" for i in range(9))
    for cls in ("ball", "rod"):
        for i in range(5):
            file = shape(tmp_path / f"mine/{cls}/{i}.off").with_suffix(".txt")
            file.unlink(missing_ok=True)
            (tmp_path / f"mine/{cls}/{i}.off").unlink()
            file.write_text(points)
    assert len(opened(place, tmp_path / "mine").layout.files) == 10
    for split in ("train", "test"):
        (tmp_path / f"parts/{split}").mkdir(parents=True)
        (tmp_path / f"parts/{split}/a.xyz").write_text(points)
        (tmp_path / f"parts/{split}/a.txt").write_text("0\n1\n2\n" * 3)
    data = opened(place, tmp_path / "parts")
    assert data.spec.label_on == "vertex" and data.spec.parts == ("0", "1", "2")


def labelled(root: Path, **labels: str) -> Path:
    for split in ("train", "test"):
        for name, text in labels.items():
            (root / split).mkdir(parents=True, exist_ok=True)
            (root / split / f"{name}.off").write_text(PLANE)
            (root / split / f"{name}.txt").write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.txt is empty"),
        ("0\n-1\n0\n1\n2\n", "a.txt has label -1: number the parts 0, 1, 2"),
        ("0\n1\n0\n1\n255255\n", r"a.txt has label 255255: .* \(below 1000\)"),
        ("0\n1\n0\n1\n1.5\n", "a.txt has 1.5 as label 4"),
        ("0\n1\n", "a.txt has 2 labels, but a.off has 5 vertices, 4 faces, 8 edges"),
    ],
)
def test_labels_that_cannot_be_right(text, message, tmp_path, place):
    with pytest.raises(UserError, match=message):
        opened(place, labelled(tmp_path / "mine", a=text))


def test_gaps_between_labels_are_kept_and_named(tmp_path, place):
    data = opened(place, labelled(tmp_path / "mine", a="0\n7\n0\n3\n3\n"))
    assert len(data.spec.parts) == 8
    assert "labels on vertices: 0 (40.0%)" in data.found()
    assert "labels 1-2, 4-6 occur nowhere; they are kept as parts" in data.found()
    assert "0 (40.0%), 3 (40.0%), 7 (20.0%)" in data.found()
    assert ranges([1, 2, 4, 6, 7, 8]) == "1-2, 4, 6-8" and ranges([]) == "" and ranges([5]) == "5"


def test_other_shapes_tell_what_labels_belong_to(tmp_path, place):
    root = labelled(tmp_path / "mine", b="0\n1\n0\n1\n1\n")
    for split in ("train", "test"):
        shape(root / split / "a.off").with_suffix(".txt").write_text("0\n1\n0\n1\n")
    assert opened(place, root).spec.label_on == "vertex", "four of a are vertices or faces"


def test_registered_folders_take_the_same_files(tmp_path, place):
    root = fill(tmp_path / "mine", "Training", "Testing")
    (root / "Training/._0.off").write_text("x")
    (root / "notes.md").write_text("x")
    data = Registered(place, str(root))
    assert {s: len(i) for s, i in data.splits().items()} == {"train": 3, "test": 3}
    assert "ignored: 1 .md (notes.md)" in data.found()


def test_a_layout_of_nothing_special(tmp_path):
    root = fill(tmp_path / "mine", "ball", "rod")
    found = layout(root, files_of(root))
    assert not found.fixed and not found.outside
    assert sorted({c for _, c in found.splits["all"]}) == ["ball", "rod"]


def test_every_set_says_what_it_has(paths):
    from geodl.data.creatures import Creatures

    assert "16 train, 8 val, 8 test; 8 parts" in Creatures(paths, size="tiny").found()
    assert np.all([c.isprintable() or c == "\n" for c in Creatures(paths, size="tiny").found()])


def test_labels_never_guess_at_triangles_or_at_an_stl(tmp_path, place):
    """Of a closed mesh of quadrilaterals, twelve could be its edges or its triangles."""
    cube = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    quads = ["0 1 3 2", "4 6 7 5", "0 4 5 1", "2 3 7 6", "0 2 6 4", "1 5 7 3"]
    text = "OFF\n8 6 0\n" + "".join("{} {} {}\n".format(*p) for p in cube)
    (tmp_path / "mine").mkdir()
    for i in range(5):
        (tmp_path / f"mine/{i}.off").write_text(text + "".join(f"4 {q}\n" for q in quads))
        (tmp_path / f"mine/{i}.txt").write_text("0\n1\n" * 6)
    with pytest.raises(UserError, match="has 12 labels, but 0.off has 8 vertices, 6 faces"):
        opened(place, tmp_path / "mine")
    import trimesh

    (tmp_path / "stl").mkdir()
    for i in range(5):
        mesh = trimesh.creation.icosphere(1)
        mesh.export(tmp_path / f"stl/{i}.stl")
        (tmp_path / f"stl/{i}.txt").write_text("0\n1\n" * 21)
    with pytest.raises(UserError, match="has 42 labels, but 0.stl has 80 faces"):
        opened(place, tmp_path / "stl")


def test_a_stray_file_does_not_dissolve_the_split(tmp_path, place):
    root = fill(tmp_path / "mine", "a/train", "a/test", "b/train", "b/test")
    shape(root / "a/x.off")
    shape(root / "c/y.off")
    data = opened(place, root)
    assert data.spec.protocol == "folder-fixed" and data.spec.classes == ("a", "b")
    assert "not used: 2 .off (a/x.off, c/y.off)" in data.found()


def test_names_that_look_like_splits_and_twins_are_doubted(tmp_path, place):
    root = fill(tmp_path / "mine", "X_train", "X_test", count=5)
    (root / "X_train/0.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    said = opened(place, root).found()
    assert "class X_train is named like a split, but was not taken for one" in said
    assert "1 names have several shapes (e.g. X_train/0.*): each counts" in said


def test_an_empty_name_is_no_folder(place):
    with pytest.raises(UserError, match="data=folder needs data.folder="):
        Folder(place, " ")


def test_names_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with open(bytes(tmp_path / "a") + b"/caf\xe9.off", "w") as stream:  # noqa: PTH123
        stream.write("OFF")
    with pytest.raises(UserError, match="no UTF-8: rename it"):
        files_of(tmp_path / "a")
