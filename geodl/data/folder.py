"""The user's own files, without any Python."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from geodl.carry import edges_of
from geodl.data import formats
from geodl.data.fetch import Paths
from geodl.data.files import read_labels
from geodl.data.formats.base import Mesh
from geodl.data.layout import counted, files_of, layout, ranges
from geodl.data.preprocess import UNIT_RADIUS, Preprocess
from geodl.data.source import Source
from geodl.errors import UserError
from geodl.ops.geometry import unique_edges
from geodl.shape import Operators, Shape
from geodl.spec import EDGE, DataSpec, Item, LabelOn

PLURAL = {"vertex": "vertices", "face": "faces", "edge": "edges"}
MOST_PARTS = 1000  # a larger label is a colour or an index, not a part


class Folder(Source):
    """A folder of meshes or clouds.

    Classification: ``class_name/*.ply``. Segmentation: meshes side by side with label files of the
    same stem, ``a.off`` with ``a.txt`` (or ``a.labels.npy``), one whole number per vertex, face or
    edge, as their count says; polygons count as they stand in the file, edges in order of first
    appearance in the triangles, sides (0 1), (1 2), (2 0). Formats: see ``geodl.data.formats``.

    Folders named train, val and test (or training, valid, testing ...) are the splits, above the
    classes or inside of each; without them, fold ``fold`` of ``folds`` is the test split, drawn by
    ``split_seed``. Hidden files are ignored; links are followed.

    Args:
        folder: where it is; its content is part of a run's identity.
        folds, fold: k-fold cross-validation: every shape is in the test split of one fold.
        split_seed: another seed, other folds.
        val: share of the training shapes that becomes the val split, drawn by ``split_seed``; null:
            the folder's own val split, or none.
        label_on: what the labels belong to, where their number leaves a choice.
        up: the vertical axis, "y" or "z".
    """

    clouds = True
    shuffled = False

    def __init__(
        self,
        paths: Paths,
        folder: str | None = None,
        folds: int = 5,
        fold: int = 0,
        split_seed: int = 0,
        val: float | None = None,
        label_on: Literal["vertex", "face", "edge"] | None = None,
        up: Literal["y", "z"] = "y",
        preprocess: Preprocess = UNIT_RADIUS,
    ) -> None:
        super().__init__(paths)
        self.folder = own_folder("folder", folder)
        if not (folds >= 2 and 0 <= fold < folds):
            raise UserError(f"data.fold={fold} must lie in 0 to data.folds - 1 = {folds - 1}.")
        if split_seed < 0:
            raise UserError(f"data.split_seed={split_seed} must be 0 or more.")
        if val is not None and not 0 < val < 1:
            raise UserError(
                f"data.val={val} must lie between 0 and 1: a share of the training set."
            )
        self.folds, self.fold, self.split_seed, self.val = folds, fold, split_seed, val
        self.preprocess = preprocess
        every = files_of(self.folder)
        shapes = shapes_among(every)
        if not shapes:
            raise UserError(
                f"data.folder={folder} has no shapes: put class_name/*.ply into it, or meshes with "
                f"label files of the same name ({' '.join(formats.READERS)})."
            )
        self.layout = layout(self.folder, shapes)
        files = self.layout.files
        used = {*files, *(label for f in files if (label := label_file(f)))}
        self.ignored = [f for f in every if f not in used]
        if val is not None and "val" in self.layout.splits:
            raise UserError(
                f"data.val={val}, but {self.layout.root} has a val split: leave it out."
            )
        protocol = "folder-fixed" if self.layout.fixed else f"folder-{folds}fold{fold}"
        if not self.layout.fixed or val is not None:
            protocol += f"-seed{split_seed}"
        protocol += f"-val{val:g}" if val is not None else ""
        self.labelled = label_file(files[0]) is not None
        self.values: Counter[int] = Counter()
        if self.labelled:
            on, parts = self._labels(files, label_on)
            self.spec = DataSpec(parts=parts, label_on=on, up=up, protocol=protocol)
        else:
            self.spec = DataSpec(classes=self._classes(), up=up, protocol=protocol)
        if len(self.spec.parts or self.spec.classes) < 2:
            raise UserError(f"data.folder={folder} has a single label: give two or more.")

    def _classes(self) -> tuple[str, ...]:
        for members in self.layout.splits.values():
            for file, name in members:
                if name is None:
                    raise UserError(
                        f"{file} has neither a label file ({file.stem}.txt) nor a class folder "
                        "around it."
                    )
        return tuple(sorted({str(n) for m in self.layout.splits.values() for _, n in m}))

    def _labels(self, files: list[Path], said: LabelOn | None) -> tuple[LabelOn, tuple[str, ...]]:
        """What the labels belong to, and the parts."""
        possible: list[LabelOn] | None = [said] if said else None
        for file in files:
            labels, place = self._labels_of(file), label_file(file)
            if labels.min() < 0 or labels.max() >= MOST_PARTS:
                bad = labels.min() if labels.min() < 0 else labels.max()
                raise UserError(
                    f"{place} has label {bad}: number the parts 0, 1, 2, ... (below {MOST_PARTS})."
                )
            self.values.update(labels.tolist())
            if possible is None or len(possible) > 1:
                here = elements_counted(file, formats.read(file), len(labels))
                possible = [on for on in possible or here if on in here] or possible
        assert possible is not None
        if len(possible) > 1:
            choices = " or ".join(f"{on}" for on in possible)
            raise UserError(
                f"the labels of {self.layout.root} could be those of {choices}: say "
                f"data.label_on={possible[0]} (or another)."
            )
        return possible[0], tuple(str(i) for i in range(max(self.values) + 1))

    @staticmethod
    def _labels_of(file: Path) -> NDArray[np.int64]:
        place = label_file(file)
        if place is None:
            raise UserError(f"{file} has no label file {file.stem}.txt, but its neighbours have.")
        return read_labels(place)

    # ---- splits ----

    def splits(self) -> dict[str, list[Item]]:
        items = {s: [self._item(*m) for m in ms] for s, ms in self.layout.splits.items()}
        if not self.layout.fixed:
            drawn = self._drawn(items["all"], self.folds, 0)
            items = {
                "train": [i for i, f in zip(items["all"], drawn, strict=True) if f != self.fold],
                "test": [i for i, f in zip(items["all"], drawn, strict=True) if f == self.fold],
            }
        if self.val is not None:
            train = items.pop("train")
            drawn = self._drawn(train, 1000, 1) < round(1000 * self.val)
            items = {
                "train": [i for i, v in zip(train, drawn, strict=True) if not v],
                "val": [i for i, v in zip(train, drawn, strict=True) if v],
                **items,
            }
        for split, members in items.items():
            if not members:
                raise UserError(
                    f"{self.layout.root} has {len(self.layout.files)} shapes, too few for a split "
                    f"{split} by data.folds={self.folds} and data.val={self.val}: add shapes or "
                    "choose others."
                )
        return items

    def _drawn(self, items: list[Item], bins: int, salt: int) -> NDArray[np.int64]:
        """A bin for every item; each class is spread evenly over them."""
        rng = np.random.default_rng([self.split_seed, salt] if salt else self.split_seed)
        drawn = np.empty(len(items), int)
        categories = [i.category if i.category is not None else -1 for i in items]
        for category in sorted(set(categories)):
            mine = [n for n, c in enumerate(categories) if c == category]
            turn = np.arange(len(mine)) if not salt else np.arange(len(mine)) * bins // len(mine)
            drawn[rng.permutation(mine)] = (turn + rng.integers(bins)) % bins
        return drawn

    def _item(self, file: Path, name: str | None) -> Item:
        category = None if self.labelled else self.spec.classes.index(str(name))
        return Item(str(file.relative_to(self.folder)), category, str(file))

    # ---- shapes ----

    def read(self, item: Item) -> Shape:
        file = Path(str(item.source))
        mesh = formats.read(file)
        shape = Shape(pos=torch.from_numpy(mesh.pos), face=torch.from_numpy(mesh.face))
        if not self.labelled:
            return shape
        labels, on = self._labels_of(file), self.spec.label_on
        possible = elements_counted(file, mesh, len(labels))
        if on not in possible:
            raise UserError(
                f"{label_file(file)} labels {PLURAL[possible[0]]}, but others label {PLURAL[on]}: "
                "label the same elements everywhere."
            )
        if on == "face":
            labels = labels[mesh.polygon]
        if on == "edge":
            edge, _ = edges_of(shape.face)
            shape.ops = Operators({"edge": edge}, {"edge": EDGE})
        return shape.replace(label=torch.from_numpy(labels))

    # ---- in words ----

    def found(self) -> str:
        splits = self.all_splits()
        how = (
            "as its folders say"
            if self.layout.fixed
            else f"drawn, fold {self.fold} of {self.folds}"
        )
        lines = [f"{self.folder}: {len(self.layout.files)} shapes, split {how}"]
        names = self.spec.classes or ("shapes",)
        count = {s: Counter(i.category or 0 for i in items) for s, items in splits.items()}
        width = max(map(len, names))
        lines.append("  ".join([" " * (width + 2), *(f"{s:>6}" for s in splits)]))
        for n, name in enumerate(names):
            lines.append("  ".join([f"  {name:<{width}}", *(f"{count[s][n]:>6}" for s in splits)]))
        if self.labelled:
            total = sum(self.values.values())
            shares = ", ".join(f"{v} ({n / total:.1%})" for v, n in sorted(self.values.items()))
            lines.append(f"labels on {PLURAL[self.spec.label_on]}: {shares}")
            gaps = [v for v in range(len(self.spec.parts)) if v not in self.values]
            if gaps:
                lines.append(
                    f"warning: labels {ranges(gaps)} occur nowhere; they are kept as parts"
                )
        if self.ignored:
            lines.append(f"ignored: {counted(self.ignored, self.folder)}")
        return "\n".join([*lines, *(f"warning: {w}" for w in self._doubts(splits))])

    def _doubts(self, splits: dict[str, list[Item]]) -> list[str]:
        doubts: list[str] = []
        if self.layout.outside:
            doubts.append(
                f"outside of the split folders, not used: "
                f"{counted(self.layout.outside, self.folder)}"
            )
        stems = Counter(f.with_suffix("") for f in self.layout.files)
        if twins := [f for f, n in stems.items() if n > 1]:
            one = twins[0].relative_to(self.folder)
            doubts.append(f"{len(twins)} names have several shapes (e.g. {one}.*): each counts")
        for name in self.spec.classes:
            if re.search(r"train|test|valid", name, re.IGNORECASE):
                doubts.append(f"class {name} is named like a split, but was not taken for one")
        same: dict[str, list[str]] = {}
        for name in self.spec.classes:
            same.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
        for names in same.values():
            if len(names) > 1:
                doubts.append(f"classes {' and '.join(names)} differ by case or accents only")
        for n, name in enumerate(self.spec.classes):
            has = {s: sum(i.category == n for i in items) for s, items in splits.items()}
            if sum(has.values()) == 1:
                doubts.append(f"class {name} has a single shape")
            if lacking := [s for s, count in has.items() if not count]:
                doubts.append(f"class {name} has no shape in {' and '.join(lacking)}")
        return doubts


def own_folder(kind: str, folder: str | None) -> Path:
    """The folder that the user named.

    Raises:
        UserError: none is named, or it is no folder.
    """
    if folder is None or not str(folder).strip():
        raise UserError(f"data={kind} needs data.folder=<your folder>.")
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise UserError(f"data.folder={folder} is no folder.")
    return path


def label_file(file: Path) -> Path | None:
    """The labels beside a shape."""
    for name in (f"{file.stem}.txt", f"{file.stem}.labels.npy"):
        if (place := file.parent / name) != file and place.is_file():
            return place
    return None


def shapes_among(files: list[Path]) -> list[Path]:
    """The meshes and clouds; a .txt counts if it is no other file's labels and holds points."""
    known = [f for f in files if f.suffix.lower() in formats.READERS]
    known = [f for f in known if not f.name.lower().endswith(".labels.npy")]
    stems = {(f.parent, f.stem) for f in known if f.suffix.lower() != ".txt"}
    return [
        f
        for f in known
        if f.suffix.lower() != ".txt" or ((f.parent, f.stem) not in stems and formats.is_points(f))
    ]


def elements_counted(file: Path, mesh: Mesh, labels: int) -> list[LabelOn]:
    """The elements of which a mesh has as many as there are labels.

    Raises:
        UserError: there are none.
    """
    counts: dict[LabelOn, int] = {"vertex": len(mesh.pos)}
    if file.suffix.lower() == ".stl":  # whose vertices have no order of their own
        counts = {}
    if len(mesh.face):
        counts["face"] = mesh.polygons
        if mesh.polygons == len(mesh.face) and counts.get("vertex"):
            counts["edge"] = len(unique_edges(mesh.face)[0])
    fits: list[LabelOn] = [on for on, n in counts.items() if n == labels]
    if not fits:
        have = ", ".join(f"{n} {PLURAL[on]}" for on, n in counts.items())
        raise UserError(
            f"{label_file(file)} has {labels} labels, but {file.name} has {have}: give one per "
            "vertex, face or edge."
        )
    return fits
