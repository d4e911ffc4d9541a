"""Networks on meshes: patches, edges and their collapses, tangent vectors."""

import numpy as np
import pytest
import torch
from conftest import grid, icosphere

from geodl.data.views import attach
from geodl.encoders.deltaconv import Calculus, DeltaNet, VectorLayer, turned
from geodl.encoders.geodesic_cnn import GeodesicConv, Patches
from geodl.encoders.meshcnn import MeshCNN
from geodl.errors import UserError
from geodl.nn.meshpool import Level, collapsed
from geodl.nn.poisson import Faces
from geodl.ops.edges import edge_fields
from geodl.ops.geometry import Geometry
from geodl.shape import Operators, Shape, ShapeBatch
from geodl.spec import DataSpec, Edges, Needs


def test_a_geodesic_convolution_is_the_largest_of_the_filters_rotations(shapes):
    torch.manual_seed(0)
    batch = ShapeBatch.pack(shapes[:2])
    n, c, rings, angles = len(batch.pos), 3, 2, 8
    patches = Patches(batch, rings, angles)
    conv = GeodesicConv(c, 4, rings, angles)
    x = torch.randn(n, c)
    # Patches bin by bin, by the definition.
    lx, ly = batch.ops.log_x.to_dense(), batch.ops.log_y.to_dense()
    inside = torch.zeros(n, n)
    inside[*batch.ops.log_x.indices()] = 1.0
    rho, theta = torch.hypot(lx, ly), torch.atan2(ly, lx)
    patch = torch.empty(n, c, rings, angles)
    for i in range(rings):
        for j in range(angles):
            turn = (theta - 2 * np.pi * j / angles + np.pi).remainder(2 * np.pi) - np.pi
            towards = torch.exp(-((turn * angles / (2 * np.pi)) ** 2) / 2).where(rho > 0, 1.0)
            weight = inside * towards * torch.exp(-((rho * rings - i - 0.5) ** 2) / 2)
            patch[:, :, i, j] = (weight / weight.sum(1, keepdim=True)) @ x
    answers = [torch.einsum("ncij,ocij->no", patch.roll(-k, 3), conv.weight) for k in range(angles)]
    wanted = torch.stack(answers).amax(0) + conv.bias
    torch.testing.assert_close(conv(x, patches), wanted, atol=1e-5, rtol=1e-4)


def with_edges(pos, face, name=""):
    """A shape with what ``Edges`` asks for, in the numbers' own precision."""
    values = {
        n: torch.from_numpy(x) if Edges.fields[n].kind == "index" else torch.from_numpy(x).float()
        for n, x in edge_fields(Geometry.of(pos, face)).items()
    }
    pos, face = torch.from_numpy(np.asarray(pos)).float(), torch.from_numpy(np.asarray(face))
    return Shape(pos, face, ops=Operators(values, Edges.fields), name=name)


def is_a_mesh(mesh):
    """Every neighbour lists the edge where it is said to, in a face of three edges."""
    for i, (n, j) in enumerate(zip(mesh.ring, mesh.side, strict=True)):
        if n >= 0:
            assert mesh.ring[4 * n + j] == i // 4 and mesh.side[4 * n + j] == i % 4
            # The two other edges of a face list each other.
            other = mesh.ring[i ^ 1]
            assert other in mesh.ring[4 * n : 4 * n + 4]


