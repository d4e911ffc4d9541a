"""Files are read as they are written: each format and feature against a plain parse of its own."""

import io
import json
import struct
import zipfile
import zlib

import defective
import numpy as np
import pytest
from conftest import icosphere
from hypothesis import given, settings

from geodl.data import formats
from geodl.data.files import read_labels, read_mesh
from geodl.data.formats.base import triangles
from geodl.errors import UserError

POS, FACE = icosphere(1)
POS = np.round(POS * [1.0, 2.0, 0.5], 6)
POS32 = POS.astype(np.float32).astype(np.float64)
CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
QUADS = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]


def rows(array, form="{:.17g}"):
    return "".join(" ".join(form.format(x) for x in row) + "\n" for row in array)


def obj(pos=POS, face=FACE, corner="{}", head="v ", between=lambda i: ""):
    text = "".join(f"{head}{x!r} {y!r} {z!r}\n" for x, y, z in pos.tolist())
    for i, f in enumerate(face):
        text += between(i) + "f " + " ".join(corner.format(c + 1) for c in f) + "\n"
    return text


def off(pos=POS, face=FACE, head="OFF\n{} {} 0\n", vertex="", side=""):
    text = head.format(len(pos), len(face))
    text += "".join(f"{x!r} {y!r} {z!r}{vertex}\n" for x, y, z in pos.tolist())
    return text + "".join(f"{len(f)} {' '.join(map(str, f))}{side}\n" for f in face)


def ply(form="ascii", pos=POS, face=FACE, extra=False, length="uchar", faces_first=False):
    """A .ply; ``extra``: normals, colours, and a list of texture coordinates of every corner."""
    order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[form]
    head = {"vertex": [f"element vertex {len(pos)}", "property double x", "property double y"]}
    head["vertex"] += ["property double z"] + (["property uchar red"] if extra else [])
    head["face"] = [f"element face {len(face)}"]
    head["face"] += ["property uchar flag"] if extra else []
    head["face"] += [f"property list {length} int vertex_indices"]
    head["face"] += ["property list uchar float texcoord"] if extra else []
    body = {"vertex": [], "face": []}
    for p in pos.tolist():
        body["vertex"].append([("d", x) for x in p] + ([("B", 7)] if extra else []))
    code = {"uchar": "B", "int": "i"}[length]
    for f in face:
        row = ([("B", 1)] if extra else []) + [(code, len(f))] + [("i", int(c)) for c in f]
        row += [("B", 2 * len(f))] + [("f", 0.5)] * (2 * len(f)) if extra else []
        body["face"].append(row)
    names = ["face", "vertex"] if faces_first else ["vertex", "face"]
    lines = ["ply", f"format {form} 1.0", "comment made for a test", "obj_info none"]
    lines += [line for n in names for line in head[n]] + ["end_header"]
    data = ("\n".join(lines) + "\n").encode()
    for name in names:
        for row in body[name]:
            if order:
                data += b"".join(struct.pack(order + c, x) for c, x in row)
            else:
                data += (" ".join(repr(x) for _, x in row) + "\n").encode()
    return data


def stl_text(pos=POS, face=FACE):
    text = "solid a b\n"
    for f in face:
        text += "facet normal 0 0 0\nouter loop\n"
        text += "".join("vertex {!r} {!r} {!r}\n".format(*pos[c].tolist()) for c in f)
        text += "endloop\nendfacet\n"
    return text + "endsolid a b\n"


def stl_binary(pos=POS, face=FACE, head=b"solid but binary"):
    data = head.ljust(80, b" ") + struct.pack("<I", len(face))
    for f in face:
        data += struct.pack("<12fH", 0, 0, 0, *pos[np.asarray(f)].reshape(-1), 0)
    return data


def first_seen(pos, face):
    """What an .stl says: vertices in order of first appearance in the faces."""
    order = list(dict.fromkeys(np.asarray(face).reshape(-1).tolist()))
    place = {v: i for i, v in enumerate(order)}
    return pos[order], np.array([[place[c] for c in f] for f in np.asarray(face).tolist()])


