"""Paths of meshes: straight ones, shortest ones, and those that go on from a first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from geodl.errors import UserError
from geodl.nn.jacobians import applied, integrated
from geodl.nn.poisson import faces_of, solved
from geodl.ops.geometry import Geometry
from geodl.ops.laplacian import laplacian
from geodl.ops.spectrum import factor
from geodl.shape import Shape, ShapeBatch
from geodl.shapespace.metric import H2

log = logging.getLogger(__name__)


def straight(
    q0: Float[Tensor, "v 3"], q1: Float[Tensor, "v 3"], times: int
) -> Float[Tensor, "t v 3"]:
    """The path on which every vertex goes straight ahead."""
    t = torch.linspace(0, 1, times, dtype=q0.dtype, device=q0.device)[:, None, None]
    return (1 - t) * q0 + t * q1


def resampled(path: Tensor, times: int) -> Tensor:
    """The path (s ..) at other times (t ..), straight in between."""
    at = torch.linspace(0, len(path) - 1, times, dtype=path.dtype, device=path.device)
    low = at.floor().long().clamp(max=len(path) - 2)
    share = (at - low).view(-1, *[1] * (path.dim() - 1))
    return (1 - share) * path[low] + share * path[low + 1]


def as_rigid_as_possible(
    q0: Float[Tensor, "v 3"],
    q1: Float[Tensor, "v 3"],
    face: Int[Tensor, "f 3"],
    shares: Sequence[float],
) -> Float[Tensor, "t v 3"]:
    """Meshes at shares of the way on which every triangle turns and stretches evenly, as far as
    they hang together (Alexa, Cohen-Or, Levin 2000; Xu, Zhang, Wang, Bao: Poisson shape
    interpolation, 2005): the rotation of the Jacobian is taken to a power, what is left of it and
    the centre go straight, and a Poisson equation joins the triangles."""
    given, q0, q1, face = q0, q0.cpu(), q1.cpu(), face.cpu()
    batch = ShapeBatch.pack([Shape(pos=q0.float(), face=face)])
    faces = faces_of(batch)
    frame = [*faces.grad(q0.float()).double(), _unit_normals(q0, face)]
    image = [*faces.grad(q1.float()).double(), _unit_normals(q1, face)]
    jacobian = torch.stack(image, -1) @ torch.stack(frame, -1).mT
    u, size, vt = torch.linalg.svd(jacobian)
    flip = torch.ones_like(size)
    flip[:, 2] = torch.linalg.det(u @ vt).sign()
    turn = (u * flip[:, None]) @ vt
    stretch = vt.mT @ ((size * flip)[..., None] * vt)
    axis = Rotation.from_matrix(turn.numpy()).as_rotvec()
    eye = torch.eye(3, dtype=stretch.dtype)
    centers = [faces.mass.double() @ q.double() / faces.mass.double().sum() for q in (q0, q1)]
    path: list[Tensor] = []
    for t in shares:
        part = torch.from_numpy(Rotation.from_rotvec(t * axis).as_matrix())
        delta = part @ ((1 - t) * eye + t * stretch)
        wanted = applied(delta.float(), batch.pos, faces)
        pos = integrated(wanted, faces, batch).to(q0)
        path.append(pos + (1 - t) * centers[0].to(q0) + t * centers[1].to(q0))
    return torch.stack(path).to(given)


def _unit_normals(q: Tensor, face: Tensor) -> Tensor:
    a, b, c = q.double()[face].unbind(1)
    return torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)


class Smoothing:
    """u (.. v 3) -> (M + length^2 L)^-1 M u on a mesh (v 3) with faces (f 3), mass M and stiffness
    L, ``length`` in roots of its area: a change of variables in which whole limbs move as easily as
    single vertices, so that a minimum is found in tens of steps (Nicolet, Jacobson, Jakob: Large
    steps in inverse rendering of geometry, 2021)."""

    def __init__(self, pos: Tensor, face: Tensor, length: float = 0.2) -> None:
        points, triangles = pos.detach().double().cpu().numpy(), face.cpu().numpy()
        lap, mass = laplacian(Geometry(points, triangles, "robust"))
        self.mass = torch.from_numpy(mass)[:, None]
        self.solver = factor((sp.diags(mass) + length**2 * mass.sum() * lap).tocsr())

    def __call__(self, u: Tensor) -> Tensor:
        columns = u.movedim(-2, 0)
        flat = solved(self.mass * columns.flatten(1), self.solver)
        return flat.view(columns.shape).movedim(0, -2)


def minimised(
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    iterations: int,
    smooth: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Where a function of a tensor is least near ``start``, by L-BFGS in double precision;
    ``smooth``: change of variables for what is added to the start."""
    from scipy.optimize import minimize

    first = start.detach().double().cpu()

    def placed(x: Tensor) -> Tensor:
        return first + (smooth(x) if smooth else x)

    def with_gradient(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        at = torch.from_numpy(x).view(start.shape).requires_grad_()
        value = function(placed(at))
        (gradient,) = torch.autograd.grad(value, at)
        return float(value.detach()), gradient.flatten().numpy()

    options = {"maxiter": iterations, "maxcor": 20, "gtol": 1e-5, "ftol": 1e-12}
    zero = np.zeros(start.numel())
    found = minimize(with_gradient, zero, jac=True, method="L-BFGS-B", options=options)
    return placed(torch.from_numpy(found.x).view(start.shape)).to(start)


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
    smooth = Smoothing(q0, face)
    for count in times:
        path = resampled(path, count)

        def energy(inner: Tensor) -> Tensor:
            return metric.energy(torch.cat([q0[None], inner, q1[None]]), face)

        inner = minimised(energy, path[1:-1], iterations, smooth)
        path = torch.cat([q0[None], inner, q1[None]])
        log.info("a path of %d meshes", count)
    return path


def geodesic_in(
    x0: Float[Tensor, " m"],
    x1: Float[Tensor, " m"],
    q: Float[Tensor, "v 3"],
    basis: Float[Tensor, "m v 3"],
    face: Int[Tensor, "f 3"],
    metric: H2,
    times: int = 9,
    iterations: int = 100,
) -> Float[Tensor, "t v 3"]:
    """``geodesic`` among the meshes q plus a combination of the fields of a basis, between two of
    them by their codes (BaRe-ESA 2023)."""
    line = straight(x0[:, None], x1[:, None], times)[..., 0]

    def meshes(inner: Tensor) -> Tensor:
        codes = torch.cat([x0[None], inner, x1[None]])
        return q + torch.tensordot(codes, basis, 1)

    inner = minimised(lambda x: metric.energy(meshes(x), face), line[1:-1], iterations)
    return meshes(inner)


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
