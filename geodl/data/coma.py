"""CoMA: 20,466 registered face scans of 12 people making 12 extreme expressions."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from geodl.data.fetch import Paths, locate
from geodl.data.files import read_mesh
from geodl.data.registered import Mesh, RegisteredData, same_topology
from geodl.errors import UserError
from geodl.ops.geometry import Backend
from geodl.spec import Item

PEOPLE = (
    "FaceTalk_170725_00137_TA",
    "FaceTalk_170728_03272_TA",
    "FaceTalk_170731_00024_TA",
    "FaceTalk_170809_00138_TA",
    "FaceTalk_170811_03274_TA",
    "FaceTalk_170811_03275_TA",
    "FaceTalk_170904_00128_TA",
    "FaceTalk_170904_03276_TA",
    "FaceTalk_170908_03277_TA",
    "FaceTalk_170912_03278_TA",
    "FaceTalk_170913_03279_TA",
    "FaceTalk_170915_00223_TA",
)
EXPRESSIONS = (
    "bareteeth",
    "cheeks_in",
    "eyebrow",
    "high_smile",
    "lips_back",
    "lips_up",
    "mouth_down",
    "mouth_extreme",
    "mouth_middle",
    "mouth_open",
    "mouth_side",
    "mouth_up",
)
WORDS = (
    "register at coma.is.tue.mpg.de, accept the licence (research only, no redistribution) and "
    "unpack the registered data so that FaceTalk_*_TA/<expression>/*.ply lie in it"
)


class CoMA(RegisteredData):
    """Official folders ``FaceTalk_*_TA/<expression>/*.ply`` (5,023 vertices, in metres).

    The authors' "interpolation" split takes 10 consecutive files of every 100 in the order of an
    *unsorted* listing, which differs from disk to disk; here the order is by person, expression
    and frame, so the split is the same everywhere (and not exactly anybody else's). The last epoch
    counts: the original's validation shapes are training shapes.

    Source: Ranjan, Bolkart, Sanyal, Black: Generating 3D faces using convolutional mesh
    autoencoders, ECCV 2018.

    Args:
        split: "interpolation"; "expression": all people, one expression ``held_out``; "identity":
            one person ``held_out``, by number 0 to 11.
        held_out: name of the expression or number of the person that is the test set.
        vertices: simplify to this many vertices, or null.
    """

    millimetres = 1000.0

    def __init__(
        self,
        paths: Paths,
        split: Literal["interpolation", "expression", "identity"] = "interpolation",
        held_out: str | int = "bareteeth",
        vertices: int | None = None,
        backend: Backend = "cotan",
    ) -> None:
        super().__init__(paths, vertices, backend)
        if split not in ("interpolation", "expression", "identity"):
            raise UserError(
                f"data.split={split} is not known: choose interpolation, expression or identity."
            )
        known = EXPRESSIONS if split == "expression" else range(len(PEOPLE))
        if split != "interpolation" and held_out not in known:
            raise UserError(
                f"data.held_out={held_out} is no {split}: choose one of "
                f"{', '.join(map(str, known))}."
            )
        self.split, self.held_out = split, held_out
        rest = "" if split == "interpolation" else f"-{held_out}"
        self.protocol = f"coma-{split}{rest}" + (f"-{vertices}v" if vertices else "")

    @cached_property
    def root(self) -> Path:
        return locate("coma", self.paths, (), PEOPLE, WORDS)

    @cached_property
    def files(self) -> list[Path]:
        """By person, expression and frame."""
        found = [
            f
            for p in PEOPLE
            for e in EXPRESSIONS
            for f in sorted((self.root / p / e).glob("*.ply"))
        ]
        if not found:
            raise UserError(f"{self.root} has no .ply files: {WORDS}.")
        return found

    @cached_property
    def _template(self) -> Mesh:
        return read_mesh(self.files[0])

    def mesh(self) -> Mesh:
        return self._template

    def vertices_of(self, item: Item) -> NDArray[np.floating]:
        file = self.root / item.name
        pos, face = read_mesh(file)
        same_topology(file, pos, face, self._template)
        return pos[self.selected[0]]

    def splits(self) -> dict[str, list[Item]]:
        splits: dict[str, list[Item]] = {"train": [], "test": []}
        for i, file in enumerate(self.files):
            person, expression = file.parts[-3:-1]
            if self.split == "interpolation":
                test = i % 100 < 10
            elif self.split == "expression":
                test = expression == self.held_out
            else:
                test = PEOPLE.index(person) == self.held_out
            name = str(file.relative_to(self.root))
            splits["test" if test else "train"].append(Item(name))
        return splits
