"""The input of every geometry function, and what is read straight off vertices and faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from numpy.typing import NDArray

Backend = Literal["cotan", "robust"]
CLOUD_NEIGHBORS = 30  # diffusion-net's neighbourhood of a point


@dataclass(frozen=True)
class Geometry:
    """Positions (v 3) and faces (f 3) of one shape; no faces: a point cloud.

    Positions are those of the float32 array that the model sees, in double precision, so that a
    cache hit and a fresh computation cannot differ.
    """

    pos: NDArray[np.float64]
    face: NDArray[np.int64]
    backend: Backend = "cotan"

    @classmethod
    def of(
        cls, pos: NDArray[np.floating], face: NDArray[np.integer], backend: Backend = "cotan"
    ) -> Geometry:
        return cls(
            np.ascontiguousarray(np.asarray(pos, np.float32), np.float64),
            np.ascontiguousarray(face, np.int64).reshape(-1, 3),
            backend,
        )

    @property
    def unit(self) -> float:
        """The length that the tolerances of the operators are meant in; see ``unit_of``."""
        return unit_of(self.pos)

    @property
    def is_cloud(self) -> bool:
        return len(self.face) == 0


def unit_of(pos: Float[np.ndarray, "v 3"]) -> float:
    """One for a shape of about that size (0.1 to 100), else the power of ten that makes it so: the
    same shape in other units becomes the same numbers."""
    size = float(np.ptp(pos, axis=0).max()) if len(pos) else 1.0
    return 1.0 if 0.1 <= size <= 100 or size == 0 else 10.0 ** np.floor(np.log10(size))


def handy(pos: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Positions for a library that computes in 32 bits or has absolute tolerances, with the offset
    that was taken off and the unit that they were divided by: (0, 0, 0) and 1 for a shape of
    about size one near the origin, which stays as it is."""
    pos = np.asarray(pos, np.float64)
    unit = unit_of(pos)
    middle = (pos.min(0) + pos.max(0)) / 2
    far = np.abs(middle).max() > 10 * np.ptp(pos, axis=0).max()
    offset = middle if far else np.zeros(3)
    return (pos - offset) / unit, offset, unit


def face_vectors(
    pos: Float[np.ndarray, "v 3"], face: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "f 3"]:
    """Face normals times twice the area."""
    a, b, c = (pos[face[:, i]] for i in range(3))
    return np.cross(b - a, c - a)


def face_areas(
    pos: Float[np.ndarray, "v 3"], face: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, " f"]:
    return 0.5 * np.linalg.norm(face_vectors(pos, face), axis=1)


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows scaled to length one; a zero row stays zero."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def _scatter(
    face: Int[np.ndarray, "f 3"], values: Float[np.ndarray, "f 3"], n: int
) -> Float[np.ndarray, "v 3"]:
    rows = face.T.reshape(-1)
    incidence = sp.csr_matrix(
        (np.ones(len(rows)), (rows, np.tile(np.arange(len(face)), 3))), (n, len(face))
    )
    return np.asarray(incidence @ values)


def vertex_normals(geometry: Geometry) -> Float[np.ndarray, "v 3"]:
    """Unit vertex normals.

    Mesh: the normalised sum of the unit normals of the incident faces (diffusion-net's rule). Where
    they cancel (two faces folded onto each other) the faces are weighted by area, and if that
    cancels too, one of the incident faces decides; a vertex without a face gets (0, 0, 1).
    Cloud: the direction of least variance among the nearest points; its sign is arbitrary.
    """
    pos, face = geometry.pos / geometry.unit, geometry.face
    if geometry.is_cloud:
        neighbors = cloud_neighbors(pos)
        near = pos[neighbors] - pos[:, None]
        _, vectors = np.linalg.eigh(np.einsum("vni,vnj->vij", near, near))
        return vectors[:, :, 0]
    weighted = face_vectors(pos, face)
    units = weighted / (np.linalg.norm(weighted, axis=1, keepdims=True) + 1e-6)
    total = _scatter(face, units, len(pos))
    length = np.linalg.norm(total, axis=1)
    for fallback in ("area", "any"):
        flat = length < 1e-8
        if not flat.any():
            break
        if fallback == "area":
            other = unit(_scatter(face, weighted, len(pos)))
        else:
            other = np.zeros_like(pos)
            solid = np.linalg.norm(units, axis=1) > 0
            other[face[solid].reshape(-1)] = np.repeat(units[solid], 3, axis=0)
        total[flat] = other[flat]
        length = np.linalg.norm(total, axis=1)
    total[length < 1e-8] = (0.0, 0.0, 1.0)
    return unit(total)


def cloud_neighbors(
    pos: Float[np.ndarray, "v 3"], k: int = CLOUD_NEIGHBORS
) -> Int[np.ndarray, "v k"]:
    """Indices of the k nearest other points (fewer if the cloud is smaller)."""
    from scipy.spatial import KDTree

    k = min(k, len(pos) - 1)
    index = np.asarray(KDTree(pos).query(pos, k + 1)[1])
    own = index == np.arange(len(pos))[:, None]
    own[~own.any(axis=1), -1] = True  # a duplicate point took the first place
    return index[~own].reshape(len(pos), k).astype(np.int64)


def unique_edges(face: Int[np.ndarray, "f 3"]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Undirected edges (e 2) in order of first appearance, and the edges (f 3) of every face.

    The order is MeshCNN's: faces in turn, sides (0 1), (1 2), (2 0).
    """
    sides = np.sort(np.stack([face, np.roll(face, -1, axis=1)], axis=2).reshape(-1, 2), axis=1)
    n = int(face.max(initial=0)) + 1
    codes = sides[:, 0] * n + sides[:, 1]
    unique, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    edges = np.stack([unique // n, unique % n], axis=1)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return edges[order].astype(np.int64), rank[inverse.reshape(-1)].reshape(-1, 3)


def on_surface(
    pos: NDArray[np.floating], face: NDArray[np.integer], n: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """n points on a mesh, uniform by area, and the unit normals there (n 3) each."""
    vertices = np.asarray(pos, np.float64)
    vectors = face_vectors(vertices, np.asarray(face, np.int64))
    area = np.cumsum(np.linalg.norm(vectors, axis=1))
    chosen = np.searchsorted(area, rng.random(n) * area[-1]).clip(max=len(face) - 1)
    u, v = np.sqrt(rng.random(n)), rng.random(n)
    weights = np.stack([1 - u, u * (1 - v), u * v], axis=1)
    return np.einsum("nc,ncd->nd", weights, vertices[face[chosen]]), unit(vectors[chosen])
