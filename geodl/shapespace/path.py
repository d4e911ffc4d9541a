"""Paths of meshes: straight ones, shortest ones, and those that go on from a first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from geodl.errors import UserError
from geodl.shapespace.metric import H2


def straight(
    q0: Float[Tensor, "v 3"], q1: Float[Tensor, "v 3"], times: int
) -> Float[Tensor, "t v 3"]:
    """The path on which every vertex goes straight ahead."""
    t = torch.linspace(0, 1, times, dtype=q0.dtype, device=q0.device)[:, None, None]
    return (1 - t) * q0 + t * q1


def resampled(path: Float[Tensor, "s v 3"], times: int) -> Float[Tensor, "t v 3"]:
    """The path at other times, straight in between."""
    at = torch.linspace(0, len(path) - 1, times, dtype=path.dtype, device=path.device)
    low = at.floor().long().clamp(max=len(path) - 2)
    share = (at - low)[:, None, None]
    return (1 - share) * path[low] + share * path[low + 1]


def minimised(
    function: Callable[[Tensor], Tensor], start: Tensor, iterations: int, tolerance: float = 1e-5
) -> Tensor:
    """Where a function of a tensor is least near ``start``, by L-BFGS in double precision."""
    from scipy.optimize import minimize

    def with_gradient(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        at = torch.from_numpy(x).view(start.shape).requires_grad_()
        value = function(at)
        (gradient,) = torch.autograd.grad(value, at)
        return float(value.detach()), gradient.flatten().numpy()

    options = {"maxiter": iterations, "maxcor": 20, "gtol": tolerance, "ftol": 1e-12}
    flat = start.detach().double().cpu().flatten().numpy()
    found = minimize(with_gradient, flat, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).view(start.shape).to(start)


def geodesic(
    q0: Float[Tensor, "v 3"],
    q1: Float[Tensor, "v 3"],
    face: Int[Tensor, "f 3"],
    metric: H2,
    times: Sequence[int] = (3, 5, 9),
    iterations: int = 200,
) -> Float[Tensor, "t v 3"]:
    """The path of least energy between two meshes of the same faces, from few times to many
    (Hartman et al. 2023, 4.1).

    Raises:
        UserError: the meshes have other numbers of vertices, or fewer than three times are asked.
    """
    if q0.shape != q1.shape:
        raise UserError(
            f"a path needs two meshes with the same vertices, these have {len(q0)} and {len(q1)}."
        )
    if min(times) < 3:
        raise UserError(f"times={list(times)}: a path has three or more.")
    path = straight(q0, q1, times[0])
    for count in times:
        path = resampled(path, count)

        def energy(inner: Tensor) -> Tensor:
            return metric.energy(torch.cat([q0[None], inner, q1[None]]), face)

        inner = minimised(energy, path[1:-1], iterations)
        path = torch.cat([q0[None], inner, q1[None]])
    return path


def following(
    q0: Float[Tensor, "v 3"], q1: Float[Tensor, "v 3"], face: Int[Tensor, "f 3"], metric: H2
) -> Float[Tensor, "v 3"]:
    """The mesh after q0 and q1 on a geodesic: the one for which q1 is where the energy of both
    steps is least, as every inner time of ``geodesic`` is."""
    from scipy.optimize import NoConvergence, newton_krylov

    at = q1.detach().requires_grad_()
    (came,) = torch.autograd.grad(metric.step(q0, at, face), at)

    def residual(x: NDArray[np.float64]) -> NDArray[np.float64]:
        ahead = torch.from_numpy(x).view(q1.shape).to(q1)
        (going,) = torch.autograd.grad(metric.step(at, ahead, face), at)
        return (came + going).flatten().numpy()

    start = (2 * q1 - q0).flatten().numpy()
    scale = float(came.abs().max())
    try:
        found = newton_krylov(residual, start, f_tol=1e-6 * scale, maxiter=30, method="lgmres")
    except NoConvergence as error:
        found = error.args[0]
    return torch.from_numpy(np.asarray(found)).view(q1.shape).to(q1)


def shoot(
    q0: Float[Tensor, "v 3"],
    h: Float[Tensor, "v 3"],
    face: Int[Tensor, "f 3"],
    metric: H2,
    times: int = 5,
) -> Float[Tensor, "t v 3"]:
    """The geodesic that starts at q0 with velocity h, for a unit of time."""
    path = [q0, q0 + h / (times - 1)]
    while len(path) < times:
        path.append(following(path[-2], path[-1], face, metric))
    return torch.stack(path)
