import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics import ConditionalAccuracy, Moments, PerClassFrechet, frechet_distance
from lit_gen.metrics.real import RealFeatures
from tests.metrics.scoring import estimates, standard_error, value


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(n: int, num_classes: int, d: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Classes of unequal sizes and means."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.arange(1.0, num_classes + 1), n, replacement=True, generator=generator)
    return scale * normal(n, d, seed + 1000) + 4 * labels[:, None], labels


def test_is_the_mean_of_the_distances_of_the_classes():
    (real, real_labels), (x, labels) = classes(400, 3, 4, 0), classes(300, 3, 4, 1, 1.3)
    exact = np.mean(
        [frechet_distance(Moments.of(x[labels == c]), Moments.of(real[real_labels == c])) for c in range(3)]
    )
    found = estimates(PerClassFrechet(), RealFeatures(real, labels=real_labels), features=x, labels=labels)
    assert found["fd_features_per_class"].value == pytest.approx(exact, rel=1e-10)
    inception = RealFeatures(real, labels=real_labels, distance_name="fid")
    assert list(PerClassFrechet().directions(inception)) == ["fid_per_class"]


def test_sees_exchanged_classes():
    (real, real_labels), (x, labels) = classes(400, 3, 4, 0), classes(300, 3, 4, 1)
    data = RealFeatures(real, labels=real_labels)
    right = value(PerClassFrechet(), data, features=x, labels=labels)
    wrong = value(PerClassFrechet(), data, features=x, labels=2 - labels)
    assert right < 2 and wrong > 2 / 3 * 4 * 8**2 - 5


def test_a_real_class_may_be_any_number():
    (real, real_labels), (x, labels) = classes(400, 3, 4, 0), classes(300, 3, 4, 1)
    right = value(PerClassFrechet(), RealFeatures(real, labels=real_labels), features=x, labels=labels)
    spaced = value(PerClassFrechet(), RealFeatures(real, labels=5 * real_labels), features=x, labels=5 * labels)
    assert spaced == pytest.approx(right, rel=1e-12)


@pytest.mark.slow
def test_spread():
    real, real_labels = classes(2000, 3, 3, 0)
    data = RealFeatures(real, labels=real_labels)
    found = []
    for i in range(1, 151):
        x, labels = classes(600, 3, 3, i, 1.3)
        found.append(estimates(PerClassFrechet(), data, features=x, labels=labels)["fd_features_per_class"])
    errors = [standard_error(each) for each in found]
    assert np.mean(errors) == pytest.approx(np.std([each.value for each in found]), rel=0.2)


def test_few_images_of_a_class_are_an_error_or_a_warning():
    (real, real_labels), (x, labels) = classes(200, 3, 4, 0), classes(200, 3, 4, 1)
    data = RealFeatures(real, labels=real_labels)
    one = (labels != 0) | (torch.arange(200) == labels.tolist().index(0))
    with pytest.raises(UserError, match="class 0 has 1 samples"):
        estimates(PerClassFrechet(), data, features=x[one], labels=labels[one])
    with pytest.raises(UserError, match="class 7 has samples and not a real image"):
        estimates(PerClassFrechet(), data, features=x, labels=labels.where(labels > 0, 7))
    with pytest.raises(UserError, match="class 9 has 1 real images"):
        PerClassFrechet().prepare(RealFeatures(real, labels=real_labels.clone().index_fill_(0, torch.tensor(0), 9)), 9)
    with pytest.raises(UserError, match="no classes of real images"):
        PerClassFrechet().prepare(RealFeatures(real), 200)
    few = (labels != 0) | ((labels == 0).cumsum(0) <= 4)
    with pytest.warns(UserWarning, match="4 features from 4 images of a class is rank-deficient") as record:
        estimates(PerClassFrechet(), data, features=x[few], labels=labels[few])
    assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimates(PerClassFrechet(), data, features=x, labels=labels)


def test_accuracy_counts_the_samples_of_the_given_class():
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1])
    predicted = torch.tensor([0, 1, 2, 1, 1, 2, 0, 1])
    logits = torch.nn.functional.one_hot(predicted, 3) * 2.0 - 7
    data = RealFeatures(torch.zeros(9, 2), labels=torch.arange(9) % 3, num_classes=3)
    found = estimates(ConditionalAccuracy(), data, logits=logits, labels=labels)["conditional_accuracy"]
    assert found.value == 6 / 8


def test_accuracy_has_the_binomial_spread():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 5
    wrong = torch.rand(1000, generator=generator) < 0.2
    logits = torch.nn.functional.one_hot((labels + wrong) % 5, 5).float()
    data = RealFeatures(torch.zeros(9, 2), labels=torch.arange(5), num_classes=5)
    found = estimates(ConditionalAccuracy(), data, logits=logits, labels=labels)["conditional_accuracy"]
    assert found.value == 1 - float(wrong.double().mean())
    assert standard_error(found) == pytest.approx((found.value * (1 - found.value) / 1000) ** 0.5, rel=0.15)


@pytest.mark.parametrize("num_classes", [0, 4, 1000])
def test_accuracy_needs_a_classifier_of_the_data(num_classes):
    data = RealFeatures(torch.zeros(9, 2), labels=torch.arange(9) % 3, num_classes=num_classes)
    with pytest.raises(UserError, match=f"data have 3 classes and features features {num_classes}"):
        ConditionalAccuracy().prepare(data, 9)
    data = RealFeatures(torch.zeros(9, 2), labels=torch.arange(9) % 3, num_classes=3)
    with pytest.raises(UserError, match="samples have 6 classes and features features 3"):
        estimates(ConditionalAccuracy(), data, logits=torch.zeros(9, 3), labels=torch.full((9,), 5))
    with pytest.raises(UserError, match="no classes of real images"):
        ConditionalAccuracy().prepare(RealFeatures(torch.zeros(9, 2), num_classes=3), 9)
