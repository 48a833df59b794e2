"""Distributions that several families share."""

from lit_gen.distributions.mixtures import GaussianMixture, Mixture, UniformMixture
from lit_gen.distributions.pixels import (
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    Gaussian,
    LogisticMixture,
    PixelLikelihood,
)

__all__ = [
    "PixelLikelihood",
    "Bernoulli",
    "Categorical",
    "DiscretisedLogistic",
    "Gaussian",
    "LogisticMixture",
    "GaussianMixture",
    "Mixture",
    "UniformMixture",
]
