"""One file checks every encoder that the folder holds."""

import numpy as np
import pytest
import torch
from conftest import ALL, labelled_on

from geodl.augment import random_rotation, rotate
from geodl.build import compose, make
from geodl.data.base import attach, sampled
from geodl.encoders.diffusionnet import DiffusionNet
from geodl.encoders.flat_mlp import FlatMLP, lexicographic
from geodl.encoders.pointnet import PointNet
from geodl.errors import UserError
from geodl.features import HKS, XYZ
from geodl.run import config_dir
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Points

ENCODERS = sorted(p.stem for p in (config_dir() / "encoder").glob("*.yaml"))
SPEC = DataSpec(classes=tuple("abcdefgh"), parts=tuple("wxyz"), label_on="vertex")
SMALL = {
    "diffusionnet": ["encoder.width=16", "encoder.blocks=2", "encoder.k_eig=64"],
    "flat_mlp": ["encoder.points=64"],
    "point_mlp": [],
    "pointnet": ["encoder.points=null"],
    "pointnet_tnets": ["encoder.points=null"],
}


def build(name, channels, out, spec=SPEC):
    cfg = compose([f"encoder={name}", *SMALL[name]])
    torch.manual_seed(0)
    encoder = make("encoder", cfg.encoder)(in_channels=channels, spec=spec, out=out)
    for parameter in encoder.parameters():  # no zero or identity hides a mistake
        parameter.data += 0.02 * torch.randn_like(parameter)
    return encoder


def seen_by(encoder, shapes):
    points = encoder.needs.find(Points)
    return [sampled(s, points.n, "vertex", None) for s in shapes] if points else shapes


def test_every_encoder_of_the_folder_is_tested():
    assert set(SMALL) == set(ENCODERS) and len(ENCODERS) == 5


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("out", ["vertex", "edge", "face", "whole"])
def test_every_output_has_its_rows_or_is_refused(name, out, shapes):
    try:
        encoder = build(name, 3, out).eval()
    except UserError as error:
        assert out not in FlatMLP.outputs and name == "flat_mlp" and out in str(error)
        return
    picked = [labelled_on(s, out) if out != "whole" else s for s in shapes[:3]]
    batch = ShapeBatch.pack(seen_by(encoder, picked))
    value = encoder(batch.pos, batch).at(out)
    rows = 3 if out == "whole" else len(batch.label)
    assert value.shape == (rows, encoder.channels)
    value.sum().backward()
    unused = [n for n, p in encoder.named_parameters() if p.grad is None]
    assert not unused, f"built but not used for {out}: {unused}"


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("out", ["vertex", "whole"])
def test_a_batch_of_eight_equals_one_by_one(name, out, shapes):
    if name == "flat_mlp" and out == "vertex":
        pytest.skip("flat_mlp has no vertex output")
    intrinsic = name == "diffusionnet"
    encoder = build(name, 16 if intrinsic else 3, out).eval()
    features = HKS(16, 64) if intrinsic else XYZ()
    picked = seen_by(encoder, shapes)
    batch = ShapeBatch.pack(picked)
    with torch.no_grad():
        together = encoder(features(batch), batch).at(out)
        singles = []
        for shape in picked:
            one = ShapeBatch.pack([shape])
            singles.append(encoder(features(one), one).at(out))
    # Relative to the outputs, which reach 40: float32 has no more digits, machine by machine.
    singles = torch.cat(singles)
    assert (together - singles).abs().max() < 1e-5 * max(1.0, float(singles.abs().max()))


@pytest.mark.parametrize("name", ENCODERS)
def test_declared_symmetries_hold(name, shapes, cache):
    encoder = build(name, 3, "whole").eval()
    shape = seen_by(encoder, shapes[:1])[0]
    rng = np.random.default_rng(0)

    def code(s, x=None):
        batch = ShapeBatch.pack([s])
        with torch.no_grad():
            return encoder(batch.pos if x is None else x, batch).at("whole")

    order = torch.from_numpy(rng.permutation(shape.pos.shape[0]))
    place = torch.argsort(order)
    moved = shape.replace(pos=shape.pos[order], label=None, landmark=None, normal=None)
    moved.ops = type(shape.ops)()
    if shape.face.shape[0]:
        moved = moved.replace(face=place[shape.face])
    if encoder.needs.computed:
        moved = attach(moved, ALL, "cotan", cache)
    same = torch.allclose(code(shape), code(moved), atol=2e-4)
    assert same == ("permutation" in encoder.symmetries)

    # Rotation is understood for features that do not turn along.
    turned = rotate(shape, random_rotation(rng))
    if encoder.needs.computed:
        bare = turned.replace(ops=type(shape.ops)())
        turned = attach(bare, ALL, "cotan", cache)
    if "rotation" in encoder.symmetries:
        torch.testing.assert_close(
            code(shape, shape.pos), code(turned, shape.pos), atol=2e-4, rtol=1e-3
        )
    shifted = shape.replace(pos=shape.pos + 1.0)
    if "translation" in encoder.symmetries:
        torch.testing.assert_close(code(shape, shape.pos), code(shifted, shape.pos))


def count(encoder, classes):
    own = sum(p.numel() for p in encoder.parameters())
    return own + encoder.channels * classes + classes  # the task's head


