"""Geometry against closed forms, dense solvers and an independent library."""

import logging
import multiprocessing

import numpy as np
import potpourri3d as pp3d
import pytest
import scipy.linalg as la
import torch
from conftest import grid, icosphere
from scipy.spatial import Delaunay

from geodl.data.preprocess import BadShape, Preprocess
from geodl.ops import check as checks
from geodl.ops.cache import PLACE, Cache, compute
from geodl.ops.geometry import (
    Geometry,
    face_areas,
    face_vectors,
    unique_edges,
    unit,
    vertex_normals,
)
from geodl.ops.gradient import gradient, tangent_frames
from geodl.ops.laplacian import laplacian
from geodl.ops.logmap import log_map
from geodl.ops.neighbors import surface_nearest
from geodl.ops.remesh import loop, remesh, simplify, slide, subdivide
from geodl.ops.spectrum import spectrum
from geodl.shape import Shape
from geodl.spec import Gradient, Laplacian, LogMap, Mass, Spectrum


def dense_evals(geometry, k):
    lap, mass = laplacian(geometry)
    return la.eigh(lap.toarray() + 1e-8 * np.eye(len(mass)), np.diag(mass), eigvals_only=True)[:k]


def test_the_sphere_has_its_spectrum():
    pos, face = icosphere(4)
    evals, evecs, mass = spectrum(Geometry.of(pos, face), 49)
    wanted = np.concatenate([[m * (m + 1)] * (2 * m + 1) for m in range(7)])
    assert np.abs(evals[1:] / wanted[1:] - 1).max() < 0.02
    assert evals[0] < 1e-5  # 1e-8 over the smallest area
    assert mass.sum() == pytest.approx(4 * np.pi, rel=0.01)
    assert np.abs(evecs.T @ (mass[:, None] * evecs) - np.eye(49)).max() < 1e-9


@pytest.mark.parametrize("k", [32, 128])
def test_eigenvalues_equal_a_dense_solver(k):
    pos, face = icosphere(3)
    pos = pos * [1.0, 0.7, 1.3]
    geometry = Geometry.of(pos, face)
    evals, _, _ = spectrum(geometry, k)
    np.testing.assert_allclose(evals[1:], dense_evals(geometry, k)[1:], rtol=1e-8)


def test_many_components_all_have_their_constant():
    """The null space has more dimensions than a block of the eigensolver."""
    pos, face = icosphere(2)
    count = 9
    scale = np.linspace(0.8, 1.2, count)
    many = np.concatenate([pos * s + [3 * i, 0, 0] for i, s in enumerate(scale)])
    faces = np.concatenate([face + i * len(pos) for i in range(count)])
    geometry = Geometry.of(many, faces)
    evals, evecs, mass = spectrum(geometry, 64)
    assert (evals[:count] < 1e-5).all() and evals[count] > 0.5
    np.testing.assert_allclose(evals[count:], dense_evals(geometry, 64)[count:], rtol=1e-7)
    lap, _ = laplacian(geometry)
    assert np.abs(lap @ evecs - mass[:, None] * evecs * evals).max() < 1e-6


def test_the_same_arrays_give_the_same_bits():
    geometry = Geometry.of(*icosphere(4))
    a, b = spectrum(geometry, 64), spectrum(geometry, 64)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_tiny_mesh_pads_its_spectrum_with_zeros():
    pos, face = icosphere(0)
    evals, evecs, _ = spectrum(Geometry.of(pos, face), 32)
    assert evals.shape == (32,) and evecs.shape == (12, 32)
    assert (evals[12:] == 0).all() and (evecs[:, 12:] == 0).all() and evals[11] > 0


def test_the_laplacian_is_that_of_potpourri3d():
    pos, face = icosphere(3)
    geometry = Geometry.of(pos * [1.0, 0.5, 2.0], face)
    lap, mass = laplacian(geometry)
    peer = pp3d.cotan_laplacian(geometry.pos, geometry.face, denom_eps=1e-10)
    assert abs(lap - peer).max() < 1e-12
    areas = pp3d.vertex_areas(geometry.pos, geometry.face)
    np.testing.assert_allclose(mass, areas + 1e-8 * areas.mean(), rtol=1e-12)