def put(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content) if isinstance(content, bytes) else file.write_text(
        content, encoding="utf-8"
    )
    return file


def materials(i):
    return f"o part{i % 3}\ng g{i % 5} x\nusemtl m{i % 2}\ns off\n"


SEAMS = "vt 0 0\nvt 1 0\nvt 0 1\nvn 0 0 1\n"
UNUSED = np.concatenate([POS, [[9, 9, 9], [8, 8, 8]]])
RELATIVE = "".join(f"v {a!r} {b!r} {c!r}\n" for a, b, c in POS.tolist()) + "".join(
    "f {} {} {}\n".format(*(f - len(POS)).tolist()) for f in FACE
)
SAME = {
    "plain.obj": obj(),
    "materials.obj": "mtllib a.mtl\n" + obj(between=materials),
    "seams.obj": SEAMS + obj(corner="{}/1/1"),
    "normals.obj": SEAMS + obj(corner="{}//1"),
    "texture.obj": SEAMS + obj(corner="{}/2"),
    "relative.obj": RELATIVE,
    "tabs.obj": obj().replace(" ", "\t\t"),
    "crlf.obj": obj().replace("\n", "\r\n"),
    "bom.obj": "\ufeff" + obj(),
    "comments.obj": "# head\n\n" + obj().replace("\n", " # c\n"),
    "broken_lines.obj": obj().replace(" ", " \\\n"),
    "lines.obj": obj() + "l 1 2\np 3\n",
    "old_mac.obj": obj().replace("\n", "\r"),
    "names.obj": "# C:\\models\\\no a\u2028b\x0cc\x85d\n" + obj() + "# end\\\n",
    "blank_after.obj": obj().replace("f ", "f \\ \n"),
    "control_z.obj": obj() + "\x1a",
    "lower.off": off(head="off\n{} {} 0\n"),
    "comments.ply": ply().replace(b"made", "Ångström end_header 中 made".encode()),
    "capitals.ply": ply().replace(b"double x", b"double X"),
    "indexes.ply": ply().replace(b"vertex_indices", b"vertex_indexes"),
    "padded.ply": ply("binary_little_endian") + b"\0\0\n",
    "UPPER.OBJ": obj(),
    "colours.obj": obj().replace("\n", " 0.5 0.5 0.5\n", len(POS)),
    "plain.off": off(),
    "glued.off": off(head="OFF{} {} 0\n"),
    "one_line.off": off(head="OFF {} {} 0\n"),
    "no_edges.off": off(head="OFF\n{} {}\n"),
    "headless.off": off(head="{} {} 0\n"),
    "coff.off": off(head="COFF\n{} {} 0\n", vertex=" 255 0 0 255", side=" 0.1 0.2 0.3"),
    "noff.off": off(head="NOFF\n{} {} 0\n", vertex=" 0 0 1"),
    "comments.off": "# a\n" + off().replace("\n", " # c\n").replace("OFF # c", "OFF # b\n\n#\n"),
    "bom.off": "\ufeff" + off(),
    "tabs.off": off().replace(" ", "\t"),
    "plain.ply": ply(),
    "extra.ply": ply(extra=True),
    "little.ply": ply("binary_little_endian"),
    "big.ply": ply("binary_big_endian"),
    "wedge.ply": ply("binary_little_endian", extra=True),
    "int_lists.ply": ply("binary_little_endian", length="int"),
    "faces_first.ply": ply("binary_little_endian", faces_first=True, extra=True),
    "faces_first_text.ply": ply(faces_first=True),
    "crlf.ply": ply().replace(b"\n", b"\r\n"),
    "UPPER.PLY": ply(),
}


@pytest.mark.parametrize("name", SAME)
def test_vertices_and_faces_stand_as_in_the_file(name, tmp_path):
    pos, face = read_mesh(put(tmp_path, name, SAME[name]))
    np.testing.assert_array_equal(pos, POS)
    np.testing.assert_array_equal(face, FACE)


