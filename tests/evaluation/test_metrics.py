"""The metrics of an evaluation: chosen, added later, of one's own, with floors and the mark of copies."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_gen.cli import commands
from lit_gen.core.errors import UserError
from lit_gen.data import Digits, ImageDataModule
from lit_gen.evaluation.cost import flops_per_image
from lit_gen.evaluation.metrics import default_metrics, score_protocols
from lit_gen.evaluation.real_images import DataImages
from lit_gen.evaluation.sampling import Sampling
from lit_gen.evaluation.scoring import load_kept, save_kept
from lit_gen.families.base import GenerativeModel
from lit_gen.metrics import (
    DigitsFeatures,
    FrechetDistance,
    Moments,
    PrecisionRecall,
    ScoredBatch,
    frechet_distance,
)
from lit_gen.metrics.reference_files import ReferenceFacts, write_reference
from tests.conftest import ROOT, arguments

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the result of an evaluation that names two metrics."""
    words = arguments("VAE", tmp_path_factory.mktemp("metrics"), 64)
    return commands.run([*words, "--evaluation.metrics", "[FrechetDistance, InceptionScore]"])


def evaluate_again(result: Path, metrics: str, *words: str) -> dict[str, Any]:
    path = commands.evaluate([str(result.parents[2]), "--evaluation.metrics", metrics, *words])
    assert path == result, "a metric does not change the folder of the evaluation"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_metric_is_added_from_the_features_that_were_kept(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads(result.read_text())
    assert set(before["metrics"]) == {"fd_digits", "inception_score", "inception_score_std"}
    with monkeypatch.context() as patch:
        patch.setattr("lit_gen.evaluation.sampling.Sampling.batch", None)  # sampling once more would fail
        after = evaluate_again(result, "[{class_path: FrechetDistance, init_args: {against: held out}}]")
    assert after["metrics"].items() >= before["metrics"].items()
    assert after["score_protocols"]["fd_digits_held_out"] == {
        "metric": "FrechetDistance",
        "better": "lower",
        "against": "held out",
        "held_out": ImageDataModule(Digits()).fingerprint("test"),
    }
    features = np.load(result.with_name("features.npz"))["features"]
    net, data = DigitsFeatures(), ImageDataModule(Digits())
    held_out = Moments.of(net(torch.from_numpy(np.array(data.images("test"))))[0])
    exact = frechet_distance(Moments.of(torch.from_numpy(features).double()), held_out)
    assert after["metrics"]["fd_digits_held_out"] == pytest.approx(exact, rel=1e-9)
    assert {"fd_digits", "fd_digits_held_out"} <= set(np.load(result.with_name("deviations.npz")))


def test_without_kept_features_the_same_images_are_sampled_again(result: Path) -> None:
    before = json.loads(result.read_text())["metrics"]
    images = np.load(result.with_name("samples.npz"))["images"]
    result.with_name("features.npz").unlink()
    after = evaluate_again(result, "[FrechetDistance, SlicedWasserstein]")["metrics"]
    assert after.items() >= before.items() and "sw_digits" in after
    np.testing.assert_array_equal(np.load(result.with_name("samples.npz"))["images"], images)
    assert result.with_name("features.npz").exists()


def test_other_settings_do_not_replace_a_score(result: Path) -> None:
    one = evaluate_again(result, "[{class_path: KernelDistance, init_args: {max_images: 20}}]")
    before = result.read_bytes()
    with pytest.raises(UserError) as error:
        evaluate_again(result, "[VendiScore, {class_path: KernelDistance, init_args: {max_images: 10}}]")
    assert str(error.value).startswith(
        f"evaluation.metrics: {result} holds kd_digits with max_images 20, not 10; give the settings that it has"
    )
    assert result.read_bytes() == before
    assert evaluate_again(result, "[{class_path: KernelDistance, init_args: {max_images: 20}}]") == one


def test_a_metric_of_ones_own_as_the_page_shows_it(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text()
    code = re.search(r"```python\n(.*?class Brightness.*?)```", text, re.DOTALL)
    assert code is not None
    (tmp_path / "brightness.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    found = evaluate_again(result, "[brightness.Brightness]")
    images = np.load(result.with_name("samples.npz"))["images"]
    real = ImageDataModule(Digits()).images("train")
    assert found["metrics"]["brightness"] == pytest.approx(abs(images.mean() - real.mean()), rel=1e-9)
    assert found["score_protocols"]["brightness"]["metric"] == "brightness.Brightness"
    assert found["floors"]["train"]["scores"]["brightness"] < found["metrics"]["brightness"] + 5


@pytest.mark.parametrize(
    "metrics, message",
    [
        ("[FrechetDistance, FrechetDistance]", "both give fd_digits"),
        ("[ConditionalAccuracy]", "ConditionalAccuracy needs labels, and the model has no classes"),
        ("[{class_path: InceptionScore, init_args: {splits: 0}}]", "splits: 0 is too few"),
        ("[{class_path: InceptionScore, init_args: {splits: 2}}]", "holds inception_score with splits 10, not 2"),
        ("[]", "evaluation.metrics: the list is empty; name a metric such as FrechetDistance"),
        ("[{class_path: PrecisionRecall, init_args: {k: 24}}]", "24"),
        ("[torch.nn.Linear]", "Linear is not a SampleMetric"),
        ("[NoSuchMetric]", "unknown class NoSuchMetric"),
        ("FrechetDistance", "expected a list"),
    ],
)
def test_metrics_that_cannot_be(result: Path, metrics: str, message: str) -> None:
    before = result.read_bytes()
    with pytest.raises(UserError, match=re.escape(message)) as error:
        evaluate_again(result, metrics)
    assert "\n" not in str(error.value) and result.read_bytes() == before


def test_what_is_needed_is_checked_before_training(tmp_path: Path) -> None:
    words = [*arguments("VAE", tmp_path, 64), "--evaluation.metrics", "[ConditionalAccuracy]"]
    with pytest.raises(UserError, match="ConditionalAccuracy needs labels"):
        commands.run(words)
    assert not list(tmp_path.iterdir())


def test_floors_are_those_of_real_images_and_cached(result: Path) -> None:
    found = evaluate_again(result, "[FrechetDistance, PrecisionRecall]")
    num_samples = found["protocol"]["num_samples"]
    assert {row: floor["num_images"] for row, floor in found["floors"].items()} == {
        "train": num_samples,
        "held_out": num_samples,
    }
    data, net = ImageDataModule(Digits()), DigitsFeatures()
    real = DataImages(data, "train", net, result.parents[3] / ".reference")
    held_out = real.features("held out")
    chosen = torch.arange(num_samples) * len(held_out) // num_samples
    exact = frechet_distance(Moments.of(held_out[chosen]), real.moments("reference"))
    assert found["floors"]["held_out"]["scores"]["fd_digits"] == pytest.approx(exact, rel=1e-6)
    assert found["floors"]["train"]["scores"]["precision"] == 1.0
    cached = list((result.parents[3] / ".reference").glob("digits-floor-fd_digits-*.json"))
    assert len(cached) == 2


def test_a_damaged_cache_of_features_is_computed_again(tmp_path: Path) -> None:
    data, net = ImageDataModule(Digits()), DigitsFeatures()
    exact = DataImages(data, "train", net, tmp_path).features("train").clone()  # the file is overwritten
    (path,) = tmp_path.glob("*.npy")
    content = path.read_bytes()
    for damaged in (b"", content[:-40], content[:200] + b"\0\0\0\1" + content[204:], b"junk"):
        path.write_bytes(damaged)
        assert torch.equal(DataImages(data, "train", net, tmp_path).features("train"), exact)
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    "metrics, message",
    [
        ("[{class_path: AuthPct, init_args: {max_images: 0}}]", "AuthPct: max_images 0 is too few; give at least 2"),
        ("[{class_path: DensityCoverage, init_args: {k: -1}}]", "DensityCoverage: k -1 is too few; give at least 1"),
        ("[{class_path: VendiScore, init_args: {max_images: 1}}]", "VendiScore: max_images 1 is too few"),
    ],
)
def test_settings_are_checked_before_sampling(result: Path, metrics: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"evaluation.metrics: {message}")):
        evaluate_again(result, metrics)


def test_imported_statistics_are_named_by_the_distances_that_use_them_alone(tmp_path: Path) -> None:
    data, net = ImageDataModule(Digits()), DigitsFeatures()
    real = DataImages(data, "train", net, tmp_path)
    facts = ReferenceFacts.of(data, "test", net, imported="ab" * 32)
    write_reference(facts.path(tmp_path), Moments.of(real.features("held out")), facts)
    metrics = [FrechetDistance(), FrechetDistance("held out"), PrecisionRecall()]
    protocols = score_protocols(metrics, real)
    assert protocols["fd_digits_held_out"]["imported_statistics"] == "ab" * 32
    assert not any("imported_statistics" in protocols[name] for name in ("fd_digits", "precision", "recall"))


def test_held_out_images_that_are_few_or_not_held_out_are_left_alone(tmp_path: Path) -> None:
    real = DataImages(ImageDataModule(Digits()), "train", DigitsFeatures(), tmp_path)
    names = [type(metric).__name__ for metric in default_metrics(real, 1, 1000)]
    assert names.count("FrechetDistance") == 2 and "CopyRate" in names
    others = [type(metric).__name__ for metric in default_metrics(real, 1, 1000, other_data=True)]
    assert others.count("FrechetDistance") == 1 and "CopyRate" not in others
    real.net.width = 355  # as many held-out images as features: the covariance has no inverse
    assert [type(metric).__name__ for metric in default_metrics(real, 1, 1000)].count("FrechetDistance") == 1


def test_features_too_large_for_half_precision_are_not_used_again(tmp_path: Path) -> None:
    real = DataImages(ImageDataModule(Digits()), "train", DigitsFeatures(), tmp_path)
    kept = ScoredBatch(torch.arange(3), None, torch.ones(3, 64).half(), torch.ones(3, 10).half())
    save_kept(tmp_path / "features.npz", kept)
    assert load_kept(tmp_path / "features.npz", 3, real) is not None
    save_kept(tmp_path / "features.npz", replace(kept, features=torch.full((3, 64), 70_000.0).half()))
    assert load_kept(tmp_path / "features.npz", 3, real) is None


def test_operations_of_attention_are_counted() -> None:
    length, width = 16, 8

    class Attention(GenerativeModel):
        def draw(self, noise: Any, labels: Any, sampler: Any) -> torch.Tensor:
            q = torch.ones(1, 1, length, width)
            torch.nn.functional.scaled_dot_product_attention(q, q, q)
            self.nfe = 1.0
            return torch.zeros(1, 1, 2, 2)

        generator = property(lambda self: torch.nn.Identity())  # type: ignore[assignment]

        def configure_optimizers(self) -> Any: ...

        def training_step(self, batch: Any, batch_idx: int) -> Any: ...

        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    model = Attention((1, 2, 2), 0)
    sampling = Sampling(model, None, lambda images: images, 1, 1, 1, 0, None)
    assert flops_per_image(sampling) == 2 * 2 * length * length * width
