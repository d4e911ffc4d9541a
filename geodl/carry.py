"""Labels, landmarks and samples carried from one mesh to another of the same surface."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geodl.errors import UserError
from geodl.ops.geometry import on_surface, unique_edges
from geodl.ops.neighbors import nearest, surface_nearest
from geodl.shape import Shape
from geodl.spec import LABELS, MESH, Field, item_seed


def carried(shape: Shape, pos: NDArray[Any], face: NDArray[Any], label_on: str) -> Shape:
    """Another triangulation of the shape. Labels come from the nearest point on the old surface:
    that of its face, or of the nearest corner of its face; landmarks go to the nearest vertex. A
    benchmark's edge labels beside those of faces stay behind.

    Raises:
        UserError: the labels are those of edges.
    """
    if label_on == "edge":
        raise UserError(
            f"shape {shape.name} has labels on edges, which no re-meshing carries over: use the "
            "meshes as they are."
        )
    label, landmark = shape.label, shape.landmark
    old = shape.pos.double().numpy()
    if label is not None and label_on in ("vertex", "face"):
        triangles = shape.face.numpy()
        on, at = surface_nearest(old, triangles, pos if label_on == "vertex" else pos[face].mean(1))
        if label_on == "vertex":
            corners = triangles[on]
            gap = np.linalg.norm(old[corners] - at[:, None], axis=2)
            on = corners[np.arange(len(on)), gap.argmin(1)]
        label = label[torch.from_numpy(on)]
    if landmark is not None:
        landmark = torch.from_numpy(nearest(old[landmark.numpy()], pos))
    return Shape(
        pos=torch.from_numpy(np.asarray(pos, np.float64)),
        face=torch.from_numpy(np.asarray(face, np.int64)),
        label=label,
        category=shape.category,
        landmark=landmark,
        name=shape.name,
        ops=shape.ops.without(*MESH, *LABELS),
    )


def elements(shape: Shape, label_on: str) -> NDArray[np.float32]:
    """Positions of the elements that carry labels; of a cloud that stands for a mesh, those of the
    points that answer for them."""
    pos = shape.pos.numpy()
    if "carry" in shape.ops:
        return pos[shape.ops.carry.numpy()]
    if label_on == "face":
        return pos[shape.face.numpy()].mean(1)
    if label_on == "edge":
        return pos[shape.ops.edge.numpy()].mean(1)
    return pos


def sampled(
    shape: Shape,
    n: int,
    label_on: str,
    rng: np.random.Generator | None,
    shuffled: bool = False,
) -> Shape:
    """n points in place of the vertices; ``ops.carry``: labelled element -> nearest point.

    A mesh is sampled uniformly by area, of a cloud n points are drawn; a smaller cloud repeats
    points. Without ``rng`` the shape's name decides, and of a cloud whose points stand in random
    order already (``shuffled``) the first n are taken.
    """
    fixed = rng if rng is not None else np.random.default_rng(item_seed(shape.name))
    if shape.is_cloud:
        v = shape.pos.shape[0]
        if v <= n:
            index = np.concatenate([np.arange(v), fixed.integers(0, v, n - v)])
        elif rng is None and shuffled:
            index = np.arange(n)
        else:
            index = fixed.permutation(v)[:n]
        pos = shape.pos[torch.from_numpy(index)]
        normal = None if shape.normal is None else shape.normal[torch.from_numpy(index)]
    else:
        drawn = on_surface(shape.pos.double().numpy(), shape.face.numpy(), n, fixed)
        pos, normal = (torch.from_numpy(x).float() for x in drawn)
    ops = shape.ops.without(*MESH)
    if shape.label is not None:
        carry = torch.from_numpy(nearest(elements(shape, label_on), pos.numpy()))
        ops = ops.added({"carry": carry}, {"carry": Field("label", "index", into="vertex")})
    return Shape(
        pos=pos, normal=normal, ops=ops, label=shape.label, category=shape.category, name=shape.name
    )


def edges_of(face: Tensor) -> tuple[Tensor, Tensor]:
    """Undirected edges (e 2) in MeshCNN's order and the edges (f 3) of every face."""
    edge, face_edge = unique_edges(face.numpy())
    return torch.from_numpy(edge), torch.from_numpy(face_edge)