def test_parameters_are_the_authors():
    spec16 = DataSpec(classes=tuple(map(str, range(16))), parts=tuple(map(str, range(50))))
    tnets = {"input_tnet": True, "feature_tnet": True}
    assert count(PointNet(3, SPEC, "whole", **tnets), 40) == 3_471_473
    assert count(PointNet(3, spec16, "vertex", use_category=True, **tnets), 50) == 8_342_395
    for width, channels, out, classes, total in (
        (64, 16, "whole", 30, 118_750),
        (64, 3, "whole", 30, 117_918),
        (128, 16, "face", 8, 464_008),
        (128, 3, "face", 8, 462_344),
        (128, 3, "vertex", 260, 494_852),
    ):
        assert count(DiffusionNet(channels, SPEC, out, width=width), classes) == total
    assert count(FlatMLP(3, SPEC, "whole", points=1024), 40) == 1_714_984


def test_the_identity_is_where_tnets_start(shapes):
    torch.manual_seed(0)
    spec, batch = DataSpec(), ShapeBatch.pack(shapes)
    encoder = PointNet(3, spec, "vertex", points=None, input_tnet=True, feature_tnet=True).eval()
    assert encoder.input_tnet is not None
    matrix = encoder.input_tnet(batch.pos, batch)
    torch.testing.assert_close(matrix, torch.eye(3).expand(8, 3, 3))
    encoding = encoder(batch.pos, batch)
    assert encoding.losses["orthogonality"].abs() < 1e-6


def test_implicit_diffusion_solves_the_heat_step(shapes):
    from geodl.encoders.diffusionnet import _implicit

    batch = ShapeBatch.pack(shapes[:2])
    x, time = torch.randn(batch.pos.shape[0], 3), torch.tensor([1e-3, 1e-2, 1e-1])
    y = _implicit(x, time, batch)
    left = batch.ops.mass[:, None] * y + (batch.ops.lap @ y) * time
    assert (left - batch.ops.mass[:, None] * x).abs().max() < 1e-5
    encoder = build("diffusionnet", 3, "whole")
    implicit = DiffusionNet(3, SPEC, "whole", width=16, diffusion="implicit", blocks=1)
    assert {n.family for n in implicit.needs.requests} == {"laplacian", "gradient", "mass"}
    assert implicit(batch.pos, batch).at("whole").shape == (2, 16)
    assert {n.family for n in encoder.needs.requests} == {"spectrum", "gradient", "mass"}


def test_spectral_diffusion_has_two_ways_that_agree(shapes, monkeypatch):
    import geodl.encoders.diffusionnet as module

    encoder = build("diffusionnet", 3, "vertex").eval()
    batch = ShapeBatch.pack(shapes)
    values = []
    for limit in (0.0, 100.0):  # loop, padding
        monkeypatch.setattr(module, "PADDING", limit)
        batch.cache.clear()
        values.append(encoder(batch.pos, batch).at("vertex"))
    torch.testing.assert_close(*values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rotates", [True, False])
def test_gradient_features_equal_their_definition_and_its_derivatives(shapes, rotates):
    from geodl.encoders.diffusionnet import GradientFeatures, _gradient

    batch = ShapeBatch.pack(shapes[:2])
    n, c = batch.pos.shape[0], 4
    inputs = [0.02 * torch.randn(n, c), torch.randn(c, c), torch.randn(c, c) if rotates else None]
    own, plain = (
        [None if t is None else t.clone().requires_grad_() for t in inputs] for _ in range(2)
    )
    value = GradientFeatures.apply(*own, *_gradient(batch))
    x, real, imaginary = plain
    gx, gy = batch.ops.grad_x.to_dense() @ x, batch.ops.grad_y.to_dense() @ x
    bx, by = gx @ real.T, gy @ real.T
    if rotates:
        bx, by = bx - gy @ imaginary.T, by + gx @ imaginary.T
    wanted = torch.tanh(gx * bx + gy * by)
    torch.testing.assert_close(value, wanted, atol=1e-4, rtol=1e-3)
    weight = torch.randn_like(wanted)
    (value * weight).sum().backward()
    (wanted * weight).sum().backward()
    for a, b in zip(own, plain, strict=True):
        if a is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=2e-3 * b.grad.abs().max(), rtol=1e-2)


def test_bfloat16_runs_on_the_cpu(shapes):
    encoder = build("diffusionnet", 3, "whole")
    batch = ShapeBatch.pack(shapes[:2])
    with torch.autocast("cpu", torch.bfloat16):
        code = encoder(batch.pos, batch).at("whole")
    code.float().sum().backward()
    assert torch.isfinite(code).all() and all(p.grad is not None for p in encoder.parameters())


def test_lexicographic_order():
    rows = torch.tensor([[[1.0, 2], [0, 9], [1, 0], [0, 1]]])
    assert lexicographic(rows)[0].tolist() == [[0, 1], [0, 9], [1, 0], [1, 2]]


def test_sorting_makes_the_flat_network_permutation_invariant():
    flat = FlatMLP(3, SPEC, "whole", points=32, sort=True)
    x = torch.rand(32, 3)
    from geodl.shape import Shape

    a, b = (ShapeBatch.pack([Shape(p)]) for p in (x, x.flip(0)))
    torch.testing.assert_close(flat(a.pos, a).at("whole"), flat(b.pos, b).at("whole"))


def test_flat_network_refuses_another_number_of_points(shapes):
    flat = FlatMLP(3, SPEC, "whole", points=64)
    batch = ShapeBatch.pack(shapes[:2])
    with pytest.raises(UserError, match="weights for 64 points"):
        flat(batch.pos, batch)
