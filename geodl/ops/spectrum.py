"""The first eigenpairs of the Laplacian, by a block Lanczos method of our own.

Most of the time of a general eigensolver on these problems goes into vectors, not into solves. A
block of four, and orthogonalisation against all vectors only when it is due (Grcar 1981, Simon
1984: Ritz values keep full precision while vectors are orthogonal to the root of the rounding
unit), make that part many times cheaper than ARPACK's at the same residual (docs/performance.md).
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
SHIFT = 16
TOLERANCE = 1e-11  # of the residual, relative to the eigenvalue of the inverse
DENSE = 320  # below this many vertices a dense solver is faster
STILL_DENSE = 5000  # and above this many it takes minutes and gigabytes

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
        evals, evecs = _dense(lap, root, k)
    else:
        # By Weyl's law eigenvalue i lies near 4 pi i / area. A shift well below zero keeps the
        # matrix positive definite, as a Cholesky factor needs, and the constant from converging so
        # early that everything after it must be cleared of it again and again.
        shift = SHIFT * 4 * np.pi / mass.sum()
        scaled = lap.copy()
        scaled.data /= root[lap.indices] * np.repeat(root, np.diff(lap.indptr))
        try:
            theta, evecs = _largest(factor((scaled + shift * sp.identity(n)).tocsr()), n, k)
            evals = 1.0 / theta - shift
        except ValueError:  # it can fail where its space grows as large as a mesh of 500 vertices
            if n > STILL_DENSE:
                raise
            evals, evecs = _dense(lap, root, k)
    return np.clip(evals, 0.0, None), evecs / root[:, None], mass


def _dense(lap: sp.csr_matrix, root: Array, k: int) -> tuple[Array, Array]:
    """The k smallest eigenpairs, zeros where there are fewer; ``root``: of the areas."""
    n = len(root)
    have = min(k, n)
    full = lap.toarray() / root[:, None] / root
    evals, evecs = la.eigh((full + full.T) / 2, subset_by_index=(0, have - 1))
    evals = np.concatenate([evals, np.zeros(k - have)])
    return evals, np.concatenate([evecs, np.zeros((n, k - have))], axis=1)


def factor(matrix: sp.csr_matrix) -> Any:
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
    it (the recurrence), and two in a row against all, after a number of steps that follows from how
    much was lost the last time.
    """
    p = BLOCK
    most = min(n - n % p, 12 * k) - p
    basis = np.empty((n, most + p), order="F")
    small = np.zeros((most + p, most + p))
    basis[:, :p], _ = la.qr(np.random.default_rng(0).standard_normal((n, p)), mode="economic")
    m = p
    check = min(most, 5 * k // 2 + 92)  # where it converges on meshes of thousands of vertices
    pause, due = 6, 2  # steps between orthogonalisations; until the next pair of them is over
    while True:
        block = np.asfortranarray(apply(basis[:, m - p : m]))
        low = max(0, m - 2 * p)
        inner, block = _cleared(block, basis[:, low:m])
        lost = 0.0
        if due <= 2:
            rest, block = _cleared(block, basis[:, :m])
            inner += rest[low:]
            lost = np.abs(rest[:low]).max(initial=0.0)
        small[low:m, m - p : m] = inner
        block, upper = _orthonormal(block)
        if due == 2:
            lost /= np.abs(np.diag(upper)).min()
            pause = max(0, pause - 1) if lost > 1e-8 else pause + (lost < 1e-10)
        due = due - 1 if due > 1 else pause + 2
        if m >= check:
            band = np.triu(small[:m, :m])
            # Divide and conquer: all pairs in less time than the wanted ones by another method.
            theta, ritz = la.eigh(band + np.triu(band, 1).T, driver="evd", check_finite=False)
            theta, ritz = theta[-k:], ritz[:, -k:]
            residual = (np.linalg.norm(upper @ ritz[-p:], axis=0) / theta).max()
            if residual <= TOLERANCE:
                break
            if not (m < most and np.isfinite(residual)):
                raise ValueError(f"{k} eigenpairs did not converge in a space of {m}")
            # It falls by ten about every other step.
            steps = max(1, int(np.ceil(2 * np.log10(residual / TOLERANCE))))
            check = min(most, m + p * steps)
        basis[:, m : m + p] = block
        small[m : m + p, m - p : m] = upper
        m += p
    vectors = dgemm(1.0, basis[:, :m], np.asfortranarray(ritz[:, ::-1]))
    gram = dgemm(1.0, vectors, vectors, trans_a=1)
    defect = np.abs(gram - np.eye(k)).max()
    if not defect < 1e-6:
        raise ValueError(f"eigenvectors are not orthogonal ({defect:.1e})")
    lower = np.linalg.cholesky(gram)
    return theta[::-1], la.blas.dtrsm(1.0, lower, vectors, side=1, lower=1, trans_a=1)


def _cleared(block: Array, vectors: Array) -> tuple[Array, Array]:
    """A block's coefficients in orthonormal vectors, and what is left without them."""
    inner = dgemm(1.0, vectors, block, trans_a=1)
    return inner, dgemm(-1.0, vectors, inner, 1.0, block, overwrite_c=1)


def _orthonormal(block: Array) -> tuple[Array, Array]:
    """Q and R of a tall block, by two rounds of Cholesky; by Householder where that breaks down."""
    try:
        total = np.eye(block.shape[1])
        for _ in range(2):
            lower = np.linalg.cholesky(dgemm(1.0, block, block, trans_a=1))
            block = dgemm(1.0, block, np.linalg.inv(lower), trans_b=1)
            total = lower.T @ total
        return block, total
    except np.linalg.LinAlgError:
        return la.qr(block, mode="economic", check_finite=False)


def spectrum_fields(geometry: Geometry, k: int) -> dict[str, Array]:
    """The request ``Spectrum(k)``."""
    evals, evecs, mass = spectrum(geometry, k)
    return {"evals": evals, "evecs": evecs, "mass": mass}
