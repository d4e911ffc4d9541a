"""RNA surfaces, labelled per vertex (Poulenard et al. 2019)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from geodl.data.fetch import Archive, Paths, locate
from geodl.data.files import read_labels, read_mesh
from geodl.data.preprocess import UNIT_RADIUS, Preprocess
from geodl.data.source import Source
from geodl.errors import UserError
from geodl.shape import Shape
from geodl.spec import DataSpec, Item

SUBSET = Archive(
    "rna_subset.tar.xz",
    "ff32d0d808b45ccf4efd7440bdb4006adfba04a9de8539f23d734abef0413e9b",
    top="rna",
)
WORDS = (
    "clone github.com/nmwsharp/RNA-Surface-Segmentation-Dataset there (off/, labels/, train.txt, "
    "test.txt)"
)


class RNA(Source):
    """Molecular surfaces of about 15,000 vertices, 260 labels per vertex.

    Labels in the files run from -1 to 258; one is added, so that -1 becomes class 0, which is
    trained and scored as in diffusion-net's code. The full set has 547 training and 136 test
    molecules; the protocol says how many were at hand. No validation split: last epoch.
    """

    def __init__(
        self,
        paths: Paths,
        preprocess: Preprocess = UNIT_RADIUS,
    ) -> None:
        super().__init__(paths)
        self.preprocess = preprocess
        self.spec = DataSpec(
            parts=tuple(f"{i - 1}" for i in range(260)),
            label_on="vertex",
            up="y",
            protocol="rna-vertices",
        )

    @property
    def root(self) -> Path:
        contents = ("off", "labels", "train.txt", "test.txt")
        return locate("rna", self.paths, (SUBSET,), contents, WORDS)

    def splits(self) -> dict[str, list[Item]]:
        root = self.root
        splits: dict[str, list[Item]] = {}
        for split in ("train", "test"):
            names = (root / f"{split}.txt").read_text().split()
            for name in names:
                if not (root / "off" / name).is_file():
                    raise UserError(f"{root}/off lacks {name}, which {split}.txt names: {WORDS}.")
            splits[split] = [Item(Path(n).stem) for n in names]
        counts = f"{len(splits['train'])}/{len(splits['test'])}"
        self.spec = replace(self.spec, protocol=f"rna-vertices-{counts}")
        return splits

    def read(self, item: Item) -> Shape:
        root = self.root
        pos, face = read_mesh(root / "off" / f"{item.name}.off")
        file = root / "labels" / f"{item.name}.txt"
        labels = read_labels(file) + 1
        if len(labels) != len(pos):
            raise UserError(
                f"{file} has {len(labels)} lines, but the mesh has {len(pos)} vertices."
            )
        if labels.min() < 0 or labels.max() > 259:
            raise UserError(f"{file} has labels outside -1 to 258.")
        return Shape(
            pos=torch.from_numpy(pos), face=torch.from_numpy(face), label=torch.from_numpy(labels)
        )
