"""Scores of samples and reconstructions, and the feature nets that they use.

| file | content |
| --- | --- |
| `scores` | all metrics of one evaluation |
| `feature_nets` | fixed networks that give features and logits |
| `train_feature_net` | the command that trains the classifiers of the package |
| `weights` | their weights |
| `reference` | cached feature moments of the real images |
| `reference_files` | their files |
| `npz_statistics` | moments in the .npz files of other software |
| `frechet` | the Frechet distance between features |
| `inception_score` | the inception score |
| `wasserstein` | the exact Wasserstein distance between sets of points |
| `diversity` | density, coverage, and the rate of duplicates |
| `reconstruction` | PSNR, SSIM, and the Frechet distance of reconstructions |
| `perceptual` | perceptual losses: LPIPS, or features of a classifier |
"""

from lit_gen.metrics.diversity import density_and_coverage, duplicate_rate
from lit_gen.metrics.feature_nets import (
    CLIP,
    DigitsFeatures,
    DINOv2,
    EfficientNetLite0,
    FashionFeatures,
    FeatureNet,
    Inception,
    Points,
    default_feature_net,
)
from lit_gen.metrics.frechet import FrechetDistance, frechet_distance
from lit_gen.metrics.inception_score import InceptionScore
from lit_gen.metrics.moments import Moments
from lit_gen.metrics.reconstruction import psnr, reconstructed_split, reconstruction_scores, ssim
from lit_gen.metrics.reference import reference_moments
from lit_gen.metrics.scores import ImageScores, PointScores, Scores
from lit_gen.metrics.wasserstein import WassersteinDistance, wasserstein

__all__ = [
    "CLIP",
    "DINOv2",
    "DigitsFeatures",
    "EfficientNetLite0",
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
    "default_feature_net",
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