@pytest.mark.parametrize("backend", ["cotan", "robust"])
def test_constants_are_harmonic(backend):
    lap, mass = laplacian(Geometry.of(*icosphere(2), backend))
    assert np.abs(lap @ np.ones(len(mass))).max() < 1e-10
    assert abs(lap - lap.T).max() < 1e-12


def test_a_cloud_of_the_sphere_has_nearly_its_spectrum():
    pos, _ = icosphere(4)
    evals, _, mass = spectrum(Geometry.of(pos, np.empty((0, 3), int)), 16)
    wanted = np.concatenate([[m * (m + 1)] * (2 * m + 1) for m in range(4)])
    assert np.abs(evals[1:] / wanted[1:] - 1).max() < 0.1 and mass.min() > 0


def test_the_gradient_of_a_linear_function_is_its_slope():
    pos, face = grid(12)
    pos = pos * 10  # the Tikhonov term is absolute
    geometry = Geometry.of(pos, face)
    gx, gy = gradient(geometry)
    frames = tangent_frames(vertex_normals(geometry))
    slope = np.array([0.3, -1.2, 0.0])
    value = pos @ slope
    recovered = (gx @ value)[:, None] * frames[:, 0] + (gy @ value)[:, None] * frames[:, 1]
    assert np.abs(recovered - slope).max() < 1e-4
    assert np.abs(gx @ np.ones(len(pos))).max() < 1e-12


def test_the_gradient_on_the_sphere_is_tangent_and_right():
    pos, face = icosphere(4)
    geometry = Geometry.of(pos * 20, face)
    gx, gy = gradient(geometry)
    frames = tangent_frames(vertex_normals(geometry))
    recovered = (gx @ (pos[:, 2] * 20))[:, None] * frames[:, 0] + (gy @ (pos[:, 2] * 20))[
        :, None
    ] * frames[:, 1]
    tangent = np.array([0, 0, 1.0]) - pos * pos[:, 2:]
    assert np.abs(recovered - tangent).max() < 0.02


def test_normals_point_outwards_and_survive_folded_faces():
    pos, face = icosphere(3)
    normals = vertex_normals(Geometry.of(pos, face))
    assert np.einsum("ij,ij->i", normals, pos).min() > 0.99
    flat = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]], float)
    folded = vertex_normals(Geometry.of(flat, np.array([[0, 1, 2], [0, 2, 1]])))
    np.testing.assert_allclose(np.linalg.norm(folded, axis=1), 1.0)


def test_edges_come_in_order_of_first_appearance():
    face = np.array([[2, 0, 1], [1, 0, 3]])
    edge, of_face = unique_edges(face)
    assert edge.tolist() == [[0, 2], [0, 1], [1, 2], [0, 3], [1, 3]]
    assert of_face.tolist() == [[0, 1, 2], [1, 3, 4]]


# ---- check and repair ----

TETRA = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
FACES = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


def broken(name):
    pos, face = TETRA.copy(), FACES.copy()
    if name == "NaN or infinite vertices":
        pos[1, 2] = np.nan
    elif name == "face indices out of range":
        face[0, 0] = 9
    elif name == "zero faces":
        face = face[:0]
    elif name == "no vertices":
        pos = pos[:0]
    elif name == "degenerate faces":
        face = np.concatenate([face, [[0, 0, 1]]])
    elif name == "duplicate faces":
        face = np.concatenate([face, face[:1, [1, 2, 0]]])
    elif name == "unreferenced vertices":
        pos = np.concatenate([pos, [[5, 5, 5]]])
    elif name == "non-manifold edges":
        pos = np.concatenate([pos, [[1, 1, -1]]])
        face = np.concatenate([face, [[0, 1, 4]]])
    elif name == checks.ABSURD:
        pos = pos * 1e101
    elif name == checks.FAR:
        pos = pos + 1e10
    elif name == "components":
        pos = np.concatenate([pos, pos + 5])
        face = np.concatenate([face, face + 4])
    return pos, face


