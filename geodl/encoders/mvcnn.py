"""MVCNN: images of a shape from around, one network for all, the maximum over the views."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from geodl.encoders.base import Encoder, Encoding
from geodl.errors import UserError
from geodl.nn.mlp import mlp
from geodl.nn.views import cameras, depth_images
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Needs, Out, Points


class MVCNN(Encoder):
    """Depth images from ``views`` sides, convolutions, the maximum over the views, linear layers.

    Paper: Su, Maji, Kalogerakis, Learned-Miller: Multi-view CNNs, ICCV 2015.
    https://arxiv.org/abs/1505.00880
    Differs: by default a small network from scratch on depth images of points (published: VGG
    pre-trained on photographs, shaded renderings of meshes; with depth, from photographs' weights,
    Su et al. 2018 have 91.6 where shading has 95.0 on ModelNet40). ``backbone`` takes a network of
    torchvision in its place, and init=FILE its weights from there; views are joined before its
    classifier, as in jongchyisu's version. ``features`` are not seen: take features=none.

    Args:
        points: number of surface samples to draw; null: the shape's own vertices.
        views: images, at equal angles about the vertical, from 30 degrees above.
        size: pixels a side.
        widths: channels of the small network's stages, each half as large as the one before.
        dropout: probability behind the small network's hidden layer.
        backbone: name of a network of torchvision (vgg11, resnet18, ...).
    """

    outputs = ("whole",)
    featureless = True
    small = MappingProxyType({"points": None, "views": 3, "size": 16, "widths": [4, 8]})

    def __init__(
        self,
        in_channels: int,
        spec: DataSpec,
        out: Out,
        points: int | None = 2048,
        views: int = 12,
        size: int = 64,
        widths: Sequence[int] = (16, 32, 64, 128),
        dropout: float = 0.5,
        backbone: str | None = None,
    ) -> None:
        super().__init__(in_channels, spec, out)
        if size % 2 ** len(widths) and backbone is None:
            raise UserError(
                f"encoder.size={size} must be a multiple of {2 ** len(widths)}, one half per stage."
            )
        self.needs = Needs.of(Points(points) if points else None)
        self.size, self.photo = size, backbone is not None
        self.names: dict[str, str] = {}
        self.register_buffer("camera", cameras(views, spec.up), persistent=False)
        self.camera: Tensor
        if backbone is not None:
            self.images, self.last, self.channels, self.names = _torchvision(backbone, size)
            return
        stages: list[nn.Module] = []
        for i, o in itertools.pairwise([1, *widths]):
            stages += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o)]
            stages += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        side = size // 2 ** len(widths)
        self.images = nn.Sequential(*stages, nn.Flatten())
        self.last = mlp([widths[-1] * side**2, 256], dropout=dropout)
        self.channels = 256

    def forward(self, x: Tensor, batch: ShapeBatch) -> Encoding:
        images = depth_images(batch, self.camera, self.size)
        b, v = images.shape[:2]
        images = images.flatten(0, 1)[:, None]
        if self.photo:  # as its photographs were: three channels, mean 0 and deviation 1
            mean = images.new_tensor([0.485, 0.456, 0.406])[:, None, None]
            deviation = images.new_tensor([0.229, 0.224, 0.225])[:, None, None]
            images = (images - mean) / deviation
        return Encoding(whole=self.last(self.images(images).view(b, v, -1).amax(1)))

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.names or any(key.startswith("encoder.") for key in state):
            return state
        parts = ((*key.partition("."), value) for key, value in state.items())
        return {f"{self.names.get(part, part)}.{rest}": v for part, _, rest, v in parts}


def _torchvision(name: str, size: int) -> tuple[nn.Module, nn.Module, int, dict[str, str]]:
    """What comes before the maximum over the views, what behind, its channels, and the names here
    of the network's parts."""
    try:
        import torchvision.models as models  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"encoder.backbone={name} is torchvision's: pip install torchvision."
        ) from None
    if name not in models.list_models():
        raise UserError(f"encoder.backbone={name} is no network of torchvision.")
    net: Any = models.get_model(name, weights=None)
    *before, classifier = net.named_children()
    names = {part: f"encoder.images.{i}" for i, (part, _) in enumerate(before)}
    names[classifier[0]] = "encoder.last"
    behind = classifier[1][:-1] if isinstance(classifier[1], nn.Sequential) else nn.Identity()
    images = nn.Sequential(*(module for _, module in before), nn.Flatten())
    net.eval()
    x = torch.rand(1, 3, size, size)
    try:
        with torch.no_grad():
            flat = images(x)
            same = torch.allclose(classifier[1](flat), net(x), atol=1e-4)
            channels = behind(flat).shape[1]
    except RuntimeError:  # parts that do not fit each other, or images that are too small
        same, channels = False, 0
    if not same:
        raise UserError(
            f"encoder.backbone={name} with images of {size} x {size} is not its parts one after "
            "the other, which is how views are put through it: take vgg11, resnet18 or their like, "
            "or a larger encoder.size."
        )
    return images.train(), behind.train(), channels, names
