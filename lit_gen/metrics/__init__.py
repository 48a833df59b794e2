"""Scores of generated images: one quantisation, feature nets, and metrics that keep only sums."""

from lit_gen.metrics.feature_nets import DigitsFeatures, FashionFeatures, FeatureNet, Inception
from lit_gen.metrics.frechet import FrechetDistance, Moments, frechet_distance
from lit_gen.metrics.inception_score import InceptionScore
from lit_gen.metrics.quantise import quantise
from lit_gen.metrics.reference import reference_moments

__all__ = [
    "DigitsFeatures",
    "FashionFeatures",
    "FeatureNet",
    "FrechetDistance",
    "Inception",
    "InceptionScore",
    "Moments",
    "frechet_distance",
    "quantise",
    "reference_moments",
]
