"""VoxNet: convolutions on a grid of voxels."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor, nn

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.neighbors import means, owners
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points

MARGIN = 2  # empty voxels around a shape
SLOPE = 0.1


class VoxNet(Encoder):
    """Which voxels the surface touches, two 3-D convolutions, maximum, two linear layers.

    Paper: Maturana, Scherer: VoxNet, IROS 2015.
    Differs: layers as in the paper, 921,736 parameters with 40 classes and without features (Su et
    al. 2018 give 1.4 million for theirs). Occupancy is where points are, surface samples of a mesh,
    not the filled solid; every shape's bounding cube fills 28 of the 32 voxels. A training shape is
    not seen in 12 fixed rotations: use augment=rotate_z, and task.votes=12 at test time.
    ``features`` come as further channels, their mean in each voxel.

    Args:
        points: number of surface samples to fill voxels with; null: the shape's own vertices.
        resolution: voxels a side.
        dropout: scale of the paper's probabilities (0.2, 0.3, 0.4).
    """

    outputs = ("whole",)
    featureless = True
    small = MappingProxyType({"points": None, "resolution": 16})
    counts = (Count(921_736, {}, 0, "whole", 40),)

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int | None = 4096,
        resolution: int = 32,
        dropout: float = 1.0,
    ) -> None:
        super().__init__(in_channels, spec, out)
        if resolution < 16:
            raise UserError(f"encoder.resolution={resolution} must be 16 or more.")
        self.needs = Needs.of(Points(points) if points else None)
        self.resolution = resolution
        side = ((resolution - 5) // 2 + 1 - 2) // 2
        self.layers = nn.Sequential(
            nn.Conv3d(1 + in_channels, 32, 5, stride=2),
            nn.LeakyReLU(SLOPE),
            nn.Dropout(0.2 * dropout),
            nn.Conv3d(32, 32, 3),
            nn.LeakyReLU(SLOPE),
            nn.MaxPool3d(2),
            nn.Dropout(0.3 * dropout),
            nn.Flatten(),
            nn.Linear(32 * side**3, 128),
            nn.ReLU(),
            nn.Dropout(0.4 * dropout),
        )
        self.channels = 128

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        return Encoding(whole=self.layers(self.voxels(x, batch)))

    def voxels(self, x: Tensor, batch: ShapeBatch) -> Tensor:
        """(b 1+c r r r): occupancy, and the mean features of what is in each voxel."""
        r, b = self.resolution, len(batch)
        parts = batch.pos.split(batch.sizes)
        low, high = (
            torch.stack([f(p, dim=0).values for p in parts]) for f in (torch.min, torch.max)
        )
        span = (high - low).amax(1, keepdim=True).clamp(min=1e-12)
        centred = (batch.pos - batch.spread((low + high) / 2)) / batch.spread(span)  # in [-.5, .5]
        inner = r - 2 * MARGIN
        place = ((centred + 0.5) * inner).long().clamp(0, inner - 1) + MARGIN
        shape = owners(batch.sizes, x.device)
        index = ((shape * r + place[:, 0]) * r + place[:, 1]) * r + place[:, 2]
        full, cell = torch.unique(index, return_inverse=True)
        rows = torch.cat([x.new_ones(len(full), 1), means(x, cell, len(full))], dim=1)
        grid = x.new_zeros(b * r**3, rows.shape[1]).index_copy(0, full, rows)
        return grid.view(b, r, r, r, -1).permute(0, 4, 1, 2, 3)
