"""Small classifiers of small data sets, trained by the package and shipped with it."""

from pathlib import Path
from typing import cast

from safetensors.torch import load_file
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.pixels import from_levels
from lit_gen.metrics.feature_nets.base import FeatureNet
from lit_gen.metrics.feature_nets.files import file_version, first_line

WEIGHTS = Path(__file__).parent.parent / "weights"


class ClassifierNetwork(nn.Module):
    """Small convolutional classifier: grey images (N, 1, H, W) in 0 .. 255 -> features (N, width), logits (N, 10).

    SiLU and average pooling make the features smooth in the pixels, without dead units over a data set.
    """

    body: nn.Sequential
    head: nn.Linear

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(from_levels(images))
        return features, self.head(features)


class DigitsNetwork(ClassifierNetwork):
    """Network for 8x8 images with 64 features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 64),
            nn.SiLU(),
        )
        self.head = nn.Linear(64, 10)


class FashionNetwork(ClassifierNetwork):
    """Network for 28x28 images with 128 features, which are averages over the image."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, width, pool in ((1, 32, 2), (32, 64, 1), (64, 96, 2), (96, 128, 1)):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
            layers += [nn.AvgPool2d(pool)] if pool > 1 else []
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(128, 10)


class ClassifierFeatures(FeatureNet):
    """Small classifier of a data set, trained on its training split; the package includes the weights.

    Features are the activations before the last layer. `python -m lit_gen.metrics.train_feature_net` trains it.

    Args:
        weights: File with other weights of the same network; by default those of the package.

    Raises:
        UserError: If the file is missing or broken.
    """

    network_class: type[ClassifierNetwork]
    file: Path
    """Weights file of the package."""
    num_classes = 10
    resize = "none"

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        path = Path(weights).expanduser() if weights is not None else self.file
        self.network = self.network_class()
        try:
            self.network.load_state_dict(load_file(path))
        except Exception as error:  # safetensors, torch and the file system each have their own
            raise UserError(
                f"{path}: does not hold the weights of the {self.name} feature net ({first_line(error)}); install the "
                f"package again, or train them with python -m lit_gen.metrics.train_feature_net {self.name}"
            ) from error
        self.version = file_version(path)
        self.requires_grad_(False)
        self.eval()


class DigitsFeatures(ClassifierFeatures):
    """Small classifier of scikit-learn's 8x8 digits, trained on their training split and included in the package.

    Features are the 64 activations before the last layer.

    Args:
        weights: File with other weights of the same network; by default those of the package.

    Raises:
        UserError: If the file is missing or broken.
    """

    network_class = DigitsNetwork
    file = WEIGHTS / "digits.safetensors"
    name = "digits"
    width = 64

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1:] != (1, 8, 8):
            raise UserError(
                f"evaluation.feature_net: DigitsFeatures takes 1x8x8 images, not {_shape(images)}; use "
                "--evaluation.feature_net Inception, or --data.source Digits"
            )
        return cast(tuple[Tensor, Tensor], self.network(images.float()))


class FashionFeatures(ClassifierFeatures):
    """Small classifier of Fashion-MNIST, trained on its training split and included in the package.

    Features are the 128 channel means of the last convolution. Images are 28x28, or padded to at most 32x32; the
    network uses the centre 28x28.

    Args:
        weights: File with other weights of the same network; by default those of the package.

    Raises:
        UserError: If the file is missing or broken.
    """

    network_class = FashionNetwork
    file = WEIGHTS / "fashion_mnist.safetensors"
    name = "fashion_mnist"
    width = 128

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        channels, height, width = images.shape[1:]
        margin = (height - 28) // 2
        if channels != 1 or height != width or height not in (28, 30, 32):
            raise UserError(
                "evaluation.feature_net: FashionFeatures takes 1x28x28 images, padded to at most 32, not "
                f"{_shape(images)}; use --evaluation.feature_net Inception, or --data.source FashionMNIST"
            )
        middle = images[:, :, margin : margin + 28, margin : margin + 28]
        return cast(tuple[Tensor, Tensor], self.network(middle.float()))


def _shape(images: Tensor) -> str:
    return "x".join(str(size) for size in images.shape[1:])
