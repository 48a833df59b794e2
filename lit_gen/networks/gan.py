"""Generator and critic of a generative adversarial network, in the manner of WGAN-GP and SNGAN's residual networks.

Gulrajani et al. 2017, arXiv 1704.00028; Miyato et al. 2018, arXiv 1802.05957. Neither holds batch normalisation: the
penalty on the norm of the critic's gradient is a statement about single images, and an image of the generator must not
depend on the others drawn beside it. The generator normalises groups of channels within one image instead.
"""

import torch
from torch import Tensor, nn

from lit_gen.networks.blocks import Contraction, Expansion


class Generator(nn.Module):
    """Residual upsampling generator: latents (N, latent_dim) -> images (N, C, H, W) in [-1, 1].

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        latent_dim: Dimension of the latent z ~ N(0, I).
        channels: Width at full resolution, a multiple of 8; it doubles at every halving of the resolution.
        max_channels: Limit of that doubling.
        num_blocks: Residual blocks per resolution.

    Raises:
        UserError: if the image size or a width does not suit.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        channels: int = 32,
        max_channels: int = 256,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.trunk = Expansion(
            image_shape, latent_dim, channels=channels, max_channels=max_channels, num_blocks=num_blocks
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.trunk(z))


class Critic(nn.Module):
    """Residual critic without normalisation: images (N, C, H, W) -> scores (N,), unbounded.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        channels: Width at full resolution, a multiple of 8; it doubles at every halving of the resolution.
        max_channels: Limit of that doubling.
        num_blocks: Residual blocks per resolution.

    Raises:
        UserError: if the image size or a width does not suit.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], channels: int = 32, max_channels: int = 256, num_blocks: int = 1
    ) -> None:
        super().__init__()
        self.trunk = Contraction(
            image_shape, 1, channels=channels, max_channels=max_channels, num_blocks=num_blocks, norm=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x).squeeze(1)
