"""DiffusionNet: learned diffusion on the surface, gradients, and a per-vertex MLP."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodl.encoders.base import Count, Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.heat import decayed
from geodl.nn.rows import Bags, both_ways, product
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Gradient, Laplacian, Mass, Needs, Out, Spectrum

# Padding a batch wastes work in proportion to the spread of its sizes, a loop over shapes wastes
# calls: up to this ratio of padded to real rows, padding is the faster one.
PADDING = 1.25


class GradientFeatures(torch.autograd.Function):
    """tanh(<g, A g>) per channel, where g is the gradient of x and A a complex matrix.

    One function instead of a chain of operations: the sparse product takes the matrix forward and
    its transpose backward (torch would transpose and sort it in every step, and refuses bfloat16),
    and the dense ones handle both components at once.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, real: Tensor, imaginary: Tensor | None, rows: Bags, columns: Bags
    ) -> Tensor:
        """x (n c); real, imaginary (c c); rows (2n n) and its transpose (n 2n)."""
        n, c = x.shape
        with torch.autocast(x.device.type, enabled=False):
            x, re = x.float(), real.float()
            flat = rows(x)
            turned = (flat @ re.T).view(2, n, c)
            parts = flat.view(2, n, c)
            if imaginary is not None:
                im = imaginary.float()
                turned[0].addmm_(parts[1], im.T, alpha=-1)
                turned[1].addmm_(parts[0], im.T)
            out = torch.addcmul(parts[0] * turned[0], parts[1], turned[1]).tanh_()
        ctx.save_for_backward(parts, turned, out, real, imaginary)
        ctx.columns = columns
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        parts, turned, out, real, imaginary = ctx.saved_tensors
        n, c = out.shape
        with torch.autocast(out.device.type, enabled=False):
            slope = grads[0].to(out.dtype)
            slope = torch.addcmul(slope, slope * out, out, value=-1)
            # The derivative of <g, A g> by g is A g + A^H g, both scaled by the incoming slope.
            scaled = parts * slope
            flat = scaled.view(2 * n, c)
            total = turned * slope
            total.view(2 * n, c).addmm_(flat, real.to(out.dtype))
            to_real = (flat.T @ parts.view(2 * n, c)).to(real.dtype)
            to_imaginary = None
            if imaginary is not None:
                im = imaginary.to(out.dtype)
                total[0].addmm_(scaled[1], im)
                total[1].addmm_(scaled[0], im, alpha=-1)
                to_imaginary = scaled[1].T @ parts[0] - scaled[0].T @ parts[1]
                to_imaginary = to_imaginary.to(imaginary.dtype)
            x = ctx.columns(total.view(2 * n, c))
        return x, to_real, to_imaginary, None, None


def cao_features(
    x: Tensor, real: Tensor, imaginary: Tensor | None, rows: Bags, columns: Bags
) -> Tensor:
    """The gradient features of the code of Cao et al. (ULRSSM and what follows it): in the second
    component both matrices have changed places, which is no rotation of g."""
    gx, gy = product(x.float(), rows, columns).chunk(2)
    bx, by = gx @ real.T, gx @ real.T
    if imaginary is not None:
        bx, by = bx - gy @ imaginary.T, by + gy @ imaginary.T
    return torch.tanh(gx * bx + gy * by)


def _gradient(batch: ShapeBatch) -> tuple[Bags, Bags]:
    """Both gradient matrices, one below the other (2n n), and the transpose."""
    if "gradient" not in batch.cache:
        gx, gy = batch.ops.grad_x, batch.ops.grad_y
        n = gx.shape[0]
        (row, column), (lower, other) = gx.indices(), gy.indices()
        batch.cache["gradient"] = both_ways(
            torch.cat([row, lower + n]),
            torch.cat([column, other]),
            torch.cat([gx.values(), gy.values()]),
            (2 * n, n),
        )
    return batch.cache["gradient"]


