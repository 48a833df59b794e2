"""Likelihoods of 8-bit images: the density that a continuous model gives them, and bits per dimension.

An 8-bit value u stands at x = u / 127.5 - 1 and is what `quantise` makes of every x in its bin, of width 1 / 127.5
around it. So with U uniform on [0, 1] in every dimension, and by Jensen's inequality,

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
    """Moves each value to a uniformly drawn place of its bin, in float64; `quantise` moves it back.

    Args:
        images: (N, ...), the values u / 127.5 - 1.
        noise: keyed by the index of the image; one draw is taken.
    """
    return images.double() + (noise.uniform(images.shape[1:], torch.float64).to(images.device) - 0.5) * BIN_WIDTH


def log_mass(
    log_density: Callable[[Tensor, Noise], Tensor], images: Tensor, noise: Noise, num_draws: int = 1
) -> Tensor:
    """The lower bound on log P(u) above, its expectation estimated by the mean over some draws; (N,) nats.

    Args:
        log_density: of points x (N, ...), with random numbers of its own from the noise, in nats (N,).
        images: (N, ...), the values u / 127.5 - 1.
        noise: keyed by the index of the image.
        num_draws: how often U is drawn.
    """
    draws = [log_density(dequantise(images, noise), noise) for _ in range(num_draws)]
    return torch.stack(draws).mean(0) + images[0].numel() * math.log(BIN_WIDTH)


def bits_per_dim(log_likelihood: Tensor, num_dims: int) -> Tensor:
    """-log P(u) / (D ln 2), from nats per image; 8 for values without any pattern."""
    return -log_likelihood / (num_dims * math.log(2))
