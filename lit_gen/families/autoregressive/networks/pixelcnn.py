r"""The gated PixelCNN (van den Oord et al. 2016, https://arxiv.org/abs/1606.05328).

A layer of the vertical stack v and of the horizontal stack h, for class y:

    a = W_v * v;               v' = tanh(a_1) sigmoid(a_2),  (a_1, a_2) = a + V_v y + U_v s
    b = W_h * h + W_vh a;      h' = h + W_o tanh(b_1) sigmoid(b_2),  (b_1, b_2) = b + V_h y + U_h s

s are learned maps of features, which tell where a pixel is: convolutions alone know it from the edges of the image, and
data such as digits, all in the middle of theirs, differ by place.

Colours are seen in order where the parameters are those of one channel after the other. The features of the horizontal
stack then fall into as many groups as there are channels, and of a pixel itself a feature sees the channels before that
of its group: in the first layer those, in all others the features of its group and of those before.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.autoregressive.networks.causal import HorizontalConv, Place, Pointwise, TwoStacks, VerticalConv
from lit_gen.networks.blocks import check_dropout


def groups(num: int, num_groups: int) -> Tensor:
    """The groups 0, 1, ... of as many features, in order and of equal size where that can be."""
    return torch.arange(num) * num_groups // num


class GatedLayer(nn.Module):
    """One layer of both stacks.

    Args:
        in_channels: Features that come in, F but for the first layer.
        channels: F, features of each stack.
        first: Whether it is the first layer, fed the image one row and one column late: all of a pixel before may be
            seen.
        kernel: Rows and columns that the vertical stack sees.
        columns: Columns that the horizontal stack sees.
        num_classes: Number of classes.
        num_groups: Groups of the features of the horizontal stack.
        position_features: Number of the maps s.
        dropout: Probability of dropping a feature.
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
        """(N, C, H, W), or a row of it, -> (N, F, H, W)."""
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
        """(N, C, H, W), or a pixel of it, -> (N, F, H, W) without the residual; `here` is of the pixel itself."""
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
        channelwise: Whether a channel sees those before it of its own pixel.
        channels: Features of each stack.
        num_layers: Layers after the first.
        kernel_size: Columns that a layer of the vertical stack sees, odd; it sees half as many rows, and so does the
            horizontal stack of columns.
        first_kernel_size: As `kernel_size`, for the first layer.
        head_channels: Features of the hidden layer before the parameters.
        position_features: Number of learned maps that tell each layer where a pixel is; 0 as in the paper's models.
        dropout: Probability of dropping a feature behind a gate.

    Raises:
        UserError: if a size or dropout does not suit.
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
            raise UserError("channels, head_channels and num_layers must be positive, and no fewer than image channels")
        if min(kernel_size, first_kernel_size) < 3 or kernel_size % 2 == 0 or first_kernel_size % 2 == 0:
            raise UserError(
                "kernel_size and first_kernel_size must be odd and at least 3, got "
                f"{kernel_size} and {first_kernel_size}"
            )
        check_dropout(dropout)
        self.layers = nn.ModuleList()
        for i in range(num_layers + 1):
            size, in_channels = (kernel_size, channels) if i else (first_kernel_size, image_shape[0] + 1)
            # the first layer is fed the image one row and one column late
            rows, columns = (size // 2 + 1, size // 2 + 1) if i else (size // 2, size // 2)
            layer = GatedLayer(
                in_channels,
                channels,
                i == 0,
                (rows, size),
                columns,
                num_classes,
                self.num_groups,
                position_features,
                dropout,
            )
            self.layers.append(layer)
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