def test_a_sound_mesh_has_no_defect():
    assert not checks.check(TETRA, FACES) and str(checks.check(TETRA, FACES)) == ""


@pytest.mark.parametrize("name", [*checks.FATAL, *checks.MENDED, *checks.KEPT])
def test_every_defect_is_named(name):
    defects = checks.check(*broken(name))
    assert name in defects.count and name in str(defects)


@pytest.mark.parametrize("name", checks.MENDED)
def test_what_can_be_mended_is(name):
    pos, face = broken(name)
    mended = checks.repair(pos, face)
    assert not checks.check(mended.pos, mended.face)
    np.testing.assert_array_equal(pos[mended.vertex], mended.pos)
    assert len(mended.face_index) == len(mended.face) == 4


@pytest.mark.parametrize("name", checks.FATAL)
def test_what_cannot_be_mended_is_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        checks.repair(*broken(name))


# ---- re-meshing ----


def test_subdivision_keeps_the_surface():
    pos, face = icosphere(1)
    finer, faces = subdivide(pos, face)
    assert len(faces) == 4 * len(face)
    assert face_areas(finer, faces).sum() == pytest.approx(face_areas(pos, face).sum())


def test_simplification_reaches_its_size():
    small, faces = simplify(*icosphere(4), 400)
    mended = checks.repair(small, faces)
    assert 350 < len(mended.pos) < 450
    assert np.abs(np.linalg.norm(mended.pos, axis=1) - 1).max() < 0.03


def test_remeshing_keeps_the_surface_and_none_of_the_vertices():
    pos, face = icosphere(3)
    new, faces = remesh(pos, face, 500, np.random.default_rng(0))
    mended = checks.repair(new, faces)
    assert not checks.check(mended.pos, mended.face) and 480 < len(mended.pos) < 520
    area = face_areas(pos, face).sum()
    assert face_areas(mended.pos, mended.face).sum() == pytest.approx(area, rel=0.03)
    from scipy.spatial import cKDTree

    assert np.median(cKDTree(pos).query(mended.pos)[0]) > 1e-3


def topology(face):
    """Euler characteristic, boundary edges, and whether every edge has one or two faces."""
    edge, face_edge = unique_edges(face)
    sides = np.bincount(face_edge.reshape(-1))
    euler = len(np.unique(face)) - len(edge) + len(face)
    return euler, (sides == 1).any(), (sides <= 2).all()


@pytest.mark.parametrize("contrast", [1.0, 10.0])
@pytest.mark.parametrize("shape", ["needle", "leaf", "ring", "sheet"])
def test_remeshing_keeps_the_topology_of_thin_shapes(shape, contrast):
    if shape == "ring":
        import trimesh

        made = trimesh.creation.torus(1.0, 0.04, major_sections=80, minor_sections=12)
        pos, face = np.array(made.vertices), np.array(made.faces)
    else:
        pos, face = grid(20) if shape == "sheet" else icosphere(3)
        pos = pos * {"needle": [4, 0.1, 0.1], "leaf": [1, 1, 0.01], "sheet": 1}[shape]
    for seed in range(3):
        new, faces = remesh(pos, face, 150, np.random.default_rng(seed), contrast)
        mended = checks.repair(new, faces)
        assert not checks.check(mended.pos, mended.face), checks.check(mended.pos, mended.face)
        assert topology(mended.face) == topology(face) and len(mended.pos) == len(new)
        area = face_areas(mended.pos, mended.face).sum() / face_areas(pos, face).sum()
        assert 0.8 < area < 1.01


