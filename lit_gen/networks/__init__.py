"""Plain modules: networks without training, sampling or Lightning."""

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
from lit_gen.networks.mlp import ResidualMLP
from lit_gen.networks.unet import UNet
from lit_gen.networks.vae import ConvDecoder, ConvEncoder
from lit_gen.networks.vqgan import ConvAutoencoder, PatchDiscriminator

__all__ = [
    "ConvAutoencoder",
    "ConvDecoder",
    "ConvEncoder",
    "Critic",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DiT",
    "Generator",
    "MLPCritic",
    "MLPGenerator",
    "PatchDiscriminator",
    "ResidualMLP",
    "SNGANDiscriminator",
    "SNGANGenerator",
    "UNet",
]
