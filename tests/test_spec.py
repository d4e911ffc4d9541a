import numpy as np
import pytest
import torch

from geodl.errors import UserError
from geodl.ops.hierarchy import pyramid
from geodl.spec import DataSpec, Gradient, Needs, Points, Spectrum, Template


def test_union_merges_requests_of_one_kind():
    needs = Needs.of(Spectrum(100), Gradient()) | Needs.of(Spectrum(30), None)
    assert needs == Needs.of(Gradient(), Spectrum(128))
    assert len(needs.requests) == 2 and bool(Needs()) is False


def test_eigenpairs_round_up_to_fixed_numbers():
    assert Spectrum(1).k == 32 and Spectrum(128).k == 128 and Spectrum(129).k == 256
    for k in (0, 5000):
        with pytest.raises(UserError, match="eigenpairs"):
            Spectrum(k)


def test_contradicting_requests_are_refused():
    with pytest.raises(UserError, match="cannot both"):
        _ = Needs.of(Points(1024)) | Needs.of(Points(512))


def test_a_specification_survives_the_checkpoint():
    spec = DataSpec(
        classes=("a", "b"),
        parts=("x",),
        label_on="face",
        category_parts=((0,), (0, 1)),
        unit=98.5,
        protocol="p",
    )
    plain = spec.to_plain()
    assert isinstance(plain["classes"], list)
    assert DataSpec.from_plain(plain) == spec


def test_a_template_survives_the_checkpoint_with_its_levels(tmp_path):
    from conftest import icosphere

    pos, face = icosphere(3)
    template = Template(pos.astype(np.float32), face)
    levels = pyramid(template, (4, 4))
    plain = DataSpec(template=template).to_plain()
    torch.save(plain, tmp_path / "spec.pt")
    back = DataSpec.from_plain(torch.load(tmp_path / "spec.pt", weights_only=True)).template
    assert back is not None and list(back.levels) == [(4, 4)]
    np.testing.assert_array_equal(back.pos, template.pos)
    for found, made in zip(pyramid(back, (4, 4)), levels, strict=True):
        for name, array in vars(made).items():
            np.testing.assert_array_equal(getattr(found, name), array)
            assert getattr(found, name).dtype == array.dtype