def test_remeshing_keeps_every_component():
    pos, face = icosphere(3)
    small, small_face = icosphere(1)
    both = np.concatenate([pos, small * 0.02 + 3.0])
    faces = np.concatenate([face, small_face + len(pos)])
    for seed in range(3):
        new, triangles = remesh(both, faces, 100, np.random.default_rng(seed))
        mended = checks.repair(new, triangles)
        assert topology(mended.face) == (4, False, True)
    tiny = np.concatenate([pos, small * 1e-4 + 3.0])  # too small for a seed of its own
    new, _ = remesh(tiny, faces, 60, np.random.default_rng(0))
    assert (new[:, 0] > 2).any()


def test_a_remeshed_boundary_stays_where_it_is():
    pos, face = grid(20)
    new, _ = remesh(pos, face, 150, np.random.default_rng(0))
    np.testing.assert_allclose(np.ptp(new, axis=0), np.ptp(pos, axis=0), atol=0.08)
    assert ((new[:, 0] == pos[:, 0].min()).sum()) > 5


# ---- cache ----


def test_the_cache_computes_once_and_returns_the_same_bits(tmp_path):
    geometry = Geometry.of(*icosphere(2))
    first = Cache(tmp_path)
    a = first.need(Spectrum(32), geometry)
    assert (first.hits, first.misses) == (0, 1)
    b = first.need(Spectrum(32), geometry)
    assert (first.hits, first.misses) == (1, 1)
    fresh = compute(Spectrum(32), geometry)
    for name in ("evals", "evecs", "mass"):
        assert np.array_equal(a[name], b[name]) and np.array_equal(a[name], fresh[name])
        assert a[name].dtype == np.float32


def test_float64_input_hits(tmp_path):
    pos, face = icosphere(2)
    pos = pos + np.pi / 10  # not representable in float32
    cache = Cache(tmp_path)
    cache.need(Mass(), Geometry.of(pos, face))
    cache.need(Mass(), Geometry.of(pos.astype(np.float32), face.astype(np.int32)))
    assert (cache.hits, cache.misses) == (1, 1)


def test_everything_that_changes_the_result_changes_the_key(tmp_path):
    pos, face = icosphere(2)
    cache = Cache(tmp_path)
    cache.need(Gradient(), Geometry.of(pos, face))
    cache.need(Gradient(), Geometry.of(pos * 1.001, face))
    cache.need(Gradient(), Geometry.of(pos, face[:, [1, 2, 0]]))
    cache.need(Gradient(), Geometry.of(pos, face, "robust"))
    cache.need(Spectrum(32), Geometry.of(pos, face))
    cache.need(Spectrum(64), Geometry.of(pos, face))
    assert (cache.hits, cache.misses) == (0, 6)


def test_a_file_cut_in_half_is_computed_again_and_said(tmp_path, caplog):
    geometry = Geometry.of(*icosphere(2))
    cache = Cache(tmp_path)
    whole = cache.need(Mass(), geometry)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        again = Cache(tmp_path).need(Mass(), geometry)
    assert np.array_equal(whole["mass"], again["mass"])
    assert str(file) in caplog.text and "computing it again" in caplog.text
    assert Cache(tmp_path)._read(file) is not None


def _race(folder):
    cache = Cache(folder)
    cache.need(Spectrum(32), Geometry.of(*icosphere(3)))
    return cache.misses


def test_parallel_jobs_compute_a_key_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        misses = pool.map(_race, [tmp_path] * 3)
    assert sum(misses) == 1
    assert [p.suffix for p in tmp_path.rglob("*") if p.is_file()] == [".safetensors"]


def test_space_is_counted_and_freed(tmp_path):
    cache = Cache(tmp_path)
    cache.need(Mass(), Geometry.of(*icosphere(1)))
    cache.need(Gradient(), Geometry.of(*icosphere(1)))
    assert {f.split("/")[1]: n for f, (n, _) in cache.size().items()} == {"mass": 1, "gradient": 1}
    assert cache.clean("old") == 0 and cache.clean("mass") > 0
    assert list(cache.size()) == [f"{PLACE}/gradient"]


