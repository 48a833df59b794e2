"""Feature nets: fixed networks with a name and a version that give the features and class logits of images.

| file | networks |
| --- | --- |
| `base` | the interface |
| `inception` | Inception, whose distance is FID |
| `efficientnet` | EfficientNet-Lite0, whose weights come with a package |
| `dinov2`, `clip` | transformers, from weights that the user has |
| `classifiers` | small classifiers of digits and of Fashion-MNIST, which the package trains and includes |
| `points` | coordinates of points |
| `default` | the feature net of an evaluation that does not name one |
"""

from lit_gen.metrics.feature_nets.base import FeatureNet
from lit_gen.metrics.feature_nets.classifiers import (
    ClassifierFeatures,
    ClassifierNetwork,
    DigitsFeatures,
    FashionFeatures,
)
from lit_gen.metrics.feature_nets.clip import CLIP
from lit_gen.metrics.feature_nets.default import default_feature_net
from lit_gen.metrics.feature_nets.dinov2 import DINOv2
from lit_gen.metrics.feature_nets.efficientnet import EfficientNetLite0
from lit_gen.metrics.feature_nets.inception import Inception, NoWeightsError
from lit_gen.metrics.feature_nets.points import Points

__all__ = [
    "CLIP",
    "ClassifierFeatures",
    "ClassifierNetwork",
    "DINOv2",
    "DigitsFeatures",
    "EfficientNetLite0",
    "FashionFeatures",
    "FeatureNet",
    "Inception",
    "NoWeightsError",
    "Points",
    "default_feature_net",
]
