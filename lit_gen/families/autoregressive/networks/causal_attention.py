"""Causal attention, for a whole sequence at once or token by token."""

import torch.nn.functional as F
from torch import Tensor, nn


class CausalBlock(nn.Module):
    """Causal transformer block: tokens (N, T, D) -> (N, T, D), where each token sees those up to itself.

    Args:
        width: Width D of a token.
        num_heads: Number of attention heads.
        mlp_ratio: Width of the hidden layer of the perceptron, relative to D.
        dropout: Dropout probability of the outputs of attention and perceptron.
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
        """Return the output for all tokens of a sequence, or for the token at one position.

        Args:
            x: Tokens (N, T, D), or one token (N, 1, D) with `kept`.
            kept: Cache (2, N, heads, T, d) of keys and values, to which those of x are added.
            position: Position of x in the sequence, with `kept`.
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
