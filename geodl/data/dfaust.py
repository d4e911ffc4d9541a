"""Dynamic FAUST: registered scans of ten moving people."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geodl.data.fetch import Paths, locate
from geodl.data.registered import Mesh, RegisteredData
from geodl.errors import UserError
from geodl.ops.geometry import Backend
from geodl.spec import Item

FILES = ("registrations_f.hdf5", "registrations_m.hdf5")
WORDS = (
    "register at dfaust.is.tue.mpg.de, accept the licence (research only) and put "
    "registrations_f.hdf5 and registrations_m.hdf5 into it"
)


class DFAUST(RegisteredData):
    """The official HDF5 files: one data set ``<subject>_<sequence>`` (6,890 x 3 x frames, metres)
    per sequence, and ``faces``.

    Source: Bogo, Romero, Pons-Moll, Black: Dynamic FAUST, CVPR 2017. Splits in the literature
    differ and are seldom published: here whole people are held out.

    Args:
        test_subjects: their sequences are the test set.
        every: take every how-many-th frame.
        vertices: simplify to this many vertices, or null.
    """

    millimetres = 1000.0

    def __init__(
        self,
        paths: Paths,
        test_subjects: list[str] | tuple[str, ...] = ("50009", "50027"),
        every: int = 10,
        vertices: int | None = None,
        backend: Backend = "cotan",
    ) -> None:
        super().__init__(paths, vertices, backend)
        if every < 1:
            raise UserError(f"data.every={every} must be 1 or more.")
        self.test_subjects, self.every = tuple(test_subjects), every
        held = "-".join(self.test_subjects)
        self.protocol = f"dfaust-{held}-every{every}" + (f"-{vertices}v" if vertices else "")

    @cached_property
    def root(self) -> Path:
        return locate("dfaust", self.paths, (), FILES, WORDS)

    def mesh(self) -> Mesh:
        import h5py

        with h5py.File(self.root / FILES[0], "r") as file:
            content: Any = file
            first = next(k for k in sorted(content) if k != "faces")
            return np.asarray(content[first][:, :, 0]), np.asarray(content["faces"], np.int64)

    def splits(self) -> dict[str, list[Item]]:
        import h5py

        splits: dict[str, list[Item]] = {"train": [], "test": []}
        for name in FILES:
            with h5py.File(self.root / name, "r") as file:
                content: Any = file
                for key in sorted(k for k in content if k != "faces"):
                    frames = content[key].shape[2]
                    split = "test" if key.split("_")[0] in self.test_subjects else "train"
                    splits[split] += [
                        Item(f"{key}/{t:05d}", None, (name, key, t))
                        for t in range(0, frames, self.every)
                    ]
        if not splits["train"] or not splits["test"]:
            known = sorted({i.name.split("_")[0] for s in splits.values() for i in s})
            raise UserError(
                f"data.test_subjects={list(self.test_subjects)} leaves no "
                f"{'training' if not splits['train'] else 'test'} shapes: choose some of "
                f"{', '.join(known)}."
            )
        return splits

    def vertices_of(self, item: Item) -> NDArray[np.floating]:
        import h5py

        name, key, frame = item.source
        with h5py.File(self.root / name, "r") as file:
            content: Any = file
            return np.asarray(content[key][:, :, frame], np.float64)[self.selected[0]]
