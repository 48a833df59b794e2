"""Encoder and decoder of a variational autoencoder.

The encoder returns mean and log-variance of q(z | x) = N(mean(x), diag(exp(log_var(x)))), the decoder the parameter
maps of p(x | z), such as its mean or its logits. Paper: Kingma and Welling 2014, https://arxiv.org/abs/1312.6114
"""

from torch import Tensor, nn

from lit_gen.networks.blocks import Contraction, Expansion


class ConvEncoder(nn.Module):
    """Residual convolutional encoder: images (N, C, H, W) -> (mean, log_var), each (N, latent_dim).

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        latent_dim: Dimension of the latent z.
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
        channels: int = 32,
        max_channels: int = 256,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.trunk = Contraction(
            image_shape,
            2 * latent_dim,
            channels=channels,
            max_channels=max_channels,
            num_blocks=num_blocks,
            norm=True,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.trunk(x).chunk(2, dim=1)
        return mean, log_var


class ConvDecoder(nn.Module):
    """Residual convolutional decoder: latents (N, latent_dim) -> unbounded parameter maps (N, C, H, W) of p(x | z).

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        latent_dim: Dimension of the latent z.
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
        channels: int = 32,
        max_channels: int = 256,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.trunk = Expansion(
            image_shape, latent_dim, channels=channels, max_channels=max_channels, num_blocks=num_blocks
        )

    def forward(self, z: Tensor) -> Tensor:
        params: Tensor = self.trunk(z)
        return params