# ---- other triangulations ----


def test_loop_subdivision_smooths_and_keeps_planes_and_borders():
    pos, face = grid(6)
    fine, triangles = loop(pos, face)
    assert len(triangles) == 4 * len(face) and np.abs(fine[:, 2]).max() == 0
    corners = np.array([[0, 0, 0], [1, 1, 0]], float)  # on the border's curve, pulled inwards
    assert all(np.linalg.norm(fine - c, axis=1).min() < 0.06 for c in corners)
    rough = pos + np.random.default_rng(0).standard_normal(pos.shape) * [0, 0, 0.05]
    assert (
        np.abs(np.diff(loop(rough, face)[0][: len(pos), 2])).mean()
        < 0.9 * np.abs(np.diff(rough[:, 2])).mean()
    )
    # The limit of an icosahedron: its vertices move to 1 - degree * beta of their radius, and more.
    ico, ico_face = icosphere(0)
    beta = (0.625 - (0.375 + 0.25 * np.cos(2 * np.pi / 5)) ** 2) / 5
    expected = 1 - 5 * beta + 5 * beta / np.sqrt(5)  # neighbours' mean lies at 1 / sqrt(5)
    moved = np.linalg.norm(loop(ico, ico_face)[0][:12], axis=1)
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_uneven_remeshing_is_denser_at_one_end():
    pos, face = icosphere(3)
    rng = np.random.default_rng(0)
    direction = np.random.default_rng(0).standard_normal((1, 3))[0]
    new, _ = remesh(pos, face, 400, rng, contrast=10.0)
    along = new @ direction / np.linalg.norm(direction)
    assert (along > 0).sum() > 2 * (along < 0).sum()


def test_the_nearest_point_lies_on_the_surface_and_in_its_face():
    pos, face = icosphere(2)
    points = np.random.default_rng(0).standard_normal((50, 3))
    on, at = surface_nearest(pos, face, points)
    best = np.linalg.norm(pos - points[:, None], axis=2).min(1)
    assert (np.linalg.norm(at - points, axis=1) <= best + 1e-9).all()
    normal = np.cross(pos[face[on, 1]] - pos[face[on, 0]], pos[face[on, 2]] - pos[face[on, 0]])
    assert np.abs(np.einsum("nc,nc->n", at - pos[face[on, 0]], normal)).max() < 1e-9


def test_sliding_moves_vertices_along_the_surface_and_not_over_its_border():
    pos, face = icosphere(3)
    new = slide(pos, face, 0.2, np.random.default_rng(0))
    moved = np.linalg.norm(new - pos, axis=1)
    assert 0.1 < moved.mean() < 0.2 and moved.max() < 0.21
    assert np.linalg.norm(new, axis=1).min() > 0.98  # chords of a fine sphere
    assert face_areas(new, face).min() > 0.1 * face_areas(pos, face).min()
    flat, triangles = grid(12)
    away = slide(flat, triangles, 0.1, np.random.default_rng(1))
    border = (flat[:, :2] % 1 == 0).any(1)
    np.testing.assert_allclose(away[border], flat[border], atol=1e-9)
    assert np.linalg.norm(away - flat, axis=1)[~border].min() > 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", ["ring", "needle", "limbs"])