def test_edges_of_a_square_and_of_three_faces_at_an_edge(cache):
    pos = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    found = edge_fields(Geometry.of(pos, np.array([[0, 1, 2], [0, 2, 3]])))
    assert found["edge"].tolist() == [[0, 1], [1, 2], [0, 2], [2, 3], [0, 3]]
    assert found["edge_ring"][2].tolist() == [0, 1, 3, 4]
    assert found["edge_ring"][0].tolist() == [1, 2, -1, -1]
    for e in range(5):
        for n, j in zip(found["edge_ring"][e], found["edge_side"][e], strict=True):
            assert n < 0 or found["edge_ring"][n, int(j)] == e
    dihedral, *angles = found["edge_shape"][2, :3]
    soft = np.sqrt(2) / 2  # lengths are 0.1 longer where they are divided by
    assert dihedral == pytest.approx(np.pi - np.arccos((1 / 1.1) ** 2))
    assert angles == pytest.approx([np.arccos(0.0)] * 2)
    assert found["edge_shape"][2, 3] < soft and found["edge_shape"][2, 3] > soft / 2
    third = edge_fields(
        Geometry.of(np.vstack([pos, [[0.5, 0.5, 1]]]), np.array([[0, 1, 2], [0, 2, 3], [0, 2, 4]]))
    )
    assert third["edge_ring"][2].tolist() == [0, 1, 3, 4]  # the third face is not seen
    assert (third["edge_ring"][-1] == -1).all() and (third["edge_shape"][-1] == 0).all()
    cloud = Shape(torch.from_numpy(pos).float(), name="dots")
    with pytest.raises(UserError, match="dots is a point cloud"):
        attach(cloud, Needs.of(Edges()), "cotan", cache)


def test_collapses_leave_a_mesh_and_keep_what_all_edges_have():
    torch.manual_seed(0)
    sphere, patch = icosphere(2), grid(9)
    batch = ShapeBatch.pack([with_edges(*sphere, "sphere"), with_edges(*patch, "patch")])
    level = Level.of(batch)
    x = torch.rand(level.total, 3)
    pooling = collapsed(x, level, 120)
    first, second = pooling.after.meshes
    for mesh in (first, second):
        is_a_mesh(mesh)
    assert 118 <= len(first) <= 120 and 118 <= len(second) <= 120
    # Still a sphere: vertices - edges + faces.
    assert len(set(first.ends)) - len(first) + 2 * len(first) // 3 == 2
    border = sum(-1 in level.meshes[1].ring[4 * e : 4 * e + 4] for e in range(len(level.meshes[1])))
    assert border == sum(-1 in second.ring[4 * e : 4 * e + 4] for e in range(len(second))) > 0
    ones = torch.ones(level.total, 1)
    torch.testing.assert_close(pooling.pool(ones), torch.ones(pooling.after.total, 1))
    back = pooling.unpool(torch.ones(pooling.after.total, 1))
    assert back.shape == (level.total, 1) and back.min() > 0 and back.max() <= 1.0 + 1e-6
    y = pooling.pool(x)
    alone = collapsed(x[: level.sizes[0]], Level.of(ShapeBatch.pack([with_edges(*sphere)])), 120)
    torch.testing.assert_close(alone.pool(x[: level.sizes[0]]), y[: len(first)])
    # Small features go first: what is left of the sphere is its upper half.
    upper = batch.pos[batch.ops.edge].mean(1)[:, 2:] > 0
    kept = collapsed(upper.float() + 0.1 * x[:, :1], level, 240)
    share = (kept.pool(upper.float()) > 0.5)[: kept.after.sizes[0]].float().mean()
    assert share > 0.8


def test_vertices_with_three_edges_go_before_the_edge_opposite_of_them():
    # A tetrahedron with a vertex put into one of its faces, and so on: all of valence three.
    pos, face = icosphere(1)
    inside = pos[face[0]].mean(0, keepdims=True) * 1.01
    a, b, c = face[0]
    n = len(pos)
    face = np.vstack([face[1:], [[a, b, n], [b, c, n], [c, a, n]]])
    shape = with_edges(np.vstack([pos, inside]), face)
    level = Level.of(ShapeBatch.pack([shape]))
    x = torch.ones(level.total, 1)
    edge = shape.ops.edge
    x[(edge == torch.tensor(sorted((a, b)))).all(1)] = 0.0  # is looked at first
    pooling = collapsed(x, level, level.total - 3)
    (mesh,) = pooling.after.meshes
    is_a_mesh(mesh)
    assert n not in mesh.ends and len(set(mesh.ends)) == n


