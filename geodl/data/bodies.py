"""The bodies of FAUST, re-meshed, on one mesh."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from geodl.data.correspondence import Remeshed
from geodl.data.fetch import Paths
from geodl.data.files import read_mesh
from geodl.data.registered import Mesh, RegisteredData
from geodl.errors import UserError
from geodl.ops.cache import Arrays, digest
from geodl.ops.check import repair
from geodl.ops.geometry import Backend
from geodl.ops.remesh import remesh
from geodl.spec import Item

NEAR = 6  # template points that a vertex follows


class Bodies(RegisteredData):
    """Ten people in ten poses in correspondence: people 0 to 7 to train, 8 and 9 to test.

    The mesh is an even one of the first body. Its vertices follow the template points of FAUST_r
    around them (the six nearest, by inverse distance) from body to body, so shapes are a little
    smoother than the scans. The files' unit is not known, and a body is about one unit high:
    "millimetres" are thousandths of that.

    Source: Bogo, Romero, Loper, Black 2014; Ren, Poulenard, Wonka, Ovsjanikov 2018 (see
    ``data=faust_r``).

    Args:
        vertices: of the mesh, about.
    """

    millimetres = 1000.0

    def __init__(self, paths: Paths, vertices: int = 1000, backend: Backend = "cotan") -> None:
        super().__init__(paths, None, backend)
        if vertices < 50:
            raise UserError(f"data.vertices={vertices}: a body has 50 or more.")
        self.about = vertices
        self.scans = Remeshed(paths)
        self.protocol = f"faust-bodies-{vertices}v"

    @property
    def first(self) -> str:
        """The body that the mesh is of."""
        return self.splits()["train"][0].name

    @cached_property
    def _mesh(self) -> tuple[Arrays, NDArray[np.int64], NDArray[np.float64]]:
        """The mesh on the first body, and which template points its vertices follow, by how much
        (v 6)."""
        pos, face = read_mesh(self.scans.folders[0] / f"{self.first}.off")

        def make() -> Arrays:
            even = repair(*remesh(pos, face, self.about, np.random.default_rng(0)))
            return {"pos": even.pos, "face": even.face}

        mesh = self.cache.get("bodies", digest("bodies", 1, self.about, pos, face), make)
        far, near = KDTree(self.scans.landmarks(self.first)).query(mesh["pos"], NEAR)
        weight = 1 / (far + 1e-6 * np.ptp(pos))
        return mesh, np.asarray(near, np.int64), weight / weight.sum(1, keepdims=True)

    def mesh(self) -> Mesh:
        return self._placed(self.first), self._mesh[0]["face"].astype(np.int64)

    def vertices_of(self, item: Item) -> NDArray[np.floating]:
        return self._placed(item.name)[self.selected[0]]

    def _placed(self, name: str) -> NDArray[np.float64]:
        """The mesh's vertices on a body."""
        _, near, weight = self._mesh
        return (self.scans.landmarks(name)[near] * weight[..., None]).sum(1)

    def person(self, item: Item) -> str:
        return item.name[:-1]  # tr_reg_083: the person 8 in pose 3

    def splits(self) -> dict[str, list[Item]]:
        return self.scans.splits()