def _spectral(x: Tensor, time: Tensor, k: int, batch: ShapeBatch) -> Tensor:
    """Phi exp(-lambda t) Phi^T M x with one time per channel."""
    decay = decayed(batch.ops.evals[:, :k, None] * time)
    if "evecs" not in batch.cache:
        evecs = batch.ops.evecs[:, :k]
        weighted = evecs * batch.ops.mass[:, None]
        if len(batch) * max(batch.sizes) <= PADDING * x.shape[0]:
            batch.cache["evecs"] = (batch.padded(evecs)[0], batch.padded(weighted)[0])
        else:
            batch.cache["evecs"] = (evecs.split(batch.sizes), weighted.split(batch.sizes))
    evecs, weighted = batch.cache["evecs"]
    if isinstance(evecs, Tensor) and isinstance(weighted, Tensor):
        rows, _ = batch.padded(x)
        return batch.unpadded(evecs @ (decay * (weighted.mT @ rows)))
    return torch.cat(
        [
            phi @ (d * (w.mT @ part))
            for phi, w, d, part in zip(evecs, weighted, decay, x.split(batch.sizes), strict=True)
        ]
    )


def _implicit(x: Tensor, time: Tensor, batch: ShapeBatch) -> Tensor:
    """(M + t L)^-1 M x with one time per channel, one dense solve per shape and channel."""
    lap, mass = batch.ops.lap, batch.ops.mass
    if "lap" not in batch.cache:
        dense = []
        start = 0
        index, value = lap.indices(), lap.values()
        for size in batch.sizes:
            keep = (index[0] >= start) & (index[0] < start + size)
            block = x.new_zeros((size, size), dtype=value.dtype)
            block[index[0, keep] - start, index[1, keep] - start] = value[keep]
            dense.append(block)
            start += size
        batch.cache["lap"] = dense
    parts = []
    for block, m, part in zip(
        batch.cache["lap"], mass.split(batch.sizes), x.split(batch.sizes), strict=True
    ):
        system = torch.diag(m) + time.to(block)[:, None, None] * block
        right = (m[:, None] * part.to(block)).T[:, :, None]
        solution = torch.cholesky_solve(right, torch.linalg.cholesky(system))
        parts.append(solution[:, :, 0].T.to(x.dtype))
    return torch.cat(parts)


class Block(nn.Module):
    """Diffusion, gradient features, per-vertex MLP, skip connection."""

    def __init__(
        self,
        width: int,
        dropout: float,
        diffusion: str,
        time: float | None,
        gradient: bool | str,
        rotation: bool,
        k: int,
    ) -> None:
        super().__init__()
        self.cao = gradient == "cao"
        self.diffusion = diffusion
        self.k = k
        if time is None:
            self.time = nn.Parameter(torch.zeros(width))
        else:
            self.register_buffer("time", torch.full((width,), time))
        self.time: Tensor
        self.real = nn.Linear(width, width, bias=False) if gradient else None
        self.imaginary = nn.Linear(width, width, bias=False) if gradient and rotation else None
        inner = 3 * width if gradient else 2 * width
        layers: list[nn.Module] = [nn.Linear(inner, width), nn.ReLU()]
        for last in (False, True):
            if dropout:
                layers.append(nn.Dropout(dropout))
            layers.append(nn.Linear(width, width))
            if not last:
                layers.append(nn.ReLU())
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor, batch: ShapeBatch) -> Tensor:
        # Times below 1e-8 are set to it, not only read so: the optimiser must not walk away.
        with torch.no_grad():
            self.time.clamp_(min=1e-8)
        if self.diffusion == "none":
            diffused = x
        elif self.diffusion == "spectral":
            diffused = _spectral(x, self.time, self.k, batch)
        else:
            diffused = _implicit(x, self.time, batch)
        # The first linear layer takes its inputs side by side, without their being copied so.
        first = cast(nn.Linear, self.mlp[0])
        w = first.weight.split(x.shape[1], dim=1)
        y = torch.addmm(F.linear(x, w[0], first.bias), diffused, w[1].T)
        if self.real is not None:
            imaginary = None if self.imaginary is None else self.imaginary.weight
            make = cao_features if self.cao else GradientFeatures.apply
            features = make(diffused, self.real.weight, imaginary, *_gradient(batch))
            y = torch.addmm(y, features, w[2].T)
        return x + self.mlp[1:](y)


