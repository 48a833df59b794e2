"""Plain modules: networks without training, sampling or Lightning."""

from lit_gen.networks.coupling import ConvCoupling, MLPCoupling
from lit_gen.networks.dit import DiT
from lit_gen.networks.gan import Critic, Generator
from lit_gen.networks.image_transformer import CausalTransformer
from lit_gen.networks.masked import LogisticRegressions, MaskedMLP, NADENetwork
from lit_gen.networks.mlp import ResidualMLP
from lit_gen.networks.pixelcnn import GatedPixelCNN
from lit_gen.networks.pixelcnn_pp import ResidualPixelCNN
from lit_gen.networks.unet import UNet
from lit_gen.networks.vae import ConvDecoder, ConvEncoder

__all__ = [
    "CausalTransformer",
    "ConvCoupling",
    "ConvDecoder",
    "ConvEncoder",
    "Critic",
    "DiT",
    "GatedPixelCNN",
    "Generator",
    "LogisticRegressions",
    "MLPCoupling",
    "MaskedMLP",
    "NADENetwork",
    "ResidualMLP",
    "ResidualPixelCNN",
    "UNet",
]
