"""Elastic metrics and paths, against closed forms on the sphere and a bar that is bent."""

import math

import pytest
import torch
from conftest import icosphere

from geodl.errors import UserError
from geodl.shapespace.metric import H2

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
