"""Settings of the evaluations during training."""

from pathlib import Path
from typing import Any

import pytest

from lit_gen.core.errors import UserError
from lit_gen.data import Digits, ImageDataModule, TwoMoons
from lit_gen.evaluation.monitor import Monitored, MonitorSettings
from lit_gen.evaluation.protocol import Evaluation
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.base import GenerativeModel
from lit_gen.metrics import FrechetDistance, InceptionScore
from lit_gen.metrics.base import SampleMetric
from lit_gen.metrics.feature_nets import DigitsFeatures, Points
from tests.conftest import DIGITS, TINY


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    return ExperimentCLI([*TINY["VAE"], *DIGITS]).objects().model


def monitored(model: GenerativeModel, data: ImageDataModule | None = None, **settings: object) -> Monitored:
    data = data or ImageDataModule(Digits())
    evaluation = Evaluation(feature_net=DigitsFeatures if data.source.quantised else Points)
    return Monitored(MonitorSettings(every=1, **settings), evaluation, model, data, Path())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "score"),
    [
        ({}, "fd_digits_held_out"),
        ({"score": "fd_digits"}, "fd_digits"),
        ({"metrics": [InceptionScore(1), FrechetDistance()]}, "inception_score"),
    ],
)
def test_the_score_that_chooses(model: GenerativeModel, settings: dict[str, Any], score: str) -> None:
    found = monitored(model, **settings)
    assert found.score == score
    worse, better = (1.0, 2.0) if score == "inception_score" else (2.0, 1.0)
    assert found.is_better(better, worse) and not found.is_better(worse, better)
    assert not found.is_better(better, better), "the first of equal ones stays"
    assert found.is_better(worse, None) and not found.is_better(float("nan"), None)


def test_points_have_a_wasserstein_distance(model: GenerativeModel) -> None:
    assert monitored(model, ImageDataModule(TwoMoons())).score == "w2_points"


def test_values_are_compared_with_equal_protocols_only(model: GenerativeModel) -> None:
    same, other = monitored(model), monitored(model, num_samples=500)
    assert same.facts == monitored(model).facts != other.facts
    assert monitored(model, seed=1).facts != same.facts != monitored(model, score="fd_digits").facts


@pytest.mark.parametrize(
    ("key", "settings"),
    [("monitor.every", {"every": -1}), ("monitor.num_samples", {"num_samples": 1})],
)
def test_wrong_settings(key: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{key}: "):
        MonitorSettings(**settings)


@pytest.mark.parametrize(
    ("key", "metrics", "score"),
    [("monitor.score", None, "fd"), ("monitor.metrics", [FrechetDistance(), FrechetDistance()], None)],
)
def test_settings_that_do_not_suit(
    model: GenerativeModel, key: str, metrics: list[SampleMetric] | None, score: str | None
) -> None:
    settings = MonitorSettings(every=1, metrics=metrics, score=score)
    with pytest.raises(UserError, match=rf"^{key}: .*; "):
        settings.check(Evaluation(feature_net=DigitsFeatures), model, ImageDataModule(Digits()))
