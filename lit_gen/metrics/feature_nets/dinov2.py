r"""DINOv2 features: a vision transformer that was trained without labels.

The image is cut into patches of 14 x 14 pixels; patches and a class token pass through blocks

    x <- x + gamma_1 attention(norm(x)),    x <- x + gamma_2 mlp(norm(x)),

and the features are the normalised class token. Positions are embedded on a grid of 37 x 37 (images of 518 pixels),
which is interpolated to the 16 x 16 patches of 224 pixels as in the published code: bicubic, scaled by (16 + 0.1) / 37.

Papers: Oquab et al. 2023, https://arxiv.org/abs/2304.07193; Stein et al. 2023, https://arxiv.org/abs/2306.04675 (the
Frechet distance of these features)
"""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_gen.core.errors import UserError
from lit_gen.metrics.feature_nets.base import FeatureNet, check_channels
from lit_gen.metrics.feature_nets.files import file_version, first_line, load_tensors

PATCH, SIZE = 14, 224
MODELS = {384: ("vits14", 12), 768: ("vitb14", 12), 1024: ("vitl14", 24)}
"""Name and number of blocks by width; a head has 64 channels."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Attention(nn.Module):
    """Self-attention of tokens (N, L, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = width // 64
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.proj(mixed.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(functional.gelu(self.fc1(x))))


class Scale(nn.Module):
    """Product with a learned vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width), MLP(width)
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return cast(Tensor, x + self.ls2(self.mlp(self.norm2(x))))


class Patches(nn.Module):
    """Linear projection of patches: (N, 3, H, W) -> (N, L, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.proj(images).flatten(2).transpose(1, 2))


class DINOv2Network(nn.Module):
    """Vision transformer: normalised images (N, 3, 224, 224) -> class token (N, width)."""

    def __init__(self, width: int, depth: int, grid: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.patch_embed = Patches(width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.grid = grid

    def positions(self, size: int) -> Tensor:
        """Return the embeddings of the class token and of a grid of size x size patches, (1, 1 + size^2, width)."""
        if size == self.grid:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        scale = (size + 0.1) / self.grid  # the published model was interpolated so: the scale sets the sampling points
        grid = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], 1)
        x = x + self.positions(images.shape[2] // PATCH)
        return cast(Tensor, self.norm(self.blocks(x))[:, 0])


class DINOv2(FeatureNet):
    """DINOv2 ViT-S/14, B/14 or L/14, resized and normalised as in torch-fidelity, from a local weights file.

    Its features are the 384, 768 or 1024 channels of the class token; there are no logits. Images may have any size,
    and are resized to 224x224 as in TensorFlow 1; grey images are repeated to three channels.

    Args:
        weights: The published file, such as dinov2_vitl14_pretrain.pth, or its tensors in a .safetensors file. It tells
            the size of the network. Nothing is downloaded.

    Raises:
        UserError: If torch-fidelity is not installed, or the file is not given, missing or broken.
    """

    num_classes = 0
    resize = "tf1-bilinear-224"

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        if weights is None or not Path(weights).expanduser().is_file():
            raise UserError(
                f"evaluation.feature_net.weights: DINOv2 needs its weights file, and {weights or 'none'} is not one; "
                "download dinov2_vitl14_pretrain.pth (https://github.com/facebookresearch/dinov2) and name the file"
            )
        path = Path(weights).expanduser()
        try:
            tensors = load_tensors(path)
            tensors.pop("mask_token", None)  # only used in training
            width = tensors["cls_token"].shape[2]
            self.name, depth = f"dinov2_{MODELS[width][0]}", MODELS[width][1]
            self.network = DINOv2Network(width, depth, round((tensors["pos_embed"].shape[1] - 1) ** 0.5))
            self.network.load_state_dict(tensors)
        except Exception as error:  # safetensors, torch and the file system each have their own
            raise UserError(
                f"{path}: does not hold the weights of DINOv2 ViT-S/14, B/14 or L/14 without registers "
                f"({type(error).__name__}: {first_line(error)}); download the file again"
            ) from error
        self.width = width
        self.version = file_version(path)
        self.requires_grad_(False)
        self.eval()

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        check_channels(images, DINOv2)
        features = self.network(resize_and_normalise(images, SIZE, MEAN, STD))
        return features, features.new_zeros(len(images), 0)


def resize_and_normalise(
    images: Tensor, size: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """Return colour images (N, 3, size, size) as torch-fidelity prepares them for its transformers.

    Args:
        images: uint8 (N, 1 or 3, H, W).
        size: Height and width, resized as in TensorFlow 1.
        mean: Means of the channels, of images in [0, 1].
        std: Standard deviations of the channels, of images in [0, 1].

    Raises:
        UserError: If torch-fidelity is not installed.
    """
    try:  # imported late, since it imports all of torchvision
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "evaluation.feature_net: the resize of TensorFlow 1 needs torch-fidelity and a torchvision that fits torch "
            f"({first_line(error)}); install both, or use --evaluation.feature_net EfficientNetLite0"
        ) from error
    x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(size, size), align_corners=False)
    centre, scale = (x.new_tensor([255 * each for each in values]).view(3, 1, 1) for values in (mean, std))
    return cast(Tensor, (x.expand(-1, 3, -1, -1) - centre) / scale)
