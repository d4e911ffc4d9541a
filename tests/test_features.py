import numpy as np
import pytest
import torch
from conftest import icosphere

from geodl.augment import Scale, random_rotation
from geodl.errors import UserError
from geodl.features import HKS, WKS, XYZ, Concat, Normal
from geodl.shape import Shape, ShapeBatch


@pytest.mark.parametrize(
    "feature", [XYZ(), Normal(), HKS(16, 64), WKS(30, 64), Concat([XYZ(), HKS(4, 64)])]
)
def test_channels_are_known_at_construction(feature, shapes):
    batch = ShapeBatch.pack(shapes)
    assert feature(batch).shape == (batch.pos.shape[0], feature.channels)


@pytest.mark.parametrize("feature", [HKS(16, 64), WKS(32, 64)])
def test_signatures_of_a_batch_are_those_of_each_shape(feature, shapes):
    batch = feature(ShapeBatch.pack(shapes))
    single = torch.cat([feature(ShapeBatch.pack([s])) for s in shapes])
    torch.testing.assert_close(batch, single)


def test_hks_is_the_sum_that_defines_it(shapes):
    shape = shapes[0]
    evals, evecs = shape.ops.evals.double(), shape.ops.evecs.double()
    for i, t in enumerate(np.logspace(-2, 0, 16)):
        wanted = (torch.exp(-evals * t) * evecs**2).sum(1)
        got = HKS(16, 64)(ShapeBatch.pack([shape]))[:, i].double()
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_wks_columns_are_weighted_means_of_squared_eigenfunctions(shapes):
    batch = ShapeBatch.pack([shapes[0]])
    signature = WKS(32, 64)(batch)
    mass = batch.ops.mass
    # Every squared eigenfunction integrates to one, so a normalised mix of them does too.
    torch.testing.assert_close(mass @ signature, torch.ones(32), rtol=1e-3, atol=1e-3)


def test_signatures_do_not_turn_with_the_shape(shapes):
    batch = ShapeBatch.pack(shapes[:2])
    turned = batch.rotated(random_rotation(np.random.default_rng(0)))
    for feature in (HKS(8, 64), WKS(29, 64)):
        assert torch.equal(feature(batch), feature(turned))
    assert not torch.allclose(XYZ()(batch), XYZ()(turned), atol=0.1)


def test_scaling_rescales_operators_exactly(cache):
    from geodl.data.views import attach
    from geodl.spec import DataSpec, Gradient, Laplacian, Needs, Spectrum

    needs = Needs.of(Spectrum(32), Gradient(), Laplacian())
    # A mesh without slivers: the authors' absolute 1e-5 in the gradients' systems shows on these.
    pos, face = icosphere(3)
    pos = torch.from_numpy(pos * [1.0, 0.7, 1.3]).float()
    bare = Shape(pos, torch.from_numpy(face).long(), name="ellipsoid")
    full = attach(bare, needs, "cotan", cache)
    scaled = Scale(1.5, 1.5)(full, np.random.default_rng(0), DataSpec())
    fresh = attach(bare.replace(pos=bare.pos * 1.5), needs, "cotan", cache)
    torch.testing.assert_close(scaled.ops.mass, fresh.ops.mass, rtol=1e-4, atol=0)
    torch.testing.assert_close(scaled.ops.evals[1:], fresh.ops.evals[1:], rtol=1e-4, atol=0)
    torch.testing.assert_close(
        scaled.ops.lap.to_dense(), fresh.ops.lap.to_dense(), rtol=1e-3, atol=1e-3
    )
    x = torch.randn(bare.pos.shape[0], 1)
    scale = (fresh.ops.grad_x @ x).abs().max()
    assert ((scaled.ops.grad_x @ x) - (fresh.ops.grad_x @ x)).abs().max() < 0.01 * scale
    torch.testing.assert_close(
        scaled.ops.evecs[:, 1].abs(), fresh.ops.evecs[:, 1].abs(), rtol=1e-2, atol=1e-3
    )


def test_an_empty_list_is_refused():
    with pytest.raises(UserError, match="empty"):
        Concat([])


def test_logarithms_of_signatures(shapes):
    batch = ShapeBatch.pack(shapes)
    assert torch.allclose(HKS(8, 64, log=True)(batch), HKS(8, 64)(batch).log())
