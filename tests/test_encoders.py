"""One file checks every encoder that the folder holds."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ALL, icosphere, labelled_on
from omegaconf import OmegaConf

from geodl.augment import random_rotation
from geodl.carry import sampled
from geodl.data.views import attach
from geodl.decoders.chebnet import Cheb
from geodl.decoders.linear import Linear
from geodl.decoders.mlp import MLP
from geodl.decoders.spiral import Spiral
from geodl.encoders.chebnet import ChebNet
from geodl.encoders.diffusionnet import DiffusionNet
from geodl.encoders.flat_mlp import FlatMLP, lexicographic
from geodl.encoders.pointnet import PointNet
from geodl.encoders.spiralnet import SpiralNet
from geodl.errors import UserError
from geodl.features import HKS, XYZ
from geodl.nn.cheb import ChebConv, scaled_laplacian
from geodl.nn.spiral import SpiralConv
from geodl.runs.build import make
from geodl.runs.compose import compose, config_dir
from geodl.shape import Shape, ShapeBatch
from geodl.spec import DataSpec, Points, Spectrum, Template

SPEC = DataSpec(classes=tuple("abcdefgh"), parts=tuple("wxyz"), label_on="vertex")
OUTS = ("vertex", "edge", "face", "whole")


def of_folder():
    """Every encoder that configs/encoder has: name -> class and options of a small one."""
    found = {}
    for file in sorted((config_dir() / "encoder").glob("[!_]*.yaml")):
        cfg = OmegaConf.to_container(compose([f"encoder={file.stem}"]).encoder)
        module, _, name = cfg["_target_"].rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        found[file.stem] = cls, {**cfg, **cls.small}
    return found


ENCODERS = of_folder()
ANSWERED = [(name, out) for name, (cls, _) in ENCODERS.items() for out in cls.outputs]
REFUSED = [
    (name, out) for name, (cls, _) in ENCODERS.items() for out in OUTS if out not in cls.outputs
]


@pytest.fixture
def spec(shapes):
    """A specification whose template is the first shape."""
    template = Template(shapes[0].pos.numpy(), shapes[0].face.numpy())
    return replace(SPEC, template=template)


def build(name, channels, out, spec=SPEC):
    _, options = ENCODERS[name]
    torch.manual_seed(0)
    encoder = make("encoder", options)(in_channels=channels, spec=spec, out=out)
    for parameter in encoder.parameters():  # no zero or identity hides a mistake
        parameter.data += 0.02 * torch.randn_like(parameter)
    return encoder


def seen_by(encoder, shapes):
    if encoder.registered:  # as many shapes with the template's faces
        moved = [shapes[0].pos * (1 + 0.1 * i) for i in range(len(shapes))]
        return [shapes[0].replace(pos=pos) for pos in moved]
    points = encoder.needs.find(Points)
    return [sampled(s, points.n, "vertex", None) for s in shapes] if points else shapes


def test_every_encoder_of_the_folder_is_tested():
    assert len(ENCODERS) >= 10 and len(ANSWERED) >= 31 and len(REFUSED) >= 13


@pytest.mark.parametrize(("name", "out"), ANSWERED)
def test_every_output_has_its_rows(name, out, shapes, spec):
    encoder = build(name, 3, out, spec).eval()
    picked = [labelled_on(s, out) if out != "whole" else s for s in shapes[:3]]
    batch = ShapeBatch.pack(seen_by(encoder, picked))
    value = encoder(batch.pos, batch).at(out)
    rows = 3 if out == "whole" else len(batch.label)
    assert value.shape == (rows, encoder.channels)
    assert encoder.learns == bool(list(encoder.parameters()))
    if encoder.learns:
        value.sum().backward()
    unused = [n for n, p in encoder.named_parameters() if p.grad is None]
    assert not unused, f"built but not used for {out}: {unused}"


@pytest.mark.parametrize(("name", "out"), REFUSED)
def test_every_other_output_is_refused(name, out, spec):
    with pytest.raises(UserError, match=f"gives one answer per .* needs one per {out}"):
        build(name, 3, out, spec)


@pytest.mark.parametrize(("name", "out"), [m for m in ANSWERED if m[1] in ("vertex", "whole")])
def test_a_batch_of_eight_equals_one_by_one(name, out, shapes, spec):
    intrinsic = "rotation" in ENCODERS[name][0].symmetries
    encoder = build(name, 16 if intrinsic else 3, out, spec).eval()
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


@pytest.mark.parametrize("name", [n for n, (cls, _) in ENCODERS.items() if not cls.registered])
def test_declared_symmetries_hold(name, shapes, cache, spec):
    out = "whole" if "whole" in ENCODERS[name][0].outputs else "vertex"
    encoder = build(name, 3, out, spec).eval()
    shape = seen_by(encoder, shapes[:1])[0]
    rng = np.random.default_rng(0)

    def code(s, x=None):
        batch = ShapeBatch.pack([s])
        with torch.no_grad():
            return encoder(batch.pos if x is None else x, batch).at(out)

    order = torch.from_numpy(rng.permutation(shape.pos.shape[0]))
    place = torch.argsort(order)
    moved = shape.replace(pos=shape.pos[order], label=None, landmark=None, normal=None)
    moved.ops = type(shape.ops)()
    if shape.face.shape[0]:
        moved = moved.replace(face=place[shape.face])
    if not encoder.needs.find(Points):
        moved = attach(moved, ALL, "cotan", cache)
    wanted = code(shape) if out == "whole" else code(shape)[order]
    same = torch.allclose(wanted, code(moved), atol=2e-4)
    assert same == ("permutation" in encoder.symmetries)

    # Rotation is understood for features that do not turn along.
    turned = shape.turned(random_rotation(rng))
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


@pytest.mark.parametrize("name", [n for n, (cls, _) in ENCODERS.items() if cls.registered])
def test_encoders_on_a_template_refuse_its_vertices_in_another_order(name, shapes, spec):
    encoder = build(name, 3, "whole", spec).eval()
    shape = seen_by(encoder, shapes[:1])[0]
    order = torch.randperm(len(shape.pos))
    moved = Shape(shape.pos[order], torch.argsort(order)[shape.face], name="moved")
    with pytest.raises(UserError, match="other faces"):
        encoder(moved.pos, ShapeBatch.pack([moved]))


@pytest.mark.parametrize("name", [n for n, (c, _) in ENCODERS.items() if "whole" in c.outputs])
def test_no_features_are_enough_for_networks_that_look_themselves(name, shapes, spec):
    if not ENCODERS[name][0].featureless:
        with pytest.raises(UserError, match="features=none leaves it nothing"):
            build(name, 0, "whole", spec)
        return
    encoder = build(name, 0, "whole", spec).eval()
    batch = ShapeBatch.pack(seen_by(encoder, shapes[:2]))
    codes = encoder(batch.pos[:, :0], batch).at("whole")
    assert (codes[0] - codes[1]).abs().max() > 1e-3


def count(encoder, classes):
    own = sum(p.numel() for p in encoder.parameters())
    return own + encoder.channels * classes + classes  # the task's head


COUNTS = [
    (cls, c) for cls in dict.fromkeys(cls for cls, _ in ENCODERS.values()) for c in cls.counts
]


def test_how_many_counts_there_are():
    assert len(COUNTS) == 30


@pytest.mark.parametrize(
    ("cls", "known"), COUNTS, ids=lambda x: x.__name__ if isinstance(x, type) else str(x.total)
)
def test_parameters_are_the_authors(cls, known):
    spec = DataSpec(classes=tuple(map(str, range(16))), parts=tuple(map(str, range(50))))
    encoder = cls(known.in_channels, spec, known.out, **known.options)
    assert count(encoder, known.classes) == known.total


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


def test_the_other_gradient_features_are_those_of_their_code(shapes):
    from geodl.encoders.diffusionnet import _gradient, cao_features

    batch = ShapeBatch.pack(shapes[:2])
    n, c = batch.pos.shape[0], 4
    x = (0.02 * torch.randn(n, c)).requires_grad_()
    real, imaginary = torch.randn(c, c), torch.randn(c, c)
    gx, gy = batch.ops.grad_x.to_dense() @ x, batch.ops.grad_y.to_dense() @ x
    bx, by = gx @ real.T - gy @ imaginary.T, gx @ real.T + gy @ imaginary.T
    wanted = torch.tanh(gx * bx + gy * by)
    value = cao_features(x, real, imaginary, *_gradient(batch))
    torch.testing.assert_close(value, wanted, atol=1e-4, rtol=1e-3)
    weight = torch.randn_like(wanted)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (value, wanted))
    torch.testing.assert_close(ours, theirs, atol=2e-3 * theirs.abs().max(), rtol=1e-2)
    encoder = DiffusionNet(3, SPEC, "vertex", width=16, gradient="cao")
    plain = DiffusionNet(3, SPEC, "vertex", width=16)
    plain.load_state_dict(encoder.state_dict())
    values = [e.eval()(batch.pos, batch).at("vertex") for e in (encoder, plain)]
    assert not torch.allclose(*values)


def test_a_function_is_found_from_its_gradient_and_gradients_of_solutions_are_right(shapes):
    from geodl.nn.poisson import faces_of

    torch.manual_seed(0)
    batch = ShapeBatch.pack(shapes[:3])
    faces = faces_of(batch)
    x = torch.randn(len(batch.pos), 2)
    found = faces.poisson(faces.grad(x), batch)
    wanted = faces.grad(x)
    assert (faces.grad(found) - wanted).abs().max() < 1e-3 * wanted.abs().max()
    assert batch.mean(found, faces.mass).abs().max() < 1e-5
    linear = faces.grad(batch.pos).square().sum(0).sum(1)  # |grad| of x, y, z: 2 on every plane
    torch.testing.assert_close(linear, torch.full_like(linear, 2.0), atol=1e-3, rtol=0)
    ones = torch.ones_like(x)
    torch.testing.assert_close(faces.to_vertices(faces.to_faces(ones)), ones)

    y = torch.randn(2, len(batch.face), 2, requires_grad=True)
    weight, step = torch.randn_like(x), torch.randn(2, len(batch.face), 2)
    (slope,) = torch.autograd.grad((faces.poisson(y, batch) * weight).sum(), y)
    difference = (faces.poisson(step, batch) * weight).sum()  # it is linear
    torch.testing.assert_close((slope * step).sum(), difference, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="is a point cloud"):
        faces_of(ShapeBatch.pack([Shape(torch.rand(5, 3), name="cloud")]))


def test_turning_every_frame_turns_the_features_of_a_gauge_equivariant_convolution(shapes):
    from geodl.encoders.gem_cnn import GemConv, Regular, edges_of, turned

    torch.manual_seed(0)
    batch = ShapeBatch.pack(shapes[:2])
    n = len(batch.pos)
    turn = 6.28 * torch.rand(n)
    before, after = edges_of(batch, 2), edges_of(batch, 2, turn)
    x = torch.randn(n, 3, 5)
    conv = GemConv(3, 4, 2, 1, 2)
    conv.bias.data.normal_()
    y = conv(x, before)
    assert y.abs().max() > 0.1
    torch.testing.assert_close(
        conv(turned(x, -turn), after), turned(y, -turn), atol=1e-5, rtol=1e-4
    )
    assert (conv(x, after) - y).abs().max() > 0.1  # features that did not turn along
    relu, angle = Regular(2, 7), torch.full((n,), 2 * np.pi / 7)
    torch.testing.assert_close(relu(turned(x, angle)), turned(relu(x), angle))


@pytest.mark.parametrize("name", [n for n, (cls, _) in ENCODERS.items() if cls.learns])
def test_bfloat16_runs_on_the_cpu(name, shapes, spec):
    out = "whole" if "whole" in ENCODERS[name][0].outputs else "vertex"
    encoder = build(name, 3, out, spec)
    batch = ShapeBatch.pack(seen_by(encoder, shapes[:2]))
    with torch.autocast("cpu", torch.bfloat16):
        code = encoder(batch.pos, batch).at(out)
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


# ---- networks on a template ----


def sphere(vertices):
    """A template of exactly so many vertices."""
    from geodl.ops.hierarchy import decimate

    pos, face = icosphere(5)
    kept, face = decimate(pos, face, vertices)
    return Template(pos[kept].astype(np.float32), face)


def test_parameters_of_template_networks_are_the_authors():
    spec = DataSpec(template=sphere(5023))

    def total(encoder, decoder, latent):
        parts = (encoder, decoder, torch.nn.Linear(encoder.channels, latent))
        return sum(p.numel() for part in parts for p in part.parameters())

    wide, narrow = [32, 32, 32, 64], [16, 16, 16, 32]
    spiral = SpiralNet(3, spec, "whole", channels=wide), Spiral(16, spec, channels=wide)
    assert total(*spiral, 16) == 154_899
    cheb = ChebNet(3, spec, "whole", channels=narrow), Cheb(8, spec, channels=narrow)
    assert total(*cheb, 8) == 30_059
    assert sum(p.numel() for p in Linear(8, spec).parameters()) == 120_552


def test_a_spiral_convolution_is_a_linear_layer_on_the_spiral():
    torch.manual_seed(0)
    index = torch.randint(0, 20, (20, 5))
    index[3, 2:] = -1  # the dummy vertex
    x = torch.randn(2, 20, 4, requires_grad=True)
    for out in (3, 7):  # multiplied before and after the gathering
        conv = SpiralConv(4, out, index)
        padded = torch.cat([x, torch.zeros(2, 1, 4)], dim=1)
        rows = padded[:, index].flatten(2)  # -1 is the last row
        torch.testing.assert_close(conv(x), conv.linear(rows))
        ours = torch.autograd.grad(conv(x).square().sum(), x)[0]
        plain = torch.autograd.grad(conv.linear(rows).square().sum(), x)[0]
        torch.testing.assert_close(ours, plain)


def test_a_chebyshev_convolution_is_a_polynomial_of_the_laplacian():
    torch.manual_seed(0)
    pos, face = icosphere(1)
    lap = scaled_laplacian(face, len(pos))
    dense = lap.to_dense()
    assert torch.linalg.eigvalsh(dense).abs().max() <= 1 + 1e-5
    conv = ChebConv(2, 3, 4, lap)
    x = torch.randn(1, len(pos), 2)
    eye = torch.eye(len(pos))
    terms = [eye, dense, 2 * dense @ dense - eye, 4 * dense @ dense @ dense - 3 * dense]
    plain = conv.linear(torch.cat([t @ x[0] for t in terms], dim=1))
    torch.testing.assert_close(conv(x)[0], plain, atol=1e-5, rtol=1e-4)


def test_template_networks_refuse_other_meshes(shapes, spec):
    encoder = build("spiralnet", 3, "whole", spec)
    with pytest.raises(UserError, match="vertex correspondence.*take encoder=pointnet"):
        encoder(shapes[1].pos, ShapeBatch.pack([shapes[1]]))
    with pytest.raises(UserError, match="but this data set has none"):
        build("spiralnet", 3, "whole", SPEC)
    with pytest.raises(UserError, match="channels has 1, factors has 2"):
        SpiralNet(3, spec, "whole", channels=[8], factors=[4, 4])


def test_decoders_start_from_any_code(spec):
    small = {"channels": [8, 8], "factors": [4, 4]}
    for decoder in (
        Spiral(5, spec, **small, length=[9, 9], dilation=[1, 2]),
        Cheb(5, spec, **small),
        MLP(5, spec),
        Linear(5, spec),
    ):
        assert decoder(torch.randn(3, 5)).shape == (3, len(spec.template.pos), 3)


def test_diffusion_can_be_taken_away_or_its_time_fixed(shapes):
    def net(**options):
        torch.manual_seed(0)
        return DiffusionNet(3, SPEC, "vertex", width=16, blocks=2, dropout=0.0, **options)

    batch = ShapeBatch.pack(shapes[:2])
    alone = net(diffusion="none", gradient=False)
    assert not alone.needs.find(Spectrum)
    moved = batch.pos.clone()
    moved[5:] = 0  # without diffusion and gradients no vertex knows of another
    a, b = (alone(x, batch).at("vertex") for x in (batch.pos, moved))
    torch.testing.assert_close(a[:5], b[:5])
    assert not torch.allclose(
        net()(batch.pos, batch).at("vertex")[:5], net()(moved, batch).vertex[:5]
    )
    learned, fixed = net(), net(time=0.1)
    count = [sum(p.numel() for p in n.parameters()) for n in (learned, fixed)]
    assert count[0] - count[1] == 2 * 16
    for block in learned.blocks:
        block.time.data.fill_(0.1)
    torch.testing.assert_close(learned(moved, batch).vertex, fixed(moved, batch).vertex)
    with pytest.raises(UserError, match="encoder.time=0.1 must be positive, with a diffusion"):
        net(time=0.1, diffusion="none")


@pytest.mark.parametrize("prefix", ["", "feature_extractor."])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_weights_under_the_authors_names(prefix, dropout, shapes):
    """nmwsharp/diffusion-net's names of the same network, for any task."""
    net = DiffusionNet(16, SPEC, "face", width=8, blocks=2, k_eig=32, dropout=dropout)
    own = {f"encoder.{k}": v for k, v in net.state_dict().items()}
    own |= {"head.weight": torch.rand(4, 8), "head.bias": torch.rand(4)}
    names = {"encoder.first": "first_lin", "head": "last_lin", ".time": ".diffusion.diffusion_time"}
    names |= {".real": ".gradient_features.A_re", ".imaginary": ".gradient_features.A_im"}
    linear = sorted({int(k.split(".")[4]) for k in own if ".mlp." in k})
    names |= {f".mlp.{n}.": f".mlp.miniMLP_mlp_layer_{i:03d}." for i, n in enumerate(linear)}
    names |= {"encoder.blocks.": "block_"}
    theirs = {}
    for key, value in own.items():
        for ours, other in names.items():
            key = key.replace(ours, other)
        theirs[prefix + key] = value
    assert "block_1.mlp.miniMLP_mlp_layer_002.bias" in {k.removeprefix(prefix) for k in theirs}
    back = net.translate(theirs)
    assert back.keys() == own.keys() and all(torch.equal(back[k], own[k]) for k in own)
    assert net.translate(own) is own
