r"""Scores of class-conditional samples: whether each class looks like itself.

    per class   1/K sum_c d(samples of class c, real images of class c), d the Frechet distance
    accuracy    1/n sum_i [argmax_y p(y|x_i) = y_i], y_i the class that sample i was given

A distance between whole distributions does not notice if classes are exchanged; these do. The bias of a distance grows
as its number of images falls, so it is large for one class: compare distances only at equal numbers.

Ravuri and Vinyals, "Classification Accuracy Score for Conditional Generative Models", 2019,
https://arxiv.org/abs/1905.10887; Heusel et al., 2017, see `metrics.frechet`.
"""

import warnings

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics.base import Direction, Estimate, ScoredBatch, StoredMetric, check_points
from lit_gen.metrics.frechet import frechet_distance, frechet_influence
from lit_gen.metrics.halves import mean_deviations
from lit_gen.metrics.moments import Moments
from lit_gen.metrics.real import RealImages


class PerClassFrechet(StoredMetric):
    """Mean over classes of the Frechet distance between the samples and the reference images of a class.

    Args:
        max_images: Largest number of samples of all classes.
    """

    needs = frozenset({"features", "labels", "real labels"})

    def __init__(self, max_images: int = 10_000) -> None:
        super().__init__()
        self.max_images = max_images

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {f"{real.distance_name}_per_class": "lower"}

    def begin(self) -> None:
        super().begin()
        features, labels = self.real.features("reference"), _real_labels(self.real)
        check_points(features, 2, "a Frechet distance per class", "real images")
        self.references = {
            int(c): Moments.of(_of_class(features, labels, int(c), "real images")) for c in labels.unique()
        }

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        features, labels = samples.features, samples.labels
        assert features is not None and labels is not None
        check_points(features, 2, "a Frechet distance per class", "samples")
        if unknown := set(labels.tolist()) - self.references.keys():
            raise UserError(f"class {min(unknown)} has samples and not a real image; choose data with all classes")
        influence = torch.zeros(len(features), dtype=torch.float64)
        distances, fewest = [], len(features)
        for c, reference in self.references.items():
            own = _of_class(features, labels, c, "samples")
            moments = Moments.of(own)
            fewest = min(fewest, moments.n, reference.n)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a rank-deficient class; one warning for all follows
                distances.append(frechet_distance(moments, reference))
            weight = len(features) / (len(self.references) * moments.n)  # the influence on a mean over all samples
            influence[(labels == c).cpu()] = weight * frechet_influence(own, moments, reference)
        if fewest <= features.shape[1]:
            warnings.warn(
                f"the covariance of {features.shape[1]} features from {fewest} images of a class is rank-deficient, so "
                "the Frechet distance per class is strongly biased upwards; use more images",
                stacklevel=2,
            )
        value = sum(distances) / len(distances)
        return {f"{self.real.distance_name}_per_class": Estimate(value, mean_deviations(influence))}


class ConditionalAccuracy(StoredMetric):
    """Share of samples that the classifier assigns to the class that they were given.

    The outputs of the feature net must be the classes of the data, as those of a classifier of the data are.

    Args:
        max_images: Largest number of samples.
    """

    needs = frozenset({"logits", "labels", "real labels"})

    def __init__(self, max_images: int = 10_000) -> None:
        super().__init__()
        self.max_images = max_images

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {"conditional_accuracy": "higher"}

    def begin(self) -> None:
        super().begin()
        self._check(_real_labels(self.real), "data")

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        logits, labels = samples.logits, samples.labels
        assert logits is not None and labels is not None
        check_points(logits, 2, "the conditional accuracy", "samples", "logits")
        self._check(torch.cat([labels, _real_labels(self.real).to(labels.device)]), "samples")
        right = (logits.argmax(1) == labels).double()
        return {"conditional_accuracy": Estimate(float(right.mean()), mean_deviations(right))}

    def _check(self, labels: Tensor, what: str) -> None:
        num_classes = int(labels.max()) + 1
        if num_classes != self.real.num_classes:
            raise UserError(
                f"the {what} have {num_classes} classes and {self.real.net_name} features {self.real.num_classes}, so "
                "the conditional accuracy is undefined; choose a feature net that classifies the data"
            )


def _real_labels(real: RealImages) -> Tensor:
    labels = real.labels("reference")
    if labels is None or not len(labels):
        raise UserError("there are no classes of real images; choose metrics that do not need them")
    return labels


def _of_class(features: Tensor, labels: Tensor, c: int, what: str) -> Tensor:
    """Return the features of a class; raise a UserError if there are too few."""
    own = features[labels == c]
    if len(own) < 2:
        raise UserError(
            f"class {c} has {len(own)} {what}, and a Frechet distance per class needs at least 2 of each class; raise "
            "their number"
        )
    return own
