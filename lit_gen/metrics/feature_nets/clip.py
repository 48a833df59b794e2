"""CLIP features: an image encoder that was trained with captions.

Paper: Radford et al. 2021, https://arxiv.org/abs/2103.00020
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.metrics.feature_nets.base import FeatureNet, check_channels
from lit_gen.metrics.feature_nets.dinov2 import resize_and_normalise
from lit_gen.metrics.feature_nets.files import file_version, first_line, load_tensors

PREFIX = "visual."
MODELS = {
    (768, 12, 32, 224): "vitb32",
    (768, 12, 16, 224): "vitb16",
    (1024, 24, 14, 224): "vitl14",
    (1024, 24, 14, 336): "vitl14_336",
}
"""Names by width, number of blocks, patch size and image size."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class CLIP(FeatureNet):
    """CLIP ViT-B/32, B/16 or L/14 of OpenAI, in the implementation of torch-fidelity, from a local weights file.

    Its features are the 512 or 768 channels of the image embedding; there are no logits. Images may have any size, and
    are resized as in TensorFlow 1; grey images are repeated to three channels.

    OpenAI publishes programs (TorchScript), which are not read. Save the tensors of one that you trust once:
    `torch.save(torch.jit.load("ViT-B-32.pt", map_location="cpu").state_dict(), "clip_vitb32.pth")`.

    Args:
        weights: File with the tensors, from torch.save or safetensors. It tells the size of the network. Nothing is
            downloaded.

    Raises:
        UserError: If torch-fidelity is not installed, or the file is not given, missing or broken.
    """

    num_classes = 0

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        if weights is None or not Path(weights).expanduser().is_file():
            raise UserError(
                f"evaluation.feature_net.weights: CLIP needs a file with its tensors, and {weights or 'none'} is not "
                'one; save them with torch.save(torch.jit.load("ViT-B-32.pt").state_dict(), FILE) and name the file'
            )
        path = Path(weights).expanduser()
        try:
            tensors = load_tensors(path)
            self.network, self.name, self.size = _build(tensors)
        except UserError:
            raise
        except Exception as error:  # safetensors, torch and the file system each have their own
            raise UserError(
                f"{path}: does not hold the tensors of CLIP ViT-B/32, B/16 or L/14 ({type(error).__name__}: "
                f"{first_line(error)}); save the state dict of OpenAI's model with torch.save"
            ) from error
        self.width = tensors[f"{PREFIX}proj"].shape[1]
        self.resize = f"tf1-bilinear-{self.size}"
        self.version = file_version(path)
        self.requires_grad_(False)
        self.eval()

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        check_channels(images, CLIP)
        features = self.network(resize_and_normalise(images, self.size, MEAN, STD))
        return features, features.new_zeros(len(images), 0)


def _build(tensors: dict[str, Tensor]) -> tuple[nn.Module, str, int]:
    """Return the image encoder in float32, its name, and the size of its images."""
    try:  # imported late, since it imports all of torchvision
        from torch_fidelity.feature_extractor_clip import VisionTransformer
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"evaluation.feature_net: CLIP needs torch-fidelity and a torchvision that fits torch ({first_line(error)})"
            "; install both, or use --evaluation.feature_net EfficientNetLite0"
        ) from error
    width, _, patch, _ = tensors[f"{PREFIX}conv1.weight"].shape
    depth = sum(name.endswith(".attn.in_proj_weight") and name.startswith(PREFIX) for name in tensors)
    size = patch * round((len(tensors[f"{PREFIX}positional_embedding"]) - 1) ** 0.5)
    name = MODELS[width, depth, patch, size]
    network = VisionTransformer(size, patch, width, depth, width // 64, tensors[f"{PREFIX}proj"].shape[1])
    ours = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items() if key.startswith(PREFIX)}
    network.load_state_dict({key: tensor.to(torch.float32) for key, tensor in ours.items()})
    return network, f"clip_{name}", size
