"""What is measured at every vertex before the encoder: xyz, normals, HKS, WKS.

A feature knows its channel count when it is built, so sizes flow from here to the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geodl.errors import UserError
from geodl.nn.heat import decayed
from geodl.shape import ShapeBatch
from geodl.spec import Needs, Normals, Spectrum


class Feature(nn.Module):
    """channels: columns of the result; needs: what it reads besides positions."""

    channels: int
    needs: Needs = Needs()

    def forward(self, batch: ShapeBatch) -> Tensor:
        """(n channels) for the n vertices of the batch."""
        raise NotImplementedError


class Nothing(Feature):
    """No channels, for encoders that look at positions themselves (PointNet++, KPConv, ...)."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 0

    def forward(self, batch: ShapeBatch) -> Tensor:
        return batch.pos[:, :0]


class XYZ(Feature):
    """Positions."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 3

    def forward(self, batch: ShapeBatch) -> Tensor:
        return batch.pos


class Normal(Feature):
    """Unit normals."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 3
        self.needs = Needs.of(Normals())

    def forward(self, batch: ShapeBatch) -> Tensor:
        assert batch.normal is not None
        return batch.normal


def eigen_sum(batch: ShapeBatch, weights: Float[Tensor, "b k s"]) -> Float[Tensor, "n s"]:
    """sum_k weights[k, s] evecs[v, k]^2 at every vertex, each shape with its own weights."""
    squares = batch.ops.evecs[:, : weights.shape[1]].square()
    if batch.equal_sizes:
        return (batch.dense(squares) @ weights).flatten(0, 1)
    return torch.cat(
        [part @ w for part, w in zip(squares.split(batch.sizes), weights, strict=True)]
    )


def _present(evals: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """1 for real eigenpairs, 0 for those that pad the spectrum of a tiny shape."""
    real = evals > 0
    real[:, 0] = True
    return real.to(evals)


class HKS(Feature):
    """Heat kernel signature (Sun et al. 2009) at ``count`` times.

    Times are diffusion-net's "auto-scaled" ones: logarithmic from 0.01 to 1, the same for every
    shape, so shapes should be of unit size (the data sets' preprocessing sees to it).

    Args:
        count: number of times.
        k: number of eigenpairs.
        log: their logarithms. Signatures reach from one over the area to millions at thin tips,
            which DiffusionNet stands and a network that begins with BatchNorm does not.
    """

    times: Tensor

    def __init__(self, count: int = 16, k: int = 128, log: bool | None = None) -> None:
        super().__init__()
        self.channels = count
        self.k = k
        self.log = bool(log)
        self.needs = Needs.of(Spectrum(k))
        self.register_buffer("times", torch.logspace(-2.0, 0.0, count), persistent=False)

    def forward(self, batch: ShapeBatch) -> Tensor:
        evals = batch.ops.evals[:, : self.k]
        decay = decayed(evals[:, :, None] * self.times)
        signature = eigen_sum(batch, decay * _present(evals)[:, :, None])
        return signature.clamp(min=1e-6).log() if self.log else signature


class WKS(Feature):
    """Wave kernel signature (Aubry et al. 2011), with the energies of pyFM and of ZoomOut's Matlab
    code: sigma is 7 / count of the range from log(lambda_1) to log(lambda_k), energies keep 2 sigma
    from both ends, weights are normalised per energy.

    Differs: the authors' own code takes energies from log(lambda_1) to log(lambda_k) / 1.02 and a
    sigma of 6 of their steps, and keeps the constant eigenfunction.

    Args:
        count: number of energies, more than 28 (4 sigma would be the whole range).
        k: number of eigenpairs.

    Raises:
        UserError: too few energies.
    """

    def __init__(self, count: int = 100, k: int = 128) -> None:
        super().__init__()
        if count <= 28:
            raise UserError(f"features.count={count}: WKS needs more than 28 energies to differ.")
        self.channels = count
        self.k = k
        self.needs = Needs.of(Spectrum(k))

    def forward(self, batch: ShapeBatch) -> Tensor:
        evals = batch.ops.evals[:, : self.k]
        present = _present(evals)
        present[:, 0] = 0.0  # the constant carries no energy
        first = torch.where(present > 0, evals, evals.amax(1, keepdim=True)).amin(1)
        low, high = first.clamp(min=1e-6).log(), evals.amax(1).clamp(min=2e-6).log()
        steps = torch.linspace(0.0, 1.0, self.channels, device=evals.device)
        sigma = 7.0 * (high - low) / self.channels
        # Energies keep 2 sigma from both ends, as in pyFM.
        energy = (low + 2 * sigma)[:, None] + steps * (high - low - 4 * sigma).clamp(min=0)[:, None]
        distance = energy[:, None, :] - evals.clamp(min=1e-6).log()[:, :, None]
        weights = decayed(distance**2 / (2 * sigma[:, None, None] ** 2).clamp(min=1e-12))
        weights = weights * present[:, :, None]
        return eigen_sum(batch, weights / weights.sum(1, keepdim=True).clamp(min=1e-12))


class Concat(Feature):
    """Several features side by side."""

    def __init__(self, parts: Sequence[Feature]) -> None:
        super().__init__()
        if not parts:
            raise UserError("features.parts is empty: name at least one feature.")
        self.parts = nn.ModuleList(parts)
        self.channels = sum(p.channels for p in parts)
        self.needs = Needs()
        for part in parts:
            self.needs = self.needs | part.needs

    def forward(self, batch: ShapeBatch) -> Tensor:
        return torch.cat([part(batch) for part in self.parts], dim=1)
