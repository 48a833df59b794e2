r"""The network of PixelCNN++ (Salimans et al. 2017, https://arxiv.org/abs/1701.05517).

Two stacks of gated residual blocks run at the full, half and quarter resolution of the image. Skip connections lead
from the blocks on the way down to those on the way up. With f(x) = elu([x, -x]), a block is

    c = W_1 * f(x) + W_s f(skip) + W_l f(v);   (a, b) = W_2 * dropout(f(c)) + V y;   x' = x + a sigmoid(b)

where v, in the horizontal stack only, is the output of the same block of the vertical stack. All weights are
normalised. A halving keeps every second row and column. An output then stands for 2x2 pixels: it depends only on the
past of the first of them, and reaches all four on the way up.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.modes import evaluating
from lit_gen.families.autoregressive.networks.causal import (
    CausalConv,
    HorizontalConv,
    Place,
    Pointwise,
    Stack,
    TwoStacks,
    VerticalConv,
)
from lit_gen.networks.blocks import check_dropout

STACKS: tuple[Stack, Stack] = ("vertical", "horizontal")


def concat_elu(x: Tensor) -> Tensor:
    """Return elu(x) and elu(-x), concatenated along the channels."""
    return F.elu(torch.cat([x, -x], 1))


def convolution(
    stack: Stack, in_channels: int, channels: int, level: int, stride: int = 1, scale: float = 1.0
) -> CausalConv:
    """Return the normalised convolution of a stack, with two rows, and three or two columns."""
    if stack == "vertical":
        return VerticalConv(in_channels, channels, (2, 3), level, stride, scale)
    return HorizontalConv(in_channels, channels, (2, 2), level, stride, scale)


class GatedBlock(nn.Module):
    """Residual block of one stack.

    Args:
        stack: The stack.
        channels: Features F.
        level: Number of halvings of the image.
        skip: Whether the block has a skip connection from a block on the way down.
        num_classes: Number of classes.
        dropout: Dropout probability of the features.
    """

    def __init__(self, stack: Stack, channels: int, level: int, skip: bool, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.first = convolution(stack, 2 * channels, channels, level)
        self.second = convolution(stack, 2 * channels, 2 * channels, level, scale=0.1)
        self.skip = Pointwise(2 * channels, channels, scale=1.0) if skip else None
        self.classes = nn.Embedding(num_classes, 2 * channels) if num_classes else None
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.05)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, skip: Tensor | None, link: Tensor | None, labels: Tensor | None, place: Place
    ) -> Tensor:
        c = self.first(concat_elu(x), place)
        if self.skip is not None:
            assert skip is not None
            c = c + self.skip(concat_elu(skip), place)
        if link is not None:
            c = c + link
        c = self.second(self.dropout(concat_elu(c)), place)
        if self.classes is not None:
            c = c + self.classes(labels)[:, :, None, None]
        a, b = c.chunk(2, 1)
        out: Tensor = x + a * torch.sigmoid(b)
        return out


class PairOfBlocks(nn.Module):
    """A block of the vertical stack, and a block of the horizontal stack that reads its output."""

    def __init__(self, channels: int, level: int, skip: bool, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.level = level
        self.vertical, self.horizontal = (
            GatedBlock(stack, channels, level, skip, num_classes, dropout) for stack in STACKS
        )
        self.link = Pointwise(2 * channels, channels, scale=1.0)

    def forward(self, stack: Stack, x: Tensor, skip: Tensor | None, labels: Tensor | None, place: Place) -> Tensor:
        if stack == "horizontal":
            out: Tensor = self.horizontal(x, skip, place.link(self, self.level), labels, place)
            return out
        x = self.vertical(x, skip, None, labels, place)
        place.links[self] = self.link(concat_elu(x), place)
        return x


class Doubling(nn.Module):
    """Upsampling of every pixel of the lower resolution to 2x2 pixels: (N, F, H / 2, W / 2) -> (N, F, H, W).

    In sampling, x is None if the lower resolution has no new pixel.
    """

    def __init__(self, stack: Stack, channels: int, level: int) -> None:
        super().__init__()
        self.stack, self.level = stack, level
        kernel = (1, 3) if stack == "vertical" else (1, 1)
        kind = VerticalConv if stack == "vertical" else HorizontalConv
        self.conv = kind(channels, 4 * channels, kernel, level + 1, scale=1.0)

    def forward(self, x: Tensor | None, place: Place) -> Tensor:
        blocks = None if x is None else F.pixel_shuffle(self.conv(x, place), 2)
        height, width = place.size_at(self.level)
        if not place.drawn:
            assert blocks is not None
            return blocks[:, :, :height, :width]
        row, column = place.at(self.level)
        if self.stack == "vertical":
            if blocks is not None:
                place.kept[self] = blocks[:, :, :, :width]
            return place.kept[self][:, :, row % 2 : row % 2 + 1]
        if blocks is not None:
            if self not in place.kept:
                place.kept[self] = blocks.new_zeros(*blocks.shape[:3], width + 1)
            place.kept[self][:, :, :, column : column + 2] = blocks
        return place.kept[self][:, :, row % 2 : row % 2 + 1, column : column + 1]


class Resolution(nn.Module):
    """The blocks of both stacks at one resolution, around those of the lower resolutions.

    Args:
        level: Number of halvings of the image.
        num_levels: Number of resolutions.
        channels: Features F.
        num_blocks: Number of blocks on the way down.
        num_classes: Number of classes.
        dropout: Dropout probability of the features.
    """

    def __init__(
        self, level: int, num_levels: int, channels: int, num_blocks: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        last = level == num_levels - 1
        self.level = level
        self.down, self.up = (
            nn.ModuleList([PairOfBlocks(channels, level, skip, num_classes, dropout) for _ in range(num)])
            for skip, num in ((False, num_blocks), (True, num_blocks + (not last)))
        )
        self.lower = None if last else Resolution(level + 1, num_levels, channels, num_blocks, num_classes, dropout)
        self.halving, self.doubling = nn.ModuleDict(), nn.ModuleDict()
        if not last:
            for stack in STACKS:
                self.halving[stack] = convolution(stack, channels, channels, level, stride=2)
                self.doubling[stack] = Doubling(stack, channels, level)

    def forward(self, stack: Stack, x: Tensor, labels: Tensor | None, place: Place) -> Tensor:
        skips = [x]
        for pair in self.down:
            x = pair(stack, x, None, labels, place)
            skips.append(x)
        if self.lower is None:
            skips.pop()
        elif place.reaches(self.level + 1, stack):
            x = self.lower(stack, self.halving[stack](x, place), labels, place)
            x = self.doubling[stack](x, place)
        else:
            conv = self.halving[stack]
            assert isinstance(conv, CausalConv)
            conv.keep(x, place)
            x = self.doubling[stack](None, place)
        for pair in self.up:
            x = pair(stack, x, skips.pop(), labels, place)
        return x


class ResidualPixelCNN(TwoStacks):
    """The network of PixelCNN++: images (N, C, H, W), labels (N,) or None -> parameters (N, P, H, W).

    The network of the paper, for CIFAR-10, has `channels: 160`, `num_blocks: 5`, `num_levels: 3` and `dropout: 0.5`.

    Args:
        image_shape: (C, H, W) of the images, of any size.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Must be false for colour images: this network computes the parameters of all channels at once.
        channels: Features of each stack.
        num_blocks: Blocks per resolution on the way down; on the way up one more, except at the lowest resolution.
        num_levels: Number of resolutions.
        dropout: Dropout probability of the features.

    Raises:
        UserError: If a size is not positive, dropout is not a probability, or the channels are to come one by one.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_params: int,
        num_classes: int = 0,
        channelwise: bool = False,
        channels: int = 64,
        num_blocks: int = 2,
        num_levels: int = 3,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(image_shape, num_params, num_classes, channelwise)
        if self.num_groups > 1:
            raise UserError(
                "model.network: ResidualPixelCNN computes the parameters of all channels at once; choose GatedPixelCNN"
            )
        if min(channels, num_blocks, num_levels) < 1:
            raise UserError(
                f"channels {channels}, num_blocks {num_blocks} and num_levels {num_levels} must be positive; "
                "give at least 1 for each"
            )
        check_dropout(dropout)
        values = image_shape[0] + 1
        self.above = VerticalConv(values, channels, (2, 3), scale=1.0)
        self.link = VerticalConv(values, channels, (1, 3), scale=1.0)
        self.left = HorizontalConv(values, channels, (2, 1), scale=1.0)
        self.resolution = Resolution(0, num_levels, channels, num_blocks, num_classes, dropout)
        self.out = Pointwise(channels, num_params, scale=1.0)

    def vertical(self, above: Tensor, labels: Tensor | None, place: Place) -> None:
        place.links[self] = self.link(above, place)
        self.resolution("vertical", self.above(above, place), labels, place)

    def horizontal(self, left: Tensor, images: Tensor, labels: Tensor | None, place: Place) -> Tensor:
        h = self.left(left, place) + place.link(self)
        params: Tensor = self.out(F.elu(self.resolution("horizontal", h, labels, place)), place)
        return params

    @torch.no_grad()
    def initialise(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Set gains and biases so that the outputs of every layer have mean 0 and its `scale` as standard deviation."""
        convolutions = [module for module in self.modules() if isinstance(module, CausalConv)]
        for conv in convolutions:
            conv.learns_scale = True
        try:
            with evaluating(self):
                self(images, labels)
        finally:
            for conv in convolutions:
                conv.learns_scale = False
