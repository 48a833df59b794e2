"""Scores of samples and reconstructions, and the feature nets that they use.

| file | content |
| --- | --- |
| `scores` | all metrics of one evaluation |
| `feature_nets` | fixed networks that give features and logits |
| `train_feature_net` | the command that trains the classifiers of the package |
| `weights` | their weights |
| `reference` | cached feature moments of the real images |
| `frechet` | the Frechet distance between features |
| `inception_score` | the inception score |
| `wasserstein` | the exact Wasserstein distance between sets of points |
| `kernel` | the kernel distance, KID for Inception features |
| `manifold` | precision and recall, density and coverage |
| `sliced` | the sliced Wasserstein distance |
| `vendi` | the Vendi score |
| `per_class` | the Frechet distance per class, and the accuracy of classes |
| `frechet_infinity` | the Frechet distance of infinitely many samples |
| `neighbours` | distances between many points, and nearest neighbours |
| `diversity` | the rate of duplicates |
| `reconstruction` | PSNR, SSIM, and the Frechet distance of reconstructions |
| `perceptual` | perceptual losses: LPIPS, or features of a classifier |
"""

from lit_gen.metrics.diversity import duplicate_rate
from lit_gen.metrics.feature_nets import DigitsFeatures, FashionFeatures, FeatureNet, Inception, Points
from lit_gen.metrics.frechet import FrechetDistance, frechet_distance
from lit_gen.metrics.frechet_infinity import FrechetInfinity
from lit_gen.metrics.inception_score import InceptionScore
from lit_gen.metrics.kernel import KernelDistance, kernel_distance
from lit_gen.metrics.manifold import DensityCoverage, PrecisionRecall, density_and_coverage, precision_and_recall
from lit_gen.metrics.moments import Moments
from lit_gen.metrics.per_class import ConditionalAccuracy, PerClassFrechet
from lit_gen.metrics.reconstruction import psnr, reconstructed_split, reconstruction_scores, ssim
from lit_gen.metrics.reference import reference_moments
from lit_gen.metrics.scores import ImageScores, PointScores, Scores
from lit_gen.metrics.sliced import SlicedWasserstein, sliced_wasserstein
from lit_gen.metrics.vendi import VendiScore, vendi_score
from lit_gen.metrics.wasserstein import WassersteinDistance, wasserstein

__all__ = [
    "ConditionalAccuracy",
    "DensityCoverage",
    "DigitsFeatures",
    "FashionFeatures",
    "FeatureNet",
    "FrechetDistance",
    "FrechetInfinity",
    "ImageScores",
    "Inception",
    "InceptionScore",
    "KernelDistance",
    "Moments",
    "PerClassFrechet",
    "PointScores",
    "Points",
    "PrecisionRecall",
    "Scores",
    "SlicedWasserstein",
    "VendiScore",
    "WassersteinDistance",
    "density_and_coverage",
    "duplicate_rate",
    "frechet_distance",
    "kernel_distance",
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
