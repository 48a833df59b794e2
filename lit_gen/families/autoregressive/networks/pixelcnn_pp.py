r"""The network of PixelCNN++ (Salimans et al. 2017, https://arxiv.org/abs/1701.05517).

Two stacks of residual blocks with gates, at the image's size and at halves and quarters of it, whose outputs on the way
down are fed to those on the way up. With f(x) = elu([x, -x]) a block is

    c = W_1 * f(x) + W_s f(skip) + W_l f(v);   (a, b) = W_2 * dropout(f(c)) + V y;   x' = x + a sigmoid(b)

where v is the output of the same block of the vertical stack, for the horizontal one. All weights are normalised.
A halving takes every second row and column, after which an output stands for a block of 2x2 pixels: it has seen only
what comes before the first of them, and is told to all four on the way up.
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
    """elu of x and of -x, twice as many channels."""
    return F.elu(torch.cat([x, -x], 1))


def convolution(
    stack: Stack, in_channels: int, channels: int, level: int, stride: int = 1, scale: float = 1.0
) -> CausalConv:
    """The normalised convolution of a stack: two rows, and three or two columns."""
    if stack == "vertical":
        return VerticalConv(in_channels, channels, (2, 3), level, stride, scale)
    return HorizontalConv(in_channels, channels, (2, 2), level, stride, scale)


class GatedBlock(nn.Module):
    """Residual block of one stack.

    Args:
        stack: Which.
        channels: Features F.
        level: How often the image was halved.
        skip: Whether it takes the output of a block on the way down.
        num_classes: Number of classes.
        dropout: Probability of dropping a feature.
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
        return x + a * torch.sigmoid(b)


class PairOfBlocks(nn.Module):
    """A block of the vertical stack, and one of the horizontal stack that takes its output."""

    def __init__(self, channels: int, level: int, skip: bool, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.level = level
        self.vertical, self.horizontal = (
            GatedBlock(stack, channels, level, skip, num_classes, dropout) for stack in STACKS
        )
        self.link = Pointwise(2 * channels, channels, scale=1.0)

    def forward(self, stack: Stack, x: Tensor, skip: Tensor | None, labels: Tensor | None, place: Place) -> Tensor:
        if stack == "horizontal":
            return self.horizontal(x, skip, place.link(self, self.level), labels, place)
        x = self.vertical(x, skip, None, labels, place)
        place.links[self] = self.link(concat_elu(x), place)
        return x


class Doubling(nn.Module):
    """Every pixel of a lower resolution becomes 2x2 of the level: (N, F, H / 2, W / 2) -> (N, F, H, W).

    While an image is drawn, x is None where the lower resolution has nothing new.
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
    """The blocks of both stacks at one resolution, around those of the lower ones.

    Args:
        level: How often the image was halved.
        num_levels: Number of resolutions.
        channels: Features F.
        num_blocks: Blocks on the way down.
        num_classes: Number of classes.
        dropout: Probability of dropping a feature.
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

    The paper's, for CIFAR-10, has `channels: 160`, `num_blocks: 5`, `num_levels: 3` and `dropout: 0.5`.

    Args:
        image_shape: (C, H, W) of the images, of any size.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Not for this network, which gives the parameters of all channels at once.
        channels: Features of each stack.
        num_blocks: Blocks of each resolution on the way down; on the way up one more but for the lowest.
        num_levels: Number of resolutions.
        dropout: Probability of dropping a feature.

    Raises:
        UserError: if a size or dropout does not suit, or the parameters are those of one channel after the other.
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
                "model.network: this one gives the parameters of all channels at once; choose GatedPixelCNN"
            )
        if min(channels, num_blocks, num_levels) < 1:
            raise UserError("channels, num_blocks and num_levels must be positive")
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
        return self.out(F.elu(self.resolution("horizontal", h, labels, place)), place)

    @torch.no_grad()
    def initialise(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Sets gains and biases such that every layer's outputs have mean 0 and the same deviation on these images."""
        convolutions = [module for module in self.modules() if isinstance(module, CausalConv)]
        for conv in convolutions:
            conv.learns_scale = True
        try:
            with evaluating(self):
                self(images, labels)
        finally:
            for conv in convolutions:
                conv.learns_scale = False
