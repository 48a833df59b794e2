"""The families, each a `GenerativeModel`."""

from lit_gen.models.base import GenerativeModel
from lit_gen.models.diffusion import DDPM, EDM, RectifiedFlow
from lit_gen.models.gan import WGAN
from lit_gen.models.vae import VAE

__all__ = ["DDPM", "EDM", "VAE", "WGAN", "GenerativeModel", "RectifiedFlow"]
