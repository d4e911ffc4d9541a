import pytest
import torch

from geodl.shape import GroupBatch, Operators, Shape, ShapeBatch
from geodl.spec import Field


def test_pack_then_unpack_gives_the_shapes_back(shapes):
    back = ShapeBatch.pack(shapes).unpack()
    assert len(back) == len(shapes) == 8
    for a, b in zip(shapes, back, strict=True):
        for name in ("pos", "face", "normal", "label", "category", "landmark"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert a.name == b.name
        assert a.ops.fields == b.ops.fields and len(a.ops) >= 6
        for name in a.ops:
            x, y = a.ops[name], b.ops[name]
            assert torch.equal(x.to_dense(), y.to_dense()) if x.is_sparse else torch.equal(x, y)


def test_matrices_become_block_diagonal(shapes):
    batch = ShapeBatch.pack(shapes[:3])
    x = torch.randn(batch.pos.shape[0], 2)
    whole = batch.ops.grad_x @ x
    parts = [s.ops.grad_x @ p for s, p in zip(shapes[:3], x.split(batch.sizes), strict=True)]
    torch.testing.assert_close(whole, torch.cat(parts))
    assert batch.ops.grad_x.is_coalesced()
    assert batch.ops.evals.shape == (3, 64)


def test_faces_and_landmarks_point_into_the_packed_vertices(shapes):
    batch = ShapeBatch.pack(shapes[:2])
    second = batch.face[batch.counts["face"][0] :]
    torch.testing.assert_close(batch.pos[second], shapes[1].pos[shapes[1].face])
    mark = batch.landmark[batch.counts["landmark"][0] :]
    torch.testing.assert_close(batch.pos[mark], shapes[1].pos[shapes[1].landmark])


def test_dense_is_a_view_for_equal_sizes_and_refused_otherwise(shapes):
    batch = ShapeBatch.pack([shapes[0], shapes[0]])
    dense = batch.dense(batch.pos)
    assert dense.data_ptr() == batch.pos.data_ptr() and dense.shape[0] == 2
    mixed = ShapeBatch.pack(shapes[:2])
    with pytest.raises(ValueError, match="no dense view"):
        mixed.dense(mixed.pos)


def test_padded_and_unpadded_are_inverse(shapes):
    batch = ShapeBatch.pack(shapes)
    rows, mask = batch.padded(batch.pos)
    assert rows.shape == (8, max(batch.sizes), 3)
    assert mask.sum() == batch.pos.shape[0] and rows[~mask].abs().max() == 0
    assert torch.equal(batch.unpadded(rows), batch.pos)


def test_reductions_are_those_of_each_shape(shapes):
    batch = ShapeBatch.pack(shapes)
    x = torch.randn(batch.pos.shape[0], 5)
    parts = x.split(batch.sizes)
    torch.testing.assert_close(batch.max(x), torch.stack([p.amax(0) for p in parts]))
    one = ShapeBatch.pack([Shape(torch.randn(5, 3))])
    assert one.dense(one.pos).shape == (1, 5, 3) and torch.equal(
        one.max(one.pos)[0], one.pos.amax(0)
    )
    torch.testing.assert_close(batch.mean(x), torch.stack([p.mean(0) for p in parts]))
    mass = batch.ops.mass
    weighted = [
        (m[:, None] * p).sum(0) / m.sum()
        for m, p in zip(mass.split(batch.sizes), parts, strict=True)
    ]
    torch.testing.assert_close(batch.mean(x, mass), torch.stack(weighted))
    spread = batch.spread(batch.max(x))
    assert torch.equal(spread[batch.sizes[0]], batch.max(x)[1])


def test_shapes_with_different_fields_are_refused():
    a, b = Shape(torch.rand(4, 3), name="a"), Shape(torch.rand(4, 3), name="b")
    b.label = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"label is missing in \['a'\]"):
        ShapeBatch.pack([a, b])
    b.label = None
    b.ops = Operators({"mass": torch.ones(4)}, {"mass": Field()})
    with pytest.raises(ValueError, match="operators of 'a'"):
        ShapeBatch.pack([a, b])


def test_a_missing_operator_is_named():
    with pytest.raises(AttributeError, match="no operator 'evecs'"):
        _ = Shape(torch.rand(4, 3)).ops.evecs


def test_pairs_travel_together(shapes):
    pair = GroupBatch(source=ShapeBatch.pack(shapes[:2]), target=ShapeBatch.pack(shapes[2:4])).to(
        "cpu"
    )
    assert len(pair) == 2 and pair.target.names == [s.name for s in shapes[2:4]]


@pytest.mark.parametrize("n", [255, 256, 300, 1001])
def test_the_largest_rows_and_their_gradients_are_torchs(n):
    x = torch.randn(3 * n, 7, requires_grad=True)
    batch = ShapeBatch.pack([Shape(torch.zeros(n, 3)) for _ in range(3)])
    weight = torch.randn(3, 7)
    slow = x.view(3, n, 7).max(1).values
    assert torch.equal(batch.max(x), slow)
    (ours,) = torch.autograd.grad((batch.max(x) * weight).sum(), x)
    (torchs,) = torch.autograd.grad((slow * weight).sum(), x)
    assert torch.equal(ours, torchs)
