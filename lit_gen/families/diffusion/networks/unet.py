"""The UNet of DDPM with scale-shift normalisation, and the options that make it DDPM++ or NCSN++.

Ho et al. 2020, arXiv 2006.11239; Nichol and Dhariwal 2021, arXiv 2102.09672; Song et al. 2021, arXiv 2011.13456.
Residual blocks at the sizes H, H/2, H/4, ..., the decoder's joined with the encoder's by concatenation, every block
conditioned on noise level and class through one embedding e = MLP(sinusoids(c_noise)) + class embedding:

    h = conv(silu(norm(x)));   h = conv(silu(norm(h) (1 + scale(e)) + shift(e)));   y = x + h

On the way up, one strided transposed convolution stands for DDPM's doubling of pixels and 3x3 convolution: every such
pair is a 4x4 kernel applied between the small pixels, and this computes it in 4/9 of the operations. With a
`resample_filter` residual blocks change the size instead, R being that filter's `Resample`, as in DDPM++ and NCSN++:

    h = conv(R(silu(norm(x))));   ...;   y = (R(x) + h) skip_scale
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
    r"""Halves or doubles height and width with a fixed separable filter f of L taps, scaled to the sum 1.

    Down, in one dimension: y[n] = sum_k f[k] x[2 n + k - (L / 2 - 1)]. Up is the adjoint of this, times 2, so that both
    keep a constant image constant (away from the borders, where zeros are taken to lie beyond, if L > 2). [1, 1]
    averages pixels and repeats them; [1, 3, 3, 1] is NCSN++'s, after Zhang 2019, https://arxiv.org/abs/1904.11486.

    Args:
        taps: f up to scale: symmetric, of even length.
        up: Double the size; otherwise halve it.

    Raises:
        UserError: if there is no such filter.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float], up: bool) -> None:
        super().__init__()
        if len(taps) % 2 or list(taps) != list(taps)[::-1] or sum(taps) <= 0:
            raise UserError(
                f"resample_filter must have an even number of taps, be symmetric and have a positive sum, "
                f"got {list(taps)}; [1, 1] averages and repeats pixels, [1, 3, 3, 1] is NCSN++'s"
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
    """Self-attention over the pixels of one image: skip_scale (x + out(softmax(q k^T / sqrt(d)) v)), shape kept.

    Args:
        channels: Width C of x (N, C, H, W).
        num_heads: Heads that the width is split into.
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
        in_channels: C_in.
        out_channels: C_out.
        emb_channels: E.
        dropout: Probability of dropping an activation before the second convolution.
        scale_shift: Scale and shift the second normalisation by the embedding; otherwise add the embedding before it.
        num_heads: Heads of a self-attention after the block; 0 for none.
        skip_scale: Factor of the residual sums.
        resample: How the size changes, on both paths; None keeps it.
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

    Exactly zero at initialisation. Activations are kept in channels-last memory format; the output is contiguous.

    - DDPM's network for CIFAR-10 (35.7 M parameters; here 36.4 M, for the 4x4 kernels on the way up) is
      `channels: 128`, `channel_mult: [1, 2, 2, 2]`, `num_blocks: 2`, `attention_resolutions: [16]`, `dropout: 0.1`,
      `scale_shift: false`.
    - DDPM++ as EDM uses it is `channels: 128`, `channel_mult: [2, 2, 2]`, `num_blocks: 4`,
      `attention_resolutions: [16]`, `head_channels: 256`, `dropout: 0.13`, `scale_shift: false`,
      `resample_filter: [1, 1]`, `skip_scale: 0.7071067811865476`.
    - NCSN++ is DDPM++ with `resample_filter: [1, 3, 3, 1]`, `time_embedding: fourier`, `progressive_input: true`.

    Args:
        image_shape: (C, H, W) of the images; H and W are halved between the levels and must stay whole and at least 4.
        num_classes: Number of classes; 0 for an unconditional network. One more row of the class embedding, index
            `num_classes`, stands for "no class" and is used where labels are below 0 or None.
        channels: Width at full resolution, a multiple of 8.
        channel_mult: Width of each level as a multiple of `channels`, from full resolution down.
        num_blocks: Residual blocks per level of the encoder; the decoder has one more.
        attention_resolutions: Heights of the levels where self-attention follows every block; if there are any, it also
            follows the first of the two blocks in the middle.
        head_channels: Least width of an attention head.
        dropout: Probability of dropout within the residual blocks.
        scale_shift: Let the embedding scale and shift the normalised activations, rather than be added to them.
        out_channels: Channels of the output, those of the images if not given; 2C for a mean and a learned variance;
            set by the model.
        resample_filter: Taps of the filter with which residual blocks halve and double the size, such as [1, 3, 3, 1];
            none leaves both to learned strided convolutions.
        skip_scale: Factor of every residual sum; sqrt(1/2) keeps the variance where both terms have the same.
        progressive_input: Add the image, filtered down and convolved, to the encoder at every smaller size (needs a
            `resample_filter`).
        time_embedding: Sinusoids of c_noise with fixed frequencies, or Fourier features with random ones.
        augment_dim: Length of the augmentation labels that the network is conditioned on; set by the model.

    Raises:
        UserError: if the image size does not suit the number of levels, attention is asked for at a height that no
            level has, `channels` is no multiple of 8, `head_channels` or `skip_scale` is not above 0, the resampling
            filter does not exist, or dropout is no probability.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
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
            f"model.network.skip_scale: {skip_scale} is not a factor of sums; give a number above 0 (1: plain sums)"
        )
    if progressive_input and not resample_filter:
        raise UserError("progressive_input: the image needs a filter on its way down; set resample_filter")


def _check_levels(
    image_shape: tuple[int, int, int],
    channel_mult: tuple[int, ...],
    num_blocks: int,
    attention_resolutions: tuple[int, ...],
) -> None:
    if not channel_mult or min(channel_mult) < 1 or num_blocks < 1:
        raise UserError(f"channel_mult and num_blocks must be positive, got {list(channel_mult)} and {num_blocks}")
    _, height, width = image_shape
    factor = 2 ** (len(channel_mult) - 1)
    if height % factor or width % factor or min(height, width) < MIN_SIZE * factor:
        raise UserError(
            f"images of {height}x{width} do not suit the {len(channel_mult)} levels of channel_mult: height and width "
            f"must be multiples of {factor} and at least {MIN_SIZE * factor}; shorten channel_mult or resize the images"
        )
    heights = [height >> level for level in range(len(channel_mult))]
    if unknown := set(attention_resolutions) - set(heights):
        raise UserError(
            f"attention_resolutions names the heights {sorted(unknown)}, but the levels have the heights {heights}"
        )


def _num_heads(channels: int, head_channels: int) -> int:
    """The most heads that split `channels` evenly and are at least `head_channels` wide, if any can be."""
    return next(heads for heads in range(max(1, channels // head_channels), 0, -1) if channels % heads == 0)


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x * scale
