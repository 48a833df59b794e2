r"""Perceptual losses: differentiable distances between two images in the layers of a fixed network.

    d(x, y) = sum_l mean_{h, w} sum_c w_lc (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)_c^2

where f_l(x) are the activations of layer l, normalised at every pixel by their norm over channels. LPIPS (Zhang et al.
2018, https://arxiv.org/abs/1801.03924) uses the layers of VGG, with weights w fitted to human judgements.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_gen.core.errors import UserError
from lit_gen.metrics.feature_nets import ClassifierFeatures, DigitsFeatures, FashionFeatures

PerceptualKind = Literal["auto", "lpips", "features", "none"]
VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"


class PerceptualLoss(nn.Module, ABC):
    """Mean distance, a scalar, between two batches of images (N, C, H, W) in [-1, 1].

    Do not make it a submodule of a LightningModule: checkpoints, optimizers and averages must not hold its weights.

    Attributes:
        name: Name in the records of a run.
    """

    name: str

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.distance(images.float(), others.float())

    @abstractmethod
    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the mean distance of float32 images."""

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Keep the network in evaluation mode."""
        return super().train(False)


class FeatureLoss(PerceptualLoss):
    """Distance in the convolutional layers of a small classifier of the data, with all weights w equal to 1.

    Args:
        net: Feature net; images may be padded as for the net itself.
    """

    def __init__(self, net: ClassifierFeatures) -> None:
        super().__init__()
        self.name = f"{net.name} features"
        self.body = net.network.body
        self.size = 8 if isinstance(net, DigitsFeatures) else 28
        self.requires_grad_(False)
        self.train()

    def layers(self, images: Tensor) -> list[Tensor]:
        """Return the activations of every layer with spatial dimensions."""
        margin = (images.shape[2] - self.size) // 2
        x = images[:, :, margin : margin + self.size, margin : margin + self.size]
        found = []
        for layer in self.body:
            x = layer(x)
            if isinstance(layer, nn.SiLU) and x.dim() == 4:
                found.append(x)
        return found

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        parts = [
            (functional.normalize(one, dim=1) - functional.normalize(other, dim=1)).square().sum(1).mean()
            for one, other in zip(self.layers(images), self.layers(others), strict=True)
        ]
        return torch.stack(parts).sum()


class LPIPS(PerceptualLoss):
    """LPIPS with VGG, for images of at least 32x32 pixels; grey images are repeated to three channels.

    Raises:
        UserError: If the weights of VGG are not in PyTorch's hub cache.
    """

    name = "LPIPS"

    def __init__(self) -> None:
        super().__init__()
        if not lpips_is_here():
            raise UserError(
                f"model.perceptual: VGG's weights are not at {_vgg()}; download {VGG_URL} to that path, or use "
                "--model.perceptual features or none"
            )
        # imported late, since it imports all of torchvision
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.net = cast(nn.Module, LearnedPerceptualImagePatchSimilarity(net_type="vgg").net)
        self.requires_grad_(False)
        self.train()

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        images, others = (x.expand(-1, 3, -1, -1) for x in (images, others))
        return cast(Tensor, self.net(images, others)).mean()


class Perceptual(NamedTuple):
    """Perceptual loss that is yet to be built; building LPIPS needs the weights of VGG.

    Attributes:
        name: Name in the records of a run.
        build: Function that builds the loss.
    """

    name: str
    build: Callable[[], PerceptualLoss]


def perceptual_loss(kind: PerceptualKind, image_shape: tuple[int, int, int]) -> Perceptual | None:
    """Return the perceptual loss of a kind for images of a shape; None for `none`.

    `auto` selects LPIPS if its weights are available and the images are large enough; otherwise the features of a
    classifier of digits (1x8x8) or of Fashion-MNIST (1x28x28, or padded); otherwise none.

    Raises:
        UserError: If the kind does not support the images.
    """
    channels, height, width = image_shape
    if kind == "none":
        return None
    large = min(height, width) >= 32
    if kind == "lpips" or (kind == "auto" and large and lpips_is_here()):
        if not large:
            raise UserError(f"model.perceptual: lpips takes images of at least 32x32, not {height}x{width}; use auto")
        return Perceptual(LPIPS.name, LPIPS)
    if channels == 1 and height == width == 8:
        return _features(DigitsFeatures)
    if channels == 1 and height == width and height in (28, 30, 32):
        return _features(FashionFeatures)
    if kind == "auto":
        return None
    raise UserError(f"model.perceptual: features has no net for {channels}x{height}x{width} images; use lpips or none")


def _features(net: type[ClassifierFeatures]) -> Perceptual:
    return Perceptual(f"{net.name} features", partial(_feature_loss, net))


def _feature_loss(net: type[ClassifierFeatures]) -> PerceptualLoss:
    return FeatureLoss(net())


def lpips_is_here() -> bool:
    """Return whether the weights of VGG are in PyTorch's hub cache."""
    return _vgg().is_file()


def _vgg() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", Path(VGG_URL).name)
