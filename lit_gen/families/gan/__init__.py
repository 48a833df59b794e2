"""Generative adversarial networks: a generator trained against a discriminator or critic."""

from lit_gen.families.gan.adversarial import AdaptiveAugment, Augmentation, DiffAugment
from lit_gen.families.gan.models import GAN, WGAN, AdversarialAdam
from lit_gen.families.gan.networks import (
    Critic,
    DCGANDiscriminator,
    DCGANGenerator,
    Generator,
    MLPCritic,
    MLPGenerator,
    SNGANDiscriminator,
    SNGANGenerator,
)
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
