"""Encoder, decoder and discriminator of two-stage models: images to a small grid of codes and back.

The discriminator scores overlapping patches (Isola et al. 2017, https://arxiv.org/abs/1611.07004). It normalises groups
of channels within one image, so its scores do not depend on other images.

Papers: Van den Oord et al. 2017, https://arxiv.org/abs/1711.00937; Esser et al. 2021, https://arxiv.org/abs/2012.09841
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_gen.core.accumulation import SumOverMicroBatches
from lit_gen.core.errors import UserError
from lit_gen.core.processes import all_gather_cat
from lit_gen.families.diffusion.networks.unet import Attention
from lit_gen.families.vq.networks.quantisers import Quantised, Quantiser, draw_codes
from lit_gen.networks.blocks import ResBlock, check_width, group_norm, initialise


class AutoencoderNetwork(nn.Module, ABC):
    """Encoder and decoder of a first stage.

    Attributes:
        size: Height and width (h, w) of the latents.
        encoder: Called with images (N, C, H, W), returns what the latents are made of, on the grid of the latents.
        decoder: Called with latents on the grid, returns images.
        last_layer: The last layer of the decoder, whose gradients weigh the adversarial loss of `VQGAN`.
    """

    size: tuple[int, int]
    encoder: Any  # a module or a method
    decoder: Any
    last_layer: nn.Conv2d

    @abstractmethod
    def __init__(self) -> None:
        super().__init__()


class ConvAutoencoder(AutoencoderNetwork):
    """Residual convolutional encoder and decoder: images (N, C, H, W) -> latents (N, dim, h, w) -> images.

    Each width after the first halves the resolution: two widths give h = H / 2, three h = H / 4.

    Args:
        image_shape: (C, H, W) of the images.
        dim: Width of the latents.
        channels: Width at full resolution, a multiple of 8.
        channel_mult: Width at each resolution, as a multiple of `channels`.
        num_blocks: Residual blocks per resolution.
        attention: Self-attention at the lowest resolution.

    Raises:
        UserError: If the image size or a width is not supported.
    """

    NUM_ENCODED: ClassVar[int] = 1
    """Number of outputs of the encoder per latent."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        dim: int,
        channels: int = 32,
        channel_mult: Sequence[int] = (1, 2),
        num_blocks: int = 1,
        attention: bool = False,
    ) -> None:
        super().__init__()
        check_width("channels", channels)
        widths = [channels * mult for mult in channel_mult]
        factor = 2 ** (len(widths) - 1)
        num_channels, height, width = image_shape
        if height % factor or width % factor:
            raise UserError(
                f"model.network.channel_mult: images of {height}x{width} cannot be halved {len(widths) - 1} times; "
                f"give fewer widths than {len(widths)}"
            )
        self.size = (height // factor, width // factor)
        layers: list[nn.Module] = [nn.Conv2d(num_channels, widths[0], 3, padding=1)]
        for level, wide in enumerate(widths):
            if level:
                layers.append(nn.Conv2d(widths[level - 1], wide, 3, stride=2, padding=1))
            layers += [ResBlock(wide, wide, norm=True) for _ in range(num_blocks)]
        layers += [*_middle(widths[-1], attention), group_norm(widths[-1]), nn.SiLU()]
        layers += [nn.Conv2d(widths[-1], self.NUM_ENCODED * dim, 1)]
        self.encoder = nn.Sequential(*layers)

        layers = [nn.Conv2d(dim, widths[-1], 3, padding=1), *_middle(widths[-1], attention)]
        for level in reversed(range(len(widths))):
            layers += [ResBlock(widths[level], widths[level], norm=True) for _ in range(num_blocks)]
            if level:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(widths[level], widths[level - 1], 3, padding=1)]
        self.last_layer = nn.Conv2d(widths[0], num_channels, 3, padding=1)
        self.decoder = nn.Sequential(*layers, group_norm(widths[0]), nn.SiLU(), self.last_layer)


def _middle(width: int, attention: bool) -> list[nn.Module]:
    """Return the blocks at the lowest resolution."""
    block = ResBlock(width, width, norm=True)
    return [block, Attention(width, 1), ResBlock(width, width, norm=True)] if attention else [block]


