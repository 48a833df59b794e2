"""A perceptron for low-dimensional data, such as points of the plane as images (2, 1, 1)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.errors import UserError
from lit_gen.networks.blocks import zeros
from lit_gen.networks.embeddings import ConditionalNetwork, TimeEmbedding


class MLPBlock(nn.Module):
    """Residual block h + W_2 silu(W_1 silu(h) + W_e e): h (N, D), emb (N, E) -> (N, D).

    Args:
        width: D.
        emb_channels: E.
    """

    def __init__(self, width: int, emb_channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.emb = nn.Linear(emb_channels, width)
        self.second = nn.Linear(width, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return h + self.second(F.silu(self.first(F.silu(h)) + self.emb(emb)))


class ResidualMLP(ConditionalNetwork):
    """Perceptron with residual blocks: x (N, C, H, W), c_noise (N,), labels (N,) or None -> (N, C_out, H, W).

    All values of an image are one vector. Exactly zero at initialisation.

    Args:
        image_shape: (C, H, W); (2, 1, 1) for points of the plane.
        num_classes: Number of classes; 0 for an unconditional network. One more row of the class embedding, index
            `num_classes`, stands for "no class" and is used where labels are below 0 or None.
        width: Width of the hidden layers, even.
        depth: Number of residual blocks.
        out_channels: Channels of the output, those of the images if not given; 2C for a mean and a learned variance.
        time_embedding: Sinusoids of c_noise with fixed frequencies, or Fourier features with random ones.

    Raises:
        UserError: if width or depth does not suit.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        width: int = 128,
        depth: int = 4,
        out_channels: int | None = None,
        time_embedding: TimeEmbedding = "positional",
    ) -> None:
        if width < 4 or width % 2 or depth < 1:
            raise UserError(f"width must be even and at least 4, and depth positive, got {width} and {depth}")
        super().__init__(width, width, num_classes, time_embedding, augment_dim=0)
        self.out_shape = (out_channels or image_shape[0], *image_shape[1:])
        self.stem = nn.Linear(math.prod(image_shape), width)
        self.blocks = nn.ModuleList([MLPBlock(width, width) for _ in range(depth)])
        self.out = zeros(nn.Linear(width, math.prod(self.out_shape)))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = F.silu(self.embedding(c_noise, labels))
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        return self.out(F.silu(h)).unflatten(1, self.out_shape)
