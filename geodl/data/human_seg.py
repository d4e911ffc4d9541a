"""Human-body segmentation (Maron et al. 2017) in MeshCNN's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from geodl.carry import edges_of
from geodl.data.fetch import Archive, Paths, locate
from geodl.data.files import read_labels, read_mesh, read_numbers
from geodl.data.preprocess import UNIT_RADIUS, BadShape, Preprocess
from geodl.data.source import Source, checked_in_split
from geodl.errors import UserError
from geodl.ops.geometry import face_areas
from geodl.shape import Operators, Shape
from geodl.spec import EDGE, DataSpec, Field, Item

PARTS = ("head", "hand", "lower arm", "upper arm", "torso", "thigh", "calf", "foot")  # labels 1-8
ARCHIVE = Archive(
    "human_seg.tar.xz",
    "47ad32b8c8c1d549fef4e1269c5f02e7fd6f58a55f5f4f1011f335cce0fbb7e1",
    top="human_seg",
)
WORDS = (
    "unpack MeshCNN's human_seg (its scripts/human_seg/get_data.sh, research use only) so that "
    "train/*.obj, test/*.obj, seg/*.eseg and sseg/*.seseg lie in it"
)

# The benchmark's edges have fields of their own: they stay where samples stand in for the mesh.
EDGES = {
    "edge": EDGE,
    "edge_face": Field("label_edge", "index", into="label"),
    "edge_label": Field("label_edge"),
    "edge_soft": Field("label_edge"),
    "edge_area": Field("label_edge", scale=2),
}


class HumanSeg(Source):
    """381 training and 18 test bodies of about 750 vertices, 8 parts.

    Labels in the files are per edge. A face's label is the majority of its three edges, the
    smallest on a tie; faces are what is trained on and predicted, and the three published
    accuracies (face, hard edge, soft edge) are all taken from that one prediction. Source: Maron et
    al. 2017, simplified by Hanocka et al. 2019 (MeshCNN). No validation split: last epoch.

    Args:
        label_on: "edge" trains on the files' own labels and predicts those; null: faces.
    """

    def __init__(
        self,
        paths: Paths,
        preprocess: Preprocess = UNIT_RADIUS,
        label_on: Literal["face", "edge"] | None = None,
    ) -> None:
        super().__init__(paths)
        if label_on not in ("face", "edge", None):
            raise UserError(f"data.label_on={label_on} is not known: choose face or edge.")
        self.preprocess = preprocess
        protocol = "human_seg-meshcnn-381/18" + ("-edges" if label_on == "edge" else "")
        self.spec = DataSpec(parts=PARTS, label_on=label_on or "face", up="y", protocol=protocol)

    @property
    def root(self) -> Path:
        return locate("human_seg", self.paths, (ARCHIVE,), ("train", "test", "seg", "sseg"), WORDS)

    def splits(self) -> dict[str, list[Item]]:
        root = self.root
        splits: dict[str, list[Item]] = {}
        for split, names in checked_in_split("human_seg").items():
            present = {p.stem for p in (root / split).glob("*.obj")}
            # MeshCNN's own archive names some files differently: any complete set is accepted.
            if missing := sorted(set(names) - present):
                if len(present) != len(names):
                    raise UserError(
                        f"{root / split} has {len(present)} meshes and lacks {missing[0]}.obj, "
                        f"expected {len(names)}: {WORDS}."
                    )
                names = sorted(present)
            splits[split] = [Item(n, None, f"{split}/{n}.obj") for n in names]
        return splits

    def read(self, item: Item) -> Shape:
        root = self.root
        path = root / str(item.source)
        pos, face = read_mesh(path)
        label_file = root / "seg" / f"{item.name}.eseg"
        labels = read_labels(label_file) - 1
        soft_file = root / "sseg" / f"{item.name}.seseg"
        soft = read_numbers(soft_file, " ".join(map(str, range(1, len(PARTS) + 1))))
        faces = torch.from_numpy(face)
        edge, face_edge = edges_of(faces)
        if len(labels) != len(edge):
            raise UserError(
                f"{label_file} has {len(labels)} lines, but {path.name} has {len(edge)} edges: the "
                "two do not belong together."
            )
        if labels.min() < 0 or labels.max() >= len(PARTS):
            raise UserError(f"{label_file} has labels outside 1 to {len(PARTS)}.")
        if len(soft) != len(edge):
            raise UserError(f"{soft_file} has {len(soft)} lines, expected {len(edge)}.")
        votes = np.eye(len(PARTS), dtype=np.int64)[labels[face_edge.numpy()]].sum(1)
        sides = face_edge.numpy().reshape(-1)
        owner = np.repeat(np.arange(len(face)), 3)
        order = np.argsort(sides, kind="stable")
        counts = np.bincount(sides, minlength=len(edge))
        if counts.max() > 2:
            raise BadShape(f"{int((counts > 2).sum())} non-manifold edges")
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        edge_face = np.stack([owner[order][first], owner[order][first + counts - 1]], axis=1)
        area = np.bincount(sides, face_areas(pos, face)[owner] / 3, len(edge))
        values = {
            "edge": edge,
            "edge_face": torch.from_numpy(edge_face),
            "edge_label": torch.from_numpy(labels),
            "edge_soft": torch.from_numpy((soft > 0).astype(np.float32)),
            "edge_area": torch.from_numpy(area.astype(np.float32)),
        }
        fields = EDGES
        label = torch.from_numpy(votes.argmax(1))
        if self.spec.label_on == "edge":
            label = values["edge_label"]
            fields = {n: EDGES[n] for n in ("edge", "edge_soft", "edge_area")}
        return Shape(
            pos=torch.from_numpy(pos),
            face=faces,
            label=label,
            ops=Operators({n: values[n] for n in fields}, fields),
        )
