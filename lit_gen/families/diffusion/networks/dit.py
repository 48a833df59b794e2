r"""The diffusion transformer, DiT (Peebles and Xie 2023, https://arxiv.org/abs/2212.09748).

An image becomes a sequence of patches of p x p pixels, each a token with a fixed sinusoidal position. Blocks of
self-attention and a perceptron are conditioned only through their normalisations: with
(scale_1, shift_1, gate_1, scale_2, shift_2, gate_2) = W silu(e) + b,

    x = x + gate_1 attention(norm(x) (1 + scale_1) + shift_1);   x = x + gate_2 mlp(norm(x) (1 + scale_2) + shift_2)

W and b are initialised to zero (adaLN-Zero), so every block is the identity at initialisation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.networks.blocks import check_dropout, multihead_attention, zeros
from lit_gen.networks.embeddings import ConditionalNetwork, TimeEmbedding, sinusoids

NUM_FEATURES = 256


def positions(height: int, width: int, channels: int) -> Tensor:
    """Return the sinusoids of the row and the column of every token, (height width, channels), float32."""
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.cat([sinusoids(axis.flatten(), channels // 2) for axis in (rows, columns)], dim=1)


class DiTBlock(nn.Module):
    """Transformer block with adaLN-Zero: x (N, T, C), emb (N, C) after its activation -> (N, T, C).

    Args:
        channels: Width C of a token.
        num_heads: Number of attention heads.
        mlp_ratio: Width of the perceptron's hidden layer, in units of C.
        dropout: Probability of dropping an output of the attention or of the perceptron.
    """

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.modulation = nn.Linear(channels, 6 * channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        hidden = round(channels * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = self.modulation(emb)[:, None].chunk(6, dim=2)
        h = torch.addcmul(shift_1, self.norm(x), 1 + scale_1)
        h = self.out(multihead_attention(self.qkv(h), self.num_heads))
        x = torch.addcmul(x, gate_1, self.dropout(h))
        h = self.mlp(torch.addcmul(shift_2, self.norm(x), 1 + scale_2))
        return torch.addcmul(x, gate_2, self.dropout(h))


class DiT(ConditionalNetwork):
    """Diffusion transformer: x (N, C, H, W), c_noise (N,), labels (N,) or None -> (N, C_out, H, W).

    The output is exactly zero at initialisation. The default is the paper's DiT-S/2 (33 M parameters), on pixels
    instead of latents; DiT-B is `width: 768`, `num_heads: 12`. Patches of 1 or 2 pixels suit small images.

    Args:
        image_shape: (C, H, W) of the images; H and W must be multiples of `patch_size`.
        num_classes: Number of classes; 0 for an unconditional network. An additional row of the class embedding, index
            `num_classes`, represents "no class" and is used if labels are below 0 or None.
        patch_size: Height and width of a patch, in pixels.
        width: Width of a token, a multiple of 4 and of `num_heads`.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        mlp_ratio: Width of the hidden layer of a block's perceptron, in units of `width`.
        dropout: Probability of dropping an output of the attention or of the perceptron.
        out_channels: Number of output channels, by default that of the images; 2C for a mean and a learned variance;
            set by the model.
        time_embedding: Sinusoids of c_noise with fixed frequencies, or Fourier features with random frequencies.
        augment_dim: Length of the augmentation labels that condition the network; set by the model.

    Raises:
        UserError: If the patches do not divide the image, the heads do not divide the width, or dropout is not a
            probability below 1.
    """

    positions: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        *,
        patch_size: int = 2,
        width: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        out_channels: int | None = None,
        time_embedding: TimeEmbedding = "positional",
        augment_dim: int = 0,
    ) -> None:
        channels, *size = image_shape
        if min(patch_size, width, depth, num_heads) < 1 or mlp_ratio <= 0:
            raise UserError(
                f"model.network: patch_size {patch_size}, width {width}, depth {depth}, num_heads {num_heads} and "
                f"mlp_ratio {mlp_ratio} must all be positive; raise those that are not"
            )
        if size[0] % patch_size or size[1] % patch_size:
            raise UserError(
                f"model.network.patch_size: images of {size[0]}x{size[1]} cannot be cut into patches of "
                f"{patch_size}x{patch_size}; choose a divisor of height and width"
            )
        if width % num_heads or width % 4:
            raise UserError(
                f"model.network.width: {width} is not a multiple of 4 and of the {num_heads} heads; choose a multiple "
                "of both"
            )
        check_dropout(dropout)
        super().__init__(NUM_FEATURES, width, num_classes, time_embedding, augment_dim)
        self.patch_size = patch_size
        self.grid = (size[0] // patch_size, size[1] // patch_size)
        self.register_buffer("positions", positions(*self.grid, width), persistent=False)
        self.patches = nn.Linear(channels * patch_size**2, width)
        blocks = [DiTBlock(width, num_heads, mlp_ratio, dropout) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, (out_channels or channels) * patch_size**2)
        self._initialise(blocks)

    def _initialise(self, blocks: list[DiTBlock]) -> None:
        """Initialise as in the paper: Xavier, small embeddings, and zero residuals and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embed in (*self.embed_noise, self.embed_label, self.embed_augment):
            if isinstance(embed, nn.Linear | nn.Embedding):
                nn.init.normal_(embed.weight, std=0.02)
        for zero in (self.out, self.modulation, *(block.modulation for block in blocks)):
            zeros(zero)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        emb = F.silu(self.embedding(c_noise, labels, augment_labels))
        h = self.patches(self._cut(x)) + self.positions
        for block in self.blocks:
            h = block(h, emb)
        scale, shift = self.modulation(emb)[:, None].chunk(2, dim=2)
        return self._join(self.out(torch.addcmul(shift, self.norm(h), 1 + scale)))

    def _cut(self, x: Tensor) -> Tensor:
        """Cut images (N, C, H, W) into patches (N, T, C p p), row by row."""
        x = x.unflatten(3, (self.grid[1], self.patch_size)).unflatten(2, (self.grid[0], self.patch_size))
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _join(self, tokens: Tensor) -> Tensor:
        """Join patches (N, T, C_out p p) to images (N, C_out, H, W)."""
        p = self.patch_size
        x: Tensor = tokens.unflatten(2, (-1, p, p)).unflatten(1, self.grid).permute(0, 3, 1, 4, 2, 5)
        return x.flatten(4).flatten(2, 3).contiguous()
