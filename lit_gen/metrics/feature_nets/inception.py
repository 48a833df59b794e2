"""InceptionV3 features of the Frechet Inception Distance."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.metrics.feature_nets.base import FeatureNet, check_channels
from lit_gen.metrics.feature_nets.files import file_version, first_line

OTHERS = (
    "use --evaluation.feature_net EfficientNetLite0 for colour images (pip install 'lit_gen[imagenet]'), or "
    "DigitsFeatures for 8x8 digits"
)
"""Advice on other feature nets."""


class NoWeightsError(UserError):
    """Weights that are not on this machine."""


def _torch_fidelity() -> tuple[type[nn.Module], str]:
    """Return the network of torch-fidelity, and the address of its weights."""
    try:  # imported late, since it imports all of torchvision
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "evaluation.feature_net: Inception needs torch-fidelity and a torchvision that fits torch "
            f"({first_line(error)}); install both, or {OTHERS}"
        ) from error
    return FeatureExtractorInceptionV3, URL_INCEPTION_V3


class Inception(FeatureNet):
    """InceptionV3 of the Frechet Inception Distance, in the implementation of torch-fidelity.

    It gives 2048 pooled features and 1008 logits without bias. Images may have any size, and are resized to 299x299 as
    in TensorFlow 1; grey images are repeated to three channels.

    Args:
        weights: The file weights-inception-2015-12-05-6726825d.pth. By default it is read from PyTorch's hub cache,
            after a download (96 MB) if it is missing there.

    Raises:
        UserError: If torch-fidelity is not installed, or the file is broken, or missing (a NoWeightsError).
    """

    name = "inception"
    width = 2048
    num_classes = 1008
    resize = "tf1-bilinear-299"

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        network_class, url = _torch_fidelity()
        path = find_inception(weights)
        try:
            # torch-fidelity unpickles the file, so it may hold only tensors
            torch.load(path, map_location="cpu", weights_only=True)
            self.network = network_class(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            )
        except Exception as error:  # broken files raise many exceptions, and some advise to run the code in the file
            raise UserError(
                f"{path}: truncated, or does not hold Inception's weights; delete it and download "
                f"{url} again, then name it with --evaluation.feature_net.weights PATH"
            ) from error
        self.version = file_version(path)
        self.requires_grad_(False)

    @property
    def distance_name(self) -> str:
        return "fid"

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        check_channels(images, Inception)
        return cast(tuple[Tensor, Tensor], self.network(images.expand(-1, 3, -1, -1)))


def find_inception(weights: str | None = None) -> Path:
    """Return the weights file: the given one, the one in the hub cache, or a download into that cache.

    Raises:
        UserError: If torch-fidelity is not installed, or the file is missing and cannot be downloaded (a
            NoWeightsError).
    """
    url = _torch_fidelity()[1]
    advice = (
        f"download {url} on a machine with a network and name the file with --evaluation.feature_net.weights PATH, or "
        f"{OTHERS}"
    )
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise NoWeightsError(f"evaluation.feature_net.weights: {path} does not exist; {advice}")
        return path
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:
            raise NoWeightsError(
                f"evaluation.feature_net: cannot download Inception to {path} ({first_line(error)}); {advice}"
            ) from error
    return path
