"""ShapeNetPart: clouds of 16 classes with 50 part labels per point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from geodl.data.fetch import Paths, locate
from geodl.data.files import read_numbers
from geodl.data.preprocess import UNIT_RADIUS, BadShape, Preprocess
from geodl.data.source import Source
from geodl.errors import UserError
from geodl.shape import Shape
from geodl.spec import DataSpec, Item

# Class -> its WordNet synset and its parts, in the order of the labels.
CLASSES: dict[str, tuple[str, tuple[int, ...]]] = {
    "airplane": ("02691156", (0, 1, 2, 3)),
    "bag": ("02773838", (4, 5)),
    "cap": ("02954340", (6, 7)),
    "car": ("02958343", (8, 9, 10, 11)),
    "chair": ("03001627", (12, 13, 14, 15)),
    "earphone": ("03261776", (16, 17, 18)),
    "guitar": ("03467517", (19, 20, 21)),
    "knife": ("03624134", (22, 23)),
    "lamp": ("03636649", (24, 25, 26, 27)),
    "laptop": ("03642806", (28, 29)),
    "motorbike": ("03790512", (30, 31, 32, 33, 34, 35)),
    "mug": ("03797390", (36, 37)),
    "pistol": ("03948459", (38, 39, 40)),
    "rocket": ("04099429", (41, 42, 43)),
    "skateboard": ("04225987", (44, 45, 46)),
    "table": ("04379243", (47, 48, 49)),
}
NAMES = tuple(CLASSES)
TEXT = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
HDF5 = "shapenet_part_seg_hdf5_data"


class ShapeNetPart(Source):
    """12,137 training, 1,870 validation and 2,874 test clouds; the class is known to the model.

    Two layouts. ``text``: ``<synset>/*.txt`` (x y z nx ny nz label) with
    ``train_test_split/shuffled_{train,val,test}_file_list.json``. ``hdf5``: ``{train,val,test}
    _hdf5_file_list.txt`` and h5 files (data, label, pid). Evaluation is on the original points,
    arg-max among the parts of the true class (see ``geodl.metrics.PartIoU``). Source: Yi et al.
    2016, as prepared for PointNet and PointNet++.

    Args:
        layout: "text" or "hdf5".
    """

    clouds = True
    shuffled = False

    def __init__(
        self,
        paths: Paths,
        layout: Literal["text", "hdf5"] = "text",
        preprocess: Preprocess = UNIT_RADIUS,
    ) -> None:
        super().__init__(paths)
        self.layout = layout
        self.preprocess = preprocess
        self.spec = DataSpec(
            classes=NAMES,
            parts=tuple(f"{n}{i}" for n, (_, parts) in CLASSES.items() for i in range(len(parts))),
            label_on="vertex",
            category_parts=tuple(parts for _, parts in CLASSES.values()),
            up="y",
            protocol=f"shapenetpart-{layout}-official",
        )
        self.files: dict[str, Any] = {}

    @property
    def root(self) -> Path:
        if self.layout == "text":
            words = f"unpack {TEXT}.zip to it"
            return locate(TEXT, self.paths, (), ("train_test_split",), words)
        words = f"unpack {HDF5}.zip to it"
        return locate(HDF5, self.paths, (), ("train_hdf5_file_list.txt",), words)

    def splits(self) -> dict[str, list[Item]]:
        root = self.root
        splits: dict[str, list[Item]] = {}
        synsets = {synset: i for i, (synset, _) in enumerate(CLASSES.values())}
        for split in ("train", "val", "test"):
            items: list[Item] = []
            if self.layout == "text":
                file = root / "train_test_split" / f"shuffled_{split}_file_list.json"
                if not file.is_file():
                    raise UserError(f"{file} does not exist: unpack {TEXT}.zip whole.")
                for entry in json.loads(file.read_text()):
                    _, synset, name = str(entry).split("/")
                    items.append(Item(f"{synset}-{name}", synsets[synset], f"{synset}/{name}.txt"))
            else:
                for line in (root / f"{split}_hdf5_file_list.txt").read_text().split():
                    name = Path(line).name
                    labels = np.asarray(self._open(name)["label"]).reshape(-1)
                    items += [
                        Item(f"{Path(name).stem}-{row:04d}", int(c), (name, row))
                        for row, c in enumerate(labels)
                    ]
            splits[split] = items
        return splits

    def _open(self, name: str) -> Any:
        import h5py

        if name not in self.files:
            try:
                with h5py.File(self.root / name) as h5:
                    self.files[name] = {k: np.asarray(h5[k]) for k in ("data", "label", "pid")}
            except (OSError, KeyError) as error:
                raise UserError(
                    f"{self.root / name} cannot be read as HDF5 with data, label, pid ({error})."
                ) from error
        return self.files[name]

    def read(self, item: Item) -> Shape:
        normal = None
        if self.layout == "hdf5":
            name, row = item.source
            file = self._open(name)
            pos, part = file["data"][row], file["pid"][row]
        else:
            path = self.root / str(item.source)
            rows = read_numbers(path, "x y z nx ny nz label")
            pos, part = rows[:, :3], rows[:, 6]
            normal = torch.from_numpy(rows[:, 3:6].astype(np.float32))
        part = torch.from_numpy(np.asarray(part).astype(np.int64))
        allowed = self.spec.category_parts[item.category or 0]
        if not set(part.unique().tolist()) <= set(allowed):
            raise BadShape("part labels of another class")
        return Shape(pos=torch.from_numpy(np.asarray(pos, np.float64)), normal=normal, label=part)
