r"""Convolutions that see only earlier pixels in raster order, for a whole image at once or pixel by pixel.

The past of pixel (r, c) is everything above row r, and row r left of column c. Convolutions with half of their kernels
masked do not cover it: they leave a blind spot at the upper right. Two stacks cover it. The *vertical* stack sees the
rows above, on both sides; its input is the image, shifted down by one row. The *horizontal* stack sees its own row to
the left; its input is the image, shifted right by one column, and at every layer the output of the vertical stack.

Images are sampled pixel by pixel. Each convolution then caches the last rows or columns of its input. The vertical
stack is computed once per row, and the horizontal stack once per pixel.

Papers: van den Oord et al. 2016, https://arxiv.org/abs/1606.05328 (two stacks); Ramachandran et al. 2017,
https://arxiv.org/abs/1704.06001 (caches)
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stack = Literal["vertical", "horizontal"]


class Place:
    """The part of an image that is being computed: all of it, or in sampling the pixel (row, column).

    Args:
        size: (H, W) of the image.
        drawn: Whether pixels are sampled one by one; the stacks then compute one row and one pixel at a time.
    """

    def __init__(self, size: tuple[int, int], drawn: bool) -> None:
        self.size = size
        self.drawn = drawn
        self.row = self.column = 0
        self.kept: dict[nn.Module, Tensor] = {}
        """Cached inputs of each module from the pixels before."""
        self.links: dict[nn.Module, Tensor] = {}
        """Output of each vertical layer for its horizontal one: all rows, or the row that is being sampled."""
        self.weights: dict[nn.Module, Tensor] = {}
        """Weights of the convolutions, masked or normalised once for all pixels."""

    def size_at(self, level: int) -> tuple[int, int]:
        """Return (H, W) after `level` halvings, rounded up."""
        height, width = self.size
        return -(-height >> level), -(-width >> level)

    def at(self, level: int) -> tuple[int, int]:
        """Return row and column after `level` halvings."""
        return self.row >> level, self.column >> level

    def reaches(self, level: int, stack: Stack) -> bool:
        """Return whether the stack has a new input at a level; a halving takes every second row and column."""
        column = 0 if stack == "vertical" else self.column
        return not self.drawn or (self.row | column) % (1 << level) == 0

    def part(self, maps: Tensor, stack: Stack, level: int = 0) -> Tensor:
        """Return the part of maps (1, F, H, W) that is being computed: all, a row or a pixel."""
        maps = maps[:, :, :: 1 << level, :: 1 << level]
        if not self.drawn:
            return maps
        row, column = self.at(level)
        maps = maps[:, :, row : row + 1]
        return maps if stack == "vertical" else maps[:, :, :, column : column + 1]

    def link(self, module: nn.Module, level: int = 0) -> Tensor:
        """Return the output of the vertical stack for the part that is being computed."""
        link = self.links[module]
        if not self.drawn:
            return link
        column = self.column >> level
        return link[..., column : column + 1]


class CausalConv(nn.Module):
    """A convolution that sees its own row and those above, with plain or normalised weights.

    Weight normalisation (Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868) writes the weights of an output as
    g v / |v|. A batch sets g and the bias once, so that the outputs have mean 0 and the standard deviation `scale`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Number of rows and columns of the kernel.
        level: Number of halvings of the input.
        stride: 2 to halve once more.
        scale: Standard deviation of the normalised outputs; None for plain weights.
        mask: (out_channels, in_channels), the inputs that an output sees at the pixel itself, the last of the kernel;
            all if not given.
    """

    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        level: int = 0,
        stride: int = 1,
        scale: float | None = None,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel)
        assert conv.bias is not None
        self.weight, self.bias = conv.weight, conv.bias
        self.kernel, self.level, self.stride, self.scale = kernel, level, stride, scale
        self.gain: nn.Parameter | None = None
        if scale is not None:
            self.gain = nn.Parameter(torch.full((out_channels, 1, 1, 1), scale))
            nn.init.zeros_(self.bias)
        if mask is not None:
            mask = torch.cat([torch.ones(out_channels, in_channels, kernel[1] - 1), mask[:, :, None].float()], 2)
            mask = torch.cat([torch.ones(out_channels, in_channels, kernel[0] - 1, kernel[1]), mask[:, :, None]], 2)
        self.register_buffer("mask", mask, persistent=False)
        self.learns_scale = False
        """Whether the next forward pass sets gain and bias."""

    def effective_weight(self) -> Tensor:
        """Return the masked or normalised weights, (out_channels, in_channels, rows, columns)."""
        if self.gain is not None:
            norm: Tensor = torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True)
            return self.weight * (self.gain / norm)
        return self.weight if self.mask is None else self.weight * self.mask

    def padding(self) -> tuple[int, int, int, int]:
        """Return the number of zeros to pad on the left, right, top and bottom."""
        raise NotImplementedError

    def keep(self, x: Tensor, place: Place) -> Tensor:
        """Cache the row or pixel x of the input, and return the receptive field of the output at the place."""
        raise NotImplementedError

    def forward(self, x: Tensor, place: Place) -> Tensor:
        if not place.drawn:
            y = F.conv2d(F.pad(x, self.padding()), self.effective_weight(), self.bias, self.stride)
            return self.rescale(y) if self.learns_scale else y
        if self not in place.weights:
            place.weights[self] = self.effective_weight()
        weight, window = place.weights[self], self.keep(x, place)
        if window.shape[2:] == self.kernel:  # one pixel: a matrix product is faster
            return F.linear(window.flatten(1), weight.flatten(1), self.bias)[:, :, None, None]
        return F.conv2d(window, weight, self.bias, self.stride)

    @torch.no_grad()
    def rescale(self, y: Tensor) -> Tensor:
        """Set gain and bias so that the output y gets mean 0 and standard deviation `scale`; return the new output."""
        assert self.gain is not None and self.scale is not None
        mean, std = y.mean((0, 2, 3)), y.std((0, 2, 3), correction=0)
        factor = self.scale / std.clamp(min=1e-6)
        self.gain.mul_(factor[:, None, None, None])
        self.bias.copy_((self.bias - mean) * factor)
        return (y - mean[:, None, None]) * factor[:, None, None]


class VerticalConv(CausalConv):
    """A convolution that sees its row and those above, with as many columns to the left as to the right."""

    def padding(self) -> tuple[int, int, int, int]:
        rows, columns = self.kernel
        return columns // 2, columns // 2, rows - 1, 0

    def keep(self, x: Tensor, place: Place) -> Tensor:
        rows, columns = self.kernel
        x = F.pad(x, (columns // 2, columns // 2))
        if rows == 1:
            return x
        above = place.kept.get(self)
        if above is None:
            above = x.new_zeros(*x.shape[:2], rows - 1, x.shape[3])
        window = torch.cat([above, x], 2)
        place.kept[self] = window[:, :, 1:]
        return window


class HorizontalConv(CausalConv):
    """A convolution that sees its row and those above, up to its column."""

    def padding(self) -> tuple[int, int, int, int]:
        rows, columns = self.kernel
        return columns - 1, 0, rows - 1, 0

    def keep(self, x: Tensor, place: Place) -> Tensor:
        rows, columns = self.kernel
        if self.kernel == (1, 1):
            return x
        if self not in place.kept:  # row r of the input is at index r mod rows
            width = place.size_at(self.level)[1] + columns - 1
            place.kept[self] = x.new_zeros(*x.shape[:2], rows, width)
        row, column = place.at(self.level)
        place.kept[self][:, :, row % rows, column + columns - 1] = x[:, :, 0, 0]
        window = place.kept[self][:, :, :, column : column + columns]
        return window if rows == 1 else window.roll(-(row + 1), 2)


class Pointwise(CausalConv):
    """A convolution of one pixel, for either stack.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        scale: Standard deviation of the normalised outputs; None for plain weights.
        mask: (out_channels, in_channels), the inputs that an output sees; all if not given.
    """

    def __init__(
        self, in_channels: int, out_channels: int, scale: float | None = None, mask: Tensor | None = None
    ) -> None:
        super().__init__(in_channels, out_channels, (1, 1), scale=scale, mask=mask)

    def padding(self) -> tuple[int, int, int, int]:
        return 0, 0, 0, 0

    def keep(self, x: Tensor, place: Place) -> Tensor:
        return x


class TwoStacks(nn.Module):
    """A network of a vertical and a horizontal stack: images -> parameters of every pixel, given its past.

    The parameters are those of all channels of a pixel at once. With `channelwise` they are those of each channel given
    the channels before it, and the maps of a channel are contiguous.

    Args:
        image_shape: (C, H, W) of the images.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Whether a channel also sees the channels before it of its own pixel.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_params: int, num_classes: int, channelwise: bool) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.num_params = num_params
        self.num_classes = num_classes
        self.num_groups = image_shape[0] if channelwise else 1
        """Number of steps per pixel."""

    def vertical(self, above: Tensor, labels: Tensor | None, place: Place) -> None:
        """Compute the vertical stack, and store its outputs for the horizontal one at the place.

        Args:
            above: (N, C + 1, H, W) or (N, C + 1, 1, W), the row above each pixel.
            labels: (N,) classes.
            place: The part that is being computed.
        """
        raise NotImplementedError

    def horizontal(self, left: Tensor, images: Tensor, labels: Tensor | None, place: Place) -> Tensor:
        """Compute the horizontal stack, and return the parameters (N, P, H, W), or (N, P, 1, 1).

        Args:
            left: (N, C + 1, H, W) or (N, C + 1, 1, 1), the pixel to the left of each pixel.
            images: (N, C, H, W) or (N, C, 1, 1), the pixels themselves.
            labels: (N,) classes.
            place: The part that is being computed.
        """
        raise NotImplementedError

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the parameters (N, P, H, W) of all pixels of images (N, C, H, W) in [-1, 1]."""
        place = Place(self.image_shape[1:], drawn=False)
        marked = mark(images)
        self.vertical(F.pad(marked, (0, 0, 1, -1)), labels, place)
        return self.horizontal(F.pad(marked, (1, -1)), images, labels, place)

    def start(self, num: int, labels: Tensor | None = None) -> "Drawing":
        """Return the state before the first step of `num` images, for `step`."""
        like = next(self.parameters())
        return Drawing(like.new_zeros(num, *self.image_shape), labels, self.num_groups)

    def step(self, drawing: "Drawing", values: Tensor | None = None) -> Tensor:
        """Return the parameters (N, P / num_groups) of the next pixel, or with `channelwise` of its next channel.

        Args:
            drawing: The state from `start`, which is changed in place.
            values: (N, C / num_groups), values sampled from the parameters of the step before; None at the first step.
        """
        if values is not None:
            drawing.write(values)
        place, images = drawing.place, drawing.images
        row, column = place.row, place.column
        if drawing.group == 0:
            if column == 0:
                above = mark(images[:, :, row - 1 : row]) if row else mark(images[:, :, :1]) * 0
                self.vertical(above, drawing.labels, place)
            pixel = images[:, :, row : row + 1, column - 1 : column] if column else images[:, :, :1, :1]
            drawing.left = mark(pixel) * float(column > 0)
        pixel = images[:, :, row : row + 1, column : column + 1]
        params = self.horizontal(drawing.left, pixel, drawing.labels, place)
        chosen: Tensor = params[:, :, 0, 0].unflatten(1, (drawing.num_groups, -1))[:, drawing.group]
        return chosen


class Drawing:
    """State of images that are being sampled.

    Args:
        images: (N, C, H, W), all zero.
        labels: (N,) classes.
        num_groups: Number of steps per pixel.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, num_groups: int) -> None:
        self.images = images
        self.labels = labels
        self.num_groups = num_groups
        self.group = 0
        self.place = Place((images.shape[2], images.shape[3]), drawn=True)
        self.left = images

    def write(self, values: Tensor) -> None:
        """Set the channels of the current group to values (N, C / num_groups), and advance to the next group."""
        place, size = self.place, values.shape[1]
        self.images[:, self.group * size : (self.group + 1) * size, place.row, place.column] = values
        self.group = (self.group + 1) % self.num_groups
        if self.group == 0:
            place.column += 1
            if place.column == place.size[1]:
                place.row, place.column = place.row + 1, 0


def mark(images: Tensor) -> Tensor:
    """Return images with an additional channel of ones, which distinguishes pixels from the zero padding."""
    return torch.cat([images, torch.ones_like(images[:, :1])], 1)
