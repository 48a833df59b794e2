"""Scores of generated images: one quantisation, feature nets, and metrics."""

from lit_gen.metrics.diversity import density_and_coverage, duplicate_rate
from lit_gen.metrics.feature_nets import DigitsFeatures, FashionFeatures, FeatureNet, Inception, Points
from lit_gen.metrics.frechet import FrechetDistance, Moments, frechet_distance
from lit_gen.metrics.inception_score import InceptionScore
from lit_gen.metrics.reconstruction import psnr, reconstructed_split, reconstruction_scores, ssim
from lit_gen.metrics.reference import reference_moments
from lit_gen.metrics.scores import ImageScores, PointScores, Scores
from lit_gen.metrics.wasserstein import WassersteinDistance, wasserstein

__all__ = [
    "DigitsFeatures",
    "FashionFeatures",
    "FeatureNet",
    "FrechetDistance",
    "ImageScores",
    "Inception",
    "InceptionScore",
    "Moments",
    "PointScores",
    "Points",
    "Scores",
    "WassersteinDistance",
    "density_and_coverage",
    "duplicate_rate",
    "frechet_distance",
    "psnr",
    "reconstructed_split",
    "reconstruction_scores",
    "reference_moments",
    "ssim",
    "wasserstein",
]
