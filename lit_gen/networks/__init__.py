"""Plain modules: networks without training, sampling or Lightning."""

from lit_gen.networks.coupling import ConvCoupling, MLPCoupling
from lit_gen.networks.dit import DiT
from lit_gen.networks.gan import (
    Critic,
    DCGANDiscriminator,
    DCGANGenerator,
    Generator,
    MLPCritic,
    MLPGenerator,
    SNGANDiscriminator,
    SNGANGenerator,
)
from lit_gen.networks.image_transformer import CausalTransformer
from lit_gen.networks.masked import LogisticRegressions, MaskedMLP, NADENetwork
from lit_gen.networks.mlp import ResidualMLP
from lit_gen.networks.pixelcnn import GatedPixelCNN
from lit_gen.networks.pixelcnn_pp import ResidualPixelCNN
from lit_gen.networks.unet import UNet
from lit_gen.networks.vae import ConvDecoder, ConvEncoder
from lit_gen.networks.vqgan import ConvAutoencoder, PatchDiscriminator

__all__ = [
    "CausalTransformer",
    "ConvAutoencoder",
    "ConvCoupling",
    "ConvDecoder",
    "ConvEncoder",
    "Critic",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DiT",
    "GatedPixelCNN",
    "Generator",
    "LogisticRegressions",
    "MLPCoupling",
    "MLPCritic",
    "MLPGenerator",
    "MaskedMLP",
    "NADENetwork",
    "PatchDiscriminator",
    "ResidualMLP",
    "ResidualPixelCNN",
    "SNGANDiscriminator",
    "SNGANGenerator",
    "UNet",
]
