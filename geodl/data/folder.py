"""The user's own files, without any Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from geodl.carry import EDGE, edges_of
from geodl.data.fetch import Paths
from geodl.data.files import MESH_SUFFIXES, read_labels, read_mesh
from geodl.data.preprocess import UNIT_RADIUS, Preprocess
from geodl.data.source import Source
from geodl.errors import UserError
from geodl.ops.geometry import unique_edges
from geodl.shape import Operators, Shape
from geodl.spec import DataSpec, Item, LabelOn

SHAPES = (*MESH_SUFFIXES, ".npy", ".xyz")


class Folder(Source):
    """A folder of meshes or clouds.

    Classification: ``class_name/*.ply``. Segmentation: meshes side by side with label files of the
    same stem, ``a.off`` with ``a.txt`` (or ``a.labels.npy``), one whole number per vertex, face or
    edge, as their count says; edges count in order of first appearance in the faces, sides (0 1),
    (1 2), (2 0). Formats: .obj .ply .off .stl, clouds .npy .xyz .ply. If the folder has ``train``
    and ``test`` (and perhaps ``val``) inside, these are the splits; otherwise fold ``fold`` of
    ``folds`` is the test split, drawn by ``split_seed``.

    Args:
        folder: where it is; its content is part of a run's identity.
        folds, fold: k-fold cross-validation: every shape is in the test split of one fold.
        split_seed: another seed, other folds.
        up: the vertical axis, "y" or "z".
    """

    clouds = True

    def __init__(
        self,
        paths: Paths,
        folder: str | None = None,
        folds: int = 5,
        fold: int = 0,
        split_seed: int = 0,
        up: Any = "y",
        preprocess: Preprocess = UNIT_RADIUS,
    ) -> None:
        super().__init__(paths)
        if folder is None:
            raise UserError("data=folder needs data.folder=<your folder>.")
        self.folder = Path(folder).expanduser().resolve()
        if not self.folder.is_dir():
            raise UserError(f"data.folder={folder} is no folder.")
        if not (folds >= 2 and 0 <= fold < folds):
            raise UserError(f"data.fold={fold} must lie in 0 to data.folds - 1 = {folds - 1}.")
        self.folds, self.fold, self.split_seed = folds, fold, split_seed
        self.preprocess = preprocess
        self.fixed = (self.folder / "train").is_dir() and (self.folder / "test").is_dir()
        roots = [self.folder / s for s in ("train", "val", "test") if (self.folder / s).is_dir()]
        self.roots = roots if self.fixed else [self.folder]
        files = [(r, f) for r in self.roots for f in sorted(r.rglob("*")) if _is_shape(f)]
        if not files:
            raise UserError(
                f"data.folder={folder} has no shapes: put class_name/*.ply into it, or meshes with "
                f"label files of the same name ({' '.join(SHAPES)})."
            )
        self.labelled = _label_file(files[0][1]) is not None
        protocol = "folder-fixed" if self.fixed else f"folder-{folds}fold{fold}-seed{split_seed}"
        if self.labelled:
            self.spec = self._segmentation([f for _, f in files], up, protocol)
        else:
            loose = [f for r, f in files if f.parent == r]
            if loose:
                raise UserError(
                    f"{loose[0]} has neither a label file ({loose[0].stem}.txt) nor a class folder "
                    "around it."
                )
            names = sorted({f.relative_to(r).parts[0] for r, f in files})
            self.spec = DataSpec(classes=tuple(names), up=up, protocol=protocol)

        if len(self.spec.parts or self.spec.classes) < 2:
            raise UserError(f"data.folder={folder} has a single label: give two or more.")

    def _segmentation(self, files: list[Path], up: Any, protocol: str) -> DataSpec:
        most, on = 0, None
        for file in files:
            labels = self._labels(file)
            if labels.min() < 0:
                raise UserError(f"{_label_file(file)} has label {labels.min()}: use 0, 1, 2, ...")
            most = max(most, int(labels.max()))
            if on is None:
                on = _labelled_element(file, *read_mesh(file), labels)
        assert on is not None
        return DataSpec(
            parts=tuple(str(i) for i in range(most + 1)), label_on=on, up=up, protocol=protocol
        )

    @staticmethod
    def _labels(file: Path) -> np.ndarray[Any, Any]:
        label_file = _label_file(file)
        if label_file is None:
            raise UserError(f"{file} has no label file {file.stem}.txt, but its neighbours have.")
        return read_labels(label_file)

    def splits(self) -> dict[str, list[Item]]:
        if self.fixed:
            return {r.name: [self._item(r, f) for f in self._files(r)] for r in self.roots}
        items = [self._item(self.folder, f) for f in self._files(self.folder)]
        rng = np.random.default_rng(self.split_seed)
        fold = np.empty(len(items), int)
        # Per class, so that every fold has every class.
        for category in sorted({i.category if i.category is not None else -1 for i in items}):
            mine = [
                n
                for n, i in enumerate(items)
                if (i.category if i.category is not None else -1) == category
            ]
            fold[rng.permutation(mine)] = (
                np.arange(len(mine)) + rng.integers(self.folds)
            ) % self.folds
        train = [i for i, f in zip(items, fold, strict=True) if f != self.fold]
        test = [i for i, f in zip(items, fold, strict=True) if f == self.fold]
        if not train or not test:
            raise UserError(
                f"{self.folder} has {len(items)} shapes, too few for fold {self.fold} of "
                f"{self.folds}: add shapes or lower data.folds."
            )
        return {"train": train, "test": test}

    def _files(self, root: Path) -> list[Path]:
        return [f for f in sorted(root.rglob("*")) if _is_shape(f)]

    def _item(self, root: Path, file: Path) -> Item:
        relative = file.relative_to(root)
        category = None
        if not self.labelled:
            category = self.spec.classes.index(relative.parts[0])
        return Item(str(file.relative_to(self.folder)), category, str(file))

    def read(self, item: Item) -> Shape:
        file = Path(str(item.source))
        pos, face = read_mesh(file)
        shape = Shape(pos=torch.from_numpy(pos), face=torch.from_numpy(face))
        if not self.labelled:
            return shape
        labels = self._labels(file)
        on = _labelled_element(file, pos, face, labels)
        if on != self.spec.label_on:
            raise UserError(
                f"{_label_file(file)} labels {on}s, but the first file labels "
                f"{self.spec.label_on}s: label the same elements everywhere."
            )
        if on == "edge":
            edge, _ = edges_of(shape.face)
            shape.ops = Operators({"edge": edge}, {"edge": EDGE})
        return shape.replace(label=torch.from_numpy(labels))


def _is_shape(file: Path) -> bool:
    return file.suffix.lower() in SHAPES and not file.name.endswith(".labels.npy")


def _label_file(file: Path) -> Path | None:
    for name in (f"{file.stem}.txt", f"{file.stem}.labels.npy"):
        if (file.parent / name).is_file():
            return file.parent / name
    return None


def _labelled_element(
    file: Path, pos: np.ndarray[Any, Any], face: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]
) -> LabelOn:
    counts: dict[LabelOn, int] = {"vertex": len(pos), "face": len(face)}
    if len(face) and (face >= 0).all():
        counts["edge"] = len(unique_edges(face)[0])
    for on, count in counts.items():
        if len(labels) == count:
            return on
    have = ", ".join(f"{n} {on}s" for on, n in counts.items()).replace("vertexs", "vertices")
    raise UserError(
        f"{_label_file(file)} has {len(labels)} labels, but {file.name} has {have}: give one per "
        "vertex, face or edge."
    )
