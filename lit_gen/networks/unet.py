"""The UNet of DDPM with scale-shift normalisation.

Ho et al. 2020, arXiv 2006.11239; Nichol and Dhariwal 2021, arXiv 2102.09672. Residual blocks at the sizes H, H/2, H/4,
..., the decoder's joined with the encoder's by concatenation, every block conditioned on noise level and class through
one embedding e = MLP(sinusoids(c_noise)) + class embedding:

    h = conv(silu(norm(x)));   h = conv(silu(norm(h) (1 + scale(e)) + shift(e)));   y = x + h

On the way up, one strided transposed convolution stands for DDPM's doubling of pixels and 3x3 convolution: every such
pair is a 4x4 kernel applied between the small pixels, and this computes it in 4/9 of the operations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.errors import UserError
from lit_gen.networks.blocks import MIN_SIZE, check_width, group_norm


def sinusoids(c: Tensor, dim: int) -> Tensor:
    """c (N,) -> (cos(w_k c), sin(w_k c)) (N, dim), frequencies w_k = 10000^(-k / (dim/2 - 1)) from 1 down to 1e-4.

    One set of frequencies serves every c_noise in use: step indices 0..999 spread over all of them, and EDM's
    ln(sigma) / 4 in [-1.6, 1.1] stays within a quarter turn of the fastest, whose sine is therefore one to one (EDM's
    own DDPM++ networks embed it so). Computed in float32, or in float64 for float64: half precision cannot tell
    neighbouring steps apart, so c must not arrive in it.
    """
    dtype = torch.promote_types(c.dtype, torch.float32)
    frequencies = torch.logspace(0, -4, dim // 2, dtype=dtype, device=c.device)
    phases = c.to(dtype)[:, None] * frequencies
    return torch.cat([phases.cos(), phases.sin()], dim=1)


class Attention(nn.Module):
    """Self-attention over the pixels of one image, with a residual: x + out(softmax(q k^T / sqrt(d)) v), shape kept.

    Args:
        channels: Width C of x (N, C, H, W).
        num_heads: Heads that the width is split into.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = _zeros(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        # (N, HW, 3C) -> 3 x (N, heads, HW, C / heads)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        h = F.scaled_dot_product_attention(q, k, v)
        h = self.out(h.transpose(1, 2).flatten(2))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class UNetBlock(nn.Module):
    """Residual block conditioned on an embedding: x (N, C_in, H, W), emb (N, E) -> (N, C_out, H, W).

    Args:
        in_channels: C_in.
        out_channels: C_out.
        emb_channels: E.
        dropout: Probability of dropping an activation before the second convolution.
        scale_shift: Scale and shift the second normalisation by the embedding; otherwise add the embedding before it.
        num_heads: Heads of a self-attention after the block; 0 for none.
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
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_channels, out_channels * (2 if scale_shift else 1))
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zeros(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.attention = Attention(out_channels, num_heads) if num_heads else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        e = self.emb(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + e)
        h = self.conv2(self.dropout(F.silu(h)))
        return self.attention(self.skip(x) + h)


class UNet(nn.Module):
    """UNet of a diffusion model: x (N, C, H, W), c_noise (N,), labels (N,) or None -> (N, C, H, W).

    Exactly zero at initialisation. Activations are kept in channels-last memory format; the output is contiguous.
    DDPM's network for CIFAR-10 (35.7 M parameters; here 36.4 M, for the 4x4 kernels on the way up) is `channels: 128`,
    `channel_mult: [1, 2, 2, 2]`, `num_blocks: 2`, `attention_resolutions: [16]`, `dropout: 0.1`, `scale_shift: false`.

    Args:
        image_shape: (C, H, W) of the images; H and W are halved between the levels and must stay whole and at least 4.
        num_classes: Number of classes; 0 for an unconditional network. One more row of the class embedding, index
            `num_classes`, stands for "no class" and is used where labels are None.
        channels: Width at full resolution, a multiple of 8.
        channel_mult: Width of each level as a multiple of `channels`, from full resolution down.
        num_blocks: Residual blocks per level of the encoder; the decoder has one more.
        attention_resolutions: Heights of the levels where self-attention follows every block; if there are any, it also
            follows the first of the two blocks in the middle.
        head_channels: Least width of an attention head.
        dropout: Probability of dropout within the residual blocks.
        scale_shift: Let the embedding scale and shift the normalised activations, rather than be added to them.

    Raises:
        UserError: if the image size does not suit the number of levels, attention is asked for at a height that no
            level has, or `channels` is no multiple of 8.
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
    ) -> None:
        super().__init__()
        check_width("channels", channels)
        _check_levels(image_shape, channel_mult, num_blocks, attention_resolutions)
        self.channels = channels
        self.num_classes = num_classes
        widths = [channels * mult for mult in channel_mult]
        emb_channels = 4 * channels
        self.embed_noise = nn.Sequential(
            nn.Linear(channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.embed_label = nn.Embedding(num_classes + 1, emb_channels) if num_classes else None

        def block(in_channels: int, out_channels: int, attend: bool) -> UNetBlock:
            return UNetBlock(
                in_channels,
                out_channels,
                emb_channels,
                dropout=dropout,
                scale_shift=scale_shift,
                num_heads=_num_heads(out_channels, head_channels) if attend else 0,
            )

        self.stem = nn.Conv2d(image_shape[0], channels, 3, padding=1)
        self.down = nn.ModuleList()
        skips = [width := channels]
        for level, out in enumerate(widths):
            attend = image_shape[1] >> level in attention_resolutions
            if level:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
            for _ in range(num_blocks):
                self.down.append(block(width, out, attend))
                skips.append(width := out)

        self.middle = nn.ModuleList([block(width, width, bool(attention_resolutions)), block(width, width, False)])

        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            attend = image_shape[1] >> level in attention_resolutions
            for _ in range(num_blocks + 1):
                self.up.append(block(width + skips.pop(), out, attend))
                width = out
            if level:
                width = widths[level - 1]
                self.up.append(nn.ConvTranspose2d(out, width, 4, stride=2, padding=1))

        self.norm = group_norm(width)
        self.out = _zeros(nn.Conv2d(width, image_shape[0], 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = F.silu(self._embedding(c_noise, labels))
        h = self.stem(x).contiguous(memory_format=torch.channels_last)
        skips = [h]
        for module in self.down:
            h = module(h, emb) if isinstance(module, UNetBlock) else module(h)
            skips.append(h)
        for module in self.middle:
            h = module(h, emb)
        for module in self.up:
            h = module(torch.cat([h, skips.pop()], dim=1), emb) if isinstance(module, UNetBlock) else module(h)
        return self.out(F.silu(self.norm(h))).contiguous()

    def _embedding(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Embedding (N, E) of noise level and class."""
        emb = self.embed_noise(sinusoids(c_noise, self.channels).to(self.stem.weight.dtype))
        if self.embed_label is None:
            if labels is not None:
                raise UserError("labels were given to a UNet without classes: set num_classes, or give no labels")
            return emb
        if labels is None:
            labels = torch.full_like(c_noise, self.num_classes, dtype=torch.long)
        return emb + self.embed_label(labels)


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


def _zeros(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
