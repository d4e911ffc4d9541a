"""Generated heads in correspondence: identity times expression, with a jaw that turns."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from geodl.data.fetch import Paths
from geodl.data.registered import Mesh, RegisteredData, turned
from geodl.errors import UserError
from geodl.ops.geometry import Backend
from geodl.spec import Item, item_seed

SIZES = {"tiny": (3, 32, 8), "small": (3, 200, 40), "standard": (4, 800, 100)}
IDENTITY, EXPRESSION = 3, 6  # parameters
HINGE = np.array([0.0, 0.05, 0.1])  # of the jaw, in head radii


class Heads(RegisteredData):
    """The embedded default for faces: smooth deformations of a sphere, made from a seed, offline.

    A head is an ellipsoid with a nose, eye sockets, cheeks, lips and ears; three normal weights
    change its proportions, one of six expressions is on it, more or less (brows, cheeks, lips,
    smile, sneer, squint), and the jaw turns about its axis, opening by up to 70 degrees and to the
    sides. Choosing and turning are not linear: a PCA needs many more components than there are
    parameters (six). Coordinates
    are in millimetres; heads are about 230 mm high.

    Args:
        size: "tiny" (642 vertices, 32 + 8 heads), "small" (642, 200 + 40) or "standard" (2,562,
            800 + 100).
        sample_seed: another seed, other heads.
    """

    protocol = ""

    def __init__(
        self,
        paths: Paths,
        size: Literal["tiny", "small", "standard"] = "small",
        sample_seed: int = 0,
        backend: Backend = "cotan",
    ) -> None:
        super().__init__(paths, None, backend)
        if size not in SIZES:
            raise UserError(f"data.size={size} is not known: choose tiny, small or standard.")
        self.size, self.sample_seed = size, sample_seed
        self.protocol = f"heads-{size}-seed{sample_seed}"

    def mesh(self) -> Mesh:
        import trimesh

        sphere = trimesh.creation.icosphere(SIZES[self.size][0])
        self._directions = np.asarray(sphere.vertices, np.float64)
        neutral = head(self._directions, np.zeros(IDENTITY), np.zeros(EXPRESSION), np.zeros(3))
        return neutral, np.asarray(sphere.faces, np.int64)

    def splits(self) -> dict[str, list[Item]]:
        _, train, test = SIZES[self.size]
        return {
            split: [Item(f"{split}-{i:04d}") for i in range(n)]
            for split, n in (("train", train), ("test", test))
        }

    def vertices_of(self, item: Item) -> NDArray[np.float64]:
        kept = self.selected[0]
        rng = np.random.default_rng([self.sample_seed, item_seed(item.name)])
        turn = np.radians(rng.uniform([0.0, -35.0, 0.0], [70.0, 35.0, 0.0]))
        identity, expression = rng.standard_normal(IDENTITY), np.zeros(EXPRESSION)
        expression[rng.integers(EXPRESSION)] = 2.0 * rng.random()
        return head(self._directions[kept], identity, expression, turn)


def bump(d: NDArray[np.float64], at: tuple[float, float, float], width: float) -> NDArray[Any]:
    """A smooth bump (v) on the sphere about a direction, one at its middle."""
    middle = np.array(at) / np.linalg.norm(at)
    return np.exp((d @ middle - 1.0) / width**2)


def head(
    d: NDArray[np.float64],
    identity: NDArray[np.float64],
    expression: NDArray[np.float64],
    turn: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Vertices (v 3) in millimetres for directions d (v 3): x to the left ear, y up, z forward."""
    width, height, depth = 0.07 * identity
    nose, jaw, brow = 0.06 * identity[[1, 2, 0]]
    cheek, ear = -0.04 * identity[:2]
    brows, puff, purse, smile, sneer, squint = expression

    def both(x: float, y: float, z: float, w: float) -> NDArray[np.float64]:
        return bump(d, (x, y, z), w) + bump(d, (-x, y, z), w)

    radius = 1.0 - 0.17 * both(0.30, 0.16, 0.94, 0.15)  # eye sockets
    for x in (-0.16, 0.0, 0.16):  # the line of the mouth
        radius -= 0.06 * bump(d, (x, -0.42, 0.9), 0.07)
    radius += (0.30 + nose) * bump(d, (0.0, -0.05, 1.0), 0.11)
    radius += 0.10 * bump(d, (0.0, -0.42, 0.9), 0.2) + (0.12 + 0.5 * jaw) * bump(
        d, (0, -0.8, 0.6), 0.3
    )
    radius += (0.08 + 0.6 * brow) * both(0.3, 0.38, 0.88, 0.16)
    radius += (0.03 + 0.6 * cheek) * both(0.55, -0.15, 0.8, 0.25)
    radius += (0.10 + ear) * both(1.0, 0.0, -0.05, 0.14)
    radius += 0.15 * puff * both(0.6, -0.35, 0.72, 0.25) + 0.05 * squint * both(0.45, 0.1, 0.9, 0.1)
    radius += 0.12 * purse * bump(d, (0.0, -0.38, 0.92), 0.12)
    pos = d * radius[:, None] * np.array([0.74 + width, 1.08 + height, 0.9 + depth])
    pos[:, 1] += 0.07 * brows * both(0.3, 0.42, 0.86, 0.18) + 0.05 * sneer * both(
        0.2, -0.1, 0.95, 0.12
    )
    pos[:, 1] += 0.08 * smile * both(0.3, -0.4, 0.87, 0.14)
    pos[:, 0] += (
        0.08 * smile * (bump(d, (0.3, -0.4, 0.87), 0.14) - bump(d, (-0.3, -0.4, 0.87), 0.14))
    )
    # The lower front of the head turns about the jaw's axis, with a smooth edge below the mouth.
    low = 1 / (1 + np.exp(18 * (d[:, 1] + 0.42))) * 1 / (1 + np.exp(-8 * (d[:, 2] - 0.1)))
    return 100.0 * turned(pos, low, turn, HINGE)
