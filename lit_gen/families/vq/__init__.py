"""Two-stage models: an autoencoder with a codebook, and an autoregressive prior over its codes."""

from lit_gen.families.vq.models.token_prior import TokenPrior
from lit_gen.families.vq.models.vqgan import VQGAN, VQVAE, LessMomentumAdam
from lit_gen.families.vq.networks.autoencoder import ConvAutoencoder, PatchDiscriminator
from lit_gen.families.vq.networks.quantisers import FSQ, Quantiser, VectorQuantiser
from lit_gen.families.vq.networks.token_transformer import TokenTransformer
from lit_gen.families.vq.token_sampling import TokenSampling

__all__ = [
    "FSQ",
    "Quantiser",
    "ConvAutoencoder",
    "LessMomentumAdam",
    "PatchDiscriminator",
    "TokenPrior",
    "TokenSampling",
    "TokenTransformer",
    "VQGAN",
    "VQVAE",
    "VectorQuantiser",
]
