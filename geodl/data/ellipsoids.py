"""Ellipsoids in correspondence: the smallest family on which a parameterisation can mislead."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geodl.data.fetch import Paths
from geodl.data.registered import Mesh, RegisteredData
from geodl.errors import UserError
from geodl.ops.geometry import Backend
from geodl.spec import Item, item_seed


class Ellipsoids(RegisteredData):
    """Ellipsoids whose three half-axes are drawn between 50 and 100 mm, on one icosphere.

    Three numbers say everything about a shape, and the vertices depend on them linearly; what is
    left to get wrong is how the surface is triangulated.

    Paper: Besnier, Arguillere, Pierson, Daoudi: Parameterization robustness of 3D auto-encoders,
    3DOR 2022 (ellipses, 900 / 100). Differs: ranges and mesh are this project's own.

    Args:
        train, test: numbers of shapes.
        subdivisions: of the icosahedron (3: 642 vertices).
        sample_seed: another seed, other shapes.
    """

    protocol = ""

    def __init__(
        self,
        paths: Paths,
        train: int = 900,
        test: int = 100,
        subdivisions: int = 3,
        sample_seed: int = 0,
        backend: Backend = "cotan",
    ) -> None:
        super().__init__(paths, None, backend)
        if min(train, test) < 1 or not 1 <= subdivisions <= 6:
            raise UserError(
                f"data.train={train} and data.test={test} must be 1 or more, "
                f"data.subdivisions={subdivisions} between 1 and 6."
            )
        self.counts = {"train": train, "test": test}
        self.subdivisions, self.sample_seed = subdivisions, sample_seed
        vertices = 10 * 4**subdivisions + 2
        self.protocol = f"ellipsoids-{vertices}v-{train}/{test}-seed{sample_seed}"

    def mesh(self) -> Mesh:
        import trimesh

        sphere = trimesh.creation.icosphere(self.subdivisions)
        self._directions = np.asarray(sphere.vertices, np.float64)
        return 75.0 * self._directions, np.asarray(sphere.faces, np.int64)

    def splits(self) -> dict[str, list[Item]]:
        return {s: [Item(f"{s}-{i:04d}") for i in range(n)] for s, n in self.counts.items()}

    def vertices_of(self, item: Item) -> NDArray[np.float64]:
        kept = self.selected[0]  # of the icosphere, which this also makes
        rng = np.random.default_rng([self.sample_seed, item_seed(item.name)])
        return self._directions[kept] * rng.uniform(50.0, 100.0, 3)
