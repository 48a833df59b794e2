"""Perceptron for low-dimensional data, such as points in the plane as images (2, 1, 1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.networks.blocks import zeros
from lit_gen.networks.embeddings import ConditionalNetwork, TimeEmbedding


class MLPBlock(nn.Module):
    """Residual block h + W_2 silu(W_1 silu(h) + W_e e): h (N, D), emb (N, E) -> (N, D).

    Args:
        width: Width D of the hidden layers.
        emb_channels: Width E of the embedding.
    """

    def __init__(self, width: int, emb_channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.emb = nn.Linear(emb_channels, width)
        self.second = nn.Linear(width, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        out: Tensor = h + self.second(F.silu(self.first(F.silu(h)) + self.emb(emb)))
        return out


class ResidualMLP(ConditionalNetwork):
    """Perceptron with residual blocks: x (N, C, H, W), c_noise (N,), labels (N,) or None -> (N, C_out, H, W).

    The image is flattened to one vector, and h = W [x, sin(2^k x), cos(2^k x)] for the octaves k = 0, 1, ... of the
    input. Without the sinusoids, a network of this size is slow to learn details at short distances. The output is
    exactly zero at initialisation.

    Paper: Tancik et al. 2020, https://arxiv.org/abs/2006.10739 (sinusoids of the input)

    Args:
        image_shape: (C, H, W); (2, 1, 1) for points in the plane.
        num_classes: Number of classes; 0 for an unconditional network. An additional row of the class embedding, index
            `num_classes`, represents "no class" and is used if labels are below 0 or None.
        width: Width of the hidden layers, even.
        depth: Number of residual blocks.
        octaves: Number of octaves of sinusoids; 0 for none.
        out_channels: Number of output channels, by default that of the images; 2C for a mean and a learned variance;
            set by the model.
        time_embedding: Sinusoids of c_noise with fixed frequencies, or Fourier features with random frequencies.

    Raises:
        UserError: If width, depth or octaves is out of range.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        width: int = 128,
        depth: int = 4,
        octaves: int = 5,
        out_channels: int | None = None,
        time_embedding: TimeEmbedding = "positional",
    ) -> None:
        if width < 4 or width % 2 or depth < 1 or octaves < 0:
            raise UserError(
                f"model.network: width {width}, depth {depth} and octaves {octaves} do not define a ResidualMLP; give "
                "an even width of at least 4, a depth of at least 1 and octaves of at least 0"
            )
        super().__init__(width, width, num_classes, time_embedding, augment_dim=0)
        self.out_shape = (out_channels or image_shape[0], *image_shape[1:])
        self.octaves = octaves
        self.stem = nn.Linear(math.prod(image_shape) * (1 + 2 * octaves), width)
        self.blocks = nn.ModuleList([MLPBlock(width, width) for _ in range(depth)])
        self.out = zeros(nn.Linear(width, math.prod(self.out_shape)))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = F.silu(self.embedding(c_noise, labels))
        phases = [2**k * x.flatten(1) for k in range(self.octaves)]
        h = self.stem(torch.cat([x.flatten(1), *(p.sin() for p in phases), *(p.cos() for p in phases)], 1))
        for block in self.blocks:
            h = block(h, emb)
        out: Tensor = self.out(F.silu(h)).unflatten(1, self.out_shape)
        return out
