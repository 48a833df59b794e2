"""Attention that sees only what comes before, computed for a whole sequence or as it is drawn."""

import torch.nn.functional as F
from torch import Tensor, nn


class CausalBlock(nn.Module):
    """Transformer block: tokens (N, T, D) -> (N, T, D), each seeing those up to itself.

    Args:
        width: D.
        num_heads: Heads of the attention.
        mlp_ratio: Width of the perceptron's hidden layer, in D.
        dropout: Probability of dropping an output of attention or perceptron.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        hidden = round(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, kept: Tensor | None = None, position: int = 0) -> Tensor:
        """All tokens of a sequence, or the token of one position, given the keys and values before.

        Args:
            x: (N, T, D), or (N, 1, D).
            kept: (2, N, heads, T, d), keys and values; those of x are written to it.
            position: That of x.
        """
        # (N, T, 3D) -> 3 x (N, heads, T, d)
        q, k, v = self.qkv(self.norm_1(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        if kept is not None:
            kept[0, :, :, position], kept[1, :, :, position] = k[:, :, 0], v[:, :, 0]
            k, v = kept[:, :, :, : position + 1]
        h = F.scaled_dot_product_attention(q, k, v, is_causal=kept is None).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(h))
        y: Tensor = x + self.dropout(self.mlp(self.norm_2(x)))
        return y
