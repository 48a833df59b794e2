"""Autoregressive models: p(x) = prod_i p(x_i | x_1 ... x_{i-1})."""

from lit_gen.families.autoregressive.models.causal import ImageTransformer, PixelCNN, PixelCNNPlusPlus
from lit_gen.families.autoregressive.models.dense import FVSBN, MADE, NADE
from lit_gen.families.autoregressive.networks.image_transformer import CausalTransformer
from lit_gen.families.autoregressive.networks.masked import LogisticRegressions, MaskedMLP, NADENetwork
from lit_gen.families.autoregressive.networks.pixelcnn import GatedPixelCNN
from lit_gen.families.autoregressive.networks.pixelcnn_pp import ResidualPixelCNN

__all__ = [
    "CausalTransformer",
    "FVSBN",
    "GatedPixelCNN",
    "ImageTransformer",
    "LogisticRegressions",
    "MADE",
    "MaskedMLP",
    "NADE",
    "NADENetwork",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "ResidualPixelCNN",
]
