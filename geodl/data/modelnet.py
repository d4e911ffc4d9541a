"""ModelNet10 and ModelNet40: official OFF folders, or the HDF5 clouds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from geodl.data.fetch import Archive, Paths, locate
from geodl.data.files import read_mesh
from geodl.data.preprocess import UNIT_RADIUS, Preprocess
from geodl.data.source import Source, chosen_classes
from geodl.errors import UserError
from geodl.shape import Shape
from geodl.spec import DataSpec, Item

MODELNET10 = (
    "bathtub",
    "bed",
    "chair",
    "desk",
    "dresser",
    "monitor",
    "night_stand",
    "sofa",
    "table",
    "toilet",
)
MODELNET40 = (
    "airplane",
    "bathtub",
    "bed",
    "bench",
    "bookshelf",
    "bottle",
    "bowl",
    "car",
    "chair",
    "cone",
    "cup",
    "curtain",
    "desk",
    "door",
    "dresser",
    "flower_pot",
    "glass_box",
    "guitar",
    "keyboard",
    "lamp",
    "laptop",
    "mantel",
    "monitor",
    "night_stand",
    "person",
    "piano",
    "plant",
    "radio",
    "range_hood",
    "sink",
    "sofa",
    "stairs",
    "stool",
    "table",
    "tent",
    "toilet",
    "tv_stand",
    "vase",
    "wardrobe",
    "xbox",
)
HDF5_10 = Archive(
    "modelnet10_hdf5_1024.tar",
    "f5e3e99ea353de4d9503d6668977d8b16e24b59583472cd4cef5d9cf9d404b91",
    top="modelnet10_hdf5_1024",
)


class ModelNet(Source):
    """CAD models in 10 or 40 classes, official train / test split, no validation: last epoch.

    Two layouts. ``hdf5``: ``*_files.txt``, ``shape_names.txt`` and h5 files (data, label), as come
    with PointNet; vertical axis y for 40 classes, z for 10. ``off``: the official folders
    ``<class>/{train,test}/*.off``; an encoder that asks for points gets them sampled on the fly;
    vertical axis z. Source: Wu et al. 2015 (3D ShapeNets).

    Args:
        classes: 10 or 40.
        layout: "hdf5" or "off".
        only: names of classes, the others are left out; null: all.
    """

    clouds = True

    def __init__(
        self,
        paths: Paths,
        classes: int = 10,
        layout: str = "hdf5",
        only: list[str] | None = None,
        preprocess: Preprocess = UNIT_RADIUS,
    ) -> None:
        super().__init__(paths)
        if classes not in (10, 40):
            raise UserError(f"data.classes={classes} is not known: choose 10 or 40.")
        if layout not in ("hdf5", "off"):
            raise UserError(f"data.layout={layout} is not known: choose hdf5 or off.")
        self.layout = layout
        self.preprocess = preprocess
        self.every = MODELNET10 if classes == 10 else MODELNET40
        wanted = chosen_classes(self.every, only)
        chosen = "" if only is None else f"-{'+'.join(wanted)}"
        self.spec = DataSpec(
            classes=wanted,
            up="y" if layout == "hdf5" and classes == 40 else "z",
            protocol=f"modelnet{classes}-{layout}-official{chosen}",
        )
        self.clouds_: dict[str, np.ndarray[Any, Any]] = {}

    @property
    def root(self) -> Path:
        n = len(self.every)
        if self.layout == "off":
            words = f"unpack the official ModelNet{n}.zip (modelnet.cs.princeton.edu) to it"
            return locate(f"ModelNet{n}", self.paths, (), self.every, words)
        contents = ("train_files.txt", "test_files.txt", "shape_names.txt")
        if n == 10:
            folder, archives = "modelnet10_hdf5_1024", (HDF5_10,)
        else:
            folder, archives = "modelnet40_ply_hdf5_2048", ()
        words = f"put the HDF5 clouds ({', '.join(contents)} and the h5 files they name) there"
        return locate(folder, self.paths, archives, contents, words)

    def splits(self) -> dict[str, list[Item]]:
        root = self.root
        splits: dict[str, list[Item]] = {"train": [], "test": []}
        if self.layout == "off":
            for category, name in enumerate(self.spec.classes):
                for split, items in splits.items():
                    for path in sorted((root / name / split).glob("*.off")):
                        items.append(Item(path.stem, category, str(path.relative_to(root))))
        else:
            names = tuple((root / "shape_names.txt").read_text().split())
            if names != self.every:
                raise UserError(
                    f"{root / 'shape_names.txt'} names {len(names)} classes, not those of "
                    f"ModelNet{len(self.every)}: this is another data set."
                )
            place = {self.every.index(name): i for i, name in enumerate(self.spec.classes)}
            for split, items in splits.items():
                for line in (root / f"{split}_files.txt").read_text().split():
                    file = root / Path(line).name
                    for row, label in enumerate(self._labels(file)):
                        if (category := place.get(int(label))) is not None:
                            name = f"{file.stem}-{row:04d}"
                            items.append(Item(name, category, (file.name, row)))
        for split, items in splits.items():
            if not items:
                raise UserError(f"{root} has no {split} shapes: is it unpacked whole?")
        return splits

    @staticmethod
    def _labels(file: Path) -> Any:
        import h5py

        try:
            with h5py.File(file) as h5:
                return np.asarray(h5["label"]).reshape(-1)
        except (OSError, KeyError) as error:
            raise UserError(
                f"{file} cannot be read as HDF5 with data and label ({error})."
            ) from error

    def read(self, item: Item) -> Shape:
        if self.layout == "off":
            pos, face = read_mesh(self.root / str(item.source))
            return Shape(pos=torch.from_numpy(pos), face=torch.from_numpy(face))
        import h5py

        name, row = item.source
        if name not in self.clouds_:
            with h5py.File(self.root / name) as h5:
                self.clouds_[name] = np.asarray(h5["data"], np.float32)
        return Shape(pos=torch.from_numpy(self.clouds_[name][row]))
