"""Learning rate as a pure function of progress: nothing to store, so a resumed run is exact."""

from __future__ import annotations

import math


class Schedule:
    """Base: the factor on the optimiser's learning rate."""

    def factor(self, epoch: float, epochs: int, samples: int) -> float:
        """At ``epoch`` (fractional, from 0) of ``epochs``, having seen ``samples`` shapes."""
        raise NotImplementedError


class Constant(Schedule):
    """No change."""

    def factor(self, epoch: float, epochs: int, samples: int) -> float:
        return 1.0


class Step(Schedule):
    """Times ``gamma`` every ``every`` epochs (DiffusionNet: 0.5 per 50)."""

    def __init__(self, every: int = 50, gamma: float = 0.5) -> None:
        self.every = every
        self.gamma = gamma

    def factor(self, epoch: float, epochs: int, samples: int) -> float:
        return self.gamma ** (int(epoch) // self.every)


class Samples(Schedule):
    """Times ``gamma`` every ``every`` shapes seen, at least ``floor`` (PointNet: 0.7, 200,000)."""

    def __init__(self, every: int = 200_000, gamma: float = 0.7, floor: float = 0.01) -> None:
        self.every = every
        self.gamma = gamma
        self.floor = floor

    def factor(self, epoch: float, epochs: int, samples: int) -> float:
        return max(self.floor, self.gamma ** (samples // self.every))


class Exponential(Schedule):
    """Times ``gamma`` every epoch (SpiralNet++: 0.99)."""

    def __init__(self, gamma: float = 0.99) -> None:
        self.gamma = gamma

    def factor(self, epoch: float, epochs: int, samples: int) -> float:
        return self.gamma ** int(epoch)


class Cosine(Schedule):
    """Half a cosine from 1 to ``floor`` over the run, every step."""

    def __init__(self, floor: float = 0.0, warmup: float = 0.0) -> None:
        self.floor = floor
        self.warmup = warmup

    def factor(self, epoch: float, epochs: int, samples: int) -> float:
        if epoch < self.warmup:
            return (epoch + 0.1) / (self.warmup + 0.1)
        done = min(1.0, (epoch - self.warmup) / max(1e-9, epochs - self.warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
