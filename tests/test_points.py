"""Neighbourhoods, curves through grids, depth images: against their definitions."""

import itertools
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from geodl.augment import axis_rotation
from geodl.encoders.kpconv import disposition
from geodl.encoders.mvcnn import MVCNN
from geodl.encoders.point_transformer_v3 import Grid, PatchAttention, SparseConv
from geodl.encoders.voxnet import VoxNet
from geodl.errors import UserError
from geodl.nn.neighbors import ball, cells, cloud, farthest, interpolated, knn, means, within
from geodl.nn.serialize import ORDERS, code
from geodl.nn.views import cameras, depth_images
from geodl.shape import Shape, ShapeBatch
from geodl.spec import DataSpec

SIZES = [40, 7, 25]
COUNTS = [12, 9, 3]


@pytest.fixture
def points():
    torch.manual_seed(0)
    return torch.rand(sum(SIZES), 3), torch.rand(sum(COUNTS), 3)


def by_shape():
    """Slices of the points and of the others, shape by shape."""
    a, b = np.cumsum([0, *COUNTS]), np.cumsum([0, *SIZES])
    return [(slice(a[i], a[i + 1]), range(b[i], b[i + 1])) for i in range(3)]


def test_nearest_rows_are_those_of_the_own_shape_nearest_first(points, monkeypatch):
    among, some = points
    k = 9  # more than the seven points of the second shape
    index = knn(some, COUNTS, k, among, SIZES)
    monkeypatch.setattr("geodl.nn.neighbors.BLOCK", 64)
    assert torch.equal(index, knn(some, COUNTS, k, among, SIZES))
    for mine, theirs in by_shape():
        gap = torch.cdist(some[mine], among[list(theirs)])
        wanted = gap.argsort(1)[:, :k] + theirs[0]
        if len(theirs) < k:  # begins again
            wanted = torch.cat([wanted, wanted], dim=1)[:, :k]
        assert torch.equal(index[mine], wanted)


def test_balls_hold_the_first_rows_within_and_the_first_again(points):
    among, some = points
    some = torch.cat([some[:-1], torch.full((1, 3), 5.0)])  # far from everything
    index = ball(some, COUNTS, 0.4, 6, among, SIZES)
    for mine, theirs in by_shape():
        for i in range(mine.start, mine.stop):
            gap = (among[list(theirs)] - some[i]).norm(dim=1)
            near = [theirs[0] + int(j) for j in (gap <= 0.4).nonzero()[:, 0]]
            near = (near or [theirs[0] + int(gap.argmin())])[:6]
            assert index[i].tolist() == near + [near[0]] * (6 - len(near))


def test_rows_within_a_radius_nearest_first_or_none(points):
    among, some = points
    index = within(some, COUNTS, 0.4, 30, among, SIZES)
    assert index.shape[1] < 30 and (index >= 0).any(0).all()
    for mine, theirs in by_shape():
        for i in range(mine.start, mine.stop):
            gap = (among[list(theirs)] - some[i]).norm(dim=1)
            near = [theirs[0] + int(j) for j in gap.argsort() if gap[j] < 0.4]
            assert [j for j in index[i].tolist() if j >= 0] == near
    assert within(some, COUNTS, 0.4, 2, among, SIZES).shape[1] == 2


def test_farthest_points_are_chosen_greedily(points):
    among, _ = points
    rows, counts = farthest(among, SIZES, 10)
    assert counts == [10, 7, 10]
    for found, (_, theirs) in zip(rows.split(counts), by_shape(), strict=True):
        own = among[list(theirs)].double()
        chosen = [0]
        while len(chosen) < len(found):
            gap = torch.cdist(own, own[chosen]).amin(1)
            chosen.append(int(gap.argmax()))
        assert (found - theirs[0]).tolist() == chosen
    assert farthest(among, SIZES, [1, 2, 3])[1] == [1, 2, 3]


def test_cells_hold_what_lies_in_them(points):
    among, _ = points
    cell, sizes = cells(among, SIZES, 0.3)
    assert sum(sizes) == int(cell.max()) + 1 and min(sizes) > 0
    shape = torch.arange(3).repeat_interleave(torch.tensor(SIZES))
    keys = [(int(s), *map(int, (p / 0.3).floor())) for s, p in zip(shape, among, strict=True)]
    for i, j in itertools.combinations(range(len(keys)), 2):
        assert (keys[i] == keys[j]) == (cell[i] == cell[j])
    mean = means(among, cell, sum(sizes))
    torch.testing.assert_close(mean[cell[5]], among[cell == cell[5]].mean(0))


def test_interpolation_keeps_values_and_constants(points):
    among, _ = points
    fine = ShapeBatch.pack([Shape(p) for p in among.split(SIZES)])
    rows, counts = farthest(among, SIZES, 5)
    coarse = cloud(fine, among[rows], counts)
    x = torch.rand(len(rows), 2)
    back = interpolated(x, coarse, fine)
    torch.testing.assert_close(back[rows], x, atol=1e-4, rtol=1e-4)
    constant = interpolated(torch.ones(len(rows), 1), coarse, fine, power=1)
    torch.testing.assert_close(constant, torch.ones(len(among), 1))


@pytest.mark.parametrize("order", ORDERS)
def test_curves_visit_every_cell_once_and_nest(order):
    depth = 3
    grid = torch.cartesian_prod(*[torch.arange(2**depth)] * 3)
    key = code(grid, depth, order)
    assert sorted(key.tolist()) == list(range(8**depth))
    assert torch.equal(key >> 3, code(grid >> 1, depth - 1, order))
    if order.startswith("hilbert"):  # without jumps
        path = grid[key.argsort()]
        assert (path.diff(dim=0).abs().sum(1) == 1).all()
    if order == "z":
        assert code(torch.eye(3, dtype=torch.long), 1, order).tolist() == [4, 2, 1]


