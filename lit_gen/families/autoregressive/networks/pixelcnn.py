r"""The gated PixelCNN (van den Oord et al. 2016, https://arxiv.org/abs/1606.05328).

A layer of the vertical stack v and of the horizontal stack h, for class y:

    a = W_v * v;               v' = tanh(a_1) sigmoid(a_2),  (a_1, a_2) = a + V_v y + U_v s
    b = W_h * h + W_vh a;      h' = h + W_o tanh(b_1) sigmoid(b_2),  (b_1, b_2) = b + V_h y + U_h s

s are learned feature maps of the position. Convolutions alone infer the position from the edges of the image, but the
statistics of centred data such as digits depend on it.

With `channelwise`, the channels of a pixel come in order. The features of the horizontal stack are then split into one
group per channel, and at the pixel itself a feature depends only on the channels before that of its group: the first
layer reads those channels, and every other layer the features of its own group and of the groups before.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.autoregressive.networks.causal import HorizontalConv, Place, Pointwise, TwoStacks, VerticalConv
from lit_gen.networks.blocks import check_dropout


def groups(num: int, num_groups: int) -> Tensor:
    """Return the groups 0, 1, ... of `num` features, in order, of equal size if possible."""
    return torch.arange(num) * num_groups // num


class GatedLayer(nn.Module):
    """One layer of both stacks.

    Args:
        in_channels: Input features, F except for the first layer.
        channels: Features F of each stack.
        first: Whether the layer is the first, whose input is the shifted image, and may be seen in full.
        kernel: Rows and columns of the kernel of the vertical stack.
        columns: Columns of the kernel of the horizontal stack.
        num_classes: Number of classes.
        num_groups: Number of groups of the features of the horizontal stack.
        position_features: Number of maps s.
        dropout: Dropout probability of the features.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        first: bool,
        kernel: tuple[int, int],
        columns: int,
        num_classes: int,
        num_groups: int,
        position_features: int,
        dropout: float,
    ) -> None:
        super().__init__()
        of = groups(channels, num_groups)
        mask = None if num_groups == 1 or first else of[:, None] >= of
        gate_mask = None if mask is None else mask.repeat(2, 1)
        self.v_conv = VerticalConv(in_channels, 2 * channels, kernel)
        self.h_conv = HorizontalConv(in_channels, 2 * channels, (1, columns), mask=gate_mask)
        self.link = Pointwise(2 * channels, 2 * channels)
        self.h_out = Pointwise(channels, channels, mask=None if num_groups == 1 else of[:, None] >= of)
        self.classes = nn.Embedding(num_classes, 4 * channels) if num_classes else None
        self.positions = nn.Conv2d(position_features, 4 * channels, 1, bias=False) if position_features else None
        self.dropout = nn.Dropout(dropout)

    def vertical(self, v: Tensor, positions: Tensor | None, labels: Tensor | None, place: Place) -> Tensor:
        """Compute the vertical stack: (N, C, H, W), or a row of it, -> (N, F, H, W)."""
        a = self.v_conv(v, place)
        link = self.link(a, place)
        if self.classes is not None:
            a_bias, b_bias = self.classes(labels)[:, :, None, None].chunk(2, 1)
            a, link = a + a_bias, link + b_bias
        if self.positions is not None:
            a_bias, b_bias = self.positions(positions).chunk(2, 1)
            a, link = a + a_bias, link + b_bias
        place.links[self] = link
        return self.gate(a)

    def horizontal(self, h: Tensor, here: Tensor | None, place: Place) -> Tensor:
        """Compute the horizontal stack without the residual: (N, C, H, W), or a pixel of it, -> (N, F, H, W).

        `here` are features of the pixel itself.
        """
        b = self.h_conv(h, place) + place.link(self)
        if here is not None:
            b = b + here
        out: Tensor = self.h_out(self.gate(b), place)
        return out

    def gate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        out: Tensor = self.dropout(torch.tanh(first) * torch.sigmoid(second))
        return out


class GatedPixelCNN(TwoStacks):
    """Gated PixelCNN: images (N, C, H, W), labels (N,) or None -> parameters (N, P, H, W).

    Args:
        image_shape: (C, H, W) of the images.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Whether a channel also sees the channels before it of its own pixel.
        channels: Features of each stack.
        num_layers: Layers after the first.
        kernel_size: Columns of the kernels of the vertical stack, odd. Its kernels have about half as many rows, and
            those of the horizontal stack about half as many columns.
        first_kernel_size: Kernel size of the first layer.
        head_channels: Features of the hidden layer before the parameters.
        position_features: Number of learned maps of the position, the input of each layer; 0 as in the paper.
        dropout: Dropout probability of the features behind a gate.

    Raises:
        UserError: If a size is out of range, or dropout is not a probability.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_params: int,
        num_classes: int = 0,
        channelwise: bool = False,
        channels: int = 64,
        num_layers: int = 8,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        head_channels: int = 128,
        position_features: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(image_shape, num_params, num_classes, channelwise)
        if min(channels, head_channels) < self.num_groups or num_layers < 0:
            raise UserError(
                f"channels {channels} and head_channels {head_channels} must be at least {self.num_groups}, and "
                f"num_layers {num_layers} at least 0; choose larger values"
            )
        if min(kernel_size, first_kernel_size) < 3 or kernel_size % 2 == 0 or first_kernel_size % 2 == 0:
            raise UserError(
                f"kernel_size {kernel_size} and first_kernel_size {first_kernel_size} must be odd and at least 3; "
                "choose other values"
            )
        check_dropout(dropout)
        shared = (num_classes, self.num_groups, position_features, dropout)
        # the input of the first layer is the image, shifted by one row and one column
        half = first_kernel_size // 2
        layers = [GatedLayer(image_shape[0] + 1, channels, True, (half, first_kernel_size), half, *shared)]
        half = kernel_size // 2 + 1
        for _ in range(num_layers):
            layers.append(GatedLayer(channels, channels, False, (half, kernel_size), half, *shared))
        self.layers = nn.ModuleList(layers)
        self.positions: nn.Parameter | None = None
        if position_features:
            self.positions = nn.Parameter(torch.randn(1, position_features, *image_shape[1:]))
        self.here: Pointwise | None = None
        of_params, of_head, of = (groups(n, self.num_groups) for n in (num_params, head_channels, channels))
        grouped = self.num_groups > 1
        if grouped:
            seen = of[:, None] > torch.arange(image_shape[0])
            self.here = Pointwise(image_shape[0], 2 * channels, mask=seen.repeat(2, 1))
        self.hidden = Pointwise(channels, head_channels, mask=of_head[:, None] >= of if grouped else None)
        self.out = Pointwise(head_channels, num_params, mask=of_params[:, None] >= of_head if grouped else None)

    def vertical(self, above: Tensor, labels: Tensor | None, place: Place) -> None:
        positions = None if self.positions is None else place.part(self.positions, "vertical")
        for layer in self.layers:
            assert isinstance(layer, GatedLayer)
            above = layer.vertical(above, positions, labels, place)

    def horizontal(self, left: Tensor, images: Tensor, labels: Tensor | None, place: Place) -> Tensor:
        here = None if self.here is None else self.here(images, place)
        h = left
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, GatedLayer)
            h = h + layer.horizontal(h, None, place) if i else layer.horizontal(h, here, place)
        params: Tensor = self.out(F.relu(self.hidden(F.relu(h), place)), place)
        return params
