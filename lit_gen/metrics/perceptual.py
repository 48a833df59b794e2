r"""Perceptual losses: how far two images are apart in the layers of a fixed network, with gradients.

    d(x, y) = sum_l mean_{h, w} sum_c w_lc (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)_c^2

f_l(x) being the activations of layer l, divided at every pixel by their length over channels. LPIPS (Zhang et al. 2018,
https://arxiv.org/abs/1801.03924) has VGG's layers and weights w that were fitted to human judgements.
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
    """Images (N, C, H, W) in [-1, 1] twice -> a scalar, the mean distance.

    Keep it outside of a LightningModule's tree: its weights belong in no checkpoint, optimizer or average.

    Attributes:
        name: What a run calls it.
    """

    name: str

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.distance(images.float(), others.float())

    @abstractmethod
    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        """What `forward` computes, in float32."""

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stays in evaluation mode."""
        return super().train(False)


class FeatureLoss(PerceptualLoss):
    """The distance in the convolutional layers of a small classifier of the data, all weights w being 1.

    Args:
        net: The feature net; images may be padded, as it takes them.
    """

    def __init__(self, net: ClassifierFeatures) -> None:
        super().__init__()
        self.name = f"{net.name} features"
        self.body = net.network.body
        self.size = 8 if isinstance(net, DigitsFeatures) else 28
        self.requires_grad_(False)
        self.train()

    def layers(self, images: Tensor) -> list[Tensor]:
        """The activations of every layer that has pixels."""
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
    """LPIPS with VGG; grey images are repeated to three channels, and images have at least 32x32 pixels.

    Raises:
        UserError: VGG's weights are not in PyTorch's hub cache.
    """

    name = "LPIPS"

    def __init__(self) -> None:
        super().__init__()
        if not lpips_is_here():
            raise UserError(
                f"model.perceptual: VGG's weights are not at {_vgg()}: get {VGG_URL} where there is a network, or use "
                "--model.perceptual features or none"
            )
        # here and not at the module's top: it imports torchvision with everything in it
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.net = cast(nn.Module, LearnedPerceptualImagePatchSimilarity(net_type="vgg").net)
        self.requires_grad_(False)
        self.train()

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        images, others = (x.expand(-1, 3, -1, -1) for x in (images, others))
        return cast(Tensor, self.net(images, others)).mean()


class Perceptual(NamedTuple):
    """A perceptual loss before it is built, which takes VGG's weights for LPIPS.

    Attributes:
        name: what a run calls it.
        build: makes it.
    """

    name: str
    build: Callable[[], PerceptualLoss]


def perceptual_loss(kind: PerceptualKind, image_shape: tuple[int, int, int]) -> Perceptual | None:
    """The perceptual loss of a kind, for images of a shape; None for none.

    `auto` is LPIPS where its weights are there and the images large enough, else the features of a classifier of digits
    (1x8x8) or of Fashion-MNIST (1x28x28, or padded), else none.

    Raises:
        UserError: there is none of that kind for the images.
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
    raise UserError(f"model.perceptual: there are no features of {channels}x{height}x{width} images; use lpips or none")


def _features(net: type[ClassifierFeatures]) -> Perceptual:
    return Perceptual(f"{net.name} features", partial(_feature_loss, net))


def _feature_loss(net: type[ClassifierFeatures]) -> PerceptualLoss:
    return FeatureLoss(net())


def lpips_is_here() -> bool:
    """Whether VGG's weights are in PyTorch's hub cache."""
    return _vgg().is_file()


def _vgg() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", Path(VGG_URL).name)