def test_collapses_do_not_depend_on_the_order_of_the_faces():
    torch.manual_seed(0)
    pos, face = icosphere(2)
    pos = pos + 0.05 * np.random.default_rng(0).normal(size=pos.shape)
    order = np.random.default_rng(1).permutation(len(face))
    encoder = MeshCNN(3, DataSpec(), "face", widths=[16, 16, 16], pool=[300, 150], blocks=1).eval()
    with torch.no_grad():
        a, b = (
            encoder(None, ShapeBatch.pack([with_edges(pos, f)])).at("face")
            for f in (face, face[order])
        )
    torch.testing.assert_close(a[torch.from_numpy(order)], b, atol=1e-4, rtol=1e-3)


def test_a_tetrahedron_becomes_two_faces_and_no_less():
    pos = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    face = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
    level = Level.of(ShapeBatch.pack([with_edges(pos, face)]))
    pooling = collapsed(torch.rand(6, 2), level, 1)
    is_a_mesh(pooling.after.meshes[0])
    assert pooling.after.sizes == [3]


def test_segments_of_edges_have_the_authors_number_of_parameters():
    spec = DataSpec(parts=tuple("abcdefgh"), label_on="edge")
    encoder = MeshCNN(3, spec, "edge")
    assert sum(p.numel() for p in encoder.parameters()) == 2_279_720
    with pytest.raises(UserError, match=r"pool=\[10\] must have a number of edges"):
        MeshCNN(3, spec, "edge", widths=[16, 16, 16], pool=[10])


def test_gradient_divergence_and_curl_of_points():
    pos = torch.rand(600, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [10.0, 10, 0]
    )
    plane = Shape(pos, normal=torch.tensor([[0.0, 0, 1]]).expand(600, 3).contiguous())
    calculus = Calculus(ShapeBatch.pack([plane]), 20)
    inner = ((pos[:, :2] - 5).abs() < 3.5).all(1)
    # Frames on this plane: x = (0, -1), y = (1, 0).
    grad = calculus.grad(pos[:, :2]).view(-1, 2, 2)[inner]
    scale = grad[:, 1, 0].mean()
    wanted = scale * torch.tensor([[0.0, -1], [1, 0]]).expand_as(grad)
    assert (grad - wanted).abs().max() < 0.1 * scale
    outward = calculus.grad(pos[:, :2].square().sum(1, keepdim=True))  # of |p|^2: (2x, 2y)
    div, curl = calculus.div(outward)[inner], calculus.curl(outward)[inner]
    assert (div / scale**2 - 4).abs().median() < 0.3 and curl.abs().median() < 0.1 * div.median()
    v = torch.randn(1200, 2)
    torch.testing.assert_close(turned(turned(v)), -v)
    layer = VectorLayer(2, 5)
    torch.testing.assert_close(layer(turned(v)), turned(layer(v)))


def test_the_two_streams_hardly_depend_on_how_a_shape_stands(shapes):
    torch.manual_seed(0)
    encoder = DeltaNet(3, DataSpec(), "whole", points=None, widths=[16, 32], embedding=32).eval()
    shape = shapes[0]
    rotation = torch.linalg.qr(torch.randn(3, 3)).Q
    rotation = rotation * torch.linalg.det(rotation)
    codes = []
    for s in (shape, shape.turned(rotation)):
        batch = ShapeBatch.pack([s])
        codes.append(encoder(shape.pos, batch).at("whole"))
    assert (codes[0] - codes[1]).abs().max() < 0.05 * codes[0].abs().max()


def test_poisson_is_solved_on_meshes_with_triangles_without_area():
    pos, face = grid(6)
    face = np.concatenate([face, [[0, 1, 2], [0, 0, 1]]])  # in a line, and with an empty side
    shape = Shape(torch.from_numpy(pos).float(), torch.from_numpy(face).long())
    batch = ShapeBatch.pack([shape])
    faces = Faces(batch)
    u = batch.pos[:, :1]
    found = faces.poisson(faces.grad(u), batch)
    assert (found - u).std() < 1e-3  # the same function, but for a constant
