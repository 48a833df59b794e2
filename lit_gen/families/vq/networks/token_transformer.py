r"""A causal transformer over the codes of an image.

The sequence is the class, followed by the codes x_0 ... x_{L-1} of a grid in raster order. With e_0 = class(y) and
e_t = code(x_{t-1}),

    s_t = e_t + position(t);   s <- s + attention(norm(s)),   s <- s + mlp(norm(s))       attention to s_0 ... s_t
    logits of x_t = W norm(s_t)

so the logits depend on y and x_0 ... x_{t-1}. Sampling caches the keys and values of the previous codes.

A grid larger than the training grid is sampled through a sliding window of the size of the training grid, as in the
paper: the window is centred on each position, but shifted to lie within the grid. The position attends to the codes of
the window that precede it.

Papers: Radford et al. 2019 (GPT-2); Esser et al. 2021, https://arxiv.org/abs/2012.09841
"""

import math

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.autoregressive.networks.causal_attention import CausalBlock
from lit_gen.networks.blocks import check_dropout


class Drawn:
    """State of a transformer while it samples codes: class token, cached keys and values, position.

    Args:
        first: Token (N, 1, D) of the class.
        kept: Keys and values (2, N, heads, L, d) of each block.
    """

    def __init__(self, first: Tensor, kept: list[Tensor]) -> None:
        self.first = first
        self.kept = kept
        self.position = 0


class TokenTransformer(nn.Module):
    """Causal transformer: codes (N, T), labels (N,) or None -> logits (N, T, K) of each code given the previous ones.

    Args:
        grid: (h, w) of the grid of codes; T is at most h w.
        num_codes: Number K of codes.
        num_classes: Number of classes; 0 for an unconditional network.
        width: Width of a token, a multiple of `num_heads`.
        depth: Number of blocks.
        num_heads: Heads of the attention.
        mlp_ratio: Width of the hidden layer of each block's perceptron, as a multiple of `width`.
        dropout: Probability of dropping an embedding, or an output of attention or perceptron.

    Raises:
        UserError: If a size or the dropout is out of range.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        num_codes: int,
        num_classes: int = 0,
        width: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if min(width, depth, num_heads) < 1 or mlp_ratio <= 0 or width % num_heads:
            raise UserError(
                f"model.network: width {width}, depth {depth}, num_heads {num_heads} and mlp_ratio {mlp_ratio} do not "
                "fit together; give positive numbers, and a width that is a multiple of num_heads"
            )
        check_dropout(dropout)
        self.grid = grid
        self.classes = nn.Embedding(max(num_classes, 1), width)
        self.codes = nn.Embedding(num_codes, width)
        self.positions = nn.Parameter(torch.empty(math.prod(grid), width))
        blocks = [CausalBlock(width, num_heads, mlp_ratio, dropout) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, num_codes)
        self.dropout = nn.Dropout(dropout)
        # as in GPT-2: smaller initial weights for the layers that write to the residual stream
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                adds = name.endswith(("out.weight", "mlp.2.weight")) and name.startswith("blocks")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if adds else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        x = torch.cat([self._first(len(codes), labels), self.codes(codes[:, :-1])], 1)
        x = self.dropout(x + self.positions[: codes.shape[1]])
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.out(self.norm(x))
        return logits

    def start(self, num: int, labels: Tensor | None = None) -> Drawn:
        """Return the state of `num` empty sequences, to be sampled with `step`."""
        length, width = self.positions.shape
        heads = [block.num_heads for block in self.blocks if isinstance(block, CausalBlock)]
        kept = [self.positions.new_empty(2, num, n, length, width // n) for n in heads]
        return Drawn(self._first(num, labels), kept)

    def step(self, drawn: Drawn, codes: Tensor | None = None) -> Tensor:
        """Return the logits (N, K) of the next code.

        Args:
            drawn: State returned by `start`; updated in place.
            codes: Codes (N,) drawn from the previous logits; None at the first step.
        """
        x = drawn.first
        if codes is not None:
            x = self.codes(codes)[:, None]
            drawn.position += 1
        x = self.dropout(x + self.positions[drawn.position])
        for block, kept in zip(self.blocks, drawn.kept, strict=True):
            x = block(x, kept, drawn.position)
        logits: Tensor = self.out(self.norm(x))[:, 0]
        return logits

    def window(self, place: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Return the first row and column of the window of a position (row, column) in a grid of size (H, W)."""
        top, left = (
            min(max(at - seen // 2, 0), whole - seen) for at, seen, whole in zip(place, self.grid, size, strict=True)
        )
        return top, left

    def at(self, codes: Tensor, place: tuple[int, int], labels: Tensor | None = None) -> Tensor:
        """Return the logits (N, K) at one position of codes (N, H, W), given the preceding codes of its window."""
        (row, column), (height, width) = place, self.grid
        top, left = self.window(place, (codes.shape[1], codes.shape[2]))
        seen = codes[:, top : top + height, left : left + width].flatten(1)
        position = (row - top) * width + column - left
        logits: Tensor = self(seen[:, : position + 1], labels)[:, -1]
        return logits

    def _first(self, num: int, labels: Tensor | None) -> Tensor:
        """Return the token (N, 1, D) of the class."""
        if labels is None:
            return self.classes.weight[0].expand(num, 1, -1)
        first: Tensor = self.classes(labels)[:, None]
        return first
