"""DDPM's UNet with scale-shift normalisation, and options for DDPM++ and NCSN++.

The network has residual blocks at the sizes H, H/2, H/4, .... The decoder's activations are concatenated with the
encoder's. Each block is conditioned on noise level and class through one embedding
e = MLP(sinusoids(c_noise)) + class embedding:

    h = conv(silu(norm(x)));   h = conv(silu(norm(h) (1 + scale(e)) + shift(e)));   y = x + h

In the decoder, one strided transposed convolution replaces DDPM's pixel doubling and 3x3 convolution: every such pair
is equivalent to a 4x4 kernel applied between the small pixels, and this form needs 4/9 of the operations. With a
`resample_filter`, residual blocks change the size instead, with that filter's `Resample` R, as in DDPM++ and NCSN++:

    h = conv(R(silu(norm(x))));   ...;   y = (R(x) + h) skip_scale

Papers: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672;
Song et al. 2021, https://arxiv.org/abs/2011.13456
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.networks.blocks import MIN_SIZE, check_dropout, check_width, group_norm, multihead_attention, zeros
from lit_gen.networks.embeddings import ConditionalNetwork, TimeEmbedding


class Resample(nn.Module):
    r"""Halving or doubling of height and width with a fixed separable filter f of L taps, scaled to the sum 1.

    Down, in one dimension: y[n] = sum_k f[k] x[2 n + k - (L / 2 - 1)]. Up is 2 times the adjoint, so both map constant
    images to constant images (away from the zero-padded borders if L > 2). [1, 1] averages and repeats pixels;
    [1, 3, 3, 1] is the filter of NCSN++, after Zhang 2019, https://arxiv.org/abs/1904.11486.

    Args:
        taps: Filter f up to scale, symmetric and of even length.
        up: Double the size; otherwise halve it.

    Raises:
        UserError: If the taps are not symmetric, their number is odd or their sum is not positive.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float], up: bool) -> None:
        super().__init__()
        if len(taps) % 2 or list(taps) != list(taps)[::-1] or sum(taps) <= 0:
            raise UserError(
                f"model.network.resample_filter: {list(taps)} is not a symmetric filter with an even number of taps "
                "and a positive sum; give [1, 1] (DDPM++), [1, 3, 3, 1] (NCSN++) or another such filter"
            )
        row = torch.tensor(taps, dtype=torch.float64) / sum(taps) * (2 if up else 1)
        self.up = up
        self.register_buffer("kernel", torch.outer(row, row)[None, None].float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, length = x.shape[1], self.kernel.shape[-1]
        resample = F.conv_transpose2d if self.up else F.conv2d
        kernel = self.kernel.expand(channels, 1, -1, -1)
        return resample(x, kernel, stride=2, padding=length // 2 - 1, groups=channels)


class Attention(nn.Module):
    """Self-attention over the pixels of an image: x -> skip_scale (x + out(softmax(q k^T / sqrt(d)) v)).

    Args:
        channels: Width C of x (N, C, H, W).
        num_heads: Number of attention heads.
        skip_scale: Factor of the residual sum.
    """

    def __init__(self, channels: int, num_heads: int, skip_scale: float = 1.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.skip_scale = skip_scale
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeros(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        h = self.out(multihead_attention(self.qkv(tokens), self.num_heads))
        return _scaled(x + h.transpose(1, 2).unflatten(2, x.shape[2:]), self.skip_scale)


class UNetBlock(nn.Module):
    """Residual block conditioned on an embedding: x (N, C_in, H, W), emb (N, E) -> (N, C_out, H', W').

    Args:
        in_channels: Width C_in of the input.
        out_channels: Width C_out of the output.
        emb_channels: Width E of the embedding.
        dropout: Probability of dropping an activation before the second convolution.
        scale_shift: Scale and shift the second normalisation by the embedding; otherwise add the embedding before it.
        num_heads: Number of heads of the self-attention after the block; 0 for no attention.
        skip_scale: Factor of the residual sums.
        resample: Change of size on both paths; None keeps the size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        dropout: float,
        scale_shift: bool,
        num_heads: int,
        skip_scale: float = 1.0,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.skip_scale = skip_scale
        self.resample = resample
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_channels, out_channels * (2 if scale_shift else 1))
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeros(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.attention = Attention(out_channels, num_heads, skip_scale) if num_heads else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        e = self.emb(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + e)
        h = self.conv2(self.dropout(F.silu(h)))
        out: Tensor = self.attention(_scaled(self.skip(x) + h, self.skip_scale))
        return out


class UNet(ConditionalNetwork):
    """UNet of a diffusion model: x (N, C, H, W), c_noise (N,), labels (N,) or None -> (N, C_out, H, W).

    The output is exactly zero at initialisation. Activations are in channels-last memory format; the output is
    contiguous.

    - DDPM's network for CIFAR-10 (35.7 M parameters; 36.4 M here, because of the decoder's 4x4 kernels) is
      `channels: 128`, `channel_mult: [1, 2, 2, 2]`, `num_blocks: 2`, `attention_resolutions: [16]`, `dropout: 0.1`,
      `scale_shift: false`.
    - DDPM++ as used by EDM is `channels: 128`, `channel_mult: [2, 2, 2]`, `num_blocks: 4`,
      `attention_resolutions: [16]`, `head_channels: 256`, `dropout: 0.13`, `scale_shift: false`,
      `resample_filter: [1, 1]`, `skip_scale: 0.7071067811865476`.
    - NCSN++ is DDPM++ with `resample_filter: [1, 3, 3, 1]`, `time_embedding: fourier`, `progressive_input: true`.

    Args:
        image_shape: (C, H, W) of the images; H and W are halved between levels and must remain integers above 3.
        num_classes: Number of classes; 0 for an unconditional network. An additional row of the class embedding, index
            `num_classes`, represents "no class" and is used if labels are below 0 or None.
        channels: Width at full resolution, a multiple of 8.
        channel_mult: Width of each level as a multiple of `channels`, from full resolution down.
        num_blocks: Residual blocks per level of the encoder; the decoder has one more.
        attention_resolutions: Heights of the levels with self-attention after every block; if any is given, attention
            also follows the first of the two middle blocks.
        head_channels: Minimum width of an attention head.
        dropout: Probability of dropout in the residual blocks.
        scale_shift: Scale and shift the normalised activations by the embedding instead of adding it to them.
        out_channels: Number of output channels, by default that of the images; 2C for a mean and a learned variance;
            set by the model.
        resample_filter: Taps of the filter with which residual blocks halve and double the size, such as [1, 3, 3, 1];
            by default learned strided convolutions change the size.
        skip_scale: Factor of every residual sum; sqrt(1/2) keeps the variance if both terms have the same variance.
        progressive_input: Add the image, downsampled by the filter and convolved, to the encoder at every smaller size
            (needs a `resample_filter`).
        time_embedding: Sinusoids of c_noise with fixed frequencies, or Fourier features with random frequencies.
        augment_dim: Length of the augmentation labels that condition the network; set by the model.

    Raises:
        UserError: If the image size does not fit the number of levels, `attention_resolutions` contains a height
            without a level, `channels` is not a multiple of 8, `head_channels` or `skip_scale` is not above 0,
            `resample_filter` is not a valid filter, or dropout is not a probability below 1.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        *,
        channels: int = 64,
        channel_mult: tuple[int, ...] = (1, 2, 2),
        num_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (),
        head_channels: int = 64,
        dropout: float = 0.0,
        scale_shift: bool = True,
        out_channels: int | None = None,
        resample_filter: tuple[float, ...] = (),
        skip_scale: float = 1.0,
        progressive_input: bool = False,
        time_embedding: TimeEmbedding = "positional",
        augment_dim: int = 0,
    ) -> None:
        check_width("channels", channels)
        check_dropout(dropout)
        _check_levels(image_shape, channel_mult, num_blocks, attention_resolutions)
        _check_block_options(head_channels, skip_scale, resample_filter, progressive_input)
        super().__init__(channels, 4 * channels, num_classes, time_embedding, augment_dim)
        self.skip_scale = skip_scale
        make_block = _BlockFactory(4 * channels, head_channels, dropout, scale_shift, skip_scale, resample_filter)
        levels = [
            _Level(channels * mult, image_shape[1] >> level in attention_resolutions)
            for level, mult in enumerate(channel_mult)
        ]
        # Modules are built in this order, which fixes the initial weights of a seed and the order of the state dict.
        self.stem = nn.Conv2d(image_shape[0], channels, 3, padding=1)
        self.down, self.pyramid, skips = _encoder(
            make_block, levels, num_blocks, channels, image_shape[0] if progressive_input else None
        )
        self.middle = _middle(make_block, levels[-1].width, bool(attention_resolutions))
        self.up = _decoder(make_block, levels, num_blocks, skips)
        self.norm = group_norm(levels[0].width)
        self.out = zeros(nn.Conv2d(levels[0].width, out_channels or image_shape[0], 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        emb = F.silu(self.embedding(c_noise, labels, augment_labels))
        h = self.stem(x).contiguous(memory_format=torch.channels_last)
        skips = [h]
        for position, module in enumerate(self.down):
            h = module(h, emb) if isinstance(module, UNetBlock) else module(h)
            if str(position) in self.pyramid:
                x = h = _scaled(h + self.pyramid[str(position)](x), self.skip_scale)
            skips.append(h)
        for module in self.middle:
            h = module(h, emb)
        for module in self.up:
            if isinstance(module, UNetBlock):
                h = module(h if module.resample else torch.cat([h, skips.pop()], dim=1), emb)
            else:
                h = module(h)
        out: Tensor = self.out(F.silu(self.norm(h))).contiguous()
        return out


class _Level(NamedTuple):
    """Width of the blocks of one resolution, and whether self-attention follows them."""

    width: int
    attend: bool


@dataclass(frozen=True)
class _BlockFactory:
    """Builder of the residual blocks and resampling modules of one UNet from its common options."""

    emb_channels: int
    head_channels: int
    dropout: float
    scale_shift: bool
    skip_scale: float
    resample_filter: tuple[float, ...]

    def __call__(
        self, in_channels: int, out_channels: int, attend: bool, resample: Resample | None = None
    ) -> UNetBlock:
        return UNetBlock(
            in_channels,
            out_channels,
            self.emb_channels,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            num_heads=_num_heads(out_channels, self.head_channels) if attend else 0,
            skip_scale=self.skip_scale,
            resample=resample,
        )

    def halve(self, width: int) -> nn.Module:
        """Return a module that halves height and width."""
        if self.resample_filter:
            return self(width, width, False, Resample(self.resample_filter, up=False))
        return nn.Conv2d(width, width, 3, stride=2, padding=1)

    def double(self, in_channels: int, out_channels: int) -> nn.Module:
        """Return a module that doubles height and width."""
        if self.resample_filter:
            return self(in_channels, out_channels, False, Resample(self.resample_filter, up=True))
        return nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)

    def project_image(self, in_channels: int, out_channels: int) -> nn.Sequential:
        """Return a filter that halves the progressive input and a convolution that matches its width."""
        return nn.Sequential(
            Resample(self.resample_filter, up=False), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )


def _encoder(
    make_block: _BlockFactory, levels: list[_Level], num_blocks: int, channels: int, image_channels: int | None
) -> tuple[nn.ModuleList, nn.ModuleDict, list[int]]:
    """Return the encoder, the progressive input and the widths of the skip connections.

    The modules of the progressive input are keyed by the position of the encoder module that they follow. The widths
    are those of the stem and of every encoder module, in order.

    Args:
        make_block: Builder of the blocks.
        levels: Levels from full resolution down.
        num_blocks: Residual blocks per level.
        channels: Width after the stem.
        image_channels: Channels of the progressive input, or None without one.
    """
    down, pyramid = nn.ModuleList(), nn.ModuleDict()
    width, input_width = channels, image_channels
    skips = [width]
    for number, level in enumerate(levels):
        if number:
            down.append(make_block.halve(width))
            if input_width is not None:
                pyramid[str(len(down) - 1)] = make_block.project_image(input_width, width)
                input_width = width
            skips.append(width)
        for _ in range(num_blocks):
            down.append(make_block(width, level.width, level.attend))
            width = level.width
            skips.append(width)
    return down, pyramid, skips


def _middle(make_block: _BlockFactory, width: int, attend: bool) -> nn.ModuleList:
    """Return the two blocks between encoder and decoder."""
    return nn.ModuleList([make_block(width, width, attend), make_block(width, width, False)])


def _decoder(make_block: _BlockFactory, levels: list[_Level], num_blocks: int, skips: list[int]) -> nn.ModuleList:
    """Return the modules of the decoder.

    Args:
        make_block: Builder of the blocks.
        levels: Levels from full resolution down.
        num_blocks: Residual blocks per level of the encoder.
        skips: Widths of the encoder's activations that are concatenated, in the encoder's order.
    """
    up = nn.ModuleList()
    width, skips = levels[-1].width, list(skips)
    for level, above in zip(reversed(levels), [*reversed(levels[:-1]), None], strict=True):
        for _ in range(num_blocks + 1):
            up.append(make_block(width + skips.pop(), level.width, level.attend))
            width = level.width
        if above is not None:
            up.append(make_block.double(width, above.width))
            width = above.width
    return up


def _check_block_options(
    head_channels: int, skip_scale: float, resample_filter: tuple[float, ...], progressive_input: bool
) -> None:
    """Raise a UserError unless the options of the residual blocks fit together."""
    if head_channels < 1:
        raise UserError(f"model.network.head_channels: {head_channels} is not the width of a head; give 1 or more")
    if not 0 < skip_scale < math.inf:
        raise UserError(
            f"model.network.skip_scale: {skip_scale} is not a factor of residual sums; give a number above 0, such as 1"
        )
    if progressive_input and not resample_filter:
        raise UserError(
            "model.network.progressive_input: downsampling the image needs a filter; set resample_filter, as in [1, 1]"
        )


def _check_levels(
    image_shape: tuple[int, int, int],
    channel_mult: tuple[int, ...],
    num_blocks: int,
    attention_resolutions: tuple[int, ...],
) -> None:
    if not channel_mult or min(channel_mult) < 1 or num_blocks < 1:
        raise UserError(
            f"model.network: channel_mult {list(channel_mult)} and num_blocks {num_blocks} must be positive; give at "
            "least one level and one block per level"
        )
    _, height, width = image_shape
    factor = 2 ** (len(channel_mult) - 1)
    if height % factor or width % factor or min(height, width) < MIN_SIZE * factor:
        raise UserError(
            f"model.network.channel_mult: images of {height}x{width} do not fit {len(channel_mult)} levels, which need "
            f"multiples of {factor} and at least {MIN_SIZE * factor}; shorten channel_mult or resize the images"
        )
    heights = [height >> level for level in range(len(channel_mult))]
    if unknown := set(attention_resolutions) - set(heights):
        raise UserError(
            f"model.network.attention_resolutions: no level has the heights {sorted(unknown)}; choose from {heights}"
        )


def _num_heads(channels: int, head_channels: int) -> int:
    """Return the largest number of equal heads that are at least `head_channels` wide, or 1 if none are."""
    return next(heads for heads in range(max(1, channels // head_channels), 0, -1) if channels % heads == 0)


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x * scale
