"""Conversion of a trained network to one of diffusers with the same outputs."""

import re
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.networks.foreign import DiffusersNetwork, import_diffusers
from lit_gen.families.diffusion.networks.unet import Attention, Resample, UNet, UNetBlock

Module = TypeVar("Module", bound=nn.Module)
REMEDY = "train a model.network DiffusersNetwork, which can always be exported, or leave --format out"


def to_diffusers(network: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    """Return a network of diffusers that computes what a network computes, on the CPU.

    It is the network itself if that came from diffusers, and a UNet2DModel for a `UNet` whose architecture agrees:
    levels of one width, a multiple of 128, that residual blocks with the filter [1, 1] connect.

    Args:
        network: The network.
        image_shape: (C, H, W) of the images.

    Raises:
        UserError: If diffusers is not installed, or has no network that agrees.
    """
    diffusers = import_diffusers()
    if isinstance(network, DiffusersNetwork):
        return network.model
    if not isinstance(network, UNet):
        raise UserError(f"--format: diffusers has no network that agrees with {type(network).__name__}; {REMEDY}")
    if reason := _difference(network):
        raise UserError(f"--format: this UNet does not agree with UNet2DModel of diffusers: {reason}; {REMEDY}")
    theirs = diffusers.UNet2DModel(**_settings(network, image_shape))
    theirs.load_state_dict(_weights(network))
    return theirs.eval()


def _difference(unet: UNet) -> str | None:
    """Return the first reason why no UNet2DModel agrees with a network; None if one does."""
    blocks = [module for module in unet.modules() if isinstance(module, UNetBlock)]
    sizes = [module for module in (*unet.down, *unet.up) if not isinstance(module, UNetBlock)]
    width = unet.stem.out_channels
    boxes = [len(set(filter_.kernel.flatten().tolist())) == 1 for filter_ in _all(unet, Resample)]
    lengths = {filter_.kernel.shape[-1] for filter_ in _all(unet, Resample)}
    reasons = {
        "time_embedding is fourier": unet.fourier is not None,
        "it is conditioned on augmentations": unet.embed_augment is not None,
        "it has two times": unet.embed_span is not None,
        "it has a progressive input": len(unet.pyramid) > 0,
        "skip_scale is not 1": unet.skip_scale != 1,
        "its output has other channels than the images": unet.out.out_channels != unet.stem.in_channels,
        "resample_filter is not [1, 1]": bool(sizes) or not all(boxes) or lengths - {2} != set(),
        "channel_mult is not 1 at every level": any(block.conv1.out_channels != width for block in blocks),
        "channels is not a multiple of 128": len({norm.num_groups for norm in _all(unet, nn.GroupNorm)}) > 1,
    }
    return next((reason for reason, found in reasons.items() if found), None)


def _all(unet: UNet, kind: type[Module]) -> list[Module]:
    return [module for module in unet.modules() if isinstance(module, kind)]


def _settings(unet: UNet, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the settings of the UNet2DModel that agrees with a network."""
    blocks = _blocks(unet)
    levels = [block for name, block in blocks.items() if re.fullmatch(r"down_blocks\.\d+\.resnets\.0", name)]
    first = levels[0]
    attends = [isinstance(block.attention, Attention) for block in levels]
    heads = [attention.num_heads for attention in _all(unet, Attention)]
    return {
        "sample_size": list(image_shape[1:]),
        "in_channels": image_shape[0],
        "out_channels": image_shape[0],
        "freq_shift": 1,  # the lowest frequency of the sinusoids is exactly 1e-4
        "down_block_types": ["AttnDownBlock2D" if attend else "ResnetDownsampleBlock2D" for attend in attends],
        "up_block_types": ["AttnUpBlock2D" if attend else "ResnetUpsampleBlock2D" for attend in reversed(attends)],
        "block_out_channels": [unet.stem.out_channels] * len(levels),
        "layers_per_block": sum(name.startswith("down_blocks.0.resnets.") for name in blocks),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "dropout": first.dropout.p,
        "attention_head_dim": unet.stem.out_channels // (heads[0] if heads else 1),
        "norm_num_groups": first.norm1.num_groups,
        "attn_norm_num_groups": first.norm1.num_groups,
        "resnet_time_scale_shift": "scale_shift" if first.scale_shift else "default",
        "add_attention": bool(heads),
        "num_class_embeds": None if unet.embed_label is None else unet.num_classes + 1,
    }


def _weights(unet: UNet) -> dict[str, Tensor]:
    """Return the weights of a network by the names of UNet2DModel."""
    modules: dict[str, nn.Module] = {
        "conv_in": unet.stem,
        "time_embedding.linear_1": unet.embed_noise[0],
        "time_embedding.linear_2": unet.embed_noise[2],
        "conv_norm_out": unet.norm,
        "conv_out": unet.out,
    }
    if unet.embed_label is not None:
        modules["class_embedding"] = unet.embed_label
    blocks = _blocks(unet)
    for name, block in blocks.items():
        modules |= _of_block(name, block)
    weights = {
        f"{name}.{kind}": value for name, module in modules.items() for kind, value in module.state_dict().items()
    }
    for name, block in blocks.items():
        if isinstance(block.attention, Attention):
            for kind, value in block.attention.qkv.state_dict().items():
                parts = zip("qkv", value.chunk(3), strict=True)
                weights |= {f"{_attention(name)}.to_{letter}.{kind}": part for letter, part in parts}
    return {name: value.cpu().contiguous() for name, value in weights.items()}


def _blocks(unet: UNet) -> dict[str, UNetBlock]:
    """Return the residual blocks of a network by their names."""
    blocks = {f"mid_block.resnets.{index}": block for index, block in enumerate(unet.middle)}
    for side, resampler in (("down", "downsamplers"), ("up", "upsamplers")):
        level = layer = 0
        for block in getattr(unet, side):
            if block.resample is None:
                blocks[f"{side}_blocks.{level}.resnets.{layer}"] = block
                layer += 1
            else:
                blocks[f"{side}_blocks.{level}.{resampler}.0"] = block
                level, layer = level + 1, 0
    return cast(dict[str, UNetBlock], blocks)


def _of_block(name: str, block: UNetBlock) -> dict[str, nn.Module]:
    """Return the modules of a residual block by their names, without q, k and v of its attention."""
    modules = {"norm1": block.norm1, "conv1": block.conv1, "time_emb_proj": block.emb}
    modules |= {"norm2": block.norm2, "conv2": block.conv2, "conv_shortcut": block.skip}
    named: dict[str, nn.Module] = {f"{name}.{part}": module for part, module in modules.items()}
    if isinstance(block.attention, Attention):
        named |= {
            f"{_attention(name)}.group_norm": block.attention.norm,
            f"{_attention(name)}.to_out.0": block.attention.out,
        }
    return named


def _attention(block: str) -> str:
    return block.replace("resnets", "attentions")
