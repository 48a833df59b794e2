"""Generative adversarial networks: a generator trained against a discriminator or critic."""

from lit_gen.families.gan.augmentation import AdaptiveAugment, Augmentation, DiffAugment
from lit_gen.families.gan.models.adversarial import AdversarialAdam
from lit_gen.families.gan.models.gan import GAN
from lit_gen.families.gan.models.wgan import WGAN
from lit_gen.families.gan.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from lit_gen.families.gan.networks.mlp import MLPCritic, MLPGenerator
from lit_gen.families.gan.networks.residual import Critic, Generator
from lit_gen.families.gan.networks.sngan import SNGANDiscriminator, SNGANGenerator
from lit_gen.families.gan.truncation import Truncation

__all__ = [
    "Augmentation",
    "AdaptiveAugment",
    "AdversarialAdam",
    "Critic",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DiffAugment",
    "GAN",
    "Generator",
    "MLPCritic",
    "MLPGenerator",
    "SNGANDiscriminator",
    "SNGANGenerator",
    "Truncation",
    "WGAN",
]
