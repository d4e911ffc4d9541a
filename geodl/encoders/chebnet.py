"""CoMA: Chebyshev graph convolutions and mesh pooling on a template."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geodl.encoders.template import PyramidEncoder, check_sizes, meshes_of
from geodl.ops.geometry import unique_edges
from geodl.spec import DataSpec, Out, Template


def scaled_laplacian(face: NDArray[np.int64], vertices: int) -> Tensor:
    """-D^(-1/2) A D^(-1/2) (v v): the symmetric normalised graph Laplacian, scaled to [-1, 1] with
    its upper bound 2."""
    edge, _ = unique_edges(face)
    both = np.concatenate([edge, edge[:, ::-1]])
    degree = np.maximum(np.bincount(both[:, 0], minlength=vertices), 1)
    value = -1.0 / np.sqrt(degree[both[:, 0]] * degree[both[:, 1]])
    return torch.sparse_coo_tensor(
        torch.from_numpy(both.T.copy()),
        torch.from_numpy(value.astype(np.float32)),
        (vertices, vertices),
        check_invariants=False,
    ).coalesce()


class ChebConv(nn.Module):
    """sum_k theta_k T_k(L) x with k < K (Defferrard et al. 2016). (b v in) -> (b v out)."""

    def __init__(self, in_channels: int, out_channels: int, order: int, lap: Tensor) -> None:
        super().__init__()
        self.register_buffer("lap", lap, persistent=False)
        self.lap: Tensor
        self.order = order
        self.linear = nn.Linear(order * in_channels, out_channels)
        # The authors' initial weights: one matrix per power.
        bound = (6.0 / (in_channels + out_channels)) ** 0.5
        nn.init.uniform_(self.linear.weight, -bound, bound)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, v, c = x.shape
        terms = [x.transpose(0, 1).reshape(v, b * c)]
        if self.order > 1:
            terms.append(torch.sparse.mm(self.lap, terms[0]))
        for _ in range(2, self.order):
            terms.append(2 * torch.sparse.mm(self.lap, terms[-1]) - terms[-2])
        stacked = torch.stack([t.view(v, b, c) for t in terms], dim=2)  # (v b k c)
        return self.linear(stacked.flatten(2)).transpose(0, 1)


def laplacians_of(template: Template, factors: list[int]) -> list[Tensor]:
    """Scaled Laplacians of the template and of all levels but the coarsest."""
    meshes = meshes_of(template, tuple(factors))[:-1]
    return [scaled_laplacian(face, len(pos)) for pos, face in meshes]


class ChebNet(PyramidEncoder):
    """Chebyshev convolution, ELU and pooling per level; all vertices of the last level as one
    vector.

    Paper: Ranjan, Bolkart, Sanyal, Black: Generating 3D faces using convolutional mesh
    autoencoders (CoMA), ECCV 2018. https://arxiv.org/abs/1807.10267
    Differs: ELU as in sw-gong's PyTorch version (the TensorFlow original has biased ReLU); pooling
    as in ``SpiralNet``. With its decoder, 5,023 vertices and latent 8: 30,059 parameters, as
    sw-gong's (the original prints 33,856; the last linear layer is the task's head).

    Args:
        channels: one entry per level.
        factors: how many times fewer vertices each level has.
        order: K, the number of Chebyshev polynomials.
    """

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        channels: list[int] | tuple[int, ...] = (16, 16, 16, 32),
        factors: list[int] | tuple[int, ...] = (4, 4, 4, 4),
        order: int = 6,
    ) -> None:
        super().__init__(in_channels, spec, out)
        check_sizes("encoder", channels=list(channels), factors=list(factors))
        widths = [in_channels, *channels]
        laps = laplacians_of(self.template, list(factors))
        convs = (ChebConv(widths[i], widths[i + 1], order, x) for i, x in enumerate(laps))
        self.stack(convs, factors, widths[-1])
