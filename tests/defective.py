"""Meshes with every kind of defect, as files in ten formats: for tests and scripts/campaign.py."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from geodl.data import formats
from geodl.data.preprocess import BadShape, Preprocess
from geodl.data.views import attach
from geodl.errors import UserError
from geodl.ops.cache import Cache
from geodl.shape import Shape, ShapeBatch
from geodl.spec import DataSpec, Gradient, Mass, Needs, Spectrum

NAMES = (".obj", ".off", ".ply", ".bin.ply", ".stl", ".bin.stl", ".npz", ".npy", ".xyz", ".pcd")
DEFECTS = (
    *("nan", "infinite", "huge", "tiny", "far", "flat", "point", "twice", "unused", "degenerate"),
    *("sliver", "duplicate", "inside out", "non-manifold", "pieces", "beyond", "below", "no faces"),
    *("one face", "nothing", "cut", "noise", "header"),
)


@dataclass
class File:
    suffix: str
    content: bytes
    defects: tuple[str, ...]


def spoiled(pos: np.ndarray, face: np.ndarray, defect: str, rng: np.random.Generator):
    n, m = len(pos), len(face)
    if n == 0:
        return pos, face
    some = int(rng.integers(n))
    if defect in ("nan", "infinite"):
        pos[some, 1] = np.nan if defect == "nan" else np.inf
    elif defect in ("huge", "tiny"):
        pos = pos * (1e300 if defect == "huge" else 1e-300)
    elif defect == "far":
        pos = pos + 10.0 ** rng.integers(3, 18)
    elif defect == "flat":
        pos[:, int(rng.integers(3))] = 0
    elif defect == "point":
        pos[:] = pos[0]
    elif defect == "twice":
        pos[some] = pos[0]
    elif defect == "unused":
        pos = np.concatenate([pos, rng.random((3, 3))])
    elif defect == "degenerate" and m:
        face = np.concatenate([face, [[some, some, 0]]])
    elif defect == "sliver" and m:
        pos = np.concatenate([pos, [pos[face[0, 0]] * (1 - 1e-12) + pos[face[0, 1]] * 1e-12]])
        face = np.concatenate([face, [[face[0, 0], face[0, 1], n]]])
    elif defect == "duplicate" and m:
        face = np.concatenate([face, face[: 1 + m // 3]])
    elif defect == "inside out":
        face = face[:, ::-1]
    elif defect == "non-manifold" and m:
        pos = np.concatenate([pos, rng.random((1, 3)) * 3])
        face = np.concatenate([face, [[face[0, 0], face[0, 1], n]]])
    elif defect == "pieces":
        face = np.concatenate([face, face + n])
        pos = np.concatenate([pos, pos + 5])
    elif defect in ("beyond", "below") and m:
        face = face.copy()
        face[0, 0] = n + 7 if defect == "beyond" else -2
    elif defect == "no faces":
        face = face[:0]
    elif defect == "one face":
        face = face[:1]
    elif defect == "nothing":
        pos, face = pos[:0], face[:0]
    return pos, face


def written(pos: np.ndarray, face: np.ndarray, name: str) -> bytes:
    points = "".join(f"{x!r} {y!r} {z!r}\n" for x, y, z in pos.tolist())
    triangles = face.tolist()
    if name == ".obj":
        text = "".join(f"v {line}\n" for line in points.splitlines())
        return (text + "".join(f"f {a + 1} {b + 1} {c + 1}\n" for a, b, c in triangles)).encode()
    if name == ".off":
        faces = "".join(f"3 {a} {b} {c}\n" for a, b, c in triangles)
        return f"OFF\n{len(pos)} {len(face)} 0\n{points}{faces}".encode()
    if name.endswith(".ply"):
        form = "ascii" if name == ".ply" else "binary_little_endian"
        head = f"ply\nformat {form} 1.0\nelement vertex {len(pos)}\n"
        head += "".join(f"property double {c}\n" for c in "xyz")
        head += f"element face {len(face)}\nproperty list uchar int vertex_indices\nend_header\n"
        if name == ".ply":
            return (head + points + "".join(f"3 {a} {b} {c}\n" for a, b, c in triangles)).encode()
        rows = np.zeros(len(face), [("n", "u1"), ("f", "<i4", 3)])
        rows["n"], rows["f"] = 3, face
        return head.encode() + pos.astype("<f8").tobytes() + rows.tobytes()
    if name.endswith(".stl"):
        corners = pos[face.clip(0, max(len(pos) - 1, 0))] if len(pos) else np.zeros((0, 3, 3))
        if name == ".stl":
            loops = "".join(
                "facet normal 0 0 1\nouter loop\n"
                + "".join(f"vertex {x!r} {y!r} {z!r}\n" for x, y, z in c.tolist())
                + "endloop\nendfacet\n"
                for c in corners
            )
            return f"solid\n{loops}endsolid\n".encode()
        rows = np.zeros(len(corners), [("n", "<f4", 3), ("c", "<f4", (3, 3)), ("a", "<u2")])
        with np.errstate(over="ignore"):
            rows["c"] = corners
        return b" " * 80 + np.uint32(len(corners)).tobytes() + rows.tobytes()
    if name in (".npz", ".npy"):
        stream = io.BytesIO()
        np.savez(stream, pos=pos, face=face) if name == ".npz" else np.save(stream, pos)
        return stream.getvalue()
    if name == ".xyz":
        return points.encode()
    head = f"VERSION 0.7\nFIELDS x y z\nSIZE 8 8 8\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {len(pos)}\n"
    head += f"HEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(pos)}\nDATA binary\n"
    return head.encode() + pos.astype("<f8").tobytes()


def made(seed: int, name: str, defects: tuple[str, ...]) -> File:
    """A bent strip or sphere with some defects, as a file."""
    from scipy.spatial import ConvexHull

    rng = np.random.default_rng(seed)
    points = rng.standard_normal((int(rng.integers(4, 60)), 3))
    pos = points / np.linalg.norm(points, axis=1, keepdims=True) * [1, 2, 0.5]
    face = ConvexHull(pos).simplices.astype(np.int64)
    for defect in defects:
        pos, face = spoiled(pos.copy(), face, defect, rng)
    content = written(pos, face, name)
    if "cut" in defects:
        content = content[: int(rng.integers(len(content) + 1))]
    if "noise" in defects and content:
        data = bytearray(content)
        for _ in range(3):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        content = bytes(data)
    if "header" in defects:
        content = content.replace(str(len(face)).encode(), str(10 * len(face) + 3).encode(), 1)
    return File(name.removeprefix(".bin"), content, defects)


@st.composite
def files(draw: st.DrawFn) -> File:
    seed = draw(st.integers(0, 10**6))
    name = draw(st.sampled_from(NAMES))
    defects = draw(st.lists(st.sampled_from(DEFECTS), min_size=1, max_size=3, unique=True))
    return made(seed, name, tuple(defects))


def through_a_network(path: Path, cache: Path) -> str:
    """What became of a file: "refused", "dropped", "used"; or "wrong: ..."."""
    from geodl.encoders.diffusionnet import DiffusionNet

    try:
        mesh = formats.read(path)
    except UserError as error:
        named = str(path) in str(error) and "\n" not in str(error)
        return "refused" if named else f"wrong: says {error}"
    except Exception as error:
        return f"wrong: reading raised {type(error).__name__}: {error}"
    shape = Shape(pos=torch.from_numpy(mesh.pos), face=torch.from_numpy(mesh.face), name=path.stem)
    try:
        done = Preprocess()(shape, "whole", Cache(cache)).shape
        needs = Needs.of(Mass(), Gradient(), Spectrum(min(16, max(1, len(done.pos) - 2))))
        ready = attach(done, needs, "cotan", Cache(cache))
    except (BadShape, ValueError) as error:
        return "dropped" if str(error) else "wrong: dropped without a word"
    except Exception as error:
        return f"wrong: preparing raised {type(error).__name__}: {error}"
    torch.manual_seed(0)
    k = ready.ops.evals.numel()
    net = DiffusionNet(3, DataSpec(classes=("a", "b")), "whole", width=8, blocks=1, k_eig=k).eval()
    batch = ShapeBatch.pack([ready])
    tensors = [batch.pos, *(ready.ops[n] for n in ready.ops.fields)]
    if not all(torch.isfinite(t.values() if t.is_sparse else t).all() for t in tensors):
        return "wrong: operators that are not finite"
    answer = net(batch.pos, batch).whole
    return "used" if torch.isfinite(answer).all() else "wrong: an answer that is not finite"
