"""SHREC 2011 non-rigid classification: 30 classes of 20."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from geodl.data.fetch import Paths, locate
from geodl.data.files import read_mesh
from geodl.data.preprocess import UNIT_RADIUS, Preprocess
from geodl.data.source import Source, split_by_class
from geodl.errors import UserError
from geodl.shape import Shape
from geodl.spec import DataSpec, Item

CLASSES = (
    "alien",
    "ants",
    "armadillo",
    "bird1",
    "bird2",
    "camel",
    "cat",
    "centaur",
    "dinosaur",
    "dino_ske",
    "dog1",
    "dog2",
    "flamingo",
    "glasses",
    "gorilla",
    "hand",
    "horse",
    "lamp",
    "laptop",
    "man",
    "octopus",
    "pliers",
    "rabbit",
    "santa",
    "scissor",
    "shark",
    "snake",
    "spiders",
    "two_balls",
    "woman",
)


class SHREC11(Source):
    """600 meshes in 30 classes; 10 / 10 or 16 / 4 per class, drawn by ``split_seed``.

    Two layouts. ``simplified``: MeshCNN's copy of 500 faces, ``<class>/{train,test}/*.obj`` (both
    folders are pooled and split anew). ``original``: diffusion-net's, ``categories.txt`` and
    ``raw/T<n>.off``. No validation split: last epoch. Source: Lian et al. 2011.

    Args:
        layout: "simplified" or "original".
        train: shapes per class for training, 10 or 16.
        split_seed: another seed, another split.
    """

    def __init__(
        self,
        paths: Paths,
        layout: Literal["simplified", "original"] = "simplified",
        train: int = 10,
        split_seed: int = 0,
        preprocess: Preprocess = UNIT_RADIUS,
    ) -> None:
        super().__init__(paths)
        if train not in (10, 16):
            raise UserError(f"data.train={train} is not known: choose 10 or 16 shapes per class.")
        self.layout = layout
        self.train = train
        self.split_seed = split_seed
        self.preprocess = preprocess
        self.spec = DataSpec(
            classes=CLASSES,
            up="y",
            protocol=f"shrec11-{layout}-{train}-{20 - train}-seed{split_seed}",
        )

    @property
    def root(self) -> Path:
        if self.layout == "simplified":
            words = (
                "unpack MeshCNN's shrec_16 (its scripts/shrec/get_data.sh) so that "
                "<class>/{train,test}/*.obj lie in it"
            )
            return locate("shrec_16", self.paths, (), CLASSES[:1], words)
        words = (
            "put diffusion-net's categories.txt and, in raw/, the T<n>.off files of "
            "SHREC11_test_database_new.zip there"
        )
        return locate("shrec11_original", self.paths, (), ("categories.txt", "raw"), words)

    def splits(self) -> dict[str, list[Item]]:
        root = self.root
        files = self._simplified(root) if self.layout == "simplified" else self._original(root)
        for name, found in files.items():
            if len(found) != 20:
                raise UserError(f"{root} has {len(found)} meshes of class {name}, expected 20.")
        stems = {c: [Path(f).stem for f in fs] for c, fs in files.items()}
        where = {(c, Path(f).stem): f for c, fs in files.items() for f in fs}
        return {
            split: [Item(n, CLASSES.index(c), where[c, n]) for c, n in pairs]
            for split, pairs in split_by_class(stems, self.train, self.split_seed).items()
        }

    @staticmethod
    def _simplified(root: Path) -> dict[str, list[str]]:
        return {
            c: sorted(str(p.relative_to(root)) for p in (root / c).glob("*/*.obj")) for c in CLASSES
        }

    @staticmethod
    def _original(root: Path) -> dict[str, list[str]]:
        """categories.txt: two header lines, then per class a blank line, "name parent count" and
        one number per line."""
        words = iter((root / "categories.txt").read_text().split("\n")[2:])
        files: dict[str, list[str]] = {}
        for line in words:
            parts = line.split()
            if len(parts) == 3:
                numbers = [next(words).strip() for _ in range(int(parts[2]))]
                files[parts[0]] = [f"raw/T{n}.off" for n in numbers]
        if unknown := sorted(set(files) ^ set(CLASSES)):
            raise UserError(
                f"{root / 'categories.txt'}: class {unknown[0]} is missing or unknown, expected "
                f"the {len(CLASSES)} classes of SHREC11."
            )
        return files

    def read(self, item: Item) -> Shape:
        pos, face = read_mesh(self.root / str(item.source))
        return Shape(pos=torch.from_numpy(pos), face=torch.from_numpy(face))