class QuantisedAutoencoder(nn.Module):
    """Images -> codes -> images, with the frequency of each code at each position of the grid.

    The frequencies are an exponential average over training steps, with a horizon of about a hundred steps.

    Args:
        network: Encoder and decoder.
        quantiser: Quantiser of the latents of the network.
    """

    frequencies: Tensor

    def __init__(self, network: AutoencoderNetwork, quantiser: Quantiser) -> None:
        super().__init__()
        self.network = network
        self.quantiser = quantiser
        uniform = torch.full((*network.size, quantiser.num_codes), 1 / quantiser.num_codes)
        self.register_buffer("frequencies", uniform)
        self.over_micro_batches = SumOverMicroBatches()

    def forward(self, images: Tensor) -> tuple[Tensor, Quantised]:
        """Return the reconstructions and the output of the quantiser."""
        quantised: Quantised = self.quantiser(self.network.encoder(images))
        if self.training:
            self.count(quantised.indices)
        return self.network.decoder(quantised.z_q), quantised

    @torch.no_grad()
    def count(self, indices: Tensor) -> None:
        """Update the frequencies (h, w, K) by the indices (N, h, w) of a training batch."""
        indices = all_gather_cat(indices).movedim(0, -1)
        counts = torch.zeros_like(self.frequencies)
        counts.scatter_add_(2, indices, torch.ones_like(indices, dtype=counts.dtype))
        of_step = self.over_micro_batches(counts)
        if of_step is not None:
            self.frequencies.lerp_(of_step / (indices.shape[-1] * self.over_micro_batches.num_micro_batches), 0.01)

    def latents(self, images: Tensor) -> Tensor:
        """Return the latents (N, code_dim, h, w) of images before quantisation; in float32 under autocast."""
        with torch.autocast(images.device.type, enabled=False):
            return self.quantiser.vectors(self.network.encoder(images))

    def encode(self, images: Tensor) -> Tensor:
        """Return the indices (N, h, w) of the codes of images (N, C, H, W); in float32 under autocast."""
        with torch.autocast(images.device.type, enabled=False):
            return self.quantiser.nearest(self.latents(images).movedim(1, -1))

    def decode(self, indices: Tensor) -> Tensor:
        """Return the images of indices (N, h, w); the codes are in float32 under autocast."""
        with torch.autocast(indices.device.type, enabled=False):
            z_q = self.quantiser.restore(indices)
        images: Tensor = self.network.decoder(z_q)
        return images

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Quantise latents (N, code_dim, h, w) and return their images."""
        return self.decode(self.quantiser.nearest(latents.movedim(1, -1)))

    def place(self, uniform: Tensor) -> Tensor:
        """Draw each code independently from the frequencies at its position: uniform numbers (N, h, w) -> indices."""
        return draw_codes(self.frequencies, uniform.movedim(0, -1)).movedim(-1, 0)

    def overall(self) -> Tensor:
        """Return the share (K,) of each code over all positions."""
        return self.frequencies.flatten(0, 1).mean(0)


class PatchDiscriminator(nn.Module):
    """Convolutional discriminator: images (N, C, H, W) -> logits (N, h, w), one per patch of the image.

    Args:
        image_shape: (C, H, W) of the images.
        channels: Width after the first convolution, a multiple of 8; it doubles at every halving.
        num_halvings: Number of halvings of the resolution; each enlarges the patches.

    Raises:
        UserError: If the image is too small for the halvings, or if the width is not supported.
    """

    def __init__(self, image_shape: tuple[int, int, int], channels: int = 32, num_halvings: int = 2) -> None:
        super().__init__()
        check_width("channels", channels)
        if min(image_shape[1:]) < 4 * 2**num_halvings or num_halvings < 1:
            raise UserError(
                f"model.discriminator.num_halvings: {num_halvings} is out of range for images of "
                f"{image_shape[1]}x{image_shape[2]}; give at least 1, and few enough to leave 4x4 patches"
            )
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, num_halvings + 1):
            stride = 2 if level < num_halvings else 1  # the last convolution only enlarges the patches
            before, wide = channels * 2 ** (level - 1), channels * 2**level
            layers += [nn.Conv2d(before, wide, 4 if stride == 2 else 3, stride=stride, padding=1)]
            layers += [group_norm(wide), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels * 2**num_halvings, 1, 3, padding=1))
        initialise(self.layers)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits.squeeze(1)
