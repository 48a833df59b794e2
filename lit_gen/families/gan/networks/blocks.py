"""Layers that the networks of adversarial models share: projection, conditional and spectral normalisation.

Each generator maps latents (N, latent_dim) to images in [-1, 1], each discriminator images to scores (N,). With
classes, generators scale and shift their normalised features by class, and discriminators add the projection
<embedding of the class, features> to the score.

Papers: Miyato et al. 2018, https://arxiv.org/abs/1802.05957 (spectral normalisation); Miyato and Koyama 2018,
https://arxiv.org/abs/1802.05637 (projection)
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, spectral_norm

Normalisation = Literal["spectral", "batch", "none"]


def normalise_spectrally(network: nn.Module) -> None:
    """Divide the weight of every convolution, linear layer and embedding by its largest singular value, W / sigma(W).

    A kernel (C_out, C_in, k, k) counts as the matrix (C_out, C_in k k). So does the kernel of a transposed convolution,
    which is stored as (C_in, C_out, k, k). The weights stay normalised from this call on: sigma is estimated by one
    step of power iteration per pass in training mode, whose vectors are buffers. Layers that are already normalised are
    left unchanged.
    """
    for module in list(network.modules()):
        if isinstance(module, (_ConvNd, nn.Linear, nn.Embedding)) and not parametrize.is_parametrized(module):
            spectral_norm(module)


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Keep running means and variances, and the vectors of power iterations, constant in training mode.

    Batches are still normalised by their own statistics.
    """
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                module.track_running_stats = False
                stack.callback(setattr, module, "track_running_stats", True)
            elif isinstance(module, _SpectralNorm) and module.training:
                module.eval()
                stack.callback(module.train)
        yield


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether the output for one image depends on the other images of its batch in training."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def initialise_xavier(network: nn.Module) -> None:
    """Set Xavier's uniform weights, with gain sqrt(2) for kernels larger than 1x1, and biases of zero."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            spatial = math.prod(getattr(module, "kernel_size", (1,))) > 1
            nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2) if spatial else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Projection(nn.Module):
    """Score of features: w^T h + b, with classes w^T h + b + <embedding(y), h>; h (N, features) -> (N,).

    Args:
        features: Width of h.
        num_classes: Number of classes; 0 for an unconditional score.
    """

    def __init__(self, features: int, num_classes: int = 0) -> None:
        super().__init__()
        self.score = nn.Linear(features, 1)
        self.embedding = nn.Embedding(num_classes, features) if num_classes else None
        if self.embedding is not None:
            nn.init.xavier_uniform_(self.embedding.weight)

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        score = self.score(h).squeeze(1)
        out: Tensor = score if self.embedding is None else score + (self.embedding(labels) * h).sum(1)
        return out


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation, h -> scale h + shift, with one scale and shift per class.

    Args:
        channels: Width of h (N, C, H, W).
        num_classes: Number of classes; 0 for a single scale and shift.
    """

    def __init__(self, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Parameter(torch.ones(max(num_classes, 1), channels))
        self.shift = nn.Parameter(torch.zeros(max(num_classes, 1), channels))

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        row = slice(None) if len(self.scale) == 1 else labels
        out: Tensor = self.norm(h) * self.scale[row, :, None, None] + self.shift[row, :, None, None]
        return out
