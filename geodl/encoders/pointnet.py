"""PointNet: shared MLPs and one symmetric function."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.mlp import mlp
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points


class TNet(nn.Module):
    """Predicts a (k k) matrix per shape from rows of ``channels``; starts as the identity.

    Shared 64-128-1024, maximum, 512-256, all with BatchNorm and ReLU. BatchNorm on the (b 512) and
    (b 256) rows needs two shapes in a training batch.
    """

    def __init__(self, channels: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.points = mlp([channels, 64, 128, 1024])
        self.whole = mlp([1024, 512, 256])
        self.matrix = nn.Linear(256, k * k)
        nn.init.zeros_(self.matrix.weight)
        with torch.no_grad():
            self.matrix.bias.copy_(torch.eye(k).flatten())

    def forward(self, x: Tensor, batch: ShapeBatch) -> Tensor:
        return self.matrix(self.whole(batch.max(self.points(x)))).view(-1, self.k, self.k)


def _apply(matrix: Tensor, x: Tensor, batch: ShapeBatch) -> Tensor:
    """Rows (n k) times their shape's matrix (b k k)."""
    if batch.equal_sizes:
        return (batch.dense(x) @ matrix).flatten(0, 1)
    return torch.cat([part @ m for part, m in zip(x.split(batch.sizes), matrix, strict=True)])


class PointNet(Encoder):
    """Shared MLP per point, maximum over the points, MLP on the result.

    Paper: Qi, Su, Mo, Guibas: PointNet, CVPR 2017. https://arxiv.org/abs/1612.00593
    Differs: for whole shapes the layers are those of yanx27's PyTorch version (conv 64 | feature
    T-net | 128, 1024), whose count with both T-nets and 40 classes is 3,471,473; the TensorFlow
    original has two more 64-wide layers. The last shared layer has no ReLU before the maximum there
    nor here. Dropout on the last hidden layer only (paper; the original code: on both). Part
    segmentation is yanx27's as well, 8,342,395 parameters with 50 parts and 16 classes. The T-nets'
    last layer starts at the identity, as in the original. The regulariser is half the squared
    Frobenius norm of I - A A^T summed over the batch, as in the original (ports take the mean norm,
    another weight). BatchNorm's momentum is that of all encoders (``geodl.tasks.base``), not the
    paper's decaying one. Without T-nets ("vanilla") the layers are the same with those taken out.

    Args:
        points: number of surface samples to look at; null: the shape's own vertices.
        input_tnet: predict a 3 x 3 matrix for the positions (features need xyz first).
        feature_tnet: predict a matrix for the 64 (whole) or 128 (elements) point features.
        orthogonality: weight of the regulariser of the feature T-net.
        pool: the symmetric function, "max" or "mean" (PointNet Fig. 5).
        dropout: probability on the last hidden layer.
        use_category: give the shape's class as a one-hot vector to the segmentation form.
    """

    small = MappingProxyType({"points": None})
    counts = (
        Count(3_471_473, {"input_tnet": True, "feature_tnet": True}, 3, "whole", 40),
        Count(
            8_342_395,
            {"input_tnet": True, "feature_tnet": True, "use_category": True},
            3,
            "vertex",
            50,
        ),
    )

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int | None = 1024,
        input_tnet: bool = False,
        feature_tnet: bool = False,
        orthogonality: float = 0.001,
        pool: Literal["max", "mean"] = "max",
        dropout: float = 0.4,
        use_category: bool = False,
    ) -> None:
        super().__init__(in_channels, spec, out)
        if pool not in ("max", "mean"):
            raise UserError(f"encoder.pool={pool} is not known: choose max or mean.")
        if input_tnet and in_channels < 3:
            raise UserError("encoder.input_tnet=true needs xyz among the features.")
        self.tell(use_category, spec)
        self.needs = Needs.of(Points(points) if points else None)
        self.orthogonality = orthogonality
        self.pool = pool
        self.input_tnet = TNet(in_channels, 3) if input_tnet else None
        whole = out == "whole"
        widths: Sequence[int] = (64, 128, 1024) if whole else (64, 128, 128, 512, 2048)
        early = 1 if whole else 3  # shared layers before the feature T-net
        channels = [in_channels, *widths]
        self.early = nn.ModuleList(mlp(channels[i : i + 2]) for i in range(early))
        self.feature_tnet = TNet(widths[early - 1], widths[early - 1]) if feature_tnet else None
        self.late = nn.ModuleList(mlp(channels[i : i + 2]) for i in range(early, len(widths) - 1))
        self.last = nn.Sequential(nn.Linear(widths[-2], widths[-1]), nn.BatchNorm1d(widths[-1]))
        if whole:
            self.head = nn.Sequential(
                *mlp([1024, 512]),
                nn.Linear(512, 256),
                nn.Dropout(dropout),
                nn.BatchNorm1d(256),
                nn.ReLU(),
            )
            self.channels = 256
        else:
            self.head = mlp([widths[-1] + self.categories + sum(widths), 256, 256, 128])
            self.channels = 128

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        losses: dict[str, Tensor] = {}
        if self.input_tnet is not None:
            turned = _apply(self.input_tnet(x, batch), x[:, :3], batch)
            x = torch.cat([turned, x[:, 3:]], dim=1)
        levels: list[Tensor] = []
        for layer in self.early:
            x = layer(x)
            levels.append(x)
        if self.feature_tnet is not None:
            matrix = self.feature_tnet(x, batch)
            x = _apply(matrix, x, batch)
            gap = matrix @ matrix.mT - torch.eye(matrix.shape[1], device=x.device)
            losses["orthogonality"] = self.orthogonality * 0.5 * gap.square().sum()
        for layer in self.late:
            x = layer(x)
            levels.append(x)
        x = self.last(x)
        whole = batch.max(x) if self.pool == "max" else batch.mean(x)
        if self.out == "whole":
            return Encoding(whole=self.head(whole), losses=losses)
        if self.categories:
            whole = torch.cat([whole, self.one_hot(batch).to(whole)], dim=1)
        rows = torch.cat([batch.spread(whole), *levels, x], dim=1)
        encoding = self.elements(self.head(rows), batch)
        encoding.losses = losses
        return encoding