def some_grid(sizes):
    torch.manual_seed(0)
    cell = torch.cat([torch.randperm(6**3)[:n] for n in sizes])
    cell = torch.stack([cell // 36, cell // 6 % 6, cell % 6], dim=1)
    shape = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) << 36
    return Grid(cell, sizes, torch.stack([shape | code(cell, 12, o) for o in ORDERS]))


def test_a_sparse_convolution_is_a_dense_one_where_cells_are():
    grid = some_grid([50, 20])
    conv = SparseConv(3, 4, 3, bias=True)
    x = torch.randn(70, 3)
    found = conv(x, grid).split(grid.sizes)
    for rows, cell, y in zip(x.split(grid.sizes), grid.cell.split(grid.sizes), found, strict=True):
        dense = torch.zeros(1, 3, 6, 6, 6)
        dense[0, :, cell[:, 0], cell[:, 1], cell[:, 2]] = rows.T
        kernel = conv.weight.view(3, 3, 3, 3, 4).permute(4, 3, 0, 1, 2)
        out = torch.nn.functional.conv3d(dense, kernel, conv.bias, padding=1)
        wanted = out[0, :, cell[:, 0], cell[:, 1], cell[:, 2]].T
        torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-4)


def test_patches_are_stretches_of_the_curve_and_the_last_one_reaches_back():
    grid = some_grid([21, 5])
    index, real, own = grid.patches(0, 8)
    order = grid.codes[0].argsort()
    assert index.shape == (4, 8)  # three of the first shape, one of the second
    assert torch.equal(index[0], order[:8]) and torch.equal(index[2], order[13:21])
    assert torch.equal(index[3, :5], order[21:]) and real[3].tolist() == [True] * 5 + [False] * 3
    assert torch.equal(index.flatten()[own], torch.arange(26))
    attention = PatchAttention(4, 2, 8)
    x = torch.randn(26, 4)
    y = attention(x, grid, 0)
    alone = Grid(grid.cell[21:], [5], grid.codes[:, 21:])
    torch.testing.assert_close(y[21:], attention(x[21:], alone, 0))


def test_kernel_points_keep_their_distance():
    points = torch.tensor(disposition(15))
    assert points[0].tolist() == [0, 0, 0]
    assert abs(points[1:].norm(dim=1).mean() - 0.66) < 1e-6
    assert torch.pdist(points).min() > 0.5


def test_voxels_do_not_depend_on_place_and_size():
    torch.manual_seed(0)
    pos = torch.rand(200, 3)
    net = VoxNet(0, DataSpec(), "whole", points=None, resolution=16)
    grids = []
    for p in (pos, 7 + 2 * pos):
        batch = ShapeBatch.pack([Shape(p)])
        grids.append(net.voxels(p[:, :0], batch))
    assert torch.equal(*grids)
    assert grids[0].sum() > 50 and grids[0][:, :, :2].sum() == 0


@pytest.mark.parametrize("up", ["y", "z"])
def test_turning_a_shape_about_the_vertical_turns_its_views(up):
    torch.manual_seed(0)
    pos = torch.randn(300, 3) * torch.tensor([1.0, 0.3, 0.6])
    pos = torch.cat([pos, -pos])  # so that its centre does not move
    turned = pos @ axis_rotation(up, 2 * math.pi / 6).T
    camera = cameras(6, up)
    a, b = (depth_images(ShapeBatch.pack([Shape(p)]), camera, 32)[0] for p in (pos, turned))
    assert (a - b.roll(-1, 0)).abs().gt(0.02).float().mean() < 0.01
    assert (a - b).abs().gt(0.02).float().mean() > 0.2
    assert 0.1 < (a > 0).float().mean() < 0.9 and a.max() <= 1


def test_the_nearest_point_of_a_pixel_is_seen():
    pos = torch.tensor([[0.0, 0, 0.5], [0, 0, -0.5], [0.9, 0, 0], [-0.9, 0, 0]])
    images = depth_images(ShapeBatch.pack([Shape(pos)]), cameras(2, "y", elevation=0.0), 8)[0]
    assert images[0, 4, 4] == images[1, 4, 4] == images.max()  # each from its own side


class Straight(torch.nn.Module):
    """A network like those of torchvision that are their parts in a row."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Conv2d(3, 4, 3, stride=2)
        self.pool = torch.nn.AdaptiveAvgPool2d(1)
        self.classifier = torch.nn.Linear(4, 1000)

    def forward(self, x):
        return self.classifier(self.pool(self.features(x)).flatten(1))


class Bent(Straight):
    """One with a step between its parts that is not a part."""

    def forward(self, x):
        return self.classifier(self.pool(self.features(x).square()).flatten(1))


def test_a_photographers_network_that_is_not_its_parts_in_a_row_is_refused(shapes, monkeypatch):
    models = SimpleNamespace(
        list_models=lambda: ["straight", "bent"],
        get_model=lambda name, weights: {"straight": Straight, "bent": Bent}[name](),
    )
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    encoder = MVCNN(0, DataSpec(), "whole", points=None, views=3, size=32, backbone="straight")
    assert encoder.channels == 4
    assert encoder(None, ShapeBatch.pack(shapes[:2])).at("whole").shape == (2, 4)
    with pytest.raises(UserError, match="is not its parts one after the other"):
        MVCNN(0, DataSpec(), "whole", points=None, views=3, size=32, backbone="bent")
