"""Residual generator and critic without batch normalisation, in the manner of WGAN-GP.

Paper: Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028
"""

import torch
from torch import Tensor, nn

from lit_gen.families.gan.networks.blocks import Projection
from lit_gen.networks.blocks import Contraction, Expansion


class Generator(nn.Module):
    """Residual upsampling generator: latents (N, latent_dim) -> images (N, C, H, W) in [-1, 1].

    It normalises groups of channels within one image, so each image is independent of the others in its batch.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        latent_dim: Dimension of the latent z ~ N(0, I).
        num_classes: Number of classes to condition on, by an embedding concatenated to the latent; 0 for none.
        channels: Width at full resolution, a multiple of 8; it doubles at every halving of the resolution.
        max_channels: Upper limit of the width.
        num_blocks: Residual blocks per resolution.

    Raises:
        UserError: If the image size or a width is not supported.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        num_classes: int = 0,
        channels: int = 32,
        max_channels: int = 256,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        features = latent_dim * (2 if num_classes else 1)
        self.trunk = Expansion(
            image_shape, features, channels=channels, max_channels=max_channels, num_blocks=num_blocks
        )

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], dim=1)
        return torch.tanh(self.trunk(z))


class Critic(nn.Module):
    """Residual critic without normalisation: images (N, C, H, W) -> scores (N,), unbounded.

    The gradient penalty is defined for single images; batch normalisation would mix the images of a batch.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        num_classes: Number of classes to condition on, by projection; 0 for none.
        channels: Width at full resolution, a multiple of 8; it doubles at every halving of the resolution.
        max_channels: Upper limit of the width.
        num_blocks: Residual blocks per resolution.

    Raises:
        UserError: If the image size or a width is not supported.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        channels: int = 32,
        max_channels: int = 256,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.trunk = Contraction(
            image_shape, 0, channels=channels, max_channels=max_channels, num_blocks=num_blocks, norm=False
        )
        self.head = Projection(self.trunk.num_features, num_classes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        score: Tensor = self.head(self.trunk(x), labels)
        return score
