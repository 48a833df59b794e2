"""The families, each a `GenerativeModel`."""

from lit_gen.models.autoregressive import FVSBN, MADE, NADE
from lit_gen.models.base import GenerativeModel
from lit_gen.models.ddpm import DDPM, ImprovedDDPM
from lit_gen.models.diffusion import Diffusion
from lit_gen.models.edm import EDM
from lit_gen.models.flow import NICE, Glow, RealNVP
from lit_gen.models.flow_matching import FlowMatching, RectifiedFlow
from lit_gen.models.gan import GAN, WGAN
from lit_gen.models.pixelcnn import ImageTransformer, PixelCNN, PixelCNNPlusPlus
from lit_gen.models.point_flow import PointFlow
from lit_gen.models.score_sde import ScoreSDE
from lit_gen.models.token_prior import TokenPrior
from lit_gen.models.vae import VAE
from lit_gen.models.vqgan import VQGAN, VQVAE

__all__ = [
    "DDPM",
    "Diffusion",
    "EDM",
    "FVSBN",
    "FlowMatching",
    "GAN",
    "GenerativeModel",
    "Glow",
    "ImageTransformer",
    "ImprovedDDPM",
    "MADE",
    "NADE",
    "NICE",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PointFlow",
    "RealNVP",
    "RectifiedFlow",
    "ScoreSDE",
    "TokenPrior",
    "VAE",
    "VQGAN",
    "VQVAE",
    "WGAN",
]
