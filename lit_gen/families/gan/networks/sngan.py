"""The residual networks of SNGAN, of constant width.

Papers: Miyato et al. 2018, https://arxiv.org/abs/1802.05957; Miyato and Koyama 2018, https://arxiv.org/abs/1802.05637
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.gan.networks.blocks import (
    ConditionalBatchNorm,
    Projection,
    initialise_xavier,
    normalise_spectrally,
)
from lit_gen.networks.blocks import _levels, check_positive, check_width


class UpBlock(nn.Module):
    """y = conv(up(x)) + conv(act(norm(conv(up(act(norm(x))))))), at twice the resolution.

    Args:
        channels: Width of x and y.
        num_classes: Number of classes to condition the normalisation on; 0 for none.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(channels, num_classes)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = ConditionalBatchNorm(channels, num_classes)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = self.conv1(F.interpolate(F.relu(self.norm1(x, labels)), scale_factor=2))
        h = self.conv2(F.relu(self.norm2(h, labels)))
        # a 1x1 convolution commutes with copying pixels
        out: Tensor = F.interpolate(self.skip(x), scale_factor=2) + h
        return out


class SNGANGenerator(nn.Module):
    """Residual blocks of constant width with (conditional) batch normalisation, each doubling the resolution.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        latent_dim: Dimension of the latent.
        num_classes: Number of classes to condition on; 0 for none.
        channels: Width, a multiple of 8.

    Raises:
        UserError: If the image size or the width is not supported.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], latent_dim: int, num_classes: int = 0, channels: int = 256
    ) -> None:
        super().__init__()
        sizes, _ = _levels(image_shape, channels, channels)
        self.start_shape = (channels, *sizes[-1])
        self.start = nn.Linear(latent_dim, math.prod(self.start_shape))
        self.blocks = nn.ModuleList(UpBlock(channels, num_classes) for _ in sizes[1:])
        self.norm = ConditionalBatchNorm(channels)
        self.out = nn.Conv2d(channels, image_shape[0], 3, padding=1)
        initialise_xavier(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.start(z).unflatten(1, self.start_shape)
        for block in self.blocks:
            h = block(h, labels)
        return torch.tanh(self.out(F.relu(self.norm(h))))


class DownBlock(nn.Module):
    """y = skip(x) + pool(conv(act(conv(act(x))))), without the first activation if x is an image.

    Args:
        in_channels: Width of x.
        out_channels: Width of y.
        pool: Halve the resolution.
        first: The input x is an image.
    """

    def __init__(self, in_channels: int, out_channels: int, pool: bool, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if pool or in_channels != out_channels else nn.Identity()
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        # a 1x1 convolution commutes with pooling
        out: Tensor = self.skip(self.pool(x)) + self.pool(h)
        return out


class SNGANDiscriminator(nn.Module):
    """Residual blocks of constant width, the sum over positions, and a linear layer; all weights spectrally normalised.

    Args:
        image_shape: (C, H, W) of the images.
        num_classes: Number of classes to condition on; 0 for none.
        channels: Width, a multiple of 8.
        depth: Number of residual blocks.
        num_halvings: Number of blocks that halve the resolution; these are the first ones.
        spectral: Normalise all weights.

    Raises:
        UserError: If the image size, the width or a number of blocks is not supported.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        channels: int = 128,
        depth: int = 4,
        num_halvings: int = 2,
        spectral: bool = True,
    ) -> None:
        super().__init__()
        check_width("channels", channels)
        check_positive("depth", depth)
        if not 0 <= num_halvings <= depth or any(size % 2**num_halvings for size in image_shape[1:]):
            raise UserError(
                f"num_halvings: images of {image_shape[1]}x{image_shape[2]} cannot be halved {num_halvings} times in "
                f"{depth} blocks; give a smaller number"
            )
        self.blocks = nn.Sequential(
            *(
                DownBlock(channels if i else image_shape[0], channels, pool=i < num_halvings, first=i == 0)
                for i in range(depth)
            )
        )
        self.head = Projection(channels, num_classes)
        initialise_xavier(self)
        self.spectral = spectral
        if spectral:
            normalise_spectrally(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        score: Tensor = self.head(F.relu(self.blocks(x)).sum((2, 3)), labels)
        return score
