"""Scores of samples and reconstructions, and the feature nets that they use.

| file | content |
| --- | --- |
| `base` | the interface of a metric of samples |
| `real` | real images as metrics see them |
| `halves` | the spread of a score over samples |
| `moments` | mean and covariance of features |
| `feature_nets` | fixed networks that give features and logits |
| `train_feature_net` | the command that trains the classifiers of the package |
| `weights` | their weights |
| `reference` | cached feature moments of the real images |
| `frechet` | the Frechet distance between features |
| `inception_score` | the inception score |
| `wasserstein` | the exact Wasserstein distance between sets of points |
| `diversity` | density, coverage, and the rate of duplicates |
| `reconstruction` | PSNR, SSIM, and the Frechet distance of reconstructions |
| `perceptual` | perceptual losses: LPIPS, or features of a classifier |
"""

from lit_gen.metrics.base import Estimate, SampleMetric, ScoredBatch
from lit_gen.metrics.diversity import density_and_coverage, duplicate_rate
from lit_gen.metrics.feature_nets import DigitsFeatures, FashionFeatures, FeatureNet, Inception, Points
from lit_gen.metrics.frechet import FrechetDistance, frechet_distance
from lit_gen.metrics.inception_score import InceptionScore
from lit_gen.metrics.moments import Moments
from lit_gen.metrics.real import RealFeatures, RealImages
from lit_gen.metrics.reconstruction import psnr, reconstructed_split, reconstruction_scores, ssim
from lit_gen.metrics.reference import reference_moments
from lit_gen.metrics.wasserstein import WassersteinDistance, wasserstein

__all__ = [
    "DigitsFeatures",
    "Estimate",
    "FashionFeatures",
    "FeatureNet",
    "FrechetDistance",
    "Inception",
    "InceptionScore",
    "Moments",
    "Points",
    "RealFeatures",
    "RealImages",
    "SampleMetric",
    "ScoredBatch",
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
