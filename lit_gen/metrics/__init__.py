"""Scores of samples and reconstructions, and the feature nets that they use.

| file | content |
| --- | --- |
| `base` | the interface of a metric of samples |
| `real` | real images as metrics see them |
| `halves` | the spread of a score over samples |
| `moments` | mean and covariance of features |
| `frechet` | the Frechet distance between features |
| `frechet_infinity` | the Frechet distance of infinitely many samples |
| `kernel` | the kernel distance, KID for Inception features |
| `sliced` | the sliced Wasserstein distance |
| `wasserstein` | the exact Wasserstein distance between sets of points |
| `inception_score` | the inception score |
| `manifold` | precision and recall, density and coverage |
| `vendi` | the Vendi score |
| `per_class` | the Frechet distance per class, and the accuracy of classes |
| `duplicates` | the rate of duplicates |
| `memorisation` | measures of copying, and the rule that marks a copier |
| `nearest` | nearest neighbours with exact distances |
| `pairwise` | distances between many points, block by block |
| `feature_nets` | fixed networks that give features and logits |
| `train_feature_net` | the command that trains the classifiers of the package |
| `weights` | their weights |
| `reference` | cached feature moments of the real images |
| `reference_files` | their files |
| `reconstruction` | PSNR, SSIM, and the Frechet distance of reconstructions |
| `perceptual` | perceptual losses: LPIPS, or features of a classifier |
"""

from lit_gen.metrics.base import Estimate, SampleMetric, ScoredBatch, StoredMetric
from lit_gen.metrics.duplicates import Duplicates, duplicate_rate
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
from lit_gen.metrics.frechet_infinity import FrechetInfinity
from lit_gen.metrics.inception_score import InceptionScore
from lit_gen.metrics.kernel import KernelDistance, kernel_distance
from lit_gen.metrics.manifold import DensityCoverage, PrecisionRecall, density_and_coverage, precision_and_recall
from lit_gen.metrics.memorisation import AuthPct, CopyRate, CTest, is_copy
from lit_gen.metrics.moments import Moments
from lit_gen.metrics.nearest import nearest
from lit_gen.metrics.per_class import ConditionalAccuracy, PerClassFrechet
from lit_gen.metrics.real import RealFeatures, RealImages
from lit_gen.metrics.reconstruction import psnr, reconstructed_split, reconstruction_scores, ssim
from lit_gen.metrics.reference import reference_moments
from lit_gen.metrics.sliced import SlicedWasserstein, sliced_wasserstein
from lit_gen.metrics.vendi import VendiScore, vendi_score
from lit_gen.metrics.wasserstein import WassersteinDistance, wasserstein

__all__ = [
    "AuthPct",
    "CLIP",
    "CTest",
    "ConditionalAccuracy",
    "CopyRate",
    "DINOv2",
    "DensityCoverage",
    "DigitsFeatures",
    "Duplicates",
    "EfficientNetLite0",
    "Estimate",
    "FashionFeatures",
    "FeatureNet",
    "FrechetDistance",
    "FrechetInfinity",
    "Inception",
    "InceptionScore",
    "KernelDistance",
    "Moments",
    "PerClassFrechet",
    "Points",
    "PrecisionRecall",
    "RealFeatures",
    "RealImages",
    "SampleMetric",
    "ScoredBatch",
    "SlicedWasserstein",
    "StoredMetric",
    "VendiScore",
    "WassersteinDistance",
    "default_feature_net",
    "density_and_coverage",
    "duplicate_rate",
    "frechet_distance",
    "is_copy",
    "kernel_distance",
    "nearest",
    "precision_and_recall",
    "psnr",
    "reconstructed_split",
    "reconstruction_scores",
    "reference_moments",
    "sliced_wasserstein",
    "ssim",
    "vendi_score",
    "wasserstein",
]
