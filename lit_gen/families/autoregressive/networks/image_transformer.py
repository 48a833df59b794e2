r"""A causal transformer over the pixels of an image, or over their channels.

The input at position t of the sequence is the value before, x_{t-1}, or at t = 0 the class. The output at t is the
parameters of x_t:

    s_t = value(x_{t-1}) + row(t) + column(t) + channel(t)
    s <- s + attention(norm(s));   s <- s + mlp(norm(s))                  attention to positions up to t

Sampling caches the keys and values of all positions before.

Papers: Parmar et al. 2018, https://arxiv.org/abs/1802.05751; Chen et al. 2020 (ImageGPT)
"""

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.pixels import nearest_levels
from lit_gen.families.autoregressive.networks.causal_attention import CausalBlock
from lit_gen.networks.blocks import check_dropout

NUM_VALUES = 256


class CausalTransformer(nn.Module):
    """Causal transformer: images (N, C, H, W), labels (N,) or None -> parameters (N, P, H, W).

    A token is a pixel, whose parameters are those of all channels at once. With `channelwise` a token is one channel of
    a pixel, in raster order and then in the order of the channels, and the maps of a channel are contiguous.

    Args:
        image_shape: (C, H, W) of the images.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Whether a channel also sees the channels before it of its own pixel.
        width: Width of a token, a multiple of `num_heads`.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        mlp_ratio: Width of the hidden layer of each perceptron, relative to that of a token.
        dropout: Dropout probability of the embeddings, and of the outputs of attention and perceptron.

    Raises:
        UserError: If a size is not positive, `num_heads` does not divide `width`, or dropout is not a probability.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_params: int,
        num_classes: int = 0,
        channelwise: bool = False,
        width: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(width, depth, num_heads) < 1 or mlp_ratio <= 0 or width % num_heads:
            raise UserError(
                f"width {width}, depth {depth}, num_heads {num_heads} and mlp_ratio {mlp_ratio} must be positive, and "
                "width a multiple of num_heads; choose other values"
            )
        check_dropout(dropout)
        channels, height, columns = image_shape
        self.image_shape = image_shape
        self.num_params = num_params
        self.num_classes = num_classes
        self.num_groups = channels if channelwise else 1
        """Number of tokens per pixel."""
        self.first = nn.Embedding(max(num_classes, 1), width)
        self.values = nn.Embedding(channels * NUM_VALUES, width)
        self.rows, self.columns = nn.Embedding(height, width), nn.Embedding(columns, width)
        self.groups = nn.Embedding(self.num_groups, width)
        self.blocks = nn.ModuleList([CausalBlock(width, num_heads, mlp_ratio, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, num_params // self.num_groups)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def positions(self) -> Tensor:
        """Return the embeddings (T, D) of all positions."""
        grid = self.rows.weight[:, None, None] + self.columns.weight[:, None] + self.groups.weight
        return grid.flatten(0, 2)

    def embed(self, values: Tensor, group: int | None = None) -> Tensor:
        """Return embeddings (N, T, D) of tokens (N, T, C / num_groups), of all groups in turn or of one group."""
        size = values.shape[2]
        index = nearest_levels(values).long()
        channel = torch.arange(self.image_shape[0], device=values.device).view(self.num_groups, size)
        offset = channel.repeat(values.shape[1] // self.num_groups, 1) if group is None else channel[group]
        token: Tensor = self.values(index + NUM_VALUES * offset).sum(2)
        return token

    def begin(self, num: int, labels: Tensor | None) -> Tensor:
        """Return the embedding (N, 1, D) of the start of the sequence."""
        if labels is None:
            return self.first.weight[0].expand(num, 1, -1)
        token: Tensor = self.first(labels)[:, None]
        return token

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        tokens = images.unflatten(1, (self.num_groups, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        x = torch.cat([self.begin(len(images), labels), self.embed(tokens)[:, :-1]], 1) + self.positions()
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        # (N, H W G, P / G) -> (N, P, H, W)
        params: Tensor = self.out(self.norm(x)).unflatten(1, (*self.image_shape[1:], self.num_groups))
        return params.permute(0, 3, 4, 1, 2).flatten(1, 2)

    def start(self, num: int, labels: Tensor | None = None) -> "Sequences":
        """Return the state before the first step of `num` images, for `step`."""
        positions = self.positions()
        heads = [block.num_heads for block in self.blocks if isinstance(block, CausalBlock)]
        kept = [positions.new_zeros(2, num, n, len(positions), positions.shape[1] // n) for n in heads]
        return Sequences(self.begin(num, labels), positions, kept)

    def step(self, drawn: "Sequences", values: Tensor | None = None) -> Tensor:
        """Return the parameters (N, P / num_groups) of the next pixel, or with `channelwise` of its next channel.

        Args:
            drawn: The state from `start`, which is changed in place.
            values: (N, C / num_groups), values sampled from the parameters of the step before; None at the first step.
        """
        token = drawn.begin
        if values is not None:
            token = self.embed(values[:, None], drawn.position % self.num_groups)
            drawn.position += 1
        x = token + drawn.positions[drawn.position]
        for block, kept in zip(self.blocks, drawn.kept, strict=True):
            x = block(x, kept, drawn.position)
        params: Tensor = self.out(self.norm(x))[:, 0]
        return params


class Sequences:
    """State of images that are being sampled: the current position, and the keys and values of each block.

    Args:
        begin: (N, 1, D), the embedding of the start of the sequence.
        positions: (T, D), the embeddings of the positions.
        kept: Cache (2, N, heads, T, d) of keys and values for each block.
    """

    def __init__(self, begin: Tensor, positions: Tensor, kept: list[Tensor]) -> None:
        self.begin = begin
        self.positions = positions
        self.kept = kept
        self.position = 0