@pytest.mark.parametrize("text", [obj(UNUSED), off(UNUSED), ply(pos=UNUSED)])
def test_unused_vertices_stay(text, tmp_path):
    suffix = {"v": ".obj", "O": ".off"}.get(text[:1], ".ply") if isinstance(text, str) else ".ply"
    pos, face = read_mesh(put(tmp_path, f"a{suffix}", text))
    np.testing.assert_array_equal(pos, UNUSED)
    np.testing.assert_array_equal(face, FACE)


@pytest.mark.parametrize(
    "content",
    [
        stl_binary() + b"\n",
        stl_binary() + bytes(100),
        stl_text().replace("endsolid a b", "end solid") + "\n",
        stl_text() + "made by hand\n",
    ],
)
def test_stl_as_people_write_it(content, tmp_path):
    _, face = read_mesh(put(tmp_path, "a.stl", content))
    np.testing.assert_array_equal(face, first_seen(POS, FACE)[1])


def test_a_cut_to_a_hole(tmp_path):
    """A square with a square hole as one polygon, which passes the cut twice."""
    outer, inner = [(0, 0), (4, 0), (4, 4), (0, 4)], [(1, 1), (1, 3), (3, 3), (3, 1)]
    pos = np.array([(*p, 0.0) for p in outer + inner])
    mesh = formats.read(put(tmp_path, "a.off", off(pos, [[0, 1, 2, 3, 0, 4, 5, 6, 7, 4]])))
    a, b, c = (pos[mesh.face[:, i]] for i in range(3))
    area = np.cross(b - a, c - a)[:, 2] / 2
    assert area.sum() == pytest.approx(12) and np.abs(area).sum() == pytest.approx(12)


@pytest.mark.parametrize("content", [stl_text(), stl_binary(), stl_binary(head=b"other")])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_stl_vertices_are_merged_relative_to_the_size(content, scale, tmp_path):
    content = stl_text(POS * scale) if isinstance(content, str) else stl_binary(POS * scale)
    pos, face = read_mesh(put(tmp_path, "a.STL", content))
    want, corners = first_seen(POS, FACE)
    np.testing.assert_allclose(pos, want * scale, rtol=1e-6, atol=1e-9 * scale)
    np.testing.assert_array_equal(face, corners)


def test_stl_vertices_that_differ_by_rounding_are_one(tmp_path):
    noisy = stl_text()
    shaken = noisy.replace(repr(float(POS[0, 1])), repr(float(POS[0, 1]) + 1e-9), 2)
    assert shaken != noisy
    assert read_mesh(put(tmp_path, "a.stl", shaken))[0].shape == POS.shape


