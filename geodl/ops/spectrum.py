"""The first eigenpairs of the Laplacian."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as sla
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from geodl.ops.geometry import Geometry
from geodl.ops.laplacian import laplacian

EPS = 1e-8


class _Inverse(sla.LinearOperator):
    """x -> A^-1 x for a sparse positive definite A, by a supernodal Cholesky factor."""

    def __init__(self, matrix: sp.csr_matrix) -> None:
        from cholespy import CholeskySolverD, MatrixType

        n = matrix.shape[0]
        super().__init__(np.dtype(np.float64), (n, n))
        matrix = matrix.tocsr()
        matrix.sort_indices()
        self._solver: Any = CholeskySolverD(
            n,
            matrix.indptr.astype(np.int32),
            matrix.indices.astype(np.int32),
            matrix.data.astype(np.float64),
            MatrixType.CSR,
        )
        self._out = np.empty(n)

    def _matvec(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        self._solver.solve(np.ascontiguousarray(x.reshape(-1)), self._out)
        return self._out.copy()


def spectrum(geometry: Geometry, k: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The k smallest eigenpairs of L x = lambda M x.

    Returns evals (k), evecs (v k) orthonormal with respect to the areas, and the areas (v). A shape
    with fewer than k vertices has fewer eigenpairs; the rest is zero. Eigenvalues agree with
    diffusion-net's (which adds the same 1e-8 to the diagonal); the start vector is fixed, so the
    same arrays give the same bits.

    Raises:
        ValueError: the eigensolver fails; the message carries its reason.
    """
    lap, mass = laplacian(geometry)
    n = lap.shape[0]
    shifted = (lap + EPS * sp.identity(n)).tocsr()
    if n < max(k + 2, 64):
        scale = 1.0 / np.sqrt(mass)
        evals, evecs = np.linalg.eigh(scale[:, None] * shifted.toarray() * scale[None, :])
        evecs = scale[:, None] * evecs
        have = min(k, n)
        evals, evecs = evals[:have], evecs[:, :have]
        evals = np.concatenate([evals, np.zeros(k - have)])
        evecs = np.concatenate([evecs, np.zeros((n, k - have))], axis=1)
    else:
        # Shift-invert just below zero: L + eps + sigma M is positive definite whatever the areas
        # are, which a Cholesky factor needs. One BLAS thread: many fight over small vectors.
        sigma = -EPS
        areas = sp.diags(mass).tocsr()
        start = np.random.default_rng(0).standard_normal(n)
        with threadpool_limits(1):
            try:
                inverse = _Inverse((shifted - sigma * areas).tocsr())
                evals, evecs = sla.eigsh(
                    shifted, k=k, M=areas, sigma=sigma, OPinv=inverse, v0=start
                )
            except (sla.ArpackError, ValueError, RuntimeError) as error:
                raise ValueError(f"no eigenpairs of the Laplacian: {error}") from error
        order = np.argsort(evals)
        evals, evecs = evals[order], evecs[:, order]
    return np.clip(evals, 0.0, None), evecs, mass


def spectrum_fields(geometry: Geometry, k: int) -> dict[str, NDArray[Any]]:
    """The request ``Spectrum(k)``."""
    evals, evecs, mass = spectrum(geometry, k)
    return {"evals": evals, "evecs": evecs, "mass": mass}
