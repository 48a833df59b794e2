"""Autoregressive models with convolutions or attention: PixelCNN, PixelCNN++ and the image transformer."""

from typing import Any

import torch

from lit_gen.distributions.pixels import Categorical, LogisticMixture
from lit_gen.families.autoregressive.models.dense import Autoregressive, LikelihoodFactory, NetworkFactory
from lit_gen.families.autoregressive.networks.image_transformer import CausalTransformer
from lit_gen.families.autoregressive.networks.pixelcnn import GatedPixelCNN
from lit_gen.families.autoregressive.networks.pixelcnn_pp import ResidualPixelCNN
from lit_gen.families.optimizers import OptimizerFactory


class PixelCNN(Autoregressive):
    """The gated PixelCNN (van den Oord et al. 2016, https://arxiv.org/abs/1606.05328).

    Every value has a probability of its own, given the pixels above and to the left, and the channels before it. Use
    the likelihood `Bernoulli` for binary images.

    Args:
        network: The network.
        likelihood: Distribution of a pixel given the output of the network.
        optimizer: Optimizer of all parameters.
    """

    def __init__(
        self,
        network: NetworkFactory = GatedPixelCNN,
        likelihood: LikelihoodFactory = Categorical,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        super().__init__(network=network, likelihood=likelihood, optimizer=optimizer, **kwargs)


class PixelCNNPlusPlus(Autoregressive):
    """PixelCNN++ (Salimans et al. 2017, https://arxiv.org/abs/1701.05517).

    The values of a pixel follow a mixture of discretised logistics, in which the mean of green depends on red, and that
    of blue on both. Before training starts, images set the scale of every layer.

    Args:
        network: The network.
        likelihood: Distribution of a pixel given the output of the network.
        optimizer: Optimizer of all parameters.
    """

    def __init__(
        self,
        network: NetworkFactory = ResidualPixelCNN,
        likelihood: LikelihoodFactory = LogisticMixture,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        super().__init__(network=network, likelihood=likelihood, optimizer=optimizer, **kwargs)


class ImageTransformer(Autoregressive):
    """A causal transformer over all pixels before (Parmar et al. 2018, https://arxiv.org/abs/1802.05751).

    Args:
        network: The network.
        likelihood: Distribution of a pixel given the output of the network.
        optimizer: Optimizer of all parameters.
    """

    def __init__(
        self,
        network: NetworkFactory = CausalTransformer,
        likelihood: LikelihoodFactory = Categorical,
        optimizer: OptimizerFactory = lambda p: torch.optim.AdamW(p, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        super().__init__(network=network, likelihood=likelihood, optimizer=optimizer, **kwargs)
