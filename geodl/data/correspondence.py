"""Shapes with ground-truth correspondence through a common template, for matching.

Two layouts of the same sets are understood:

- SGA18 (Ren et al. 2018): ``Dataset/<NAME>/vtx_5k/*.off`` and ``.../corres/<shape>.vts``
- GeomFMaps (Donati et al. 2020): ``<NAME>_r/*.off`` (or ``off/``) and ``<NAME>_r_vts/<shape>.vts``
  (or ``corres/``)

Line t of a ``.vts`` file is the 1-based vertex of its shape that is template point t. So template
point t of shape a corresponds to template point t of shape b, whatever the direction of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from geodl.data.fetch import Archive, Paths, locate
from geodl.data.files import read_mesh
from geodl.data.formats.base import table
from geodl.data.preprocess import UNIT_AREA, Preprocess
from geodl.data.source import Source
from geodl.errors import UserError
from geodl.shape import Shape
from geodl.spec import DataSpec, Item

ARCHIVES = {
    "faust_r": Archive(
        "faust_r.tar.xz", "56d709b29e409b7d97b75ce7c6bfc491450cb40370c7a812dbc7c4a7659fdb5c"
    )
}
SGA18 = {
    "faust_r": "FAUST",
    "scape_r": "SCAPE",
    "shrec19_r": "SHREC19",
    "tosca": "TOSCA_Isometric",
    "tosca_noniso": "TOSCA_nonIsometric",
}
WORDS = (
    "get the re-meshed set from GeomFMaps (github.com/LIX-shape-analysis/GeomFmaps) or from "
    "github.com/llorz/SGA18_orientation_BCICP_dataset (research only; the licence of the original "
    "scans applies) so that its .off and .vts files lie in it"
)
# How many shapes, in the order of their names, are training shapes; the next ones are test shapes.
TRAIN = {"faust_r": (80, 20), "scape_r": (51, 20), "shrec19_r": (0, 44)}


class Remeshed(Source):
    """A re-meshed matching set: FAUST_r, SCAPE_r, SHREC19_r, TOSCA (isometric or not).

    Splits go by the order of the names: FAUST 80 / 20, SCAPE 51 / 20; SHREC19 and TOSCA are for
    testing, and all of them stands in both splits (an axiomatic method has nothing to train;
    training on test shapes is refused). Pairs: every unordered pair of test shapes, from the first
    to the second (190 for FAUST); every ordered pair of training shapes (6,320). TOSCA's are those
    of its ``test_pairs.txt`` (285, and 95 of a gorilla and a person), or without this file all
    pairs of one animal, or of two. Shapes have unit area.

    Source: Ren, Poulenard, Wonka, Ovsjanikov 2018; Donati, Sharma, Ovsjanikov 2020.

    Args:
        name: "faust_r", "scape_r", "shrec19_r", "tosca" or "tosca_noniso".
        train_pairs: train on so many of the ordered pairs, a seeded sample; null: all.
    """

    def __init__(
        self,
        paths: Paths,
        name: Literal["faust_r", "scape_r", "shrec19_r", "tosca", "tosca_noniso"] = "faust_r",
        preprocess: Preprocess = UNIT_AREA,
        train_pairs: int | None = None,
    ) -> None:
        super().__init__(paths)
        if train_pairs is not None and train_pairs < 1:
            raise UserError(f"data.train_pairs={train_pairs} must be 1 or more, or null.")
        self.train_pairs = train_pairs
        if name not in SGA18:
            raise UserError(f"data.name={name} is not known: choose {', '.join(SGA18)}.")
        self.set_name: str = name
        self.preprocess = preprocess

    @cached_property
    def root(self) -> Path:
        archives = (ARCHIVES[self.set_name],) if self.set_name in ARCHIVES else ()
        return locate(self.set_name, self.paths, archives, (), WORDS)

    @cached_property
    def folders(self) -> tuple[Path, Path]:
        """Of the meshes and of the .vts files, in whichever layout is there."""
        sga = SGA18[self.set_name]
        short = sga.split("_")[0]
        choices = [
            (f"Dataset/{sga}/vtx_5k", f"Dataset/{sga}/vtx_5k/corres"),
            (f"{sga}/vtx_5k", f"{sga}/vtx_5k/corres"),
            (f"{short}_r", f"{short}_r_vts"),
            (f"{short}_r/off", f"{short}_r/corres"),
            ("off", "corres"),
        ]
        for meshes, maps in choices:
            pair = self.root / meshes, self.root / maps
            if any(pair[0].glob("*.off")) and pair[1].is_dir():
                return pair
        looked = " or ".join(meshes for meshes, _ in choices[:4:2])
        raise UserError(f"{self.root} has no meshes in {looked}: {WORDS}.")

    @cached_property
    def spec(self) -> DataSpec:  # pyright: ignore[reportIncompatibleVariableOverride]
        first = self._names[0]
        count = len(self._vts(first))
        official = "-official" if self._official else ""
        return DataSpec(landmarks=count, up="y", protocol=f"{self.set_name}-pairs{official}")

    @cached_property
    def _names(self) -> list[str]:
        return sorted(f.stem for f in self.folders[0].glob("*.off"))

    def splits(self) -> dict[str, list[Item]]:
        if self.set_name.startswith("tosca"):
            items = [Item(n) for n in self._names]
            return {"train": items, "test": items}
        train, test = TRAIN[self.set_name]
        if len(self._names) < train + test:
            raise UserError(
                f"{self.folders[0]} has {len(self._names)} meshes, expected {train + test}: "
                f"{WORDS}."
            )
        items = [Item(n) for n in self._names]
        return {"train": items[:train] or items, "test": items[train : train + test]}

    @cached_property
    def _official(self) -> set[frozenset[str]]:
        """TOSCA's own pairs of names, if they are there."""
        file = self.folders[0].parent / "test_pairs.txt"
        if not (self.set_name.startswith("tosca") and file.is_file()):
            return set()
        return {frozenset(line.split()) for line in file.read_text().splitlines()}

    def pairs(self, items: Sequence[Item], split: str) -> list[tuple[Item, Item]]:
        pairs = super().pairs(items, split)
        if self._official:
            return [(a, b) for a, b in pairs if frozenset((a.name, b.name)) in self._official]
        if self.set_name.startswith("tosca"):
            one = self.set_name == "tosca"
            return [(a, b) for a, b in pairs if (_animal(a) == _animal(b)) == one]
        if split != "train" or not self.train_pairs or self.train_pairs >= len(pairs):
            return pairs
        chosen = np.random.default_rng(0).choice(len(pairs), self.train_pairs, replace=False)
        return [pairs[i] for i in sorted(chosen)]

    def _vts(self, name: str) -> NDArray[np.int64]:
        file = self.folders[1] / f"{name}.vts"
        if not file.is_file():
            raise UserError(f"{file} does not exist: every mesh needs its .vts file.")
        return read_vts(file)

    def landmarks(self, name: str) -> NDArray[np.float64]:
        """The template points (t 3) of a shape, as its file has it."""
        shape = self.read(Item(name))
        return shape.pos[shape.landmark].double().numpy()

    def read(self, item: Item) -> Shape:
        pos, face = read_mesh(self.folders[0] / f"{item.name}.off")
        landmark = self._vts(item.name)
        file = self.folders[1] / f"{item.name}.vts"
        outside = np.flatnonzero((landmark < 0) | (landmark >= len(pos)))
        if len(outside):
            line = int(outside[0])
            raise UserError(
                f"{file}, line {line + 1}: vertex {landmark[line] + 1} does not exist, {item.name} "
                f"has {len(pos)} (from 1): is it the .vts file of another mesh?"
            )
        if len(landmark) != self.spec.landmarks:
            raise UserError(
                f"{file} has {len(landmark)} lines, the others have {self.spec.landmarks}: is it "
                "whole?"
            )
        shape = Shape(pos=torch.from_numpy(pos), face=torch.from_numpy(face))
        return shape.replace(landmark=torch.from_numpy(landmark))


