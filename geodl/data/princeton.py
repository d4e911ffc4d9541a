"""Princeton Segmentation Benchmark (the meshes of SHREC07 watertight) as a classification set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from geodl.data.fetch import Archive, Paths, locate
from geodl.data.files import read_mesh
from geodl.data.preprocess import Preprocess
from geodl.data.source import Source, checked_in_split, chosen_classes
from geodl.errors import UserError
from geodl.shape import Shape
from geodl.spec import DataSpec, Item

CLASSES = [
    "human",
    "cup",
    "glasses",
    "airplane",
    "ant",
    "chair",
    "octopus",
    "table",
    "teddy",
    "hand",
    "plier",
    "fish",
    "bird",
    "none",
    "armadillo",
    "bust",
    "mech",
    "bearing",
    "vase",
    "fourleg",
]  # 20 consecutive ids each; 261-280 do not exist
NAMES = tuple(c for c in CLASSES if c != "none")
ARCHIVE = Archive(
    "princeton_segmentation.tar.xz",
    "27732935423d9de437047ff345736c9a1203c308329e6cf24e9d4baccdadc973",
    top="princeton_segmentation",
)
WORDS = (
    "unpack the Princeton Segmentation Benchmark (segeval.cs.princeton.edu, research use only) so "
    "that off/<id>.off lie in it"
)
COARSE = Preprocess(vertices=1000)


class Princeton(Source):
    """380 watertight meshes, 19 classes of 20.

    Splits are checked-in lists: 10 train / 10 test or 16 / 4 per class; no validation: last epoch.
    Source: Chen, Golovinskiy, Funkhouser 2009; Giorgi et al. 2007 (SHREC07).

    Args:
        split: "10-10" or "16-4".
        only: names of classes, the others are left out; null: all.
        preprocess: simplified to about 1,000 vertices; ``vertices: null`` for the original meshes.
    """

    def __init__(
        self,
        paths: Paths,
        split: Literal["10-10", "16-4"] = "10-10",
        only: list[str] | None = None,
        preprocess: Preprocess = COARSE,
    ) -> None:
        super().__init__(paths)
        if split not in ("10-10", "16-4"):
            raise UserError(f"data.split={split} is not known: choose 10-10 or 16-4.")
        self.split = split
        self.classes = chosen_classes(NAMES, only)
        self.preprocess = preprocess
        size = f"{preprocess.vertices}v" if preprocess.vertices else "original"
        chosen = "" if only is None else f"-{'+'.join(self.classes)}"
        protocol = f"princeton-{split}-{size}{chosen}"
        self.spec = DataSpec(classes=self.classes, up="y", protocol=protocol)

    @property
    def root(self) -> Path:
        return locate("princeton_segmentation", self.paths, (ARCHIVE,), ("off",), WORDS)

    def splits(self) -> dict[str, list[Item]]:
        root = self.root
        splits: dict[str, list[Item]] = {}
        for split, names in checked_in_split(f"princeton-{self.split}").items():
            splits[split] = []
            for name in names:
                if not (root / "off" / f"{name}.off").is_file():
                    raise UserError(f"{root}/off lacks {name}.off: {WORDS}.")
                label = CLASSES[(int(name) - 1) // 20]
                if label in self.classes:
                    splits[split].append(Item(name, self.classes.index(label)))
        return splits

    def read(self, item: Item) -> Shape:
        pos, face = read_mesh(self.root / "off" / f"{item.name}.off")
        return Shape(pos=torch.from_numpy(pos), face=torch.from_numpy(face))
