"""The families, each a `GenerativeModel`."""

from lit_gen.models.base import GenerativeModel
from lit_gen.models.ddpm import DDPM, ImprovedDDPM
from lit_gen.models.diffusion import Diffusion
from lit_gen.models.edm import EDM
from lit_gen.models.flow_matching import FlowMatching, RectifiedFlow
from lit_gen.models.gan import GAN, WGAN
from lit_gen.models.score_sde import ScoreSDE
from lit_gen.models.token_prior import TokenPrior
from lit_gen.models.vae import VAE
from lit_gen.models.vqgan import VQGAN, VQVAE

__all__ = [
    "DDPM",
    "Diffusion",
    "EDM",
    "FlowMatching",
    "GAN",
    "GenerativeModel",
    "ImprovedDDPM",
    "RectifiedFlow",
    "ScoreSDE",
    "TokenPrior",
    "VAE",
    "VQGAN",
    "VQVAE",
    "WGAN",
]
