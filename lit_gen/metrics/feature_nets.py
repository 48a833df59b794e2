"""Feature nets: fixed networks with a name and a version that give the features and class logits of images."""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.pixels import from_levels

WEIGHTS = Path(__file__).parent / "weights"


class FeatureNet(nn.Module, ABC):
    """Network from stored images to (features, logits), in evaluation mode, in float32 and without gradients.

    Do not make it a submodule of a LightningModule: checkpoints, optimizers and averages must not hold its weights.

    Attributes:
        name: Name in results.
        version: Hash of the weights file, so that features of different weights are never compared.
        width: Number of features.
        num_classes: Number of logits; 0 if the features do not come from a classifier.
        dtype: Data type of the images: uint8, or float32 for points.
        resize: Method that resizes images for the network; "none" if it takes only one size.
    """

    name: str
    version: str
    width: int
    num_classes: int
    resize: str
    dtype: torch.dtype = torch.uint8

    @property
    def distance_name(self) -> str:
        """Name of the distance between these features; "fid" is reserved for Inception features."""
        return "fid" if isinstance(self, Inception) else f"fd_{self.name}"

    def train(self, mode: bool = True) -> "FeatureNet":
        """Keep the network in evaluation mode, even if a module that contains it is set to training."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features and logits.

        Args:
            images: (N, C, H, W), uint8, or float32 for `Points`.

        Returns:
            Features (N, width) and logits (N, num_classes), float32.

        Raises:
            TypeError: If the images have another data type; see `quantise`.
            UserError: If the network does not support the shape of the images.
        """
        if images.dtype != self.dtype:
            raise TypeError(f"{self.name} features need {self.dtype} images, not {images.dtype}; quantise them first")
        with torch.autocast(images.device.type, enabled=False):
            return self.extract(images)

    @abstractmethod
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features and logits without the checks of `forward`."""


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
                f"{path}: does not hold the weights of the {self.name} feature net ({_first_line(error)}); install the "
                f"package again, or train them with python -m lit_gen.metrics.train_feature_net {self.name}"
            ) from error
        self.version = _hash(path)
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


class Inception(FeatureNet):
    """InceptionV3 of the Frechet Inception Distance, in the implementation of torch-fidelity.

    It gives 2048 pooled features and 1008 logits without bias. Images may have any size, and are resized to 299x299 as
    in TensorFlow 1; grey images are repeated to three channels.

    Args:
        weights: The file weights-inception-2015-12-05-6726825d.pth. By default it is read from PyTorch's hub cache,
            after a download (96 MB) if it is missing there.

    Raises:
        UserError: If torch-fidelity is not installed, or the file is missing, broken, or cannot be downloaded.
    """

    name = "inception"
    width = 2048
    num_classes = 1008
    resize = "tf1-bilinear-299"

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        try:  # imported late, since it imports all of torchvision
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:
            raise UserError(
                "evaluation.feature_net: Inception needs torch-fidelity and a torchvision that fits torch "
                f"({_first_line(error)}); install both, or use --evaluation.feature_net DigitsFeatures for 8x8 digits"
            ) from error
        path = _find_inception(weights, URL_INCEPTION_V3)
        try:
            # torch-fidelity unpickles the file, so it may hold only tensors
            torch.load(path, map_location="cpu", weights_only=True)
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            )
        except Exception as error:  # broken files raise many exceptions, and some advise to run the code in the file
            raise UserError(
                f"{path}: truncated, or does not hold Inception's weights; delete it and download "
                f"{URL_INCEPTION_V3} again, then name it with --evaluation.feature_net.weights PATH"
            ) from error
        self.version = _hash(path)
        self.requires_grad_(False)

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UserError(
                "evaluation.feature_net: Inception takes images (N, 1 or 3, H, W), not "
                f"{tuple(images.shape)}; convert the images"
            )
        return cast(tuple[Tensor, Tensor], self.network(images.expand(-1, 3, -1, -1)))


class Points(FeatureNet):
    """Coordinates of points in the plane, used as features without a network.

    Their distance is the exact 2-Wasserstein distance, which depends on more than means and covariances.
    """

    name = "points"
    version = "coordinates"
    width = 2
    num_classes = 0
    resize = "none"
    dtype = torch.float32

    @property
    def distance_name(self) -> str:
        return "w2_points"

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.flatten(1), images.new_zeros(len(images), 0)


def _find_inception(weights: str | None, url: str) -> Path:
    """Return the weights file: the given one, the one in the hub cache, or a download into that cache."""
    advice = (
        f"download {url} on a machine with a network and name the file with --evaluation.feature_net.weights PATH, or "
        "use --evaluation.feature_net DigitsFeatures for 8x8 digits"
    )
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(f"evaluation.feature_net.weights: {path} does not exist; {advice}")
        return path
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:
            reason = _first_line(error)
            message = f"evaluation.feature_net: cannot download Inception to {path} ({reason}); {advice}"
            raise UserError(message) from error
    return path


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _shape(images: Tensor) -> str:
    return "x".join(str(size) for size in images.shape[1:])