def _animal(item: Item) -> str:
    """cat of cat10, gorilla of 8_gorilla_01."""
    return item.name.strip("0123456789_")


def read_vts(file: Path) -> NDArray[np.int64]:
    """Template point -> vertex, from 0.

    Raises:
        UserError: a line that is no whole number; it names the line.
    """
    lines = file.read_text().split("\n")
    whole = table([line for line in lines if line.strip()], 1, np.int64)
    if whole is not None:
        return whole[:, 0] - 1
    numbers: list[int] = []
    for i, line in enumerate(lines, 1):
        if line.strip():
            try:
                numbers.append(int(float(line)) - 1)
            except ValueError:
                raise UserError(f"{file}, line {i}: {line[:20]!r} is no vertex number.") from None
    return np.array(numbers, np.int64)


class FAUST(Source):
    """MPI-FAUST's 100 training registrations: 6,890 vertices, the vertex number is the
    correspondence. Shapes 0-79 train, 80-99 test.

    Source: Bogo, Romero, Loper, Black 2014.
    """

    WORDS: ClassVar[str] = (
        "register at faust.is.tue.mpg.de, accept the licence (research only) and unpack the "
        "training registrations so that tr_reg_000.ply to tr_reg_099.ply lie in it"
    )

    def __init__(
        self,
        paths: Paths,
        preprocess: Preprocess = UNIT_AREA,
    ) -> None:
        super().__init__(paths)
        self.preprocess = preprocess
        self.spec = DataSpec(landmarks=6890, up="y", protocol="faust-pairs")

    @cached_property
    def root(self) -> Path:
        return locate("faust", self.paths, (), ("tr_reg_000.ply", "tr_reg_099.ply"), self.WORDS)

    def splits(self) -> dict[str, list[Item]]:
        items = [Item(f"tr_reg_{i:03d}") for i in range(100) if self.root]
        return {"train": items[:80], "test": items[80:]}

    def read(self, item: Item) -> Shape:
        file = self.root / f"{item.name}.ply"
        pos, face = read_mesh(file)
        if len(pos) != 6890:
            raise UserError(
                f"{file} has {len(pos)} vertices, expected 6,890: is it a registration?"
            )
        shape = Shape(pos=torch.from_numpy(pos), face=torch.from_numpy(face))
        return shape.replace(landmark=torch.arange(6890))
