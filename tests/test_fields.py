"""Packing, moving and carrying read a tensor's field and nothing else: random fields and shapes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geodl.augment import random_rotation
from geodl.shape import Operators, Shape, ShapeBatch
from geodl.spec import MESH, Field

SETS = ("vertex", "face", "edge", "patch")


@st.composite
def layouts(draw):
    """A few fields: name -> field, as a data set or a need might declare them."""
    fields = {}
    for i in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["row", "index", "matrix", "whole"]))
        on = "whole" if kind == "whole" else draw(st.sampled_from(SETS))
        into = ""
        if kind == "matrix":
            into = draw(st.sampled_from(SETS))
        if kind == "index":
            names = st.sampled_from(SETS)
            into = draw(st.one_of(names, st.tuples(names, names, names)))
        turns = kind == "row" and draw(st.booleans())
        fields[f"f{i}"] = Field(on, kind, into, turns, draw(st.integers(-2, 2)))
    return fields


def shape_with(fields, sizes, seed):
    """A shape of these sizes (element set -> count) with random values in every field."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*size):
        return torch.rand(*size, generator=generator)

    def below(n, *size):  # with some that say none
        return (numbers(*size) * (n + 1)).long() - 1

    values = {f"count_{name}": numbers(n, 1) for name, n in sizes.items()}
    declared = {f"count_{name}": Field(name) for name in sizes}
    for name, f in fields.items():
        if f.kind == "whole":
            values[name] = numbers(4)
        elif f.kind == "row":
            values[name] = numbers(sizes[f.on], 3)
        elif f.kind == "matrix":
            dense = numbers(sizes[f.on], sizes[f.into]) * (numbers(sizes[f.on], 1) > 0.3)
            values[name] = dense.to_sparse().coalesce()
        else:
            into = (f.into,) * 3 if isinstance(f.into, str) else f.into
            columns = [below(sizes[n], sizes[f.on]) for n in into]
            values[name] = torch.stack(columns, 1)
    face = (numbers(sizes["face"], 3) * sizes["vertex"]).long()
    ops = Operators(values, {**declared, **fields})
    return Shape(pos=numbers(sizes["vertex"], 3), face=face, ops=ops, name=str(seed))


def same(a, b):
    a, b = (x.to_dense() if x.is_sparse else x for x in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


sizes = st.fixed_dictionaries({name: st.integers(1, 6) for name in SETS})


@settings(max_examples=150, deadline=None)
@given(layouts(), st.lists(sizes, min_size=1, max_size=4))
def test_unpacking_gives_back_what_was_packed(fields, many):
    shapes = [shape_with(fields, one, seed) for seed, one in enumerate(many)]
    batch = ShapeBatch.pack(shapes)
    for a, b in zip(shapes, batch.unpack(), strict=True):
        back = {name: x for name, _, x in b.tensors()}
        assert back.keys() == {name for name, _, _ in a.tensors()}
        for name, _, x in a.tensors():
            assert same(x, back[name]), name
    for name, f in fields.items():
        if f.kind in ("row", "index"):
            for shape, rows in zip(shapes, batch.rows(name), strict=True):
                assert same(shape.ops[name], rows), name


@settings(max_examples=100, deadline=None)
@given(layouts(), st.lists(sizes, min_size=2, max_size=3))
def test_packed_indices_and_matrices_meet_their_own_shapes_elements(fields, many):
    shapes = [shape_with(fields, one, seed) for seed, one in enumerate(many)]
    batch = ShapeBatch.pack(shapes)
    for name, f in fields.items():
        if f.kind == "index" and isinstance(f.into, str):
            whole, index = batch.ops[f"count_{f.into}"], batch.ops[name]
            wanted = torch.cat([s.ops[f"count_{f.into}"][s.ops[name]] for s in shapes])
            there = index >= 0
            assert torch.equal(whole[index][there], wanted[there])
        if f.kind == "matrix":
            product = batch.ops[name] @ batch.ops[f"count_{f.into}"]
            parts = [s.ops[name] @ s.ops[f"count_{f.into}"] for s in shapes]
            torch.testing.assert_close(product, torch.cat(parts))


@settings(max_examples=60, deadline=None)
@given(layouts(), sizes, st.floats(0.1, 10))
def test_turning_and_scaling_touch_what_says_so(fields, one, s):
    shape = shape_with(fields, one, 0)
    rotation = random_rotation(np.random.default_rng(0))
    turned, scaled = shape.turned(rotation), shape.scaled(s)
    for name, f in fields.items():
        x = shape.ops[name]
        assert same(turned.ops[name], x @ rotation.T if f.turns else x)
        assert same(scaled.ops[name], x * s**f.scale if f.scale else x)
    assert torch.equal(turned.pos, shape.pos @ rotation.T) and torch.equal(turned.face, shape.face)


@given(layouts(), sizes)
@settings(max_examples=60, deadline=None)
def test_another_mesh_keeps_what_does_not_touch_it(fields, one):
    kept = shape_with(fields, one, 0).ops.without(*MESH)
    for name, f in fields.items():
        assert (name in kept) == (not set(f.sets) & set(MESH))


def test_disagreeing_and_dangling_fields_are_named():
    pos = torch.rand(4, 3)
    for values, fields, message in (
        ({"a": torch.rand(3)}, {"a": Field()}, "a has 3 rows for 4 elements 'vertex'"),
        ({"a": torch.zeros(2, 1).long()}, {"a": Field("patch", "index", "ring")}, "into {'ring'}"),
    ):
        with pytest.raises(ValueError, match=message):
            ShapeBatch.pack([Shape(pos, ops=Operators(values, fields), name="s")])
    for wrong in ({"kind": "index"}, {"into": "face"}):
        with pytest.raises(ValueError, match="indices and matrices, and no others"):
            Field("vertex", **wrong)