POLYGONS = {
    "quads.obj": obj(CUBE, QUADS),
    "quads.off": off(CUBE, QUADS),
    "quads.ply": ply(pos=CUBE, face=QUADS),
    "quads_binary.ply": ply("binary_little_endian", CUBE, QUADS),
}
MIXED = [*QUADS[:2], [0, 4, 5], [0, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("extra", [False, True])
def test_polygons_of_different_sizes_in_ply(form, extra, tmp_path):
    mesh = formats.read(put(tmp_path, "a.ply", ply(form, CUBE, MIXED, extra)))
    assert mesh.polygon.tolist() == [0, 0, 1, 1, 2, 3, 4, 4, 5, 5, 6, 6] and mesh.polygons == 7


@pytest.mark.parametrize("name", POLYGONS)
def test_polygons_become_triangles_that_know_them(name, tmp_path):
    mesh = formats.read(put(tmp_path, name, POLYGONS[name]))
    assert mesh.polygons == 6 and mesh.polygon.tolist() == [i // 2 for i in range(12)]
    np.testing.assert_array_equal(mesh.pos, CUBE)
    for i, quad in enumerate(QUADS):
        assert set(mesh.face[mesh.polygon == i].reshape(-1).tolist()) == set(quad)
    a, b, c = (mesh.pos[mesh.face[:, i]] for i in range(3))
    assert np.einsum("ij,ij->", a, np.cross(b, c)) / 6 == pytest.approx(1), "all look outwards"


@pytest.mark.parametrize(
    "outline",
    [
        [(0, 0), (4, 0), (4, 4), (2, 1), (0, 4)],  # a notch
        [(2, 1), (0, 4), (0, 0), (4, 0), (4, 4)],  # that begins in the notch
        [(0, 0), (2, 1), (4, 0), (1, 3)],  # an arrow head: a concave quadrilateral
        [(0, 0), (3, 0), (3, 3), (1, 3), (1, 2), (2, 2), (2, 1), (0, 1)],  # a hook
    ],
)
@pytest.mark.parametrize("turn", [1, -1])
def test_concave_polygons_are_not_folded(outline, turn, tmp_path):
    flat = np.array(outline[::turn], float)
    pos = np.stack([flat[:, 0], flat[:, 1], 0.3 * flat[:, 0]], axis=1)  # in a slanted plane
    mesh = formats.read(put(tmp_path, "a.off", off(pos, [list(range(len(pos)))])))
    a, b, c = (pos[mesh.face[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    assert len(mesh.face) == len(pos) - 2 and (normal @ normal[0] > 0).all()
    x, y = flat.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert np.abs(normal[:, 2]).sum() / 2 == pytest.approx(area)


def test_triangle_strips(tmp_path):
    text = (
        "ply\nformat ascii 1.0\nelement vertex 6\nproperty float x\nproperty float y\n"
        "property float z\nelement tristrips 2\nproperty list int int vertex_indices\nend_header\n"
        + rows([[i // 2, i % 2, 0] for i in range(6)])
        + "6 0 1 2 3 4 5\n8 0 1 2 -1 3 3 4 5\n"
    )
    _, face = read_mesh(put(tmp_path, "a.ply", text))
    strip = [[0, 1, 2], [2, 1, 3], [2, 3, 4], [4, 3, 5]]
    assert face.tolist() == [*strip, [0, 1, 2], [4, 3, 5]]


def test_labels_of_polygons_go_to_their_triangles(tmp_path):
    from geodl.data.fetch import Paths
    from geodl.data.folder import Folder

    for split in ("train", "test"):
        (tmp_path / "mine" / split).mkdir(parents=True)
        put(tmp_path, f"mine/{split}/a.off", off(CUBE, MIXED))
        put(tmp_path, f"mine/{split}/a.txt", "\ufeff" + "0\n1\n0\n1\n0\n1\n1\n")
    data = Folder(Paths(tmp_path / "d", tmp_path / "c"), str(tmp_path / "mine"))
    shape = data.load(data.items("train")[0])
    assert data.spec.label_on == "face"
    assert shape.label.tolist() == [0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 1]


# ---- clouds and other containers ----

POINTS = np.concatenate([POS, np.full((len(POS), 3), 0.25)], axis=1)


def pcd(form, fields="x y z rgb", types="F F F F"):
    data = np.concatenate([POS32, np.ones((len(POS), 1))], axis=1).astype("<f4")
    head = f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE 4 4 4 4\nTYPE {types}\nCOUNT 1 1 1 1\n"
    head += f"WIDTH {len(POS)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(POS)}\nDATA {form}\n"
    if form == "ascii":
        return head.encode() + rows(data).encode()
    if form == "binary":
        return head.encode() + data.tobytes()
    raw = data.T.tobytes()  # column after column, packed as literal runs
    runs = [raw[i : i + 32] for i in range(0, len(raw), 32)]
    packed = b"".join(bytes([len(run) - 1]) + run for run in runs)
    return head.encode() + struct.pack("<II", len(packed), len(raw)) + packed


def npz(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


CLOUDS = {
    "a.npy": npy(POS),
    "a.NPY": npy(POS.astype(">f8")),
    "columns.npy": npy(np.asfortranarray(POINTS)),
    "a.npz": npz(points=POS),
    "other.npz": npz(arr_0=POS),
    "a.xyz": rows(POS),
    "more.xyz": "# x y z nx ny nz\n" + rows(POINTS),
    "commas.txt": rows(POS).replace(" ", ","),
    "named.txt": "X Y Z\n" + rows(POS),
    "slashes.txt": "//X Y Z\n" + rows(POS),
    "quoted.txt": '"x","y","z"\n' + rows(POS).replace(" ", ", "),
    "units.txt": "X(m) Y(m) Z(m)\n" + rows(POS),
    "count.pts": f"{len(POS)}\n" + rows(POS),
    "bom.pts": "\ufeff" + rows(POS),
    "ascii.pcd": pcd("ascii"),
    "binary.pcd": pcd("binary"),
    "packed.pcd": pcd("binary_compressed"),
    "points.ply": ply(face=[]),
}


@pytest.mark.parametrize("name", CLOUDS)
def test_clouds_stand_as_in_the_file(name, tmp_path):
    pos, face = read_mesh(put(tmp_path, name, CLOUDS[name]))
    np.testing.assert_array_equal(pos, POS32 if name.endswith("pcd") else POS)
    assert face.shape == (0, 3)


def test_references_in_a_packed_block(tmp_path):
    from geodl.data.formats.clouds import _lzf

    assert _lzf(bytes([2]) + b"abc" + bytes([1 << 5 | 0, 2]) + bytes([7 << 5, 1, 0]), 16) == (
        b"abcabc" + b"c" * 10
    )


def test_meshes_in_npz_gltf_and_vtk(tmp_path):
    import meshio

    for content in (npz(pos=POS, face=FACE), npz(vertices=POS, faces=FACE.astype(np.uint16))):
        pos, face = read_mesh(put(tmp_path, "a.npz", content))
        assert np.array_equal(pos, POS) and np.array_equal(face, FACE)
    quads = formats.read(put(tmp_path, "q.npz", npz(v=CUBE, f=np.array(QUADS))))
    assert quads.polygons == 6 and len(quads.face) == 12
    for name in ("a.vtk", "a.vtu"):
        cells = [("triangle", FACE[:30]), ("line", FACE[:2, :2]), ("triangle", FACE[30:])]
        meshio.write(tmp_path / name, meshio.Mesh(POS, cells))
        pos, face = read_mesh(tmp_path / name)
        assert np.array_equal(pos, POS) and np.array_equal(face, FACE), name
    meshio.write(tmp_path / "t.vtk", meshio.Mesh(CUBE, [("tetra", np.array([[0, 1, 2, 4]]))]))
    with pytest.raises(UserError, match="cells of type tetra: give their surface"):
        read_mesh(tmp_path / "t.vtk")


def glb(primitives, matrix=None):
    """A binary glTF: one node of one mesh with these primitives (pos, face)."""
    body, views, accessors, parts = b"", [], [], []
    for pos, face in primitives:
        for array, kind, code in (
            (pos.astype("<f4"), "VEC3", 5126),
            (face.astype("<u4"), "SCALAR", 5125),
        ):
            data = array.tobytes()
            views.append({"buffer": 0, "byteOffset": len(body), "byteLength": len(data)})
            count = len(array) if kind == "VEC3" else array.size
            entry = {
                "bufferView": len(views) - 1,
                "componentType": code,
                "count": count,
                "type": kind,
            }
            if kind == "VEC3":
                entry |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
            accessors.append(entry)
            body += data
        n = len(accessors)
        parts.append({"attributes": {"POSITION": n - 2}, "indices": n - 1, "mode": 4})
    node = {"mesh": 0, **({"matrix": matrix} if matrix else {})}
    head = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [node]}
    head |= {"meshes": [{"primitives": parts}], "accessors": accessors, "bufferViews": views}
    text = json.dumps(head | {"buffers": [{"byteLength": len(body)}]}).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    chunks += struct.pack("<II", len(body), 0x004E4942) + body
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def test_gltf_keeps_order_over_primitives_and_seams(tmp_path):
    seam = np.concatenate([POS, POS[:3]])  # the same places again, as a texture seam has them
    pos, face = read_mesh(put(tmp_path, "a.glb", glb([(POS, FACE), (seam, FACE[:5])])))
    np.testing.assert_array_equal(pos, np.concatenate([POS32, seam.astype(np.float32)]))
    np.testing.assert_array_equal(face, np.concatenate([FACE, FACE[:5] + len(POS)]))
    moved = [2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 5, 6, 7, 1]
    pos, _ = read_mesh(put(tmp_path, "b.glb", glb([(POS, FACE)], moved)))
    np.testing.assert_allclose(pos, 2 * POS32 + [5, 6, 7])


# ---- what is refused, in one sentence that names the file ----

BINARY = ply("binary_little_endian")
INT_LISTS = ply("binary_little_endian", length="int")
VTK = "# vtk DataFile Version 3.0\nx\nASCII\nDATASET UNSTRUCTURED_GRID\n"
CUT = {
    "short.off": (off().rsplit("\n", 3)[0], "its header says 42 vertices and 80 faces"),
    "long.off": (off() + "3 0 1 2\n", "but 123 lines follow"),
    "words.off": ("OFF\nmany faces 0\n", "should be whole numbers"),
    "negative.off": ("OFF\n-3 2 0\n", "cannot be negative"),
    "four.off": ("4OFF\n1 0 0\n0 0 0 1\n", "three dimensions"),
    "binary.off": ("OFF BINARY\n1 0 0\n", "it is binary"),
    "corner.off": (off(face=[[0, 1, 99]]), "names vertex 99, but the vertices are 0 to 41"),
    "below.off": (off(face=[[0, 1, -1]]), "names vertex -1"),
    "few.off": (off(face=[[0, 1]]).replace("2 0 1", "3 0 1"), "face 0 should have 3 corners"),
    "empty.off": ("", "it is empty"),
    "html.off": ("<!DOCTYPE html>\n<html></html>\n", "should be whole numbers"),
    "zero.obj": (obj(face=FACE - 1), "index 0 is not valid, .obj counts from 1"),
    "beyond.obj": (obj() + "f 1 2 43\n", "names vertex 42"),
    "before.obj": ("f -1 -2 -3\n" + obj(), "names vertex -1"),
    "two.obj": (obj() + "f 1 2\n", "line 123: a face of 2 corners"),
    "word.obj": (obj() + "f a b c\n", "line 123: no indices"),
    "vertex.obj": (obj() + "v 1 2\n", "line 123: a vertex has three numbers"),
    "letters.obj": (obj() + "v 1 2 x\n", "vertex 42 is not 3 numbers: '1 2 x'"),
    "damage.obj": (obj() + "ff 1 2 3\n", "begins with 'ff', which is no word of the format"),
    "cloud.obj": (obj(face=[]), "has zero faces: give a mesh"),
    "utf16.obj": (obj().encode("utf-16"), "UTF-16"),
    "short.ply": (ply().rsplit(b"\n", 3)[0], "its header says 42 vertex and 80 face"),
    "long.ply": (ply() + b"3 0 1 2\n", "but 123 lines follow"),
    "cut.ply": (ply("binary_little_endian")[:-3], "its 1[0-9]+ bytes end before|ends in face"),
    "extra.ply": (ply("binary_little_endian") + b"\1" * 13, "13 bytes follow"),
    "bomb.ply": (
        ply("binary_little_endian").replace(b"face 80", b"face 999999999999"),
        "end before",
    ),
    "bomb_text.ply": (ply().replace(b"vertex 42", b"vertex 99999999999"), "but 122 lines follow"),
    "bomb_list.ply": (
        ply("binary_little_endian", length="int").replace(
            struct.pack("<i", 3), b"\xff\xff\xff\x7f"
        ),
        "ends in face 0",
    ),
    "headless.ply": (b"ply\nformat ascii 1.0\n", "its header has no end"),
    "form.ply": (ply().replace(b"ascii", b"utf8!"), "its format 'utf8!' is unknown"),
    "no_x.ply": (ply().replace(b"double x", b"double t"), "no vertices with x, y and z"),
    "type.ply": (ply().replace(b"double x", b"quad x"), "unknown property"),
    "short.stl": (stl_binary()[:-7], "its header says 80 triangles"),
    "cut.stl": (stl_text().rsplit("endloop", 2)[0], "not three vertices|ends in the middle"),
    "none.stl": (b"\0" * 20, "it is too short"),
    "turned.npy": (
        npy(POS.T),
        r"has shape \(3, 42\), .* turn it around",
    ),
    "flat.npy": (npy(POS[:, 0]), r"has shape \(42,\)"),
    "two.npy": (npy(POS[:, :2]), r"has shape \(42, 2\)"),
    "words.npy": (npy(np.array([["a", "b", "c"]] * 9)), "expected numbers"),
    "objects.npy": (npy(np.array([None] * 9, object)), "no array of numbers"),
    "cut.npy": (npy(POS)[:-9], "cut off"),
    "bomb.npy": (
        npy(POS).replace(b"(42, 3)", b"(9999999999, 3)"),
        "no array of numbers, or cut off",
    ),
    "turned.npz": (npz(pos=POS.T), "turn it around"),
    "names.npz": (npz(a=POS, b=POS), "it has no array 'pos', only a, b"),
    "cut.npz": (npz(pos=POS)[:-30], "it is damaged"),
    "floats.npz": (npz(pos=POS, face=FACE / 2), "expected .f, 3. whole numbers"),
    "corner.npz": (npz(pos=POS, face=FACE + 1), "names vertex 42"),
    "count.pts": ("43\n" + rows(POS), "its first line says 43 points, but 42 follow"),
    "ragged.xyz": (rows(POS) + "1 2\n", "point 42 is not 3 numbers"),
    "comma.xyz": ("0,1 0,2 0,3\n0,4 0,5 0,6\n", "decimals with a point"),
    "comma_semicolon.txt": ("0,637;0,270;0,041\n" * 9, "decimals with a point"),
    "comma_tabs.txt": ("0,6\t0,2\t0,1\n" * 9, "decimals with a point"),
    "comma_named.txt": ("X;Y;Z\n" + "0,6;0,2;0,1\n" * 9, "decimals with a point"),
    "comma_exponents.xyz": ("-6,370e-01 2,6e-01 1,0e00\n" * 9, "decimals with a point"),
    "comma_more.xyz": ("0,6 0,2 0,0 1 2 3\n" * 9, "decimals with a point"),
    "order.txt": ("# intensity x y z\n" + rows(POINTS), "x, y and z must come first"),
    "pointer.obj": ("version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    "pointer.ply": ("version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    "uncounted.off": (off(face=[[0, 1, 2]]).replace("3 0 1 2", "0 3 2 1"), "should have 0 corners"),
    "transposed.npz": (npz(pos=POS, face=FACE.T), "its faces have shape"),
    "polygon.ply": (ply().replace(b"element face", b"element polygon"), "expected one vertex"),
    "two.xyz": (rows(POS[:, :2]), r"has shape \(42, 2\)"),
    "empty.xyz": ("# nothing\n", "it has no points"),
    "prose.txt": ("Dear reader,\nthis is no cloud.\n", "is not 2 numbers"),
    "cut.pcd": (pcd("binary")[:-9], "it ends before"),
    "cut_text.pcd": (pcd("ascii").rsplit(b"\n", 3)[0], "its header says 42 points, but 40 lines"),
    "cut_packed.pcd": (pcd("binary_compressed")[:-9], "its packed block has others"),
    "fields.pcd": (pcd("binary", fields="x y q w"), "lacks x, y and z"),
    "type.pcd": (pcd("binary", types="F F F ?"), "do not fit"),
    "cut.glb": (glb([(POS, FACE)])[:-50], "cannot be read as .glb"),
    "cut.vtk": (
        "# vtk DataFile Version 3.0\nx\nASCII\nDATASET UNSTRUCTURED_GRID\n",
        "cannot be read",
    ),
    "a.blend": ("x", "is no mesh or cloud that geodl reads"),
}


@pytest.mark.parametrize("name", CUT)
def test_what_cannot_be_read_is_refused_in_one_sentence(name, tmp_path):
    content, message = CUT[name]
    file = put(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as error:
        read_mesh(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_size_bombs_are_refused_before_they_are_unpacked(tmp_path):
    header = npy(np.zeros((1, 3))).replace(b"(1, 3)", b"(99999999999, 3)")[:128]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("pos.npy", header)
    with pytest.raises(UserError, match="claims more numbers than the file has"):
        read_mesh(put(tmp_path, "a.npz", stream.getvalue()))
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("pos.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(129):
            member.write(bytes(16 << 20))
    with pytest.raises(UserError, match="would take 2 GB"):
        read_mesh(put(tmp_path, "b.npz", stream.getvalue()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("1\n2.5\n", "has 2.5 as label 1: labels are whole numbers"),
        ("1\nnan\n", "has nan as label 1"),
        ("1\n1e300\n", "has 1e.300 as label 1"),
        ("1\nhead\n", "cannot be read as labels, one a line"),
        ("1 2\n3 4\n", "4 numbers in 2 lines"),
        (npy(np.zeros((3, 2), int)), "one whole number per element"),
        (npy(np.arange(9))[:-9], "cannot be read as labels"),
    ],
)
def test_label_files_that_cannot_be_right(content, message, tmp_path):
    file = put(tmp_path, "a.npy" if isinstance(content, bytes) else "a.txt", content)
    with pytest.raises(UserError, match=message) as error:
        read_labels(file)
    assert str(file) in str(error.value)


def test_label_files_as_people_write_them(tmp_path):
    assert read_labels(put(tmp_path, "a.txt", "\ufeff1\r\n2.0\r\n\r\n3")).tolist() == [1, 2, 3]
    assert read_labels(put(tmp_path, "a.NPY", npy(np.array([1, 2], np.uint8)))).tolist() == [1, 2]


def test_no_polygon_is_lost_or_made(tmp_path):
    """Triangulation of random simple polygons keeps their area and their number of corners."""
    rng = np.random.default_rng(0)
    for n in (4, 5, 9, 30):
        angle = np.sort(rng.random(n)) * 2 * np.pi
        radius = 0.2 + rng.random(n)
        pos = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * angle], axis=1)
        found = formats.base.Polygons(pos, np.arange(n), np.array([n]))
        mesh = triangles(found)
        a, b, c = (pos[mesh.face[:, i]] for i in range(3))
        signed = np.cross(b - a, c - a)[:, 2] / 2
        x, y = pos[:, 0], pos[:, 1]
        area = (np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        assert len(mesh.face) == n - 2 and signed.sum() == pytest.approx(area)
        assert (signed > -1e-12).all() or (signed < 1e-12).all()


def test_whatever_a_page_did_not_foresee_is_a_sentence(tmp_path, monkeypatch):
    from geodl.data.formats import obj as page

    def broken(path):
        raise IndexError("list index out of range")

    monkeypatch.setattr(page, "read", broken)
    with pytest.raises(UserError, match=r"a.obj cannot be read as .obj \(IndexError: list index"):
        read_mesh(put(tmp_path, "a.obj", obj()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(file=defective.files())
def test_defective_meshes_are_refused_dropped_or_used(file, tmp_path_factory):
    """Three hundred of them in scripts/campaign.py."""
    place = tmp_path_factory.mktemp("defective")
    outcome = defective.through_a_network(
        put(place, f"a{file.suffix}", file.content), place / "cache"
    )
    assert not outcome.startswith("wrong"), (file.defects, outcome)


def test_gltf_keeps_the_order_of_its_meshes(tmp_path):
    import trimesh

    scene = trimesh.Scene()
    for i in range(6):
        scene.add_geometry(trimesh.creation.box((1, 1, 1 + i)), geom_name=f"g{i}")
    pos, face = read_mesh(put(tmp_path, "a.glb", scene.export(file_type="glb")))
    heights = [np.ptp(part[:, 2]) for part in np.split(pos, 6)]
    assert heights == pytest.approx([1, 2, 3, 4, 5, 6]) and len(face) == 72
