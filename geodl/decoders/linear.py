"""The linear morphable model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from geodl.data.morphable import read_morphable
from geodl.decoders.base import TemplateDecoder
from geodl.errors import UserError
from geodl.ops.align import similarity
from geodl.spec import DataSpec


class Linear(TemplateDecoder):
    """mean + sum_k z_k basis_k. The basis is that of a PCA of the training shapes, in closed form,
    or of an existing model; either way it is not trained.

    Paper: Blanz, Vetter: A morphable model for the synthesis of 3D faces, SIGGRAPH 1999.
    Differs: nothing known. Parameters: latent x 3 vertices (120,552 for latent 8 and 5,023
    vertices). The basis is orthonormal, so codes are lengths in the model's unit; samples are drawn
    with the codes' standard deviations.

    Args:
        model: an existing model (see ``geodl.data.morphable``) with the template's vertices, which
            is moved onto the template (similarity); null: PCA of the training split.
    """

    absolute = True
    projects = True

    def __init__(self, latent: int, spec: DataSpec, model: str | None = None) -> None:
        super().__init__(latent, spec)
        self.model = model
        self.basis = nn.Parameter(torch.zeros(latent, 3 * self.vertices), requires_grad=False)
        self.register_buffer("mean", torch.from_numpy(self.template.pos).reshape(-1).clone())
        self.mean: Tensor
        if model is not None:
            self._load(Path(model).expanduser())

    def _load(self, path: Path) -> None:
        mean, basis = read_morphable(path)
        if len(mean) != self.vertices:
            raise UserError(
                f"decoder.model={path} has {len(mean)} vertices, but the data set's template has "
                f"{self.vertices}: give the model of this template."
            )
        if self.latent > len(basis):
            raise UserError(
                f"task.latent={self.latent}, but decoder.model={path} has {len(basis)} components: "
                "lower task.latent."
            )
        turn, scale, shift = similarity(mean, self.template.pos.astype(np.float64))
        self.mean.copy_(torch.from_numpy(scale * mean @ turn.T + shift).reshape(-1))
        rows = (scale * basis[: self.latent] @ turn.T).reshape(self.latent, -1)
        # Orthonormal rows that span the same shapes.
        self._set(torch.from_numpy(np.linalg.qr(rows.T)[0].T))

    def _set(self, basis: Tensor) -> None:
        with torch.no_grad():
            self.basis.copy_(basis)

    def fit(self, x: Tensor, names: str) -> None:
        if self.model is not None:
            return
        n = len(x)
        if self.latent >= n:
            raise UserError(
                f"task.latent={self.latent} needs more than {self.latent} training shapes for a "
                f"PCA, but {names} has {n}: lower task.latent."
            )
        rows = x.reshape(n, -1).double()
        mean = rows.mean(0)
        # With fewer shapes than coordinates, the eigenvectors of the small Gram matrix will do.
        _, _, directions = torch.linalg.svd(rows - mean, full_matrices=False)
        self.mean.copy_(mean)
        self._set(directions[: self.latent])

    def project(self, x: Tensor) -> Tensor:
        """Codes (b latent) of shapes (b 3v): the nearest point of the model's space."""
        return (x - self.mean) @ self.basis.T

    def forward(self, z: Tensor, query: Tensor | None = None) -> Tensor:
        return (self.mean + z @ self.basis).view(len(z), self.vertices, 3)
