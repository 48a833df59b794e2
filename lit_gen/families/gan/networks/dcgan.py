"""The plain convolutions of DCGAN, in the layout of the authors of SNGAN.

Papers: Radford et al. 2015, https://arxiv.org/abs/1511.06434 (DCGAN); Miyato et al. 2018,
https://arxiv.org/abs/1802.05957 (SNGAN)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.families.gan.networks.blocks import (
    ConditionalBatchNorm,
    Normalisation,
    Projection,
    initialise_xavier,
    normalise_spectrally,
)
from lit_gen.networks.blocks import _levels


class DCGANGenerator(nn.Module):
    """Transposed convolutions, each doubling the resolution, with batch normalisation and ReLU, then a 3x3 convolution.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        latent_dim: Dimension of the latent.
        num_classes: Number of classes to condition on; 0 for none.
        channels: Width at full resolution, a multiple of 8; it doubles at every halving of the resolution.
        max_channels: Upper limit of the width.

    Raises:
        UserError: If the image size or a width is not supported.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        num_classes: int = 0,
        channels: int = 64,
        max_channels: int = 512,
    ) -> None:
        super().__init__()
        sizes, widths = _levels(image_shape, channels, max_channels)
        self.start_shape = (widths[-1], *sizes[-1])
        self.start = nn.Linear(latent_dim, math.prod(self.start_shape))
        self.norms = nn.ModuleList(ConditionalBatchNorm(width, num_classes) for width in reversed(widths))
        between = zip(widths[::-1], widths[-2::-1], strict=False)
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(before, width, 4, stride=2, padding=1, bias=False) for before, width in between
        )
        self.out = nn.Conv2d(widths[0], image_shape[0], 3, padding=1)
        initialise_xavier(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        h = F.relu(self.norms[0](self.start(z).unflatten(1, self.start_shape), labels))
        for conv, norm in zip(self.convs, self.norms[1:], strict=True):
            h = F.relu(norm(conv(h), labels))
        return torch.tanh(self.out(h))


class DCGANDiscriminator(nn.Module):
    """A 3x3 convolution, then per halving a 4x4 convolution of stride 2 and a 3x3 one, with leaky ReLU of slope 0.1.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        num_classes: Number of classes to condition on; 0 for none.
        channels: Width at full resolution, a multiple of 8; it doubles at every halving of the resolution.
        max_channels: Upper limit of the width.
        norm: `spectral` normalises all weights, `batch` the features after every convolution but the first, `none`
            nothing.

    Raises:
        UserError: If the image size or a width is not supported.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        channels: int = 64,
        max_channels: int = 512,
        norm: Normalisation = "spectral",
    ) -> None:
        super().__init__()
        sizes, widths = _levels(image_shape, channels, max_channels)
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], widths[0], 3, padding=1), nn.LeakyReLU(0.1)]
        for before, width in zip(widths, widths[1:], strict=False):
            for conv in (
                nn.Conv2d(before, width, 4, stride=2, padding=1),
                nn.Conv2d(width, width, 3, padding=1),
            ):
                layers += [conv, *([nn.BatchNorm2d(width)] if norm == "batch" else []), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers)
        self.head = Projection(widths[-1] * math.prod(sizes[-1]), num_classes)
        initialise_xavier(self.layers)
        if norm == "spectral":
            normalise_spectrally(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        score: Tensor = self.head(self.layers(x).flatten(1), labels)
        return score