class DiffusionNet(Encoder):
    """Diffuses features over the surface for learned times; independent of the triangulation.

    Paper: Sharp, Attaiki, Crane, Ovsjanikov: DiffusionNet: Discretization Agnostic Learning on
    Surfaces, ACM TOG 2022. https://arxiv.org/abs/2012.00888
    Differs: nothing known in the definition. The authors' last linear layer is the task's head;
    averages (over faces, or over the surface by area) commute with it. Parameters, head included:
    118,750 (width 64, HKS, 30 classes), 464,008 (width 128, HKS, 8 parts). No normalisation layers.
    A batch of several meshes is packed, where the authors take one mesh at a time.

    Args:
        width: channels of the blocks.
        blocks: number of blocks.
        k_eig: eigenpairs for the spectral diffusion.
        dropout: probability inside the MLPs (the authors: 0.5 for segmentation, 0 for SHREC11).
        diffusion: "spectral" (truncated eigenbasis), "implicit" (one backward Euler step, dense
            solve per channel: small meshes only; needs no eigenpairs), or "none" (the ablation).
        time: the same diffusion time for all channels instead of learned ones (the ablation), in
            squared units of the shape.
        gradient: use gradient features; "cao": those of the code of ULRSSM and its family, whose
            weights mean something else (two definitions are in circulation). They depend on how
            tangent frames are turned, so a turned shape gets other answers where its operators are
            made anew, which test=rotated does not do.
        rotation: let them rotate the gradients (needs consistently oriented normals).
    """

    small = MappingProxyType({"width": 16, "blocks": 2, "k_eig": 64})
    counts = (
        Count(118_750, {"width": 64}, 16, "whole", 30),
        Count(117_918, {"width": 64}, 3, "whole", 30),
        Count(464_008, {}, 16, "face", 8),
        Count(462_344, {}, 3, "face", 8),
        Count(494_852, {}, 3, "vertex", 260),
        Count(469_568, {}, 3, "face", 64),  # PaNDaS's
    )
    symmetries = frozenset({"permutation", "rotation", "translation"})

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        width: int = 128,
        blocks: int = 4,
        k_eig: int = 128,
        dropout: float = 0.5,
        diffusion: Literal["spectral", "implicit", "none"] = "spectral",
        time: float | None = None,
        gradient: bool | Literal["cao"] = True,
        rotation: bool = True,
    ) -> None:
        super().__init__(in_channels, spec, out)
        if diffusion not in ("spectral", "implicit", "none"):
            raise UserError(
                f"encoder.diffusion={diffusion} is not known: choose spectral, implicit or none."
            )
        if time is not None and (time <= 0 or diffusion == "none"):
            raise UserError(f"encoder.time={time} must be positive, with a diffusion to fix.")
        self.needs = Needs.of(
            Spectrum(k_eig) if diffusion == "spectral" else None,
            Laplacian() if diffusion == "implicit" else None,
            Gradient() if gradient else None,
            Mass(),
        )
        self.first = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(
            Block(width, dropout, diffusion, time, gradient, rotation, k_eig) for _ in range(blocks)
        )
        self.channels = width

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        x = self.first(x)
        for block in self.blocks:
            x = block(x, batch)
        if self.out == "whole":
            return Encoding(whole=batch.mean(x, batch.ops.mass))
        return self.elements(x, batch)

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The names of nmwsharp/diffusion-net, alone or as the feature extractor of functional
        maps."""
        prefix = "feature_extractor."
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
        if "first_lin.weight" not in state:
            return state
        # Dropout layers stand between the linear ones here: the n-th linear layer is the n-th.
        mlp = cast(Block, self.blocks[0]).mlp
        linear = [n for n, layer in enumerate(mlp) if isinstance(layer, nn.Linear)]
        names = {
            "first_lin": "encoder.first",
            "last_lin": "head",
            "diffusion.diffusion_time": "time",
            "gradient_features.A_re": "real",
            "gradient_features.A_im": "imaginary",
        } | {f"mlp.miniMLP_mlp_layer_{i:03d}": f"mlp.{n}" for i, n in enumerate(linear)}
        translated: dict[str, Tensor] = {}
        for key, value in state.items():
            word, head = key, ""
            if word.startswith("block_"):
                number, word = word.removeprefix("block_").split(".", 1)
                head = f"encoder.blocks.{number}."
            for theirs, ours in names.items():
                if word == theirs or word.startswith(f"{theirs}."):
                    word = ours + word.removeprefix(theirs)
                    break
            translated[head + word] = value
        return translated
