"""Faces sampled from ICT-FaceKit: identities, expressions and a jaw that rotates."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from geodl.data.fetch import Archive, Paths, locate
from geodl.data.morphable import ict_modes, read_vertices
from geodl.data.registered import Mesh, RegisteredData, turned
from geodl.errors import UserError
from geodl.ops.cache import Arrays, digest
from geodl.ops.geometry import Backend
from geodl.spec import Item, item_seed

ARCHIVE = Archive(
    "ict_facekit.tar.xz", "5f286afa0a0db411b1a4b4c5559171ae9b5aa400dcc36c9489a444e1e30bbb40"
)
WORDS = (
    "get ICT-FaceKit (github.com/ICT-VGL/ICT-FaceKit, MIT licence) and copy its folder FaceXModel "
    "into it"
)
# Vertices and quads of the regions, from ICT-FaceKit's documentation.
REGIONS = {"narrow": (6706, 6560), "face": (9409, 9230), "head": (26719, None)}
OPENING = 40.0  # the widest, degrees
HINGE = np.array([0.0, 1.0, 2.5])  # cm; the jaw's axis, just before the ears
# Expressions that the family leaves to the jaw's rotation, or that move the eyes alone.
LEFT_OUT = ("jaw", "mouthClose", "eyeLook", "PupilDilate")


class ICTFaces(RegisteredData):
    """A seeded sample of faces in correspondence, in millimetres.

    Family "jaw" (default): identity modes with normal weights; two expressions at once, left and
    right together, with weights in [0, 1]; then the jaw turns about its axis, opening by up to
    ``opening`` degrees, to the sides and askew. The share of the rotation that a vertex takes is
    that of its displacement in the model's own "jawOpen". Turning and choosing expressions are not
    linear, so a linear model is not enough. Family "linear", the control: the same identities, all
    expressions at once with normal weights, the jaw opening along a straight line; a PCA is
    near-optimal.

    Source: Li et al.: Learning formation of physically-based face attributes, CVPR 2020
    (ICT-FaceKit).

    Args:
        family: "jaw" or "linear".
        region: "narrow" (6,706 vertices), "face" (9,409) or "head" (26,719).
        vertices: simplify to this many vertices, or null.
        train, test: numbers of shapes; identities never repeat.
        identities: how many of the identity modes are drawn, the first ones.
        opening: degrees.
        sample_seed: another seed, other faces.
    """

    millimetres = 10.0  # files are in cm
    key: ClassVar[tuple[Any, ...]] = ("ict", 1)  # of what is kept of the model

    def __init__(
        self,
        paths: Paths,
        family: Literal["jaw", "linear"] = "jaw",
        region: Literal["narrow", "face", "head"] = "narrow",
        vertices: int | None = 5000,
        train: int = 1500,
        test: int = 200,
        identities: int = 100,
        opening: float = OPENING,
        sample_seed: int = 0,
        backend: Backend = "cotan",
    ) -> None:
        super().__init__(paths, vertices, backend)
        if family not in ("jaw", "linear"):
            raise UserError(f"data.family={family} is not known: choose jaw or linear.")
        if region not in REGIONS:
            raise UserError(f"data.region={region} is not known: choose narrow, face or head.")
        if train < 1 or test < 1 or not 1 <= identities <= 100:
            raise UserError("data.train and data.test must be 1 or more, data.identities 1 to 100.")
        self.family, self.region = family, region
        self.counts = {"train": train, "test": test}
        self.identities, self.opening, self.sample_seed = identities, opening, sample_seed
        size = f"{vertices or 'all'}v"
        more = f"-opening{opening:g}" if opening != OPENING and family == "jaw" else ""
        more += f"-{sample_seed}" if sample_seed else ""
        self.protocol = f"ict-{family}-{region}-{size}-{identities}id-{train}/{test}{more}"

    @cached_property
    def root(self) -> Path:
        files = ("FaceXModel/generic_neutral_mesh.obj", "FaceXModel/identity099.obj")
        return locate("ict_facekit", self.paths, (ARCHIVE,), files, WORDS) / "FaceXModel"

    def mesh(self) -> Mesh:
        neutral = self.root / "generic_neutral_mesh.obj"
        count, quads = REGIONS[self.region]
        with neutral.open() as stream:
            polygons = [line.split()[1:] for line in stream if line.startswith("f ")][:quads]
        corners = [[int(w.split("/")[0]) - 1 for w in polygon] for polygon in polygons]
        face = [[p[0], p[i], p[i + 1]] for p in corners for i in range(1, len(p) - 1)]
        return read_vertices(neutral)[:count], np.array(face, np.int64)

    @cached_property
    def model(self) -> Arrays:
        """neutral (v 3), identity (100 v 3), expression (e v 3), jaw (v 3): displacements at the
        kept vertices, in cm; a copy is kept in the cache, because 154 text files take seconds."""
        kept = self.selected[0]

        def make() -> Arrays:
            neutral = read_vertices(self.root / "generic_neutral_mesh.obj")
            identities, expressions = ict_modes(self.root)
            moved = {f.stem: read_vertices(f)[kept] - neutral[kept] for f in expressions}
            modes = np.stack([read_vertices(f)[kept] - neutral[kept] for f in identities])
            return {
                "neutral": neutral[kept],
                "identity": modes,
                "expression": np.stack(self.chosen(moved)),
                "jaw": moved["jawOpen"],
            }

        return self.cache.get("ict", digest(*self.key, kept), make)

    def chosen(self, moved: dict[str, NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        """The displacements (v 3) that expressions are made of, from those of the model by name:
        here left and right together, without the jaw and the eyes."""
        pairs: dict[str, Any] = {}
        for name, displacement in moved.items():
            base = name.removesuffix("_L").removesuffix("_R")
            if not base.startswith(LEFT_OUT):
                pairs[base] = pairs.get(base, 0) + displacement
        return list(pairs.values())

    def splits(self) -> dict[str, list[Item]]:
        return {
            split: [Item(f"{split}-{i:04d}") for i in range(n)] for split, n in self.counts.items()
        }

    def vertices_of(self, item: Item) -> NDArray[np.floating]:
        return self.sample(np.random.default_rng([self.sample_seed, item_seed(item.name)]))

    def sample(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """One face (v 3), in cm."""
        model = self.model
        expression = model["expression"]
        weights = rng.standard_normal(self.identities)
        pos = model["neutral"] + np.tensordot(weights, model["identity"][: self.identities], 1)
        if self.family == "linear":
            pos = pos + np.tensordot(0.25 * rng.standard_normal(len(expression)), expression, 1)
            return pos + 0.4 * rng.standard_normal() * model["jaw"]
        for chosen in rng.choice(len(expression), 2, replace=False):
            pos = pos + rng.uniform() * expression[chosen]
        turn = rng.uniform([0.0, -20.0, -15.0], [self.opening, 20.0, 15.0])
        return turned(pos, self.jaw_share, np.radians(turn), HINGE)

    @cached_property
    def jaw_share(self) -> NDArray[np.float64]:
        """The share (v), 0 to 1, of the jaw's rotation that every vertex takes: its displacement in
        "jawOpen" over that of a rigid rotation of the same size."""
        moved = np.linalg.norm(self.model["jaw"], axis=1)
        arm = np.linalg.norm((self.model["neutral"] - HINGE)[:, 1:], axis=1)
        share = moved / np.maximum(arm, 1e-9)
        # The chin moves as one: the vertices that move most define a full share.
        return (share / np.median(share[moved > 0.8 * moved.max()])).clip(0.0, 1.0)
