"""Depth images of point clouds, drawn in the step: no display, no rasteriser."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geodl.shape import ShapeBatch

BACK = 0.25  # brightness of the farthest point; the background is 0


def cameras(count: int, up: str, elevation: float = 30.0) -> Tensor:
    """(count 3 3): rows right, up and towards the viewer, at equal angles about the vertical."""
    azimuth = 2 * math.pi * torch.arange(count) / count
    e = torch.full_like(azimuth, math.radians(elevation))
    zero = torch.zeros_like(azimuth)
    right = torch.stack([azimuth.cos(), zero, -azimuth.sin()], 1)
    toward = torch.stack([azimuth.sin() * e.cos(), e.sin(), azimuth.cos() * e.cos()], 1)
    found = torch.stack([right, torch.linalg.cross(toward, right), toward], 1)
    if up == "z":
        found = found[:, :, [2, 0, 1]]
    return found


def depth_images(batch: ShapeBatch, camera: Tensor, size: int) -> Tensor:
    """(b views size size): how near the nearest point in each pixel is, from BACK to 1. Every shape
    fills the image up to its bounding sphere; a point is a disc as large as the mean distance
    between points asks for. Memory: points times views times the disc's pixels, shape by shape."""
    parts = batch.pos.detach().float().split(batch.sizes)
    with torch.autocast(batch.pos.device.type, enabled=False):
        return torch.stack([_image(p, camera, size) for p in parts])


def _image(pos: Tensor, camera: Tensor, size: int) -> Tensor:
    pos = pos - (pos.amin(0) + pos.amax(0)) / 2
    pos = pos / pos.norm(dim=1).amax().clamp(min=1e-12)
    seen = torch.einsum("nc,vrc->vnr", pos, camera)
    value = BACK + (1 - BACK) * (seen[:, :, 2] + 1) / 2
    half = size / 2
    reach = 0.5 * half * math.sqrt(4 * math.pi / len(pos))  # pixels: points cover a sphere
    span = torch.arange(-math.ceil(reach), math.ceil(reach) + 1, device=pos.device)
    disc = torch.cartesian_prod(span, span)
    disc = disc[disc.square().sum(1) <= max(reach, 0.5) ** 2]
    at = ((seen[:, :, :2] * 0.95 + 1) * half).floor().long()
    pixel = at[:, :, None] + disc  # (views n disc 2)
    inside = ((pixel >= 0) & (pixel < size)).all(3)
    place = (size - 1 - pixel[..., 1]) * size + pixel[..., 0]
    place = torch.where(inside, place, size * size)  # one pixel more for what falls outside
    image = pos.new_zeros(len(camera), size * size + 1)
    bright = value[:, :, None].expand_as(place).flatten(1)
    image.scatter_reduce_(1, place.flatten(1), bright, "amax")
    return image[:, :-1].view(-1, size, size)
