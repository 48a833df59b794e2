"""What a metric sees of an image: features and class logits of a fixed network, with a name and a version."""

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
    """Images as they are stored -> (features, logits), in evaluation mode, in float32 and without gradients.

    Keep it outside of a LightningModule's tree: its weights belong in no checkpoint, optimizer or average.

    Attributes:
        name: What results call it.
        version: Hash of the weights file, so that features of different weights are never compared.
        width: Number of features.
        num_classes: Number of logits; 0 for features that are not of a classifier.
        dtype: Of the images: uint8, or float32 for points.
        resize: How images are brought to the network's size, "none" if it takes only one size.
    """

    name: str
    version: str
    width: int
    num_classes: int
    resize: str
    dtype: torch.dtype = torch.uint8

    @property
    def distance_name(self) -> str:
        """What the distance between these features is called; "fid" is said of Inception's alone."""
        return "fid" if isinstance(self, Inception) else f"fd_{self.name}"

    def train(self, mode: bool = True) -> "FeatureNet":
        """Stays in evaluation mode, whatever contains it."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Computes features and logits.

        Args:
            images: (N, C, H, W), uint8 but for `Points`.

        Returns:
            Features (N, width) and logits (N, num_classes), float32.

        Raises:
            TypeError: The images are not of the data type; see `quantise`.
            UserError: The network does not take images of this shape.
        """
        if images.dtype != self.dtype:
            raise TypeError(f"{self.name} features are of {self.dtype} images, not {images.dtype}: quantise them first")
        with torch.autocast(images.device.type, enabled=False):
            return self.extract(images)

    @abstractmethod
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` computes, without its checks."""


class ClassifierNetwork(nn.Module):
    """A small convolutional classifier: grey images (N, 1, H, W) in 0 .. 255 -> features (N, width), logits (N, 10).

    SiLU and average pooling keep the features smooth in the pixels, with no unit dead over a data set.
    """

    body: nn.Sequential
    head: nn.Linear

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(from_levels(images))
        return features, self.head(features)


class DigitsNetwork(ClassifierNetwork):
    """For 8x8 images; 64 features."""

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
    """For 28x28 images; 128 features, averages over the image."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, width, pool in ((1, 32, 2), (32, 64, 1), (64, 96, 2), (96, 128, 1)):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
            layers += [nn.AvgPool2d(pool)] if pool > 1 else []
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(128, 10)


class ClassifierFeatures(FeatureNet):
    """A small classifier, trained on the training split of a data set; the weights come along.

    Features are the activations before the last layer. `python -m lit_gen.metrics.train_feature_net` trains it.

    Args:
        weights: A file with other weights of the same network; by default those that come with the package.

    Raises:
        UserError: The file is missing or broken.
    """

    network_class: type[ClassifierNetwork]
    file: Path
    """The weights that come with the package."""
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
                f"{path} does not hold the weights of the {self.name} feature net ({_first_line(error)}): install the "
                f"package again, or train them with python -m lit_gen.metrics.train_feature_net {self.name}"
            ) from error
        self.version = _hash(path)
        self.requires_grad_(False)
        self.eval()


class DigitsFeatures(ClassifierFeatures):
    """A small classifier of scikit-learn's 8x8 digits, trained on their training split; the weights come along.

    Features are the 64 activations before the last layer.

    Args:
        weights: A file with other weights of the same network; by default those that come with the package.

    Raises:
        UserError: The file is missing or broken.
    """

    network_class = DigitsNetwork
    file = WEIGHTS / "digits.safetensors"
    name = "digits"
    width = 64

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1:] != (1, 8, 8):
            raise UserError(
                f"the digits feature net takes 1x8x8 images, not {_shape(images)}: use --evaluation.feature_net "
                "Inception, or --data.source Digits"
            )
        return cast(tuple[Tensor, Tensor], self.network(images.float()))


class FashionFeatures(ClassifierFeatures):
    """A small classifier of Fashion-MNIST, trained on its training split; the weights come along.

    Features are the 128 channel means of the last convolution. Takes 28x28 images, or padded ones up to 32x32, of which
    it sees the middle 28x28.

    Args:
        weights: A file with other weights of the same network; by default those that come with the package.

    Raises:
        UserError: The file is missing or broken.
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
                f"the fashion_mnist feature net takes 1x28x28 images, padded to 32 at most, not {_shape(images)}: use "
                "--evaluation.feature_net Inception, or --data.source FashionMNIST"
            )
        middle = images[:, :, margin : margin + 28, margin : margin + 28]
        return cast(tuple[Tensor, Tensor], self.network(middle.float()))


class Inception(FeatureNet):
    """The InceptionV3 of the Frechet Inception Distance, as torch-fidelity computes it.

    2048 pooled features and 1008 logits without bias; images of any size, resized to 299x299 as TensorFlow 1 did; grey
    images are repeated to three channels.

    Args:
        weights: The file weights-inception-2015-12-05-6726825d.pth. By default it is looked for in PyTorch's hub cache,
            and else downloaded there (96 MB).

    Raises:
        UserError: torch-fidelity is not installed, or the file is missing, broken, or cannot be downloaded.
    """

    name = "inception"
    width = 2048
    num_classes = 1008
    resize = "tf1-bilinear-299"

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        try:  # here and not at the module's top: it imports torchvision with everything in it
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:
            raise UserError(
                "the Inception feature net needs torch-fidelity and a torchvision that fits torch "
                f"({_first_line(error)}): install both, or use --evaluation.feature_net DigitsFeatures for 8x8 digits"
            ) from error
        path = _find_inception(weights, URL_INCEPTION_V3)
        try:
            # torch-fidelity unpickles the file: only tensors may be in it
            torch.load(path, map_location="cpu", weights_only=True)
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            )
        except Exception as error:  # a broken file raises any of half a dozen, some with advice to run what is in it
            raise UserError(
                f"{path} is truncated or does not hold Inception's weights: delete it and get "
                f"{URL_INCEPTION_V3} again, then name it with --evaluation.feature_net.weights PATH"
            ) from error
        self.version = _hash(path)
        self.requires_grad_(False)

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UserError(f"the Inception feature net takes images (N, 1 or 3, H, W), not {tuple(images.shape)}")
        return cast(tuple[Tensor, Tensor], self.network(images.expand(-1, 3, -1, -1)))


class Points(FeatureNet):
    """The coordinates of points of the plane, of which no network need say anything.

    Their distance is the exact 2-Wasserstein distance, which also sees what means and covariances do not.
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
    """The weights file: the one named, the one in the hub cache, or a download into that cache."""
    advice = (
        f"get {url} where there is a network and name the file with --evaluation.feature_net.weights PATH, or use "
        "--evaluation.feature_net DigitsFeatures for 8x8 digits"
    )
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(f"evaluation.feature_net.weights: {path} does not exist: {advice}")
        return path
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:
            reason = _first_line(error)
            raise UserError(f"Inception's weights cannot be downloaded to {path} ({reason}): {advice}") from error
    return path


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _shape(images: Tensor) -> str:
    return "x".join(str(size) for size in images.shape[1:])