def test_sliding_folds_no_triangle_of_a_thin_shape(shape, seed):
    """The vertices go about as far as the limbs are thick."""
    if shape == "ring":
        import trimesh

        made = trimesh.creation.torus(1.0, 0.05, major_sections=60, minor_sections=8)
        pos, face = np.array(made.vertices), np.array(made.faces)
    else:
        pos, face = icosphere(3)
        limbs = 0.1 + 0.9 * np.abs(pos).max(1, keepdims=True) ** 30
        pos = pos * ([1, 0.08, 0.08] if shape == "needle" else limbs)
    new = slide(pos, face, 0.1, np.random.default_rng(seed))
    np.testing.assert_allclose(surface_nearest(pos, face, new)[1], new, atol=1e-9)
    on, _ = surface_nearest(pos, face, new[face].mean(1))
    normal, under = unit(face_vectors(new, face)), unit(face_vectors(pos, face))[on]
    assert (normal * under).sum(1).min() > 0
    area = face_areas(new, face)
    assert area.sum() == pytest.approx(face_areas(pos, face).sum(), rel=0.15)
    assert (area / face_areas(pos, face)).min() > 0.05
    moved = np.linalg.norm(new - pos, axis=1)
    assert moved.mean() > 0.045 and moved.max() < 0.101
    assert np.array_equal(new, slide(pos, face, 0.1, np.random.default_rng(seed)))


# ---- units: the same shape at any size and place gives the same numbers ----


def odd_surface():
    pos, face = icosphere(2)
    rng = np.random.default_rng(0)  # no two distances are equal
    return pos * [1, 2, 0.7] + 0.1 * np.sin(3 * pos) + 0.01 * rng.random(pos.shape), face


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("cloud", [False, True])
@pytest.mark.parametrize(("vertices", "offset"), [(None, 0), (100, 0), (None, 1e5)])
def test_normalised_operators_do_not_depend_on_units_or_place(
    scale, cloud, vertices, offset, tmp_path
):
    pos, face = odd_surface()
    face = face[:0] if cloud else face
    process = Preprocess(vertices=None if cloud else vertices)

    def operators(pos):
        shape = Shape(pos=torch.from_numpy(pos), face=torch.from_numpy(face))
        done = process(shape, "vertex", Cache(tmp_path)).shape
        geometry = Geometry.of(done.pos.numpy(), done.face.numpy())
        needs = (Mass(), Laplacian(), Gradient(), Spectrum(16))
        found = {k: v for n in needs for k, v in compute(n, geometry).items()}
        return found | {"pos": done.pos.numpy()}

    there = operators((pos + [offset, 0, 0]) * scale)
    for name, here in operators(pos).items():
        if name == "evecs":  # up to their signs
            there[name], here = np.abs(there[name]), np.abs(here)
        gap = np.abs(there[name].astype(float) - here).max()
        assert gap <= 1e-6 * max(np.abs(here).max(), 1e-12) * (100 if name == "evecs" else 1), name


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_operators_of_shapes_that_are_not_normalised_scale_with_them(scale):
    pos, face = odd_surface()
    for need in (Mass(), Laplacian(), Gradient(), Spectrum(16)):
        there = compute(need, Geometry.of(pos * scale, face))
        here = compute(need, Geometry.of(pos, face))
        for name, field in need.fields.items():
            if name == "evecs":
                continue
            key = f"{name}.value" if field.kind == "matrix" else name
            back = there[key] / scale**field.scale
            np.testing.assert_allclose(back, here[key], rtol=0, atol=4e-6 * np.abs(here[key]).max())


def test_a_shape_far_away_keeps_its_details_or_is_refused(tmp_path):
    pos, face = odd_surface()
    shape = Shape(pos=torch.from_numpy(pos + 1e5), face=torch.from_numpy(face))
    Preprocess()(shape, "vertex", Cache(tmp_path))
    with pytest.raises(BadShape, match="32-bit coordinates lose its details"):
        Preprocess(center=None)(shape, "vertex", Cache(tmp_path))


