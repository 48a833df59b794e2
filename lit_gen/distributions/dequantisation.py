"""Likelihoods of 8-bit images: the density that a continuous model gives them, and bits per dimension.

An 8-bit value u corresponds to x = u / 127.5 - 1, and `quantise` maps every x in a bin of width 1 / 127.5 around it to
u. With U uniform on [0, 1] in every dimension, Jensen's inequality gives

    log P(u) = log of the mass of p in the bin  >=  E log p(x + (U - 1/2) / 127.5) - D log 127.5.

Paper: Theis et al. 2016, https://arxiv.org/abs/1511.01844
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.core.pixels import BIN_WIDTH


def dequantise(images: Tensor, noise: Noise) -> Tensor:
    """Move each value to a uniformly random point of its bin, in float64; `quantise` is the inverse.

    Args:
        images: Images (N, ...), with the values u / 127.5 - 1.
        noise: Random numbers by image index, used once.
    """
    return images.double() + (noise.uniform(images.shape[1:], torch.float64).to(images.device) - 0.5) * BIN_WIDTH


def log_mass(
    log_density: Callable[[Tensor, Noise], Tensor], images: Tensor, noise: Noise, num_draws: int = 1
) -> Tensor:
    """Estimate the lower bound on log P(u) by the mean over samples of U, (N,) in nats.

    Args:
        log_density: Log-density of points x (N, ...), in nats (N,); it may use further random numbers of the noise.
        images: Images (N, ...), with the values u / 127.5 - 1.
        noise: Random numbers by image index.
        num_draws: Number of samples of U per image.
    """
    draws = [log_density(dequantise(images, noise), noise) for _ in range(num_draws)]
    return torch.stack(draws).mean(0) + images[0].numel() * math.log(BIN_WIDTH)


def bits_per_dim(log_likelihood: Tensor, num_dims: int) -> Tensor:
    """Convert log P(u) in nats per image to bits per dimension, -log P(u) / (D ln 2); 8 for uniform random values."""
    return -log_likelihood / (num_dims * math.log(2))
