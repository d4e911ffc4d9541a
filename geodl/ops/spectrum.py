"""The first eigenpairs of the Laplacian, by a block Lanczos method of our own.

Most of the time of a general eigensolver on these problems goes into vectors, not into solves; a
block of four and reorthogonalisation in two steps of three make that part several times cheaper
than ARPACK's at the same residual (``scripts/profile.py`` prints the ratio).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from geodl.ops.geometry import Geometry
from geodl.ops.laplacian import laplacian

la: Any = scipy.linalg  # typed in part only
dgemm: Any = la.blas.dgemm

EPS = 1e-8  # added to the diagonal, as diffusion-net does
BLOCK = 4
TOLERANCE = 1e-11  # of the residual, relative to the eigenvalue of the inverse
DENSE = 320  # below this many vertices a dense solver is faster

Array = NDArray[np.float64]


@threadpool_limits.wrap(limits=1)
def spectrum(geometry: Geometry, k: int) -> tuple[Array, Array, Array]:
    """The k smallest eigenpairs of L x = lambda M x.

    Returns evals (k), evecs (v k) orthonormal with respect to the areas, and the areas (v). A shape
    with fewer than k vertices has fewer eigenpairs; the rest is zero. Eigenvalues agree with
    diffusion-net's. Start vectors are fixed and BLAS has one thread (many fight over small blocks),
    so the same arrays give the same bits.

    Raises:
        ValueError: the matrix is not positive definite, or the iteration does not converge.
    """
    lap, mass = laplacian(geometry)
    n = len(mass)
    lap = (lap + EPS * sp.identity(n)).tocsr()
    root = np.sqrt(mass)
    if n < DENSE or n < 4 * k:
        have = min(k, n)
        dense = lap.toarray() / root[:, None] / root
        evals, evecs = la.eigh((dense + dense.T) / 2, subset_by_index=(0, have - 1))
        evals = np.concatenate([evals, np.zeros(k - have)])
        evecs = np.concatenate([evecs, np.zeros((n, k - have))], axis=1)
    else:
        # By Weyl's law the eigenvalues begin near 4 pi / area: a shift of that size below zero
        # keeps the inverse well scaled (a shift next to zero loses digits to the constant) and the
        # matrix positive definite, as a Cholesky factor needs.
        shift = 4 * np.pi / mass.sum()
        solve = _factor((lap + shift * sp.diags(mass)).tocsr())

        def inverse(x: Array) -> Array:
            return root[:, None] * solve(root[:, None] * x)

        theta, evecs = _largest(inverse, n, k)
        evals = 1.0 / theta - shift
    return np.clip(evals, 0.0, None), evecs / root[:, None], mass


def _factor(matrix: sp.csr_matrix) -> Any:
    """x (n b) -> A^-1 x by a supernodal Cholesky factor of a sparse positive definite A."""
    import cholespy

    library: Any = cholespy
    matrix.sort_indices()
    solver = library.CholeskySolverD(
        len(matrix.indptr) - 1,
        matrix.indptr.astype(np.int32),
        matrix.indices.astype(np.int32),
        matrix.data.astype(np.float64),
        library.MatrixType.CSR,
    )

    def solve(right: Array) -> Array:
        right = np.ascontiguousarray(right)
        out = np.empty_like(right)
        solver.solve(right, out)
        return out

    return solve


def _largest(apply: Any, n: int, k: int) -> tuple[Array, Array]:
    """The k largest eigenpairs, descending, of a symmetric positive definite operator on (n b).

    Block Lanczos with a fixed random start. Each new block is orthogonalised against the two before
    it (the recurrence) and, in two steps of every three, against all (loss of orthogonality cannot
    grow in the one that is left out; the result is checked).
    """
    p = BLOCK
    most = min(n - n % p, 12 * k) - p
    basis = np.empty((n, most + p), order="F")
    small = np.zeros((most + p, most + p))
    basis[:, :p], _ = la.qr(np.random.default_rng(0).standard_normal((n, p)), mode="economic")
    m, check = p, 5 * k // 2 + 80  # where it converges on meshes of thousands of vertices
    while True:
        block = np.asfortranarray(apply(basis[:, m - p : m]))
        low = max(0, m - 2 * p)
        recent = basis[:, low:m]
        inner = dgemm(1.0, recent, block, trans_a=1)
        block = dgemm(-1.0, recent, inner, 1.0, block, overwrite_c=1)
        start = low if (m // p) % 3 == 0 else 0
        rest = dgemm(1.0, basis[:, start:m], block, trans_a=1)
        block = dgemm(-1.0, basis[:, start:m], rest, 1.0, block, overwrite_c=1)
        small[low:m, m - p : m] = inner + rest[low - start :]
        block, upper = _orthonormal(block)
        if m >= check or m >= most:
            band = np.triu(small[:m, :m])
            theta, ritz = la.eigh(
                band + np.triu(band, 1).T, subset_by_index=(m - k, m - 1), check_finite=False
            )
            residual = np.linalg.norm(upper @ ritz[-p:], axis=0)
            if (residual <= TOLERANCE * theta).all():
                break
            if m >= most:
                raise ValueError(f"{k} eigenpairs did not converge in a space of {m}")
            check = m + max(24, k // 4)
        basis[:, m : m + p] = block
        small[m : m + p, m - p : m] = upper
        m += p
    vectors = basis[:, :m] @ ritz[:, ::-1]
    defect = np.abs(vectors.T @ vectors - np.eye(k)).max()
    if not defect < 1e-9:
        raise ValueError(f"eigenvectors are not orthogonal ({defect:.1e})")
    return theta[::-1], vectors


def _orthonormal(block: Array) -> tuple[Array, Array]:
    """Q and R of a tall block, by two rounds of Cholesky; by Householder where that breaks down."""
    try:
        total = np.eye(block.shape[1])
        for _ in range(2):
            lower = np.linalg.cholesky(block.T @ block)
            block = block @ np.linalg.inv(lower).T
            total = lower.T @ total
        return block, total
    except np.linalg.LinAlgError:
        return la.qr(block, mode="economic", check_finite=False)


def spectrum_fields(geometry: Geometry, k: int) -> dict[str, Array]:
    """The request ``Spectrum(k)``."""
    evals, evecs, mass = spectrum(geometry, k)
    return {"evals": evals, "evecs": evecs, "mass": mass}
