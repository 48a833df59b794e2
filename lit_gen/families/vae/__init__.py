"""Variational autoencoders: p(x) = integral of p(x | z) p(z), bounded from below by an encoder q(z | x)."""

from lit_gen.families.vae.foreign import DiffusersAutoencoder
from lit_gen.families.vae.kl_autoencoder import GaussianConvAutoencoder, KLAutoencoder
from lit_gen.families.vae.models import ELBO, VAE, GaussianMixturePrior, ImportanceWeighted
from lit_gen.families.vae.networks import ConvDecoder, ConvEncoder
from lit_gen.families.vae.variational import MixtureOfGaussians, Prior, StandardNormal, VampPrior

__all__ = [
    "Prior",
    "ELBO",
    "ConvDecoder",
    "ConvEncoder",
    "DiffusersAutoencoder",
    "GaussianConvAutoencoder",
    "GaussianMixturePrior",
    "ImportanceWeighted",
    "KLAutoencoder",
    "MixtureOfGaussians",
    "StandardNormal",
    "VAE",
    "VampPrior",
]