def test_a_changed_byte_in_a_cached_file_is_noticed(tmp_path, caplog):
    pos, face = odd_surface()
    cache, geometry = Cache(tmp_path), Geometry.of(pos, face)
    first = cache.need(Mass(), geometry)
    (file,) = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    for place in (3, 20, len(whole) // 2, len(whole) - 1):
        data = bytearray(whole)
        data[place] ^= 1
        file.write_bytes(data)
        again = cache.need(Mass(), geometry)
        assert np.array_equal(again["mass"], first["mass"]) and cache.misses >= 2
        assert str(file) in caplog.text and file.read_bytes() == whole


@pytest.mark.parametrize(("subdivisions", "k"), [(0, 12), (1, 20), (1, 42), (1, 60)])
def test_tiny_shapes_have_the_eigenpairs_of_the_dense_problem(subdivisions, k):
    pos, face = icosphere(subdivisions)
    geometry = Geometry.of(pos * [1, 2, 0.7], face)
    evals, evecs, mass = spectrum(geometry, k)
    lap, _ = laplacian(geometry)
    have = min(k, len(pos))
    want = la.eigh(lap.toarray(), np.diag(mass), eigvals_only=True)[:have]
    assert evals.shape == (k,) and evecs.shape == (len(pos), k)
    np.testing.assert_allclose(evals[:have], want, atol=1e-6)
    np.testing.assert_allclose(
        evecs[:, :have].T @ (mass[:, None] * evecs[:, :have]), np.eye(have), atol=1e-9
    )
    assert not evals[have:].any() and not evecs[:, have:].any(), "what there is no more of is zero"


def test_a_logarithmic_map_is_the_plane_itself_and_right_on_a_sphere():
    rng = np.random.default_rng(0)
    flat = rng.uniform(-0.5, 0.5, (400, 2))
    face = Delaunay(flat).simplices
    x, y = (m.toarray() for m in log_map(Geometry.of(np.c_[flat, 0 * flat[:, 0]], face), 0.2))
    for i in np.flatnonzero(np.abs(flat).max(1) < 0.3)[:20]:
        near = np.flatnonzero(x[i] + 1j * y[i])
        step, found = (flat[near] - flat[i]) @ [1, 1j], x[i, near] + 1j * y[i, near]
        ratio = found / step
        # One turn for the whole patch, that which takes the nearest vertex to the x axis.
        assert np.abs(np.angle(ratio / ratio[0])).max() < 1e-5
        assert np.abs(found[np.abs(found).argmin()].imag) < 1e-9
        assert np.abs(ratio).min() > 1 - 1e-6 and np.median(np.abs(ratio)) < 1.02

    pos, face = icosphere(3)
    x, y = (m.toarray() for m in log_map(Geometry.of(pos, face), 0.5))
    arc = np.arccos(np.clip(pos @ pos[50], -1, 1))
    near = np.flatnonzero((arc < 0.45) & (arc > 0))
    found = x[50, near] + 1j * y[50, near]
    assert np.abs(np.abs(found) / arc[near] - 1).max() < 0.05
    e1, e2, _ = tangent_frames(pos[50:51])[0]
    true = (pos[near] @ e1) + 1j * (pos[near] @ e2)
    turn = np.exp(1j * np.angle(found / true))
    assert np.abs(np.angle(turn / turn.mean())).max() < 0.1
    # Measured in the shape's own size: 1,000 times as large, the radius too, it is the same.
    asked = (compute(LogMap(0.5 * by), Geometry.of(by * pos, face)) for by in (1, 1000))
    small, large = (np.hypot(found["log_x.value"], found["log_y.value"]) for found in asked)
    np.testing.assert_allclose(small, large, atol=1e-5)


def test_a_small_spectrum_that_does_not_converge_is_computed_densely(monkeypatch):
    import geodl.ops.spectrum as module

    geometry = Geometry.of(*icosphere(3))
    wanted, _, _ = spectrum(geometry, 32)

    def fail(*args):
        raise ValueError("32 eigenpairs did not converge in a space of 500")

    monkeypatch.setattr(module, "_largest", fail)
    evals, evecs, mass = spectrum(geometry, 32)
    np.testing.assert_allclose(evals, wanted, atol=1e-8)
    assert np.abs(evecs.T @ (mass[:, None] * evecs) - np.eye(32)).max() < 1e-8
    monkeypatch.setattr(module, "STILL_DENSE", 600)
    with pytest.raises(ValueError, match="did not converge"):
        spectrum(geometry, 32)
