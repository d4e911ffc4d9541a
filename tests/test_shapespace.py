"""Elastic metrics and paths, against closed forms on the sphere and a bar that is bent."""

import math

import numpy as np
import pytest
import torch
from conftest import icosphere

from geodl.errors import UserError
from geodl.shapespace.metric import H2
from geodl.shapespace.path import geodesic, resampled, shoot, straight

ZERO = dict.fromkeys(("a0", "a1", "b1", "c1", "d1", "a2"), 0.0)


def sphere(level=3):
    pos, face = icosphere(level)
    return torch.from_numpy(pos), torch.from_numpy(face)


@pytest.mark.parametrize(
    ("weight", "scaling", "turning", "moving"),
    [
        ("a0", 1.0, 2 / 3, 1.0),
        ("a1", 0.0, 0.0, 0.0),
        ("b1", 2.0, 0.0, 0.0),
        ("c1", 0.0, 2 / 3, 0.0),
        ("d1", 0.0, 2 / 3, 0.0),
        ("a2", 4.0, 8 / 3, 0.0),
    ],
)
def test_closed_forms_on_the_unit_sphere(weight, scaling, turning, moving):
    q, face = sphere()
    metric = H2(**{**ZERO, weight: 1.0})
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=q.dtype)
    fields = (q, torch.linalg.cross(axis.expand_as(q), q), axis.expand_as(q))
    for h, wanted in zip(fields, (scaling, turning, moving), strict=True):
        for value in (metric.norm(q, h, face), metric.step(q - h / 2e3, q + h / 2e3, face) * 1e6):
            assert float(value) / (4 * math.pi) == pytest.approx(wanted, rel=0.012, abs=1e-6)


def test_the_metric_does_not_see_where_a_shape_stands_and_has_the_right_derivative():
    torch.manual_seed(0)
    q, face = sphere(1)
    h = 0.1 * torch.randn_like(q)
    metric = H2(1, 3, 2, 5, 4, 0.5)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=q.dtype)).Q
    torch.testing.assert_close(
        metric.norm(q @ turn.T + 2, h @ turn.T, face), metric.norm(q, h, face), rtol=1e-10, atol=0
    )
    torch.testing.assert_close(
        metric.step(q, q + h, face), metric.step(q + h, q, face), rtol=1e-12, atol=0
    )
    path = torch.stack([q, q + h, q - h]).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: metric.energy(p, face), path, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="zero or more"):
        H2(a1=-1.0)


def bar(angle, rings=13, side=2, width=0.314, length=2.0):
    """A bar whose middle third is bent by an angle."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * width / 2
    share = np.arange(side)[:, None] / side
    walls = zip(corners, np.roll(corners, -1, axis=0), strict=True)
    ring = np.concatenate([a + (b - a) * share for a, b in walls])
    n, last = len(ring), (rings - 1) * len(ring)
    x = np.repeat(np.linspace(0, length, rings), n)
    pos = np.column_stack([x, np.tile(ring, (rings, 1))])
    pos = np.vstack([pos, [[0, 0, 0], [length, 0, 0]]])
    face = []
    for i in range(rings - 1):
        for j in range(n):
            a, b = i * n + j, i * n + (j + 1) % n
            c, d = a + n, b + n
            face += [[a, c, b], [b, c, d]] if (i + j) % 2 else [[a, c, d], [a, d, b]]
    for j in range(n):
        face += [[len(pos) - 2, j, (j + 1) % n], [len(pos) - 1, last + (j + 1) % n, last + j]]
    third = length / 3
    turn = angle * np.clip((pos[:, 0] - third) / third, 0, 1)
    radius = third / angle if angle else 0.0
    before, behind = np.minimum(pos[:, 0], third), np.maximum(pos[:, 0] - 2 * third, 0)
    if not angle:
        before = pos[:, 0] - behind
    along = before + radius * np.sin(turn) + behind * np.cos(turn) - pos[:, 1] * np.sin(turn)
    aside = radius * (1 - np.cos(turn)) + behind * np.sin(turn) + pos[:, 1] * np.cos(turn)
    return torch.from_numpy(np.column_stack([along, aside, pos[:, 2]])), torch.tensor(face)


def distance(a, b):
    """Mean distance of vertices after the best rigid motion."""
    a, b = a - a.mean(0), b - b.mean(0)
    u, _, v = torch.linalg.svd(a.T @ b)
    flip = torch.ones(3, dtype=a.dtype)
    flip[2] = torch.linalg.det(u @ v)
    return float((a @ (u * flip) @ v - b).norm(dim=1).mean())


def test_the_shortest_path_between_two_bends_is_a_bend_and_shooting_finds_its_end():
    (q0, face), (q1, _), (middle, _) = bar(0), bar(math.pi / 2), bar(math.pi / 4)
    metric = H2()
    path = geodesic(q0, q1, face, metric, times=(3, 5))
    line = straight(q0, q1, 5)
    assert distance(line[2], middle) > 0.07 > 0.012 > distance(path[2], middle)
    energy = float(metric.energy(path, face))
    assert energy < 0.25 * float(metric.energy(line, face))
    assert float(metric.energy(path.flip(0), face)) == pytest.approx(energy, rel=1e-9)
    shot = shoot(q0, 4 * (path[1] - path[0]), face, metric, times=5)
    assert (shot[-1] - q1).norm() < 0.05 * (q1 - q0).norm()
    torch.testing.assert_close(resampled(line, 9), straight(q0, q1, 9))
    with pytest.raises(UserError, match="the same vertices"):
        geodesic(q0, q1[1:], face, metric)
