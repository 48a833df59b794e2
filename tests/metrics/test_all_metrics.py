"""What every metric of samples must do: agree on any number of processes, and give a number or one line."""

import json
import math
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed

from lit_gen.core.errors import UserError
from lit_gen.data import Digits, ImageDataModule
from lit_gen.metrics import (
    ConditionalAccuracy,
    DensityCoverage,
    DigitsFeatures,
    FrechetDistance,
    FrechetInfinity,
    InceptionScore,
    KernelDistance,
    PerClassFrechet,
    PrecisionRecall,
    SlicedWasserstein,
    VendiScore,
)
from lit_gen.metrics.base import Estimate, SampleMetric, StoredMetric
from lit_gen.metrics.real import RealFeatures
from tests.metrics.scoring import estimates, scored
from tests.processes import in_processes

NUM_SAMPLES, NUM_REAL, WIDTH, NUM_CLASSES = 103, 140, 6, 5

METRICS: dict[str, Callable[[], SampleMetric]] = {
    "frechet": FrechetDistance,
    "inception score": partial(InceptionScore, splits=4),
    "kernel": KernelDistance,
    "kernel, held out": partial(KernelDistance, against="held out"),
    "kernel, few": partial(KernelDistance, max_images=50),
    "precision and recall": PrecisionRecall,
    "density and coverage": DensityCoverage,
    "density and coverage, few": partial(DensityCoverage, max_images=20),
    "sliced": partial(SlicedWasserstein, num_projections=16),
    "vendi": VendiScore,
    "per class": PerClassFrechet,
    "accuracy": ConditionalAccuracy,
    "infinity": FrechetInfinity,
}


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def real_images() -> RealFeatures:
    return RealFeatures(
        normal(NUM_REAL, WIDTH, 0),
        held_out=normal(30, WIDTH, 1),
        labels=torch.arange(NUM_REAL) % NUM_CLASSES,
        num_classes=NUM_CLASSES,
    )


def samples(n: int = NUM_SAMPLES) -> dict[str, Tensor]:
    return {
        "features": 1.2 * normal(n, WIDTH, 2) + 0.2,
        "logits": 3 * normal(n, NUM_CLASSES, 3),
        "labels": torch.arange(n) * 7 % NUM_CLASSES,
    }


def found(metric: SampleMetric, batches: list[Tensor]) -> dict[str, list[float]]:
    """Return value and first deviations by name, given the batches of this rank."""
    metric = metric.prepare(real_images(), NUM_SAMPLES)
    for rows in batches:
        metric.update(scored(rows, **samples()))
    return {
        name: [each.value, *([] if each.deviations is None else each.deviations[:5].tolist())]
        for name, each in metric.compute().items()
    }


def worker(count: int, rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=count, timeout=timedelta(seconds=60)
    )
    order = torch.arange(NUM_SAMPLES)
    share, last = list(order[rank::count].split(7)), list(order.split(10)) if rank == count - 1 else [order[:0]]
    results = {name: [found(make(), share), found(make(), last)] for name, make in METRICS.items()}
    (folder / f"{rank}.json").write_text(json.dumps(results))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_agrees_with_one(count, tmp_path):
    expected = {name: found(make(), [torch.arange(NUM_SAMPLES)]) for name, make in METRICS.items()}
    in_processes(count, partial(worker, count), tmp_path)
    for rank in range(count):
        for name, results in json.loads((tmp_path / f"{rank}.json").read_text()).items():
            for each in results:
                assert each.keys() == expected[name].keys()
                for score, values in each.items():
                    assert values == pytest.approx(expected[name][score], rel=1e-9, abs=1e-9), (name, score, rank)


@pytest.mark.parametrize("name", METRICS)
def test_has_names_directions_settings_and_deviations(name):
    metric, real = METRICS[name](), real_images()
    values = estimates(metric, real, **samples())
    assert set(metric.directions(real).values()) <= {"higher", "lower"}
    assert type(metric)(**METRICS[name]().settings()).settings() == metric.settings()
    json.dumps(metric.settings())
    for score, each in values.items():
        if score != "inception_score_std":
            assert each.deviations is not None and each.deviations.shape == (200,)
            assert each.deviations.dtype == torch.float64
            assert float(each.deviations.mean()) == pytest.approx(0, abs=1e-9)
            assert float(each.deviations.std()) > 0


@pytest.mark.parametrize("name", [name for name, make in METRICS.items() if isinstance(make(), StoredMetric)])
def test_order_and_batches_do_not_matter_but_the_number_does(name):
    order = torch.randperm(NUM_SAMPLES, generator=torch.Generator().manual_seed(0))
    once = found(METRICS[name](), [torch.arange(NUM_SAMPLES)])
    assert found(METRICS[name](), list(order.split(9))) == once
    with pytest.raises(ValueError, match="samples, but saw"):
        found(METRICS[name](), [torch.arange(1, NUM_SAMPLES)])


def degenerate() -> dict[str, dict[str, Tensor]]:
    usual, broken, one = samples(), samples(), samples(1)
    broken["features"][5, 2] = broken["logits"][5, 2] = math.nan
    infinite = samples()
    infinite["features"][0, 0] = infinite["logits"][0, 0] = math.inf
    constant = {name: part[:1].expand_as(part) for name, part in usual.items()} | {"labels": usual["labels"]}
    zero = {name: torch.zeros_like(part) for name, part in usual.items()} | {"labels": usual["labels"]}
    large = usual | {"features": 1e18 * usual["features"]}
    few = {name: part[:WIDTH] for name, part in usual.items()}
    real = usual | {"features": real_images().features("reference")[:NUM_SAMPLES]}
    two = {name: part[:2] for name, part in usual.items()}
    return {
        "not a number": broken,
        "infinite": infinite,
        "constant": constant,
        "zero": zero,
        "large": large,
        "fewer than features": few,
        "real": real,
        "one": one,
        "two": two,
    }


@pytest.mark.filterwarnings("ignore:the covariance")
@pytest.mark.parametrize("case", degenerate())
@pytest.mark.parametrize("name", METRICS)
def test_any_samples_have_finite_scores_or_one_line(name, case):
    parts = degenerate()[case]
    try:
        values = estimates(METRICS[name](), real_images(), **parts)
    except UserError as error:
        assert "\n" not in str(error) and ";" in str(error)
        assert case not in ("constant", "zero", "large", "real")
        return
    assert case not in ("not a number", "infinite")
    for score, each in values.items():
        assert math.isfinite(each.value), score
        assert each.deviations is None or torch.isfinite(each.deviations).all(), score


@pytest.mark.filterwarnings("ignore:the covariance")
@pytest.mark.parametrize(
    "real", [torch.ones(40, WIDTH), torch.zeros(40, WIDTH), normal(40, WIDTH, 0)[:, :1].expand(-1, 6)]
)
@pytest.mark.parametrize("name", METRICS)
def test_constant_real_images_have_finite_scores(name, real):
    data = RealFeatures(
        real.clone(), held_out=real.clone(), labels=torch.arange(40) % NUM_CLASSES, num_classes=NUM_CLASSES
    )
    for parts in (samples(), degenerate()["constant"], samples() | {"features": real[:1].expand(NUM_SAMPLES, -1)}):
        for score, each in estimates(METRICS[name](), data, **parts).items():
            assert math.isfinite(each.value), score
            assert each.deviations is None or torch.isfinite(each.deviations).all(), score


@pytest.mark.parametrize("name", ["frechet", "kernel", "precision and recall", "density and coverage", "sliced"])
def test_real_images_that_are_not_finite_are_an_error(name):
    real = normal(NUM_REAL, WIDTH, 0)
    real[3, 3] = math.nan
    with pytest.raises(UserError, match="not finite"):
        METRICS[name]().prepare(RealFeatures(real), NUM_SAMPLES)


@pytest.fixture(scope="module")
def digits() -> tuple[RealFeatures, DigitsFeatures, Tensor, Tensor]:
    """Half of the training images as the reference, and the other half with its labels."""
    data, net = ImageDataModule(source=Digits()), DigitsFeatures()
    images, labels = torch.tensor(data.images("train")), torch.tensor(data.labels("train")).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    real, rest = order[:721], order[721:]
    features = RealFeatures(net(images[real])[0], labels=labels[real], net_name="digits", num_classes=10)
    return features, net, images[rest], labels[rest]


def values(digits: tuple[RealFeatures, DigitsFeatures, Tensor, Tensor], images: Tensor) -> dict[str, float]:
    real, net, _, _ = digits
    metrics = [
        PrecisionRecall(),
        DensityCoverage(),
        VendiScore(),
        KernelDistance(),
        SlicedWasserstein(),
        FrechetDistance(),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {
            name: estimate.value
            for metric in metrics
            for name, estimate in estimates(metric, real, features=net(images)[0]).items()
        }


@pytest.mark.slow
def test_two_lost_classes_lower_recall_and_coverage_alone(digits):
    _, _, images, labels = digits
    whole, lost = values(digits, images), values(digits, images[labels < 8])
    assert lost["recall"] < whole["recall"] - 0.1 and lost["coverage"] < whole["coverage"] - 0.1
    assert abs(lost["precision"] - whole["precision"]) < 0.02 and abs(lost["density"] - whole["density"]) < 0.1
    assert lost["vendi_digits"] < whole["vendi_digits"] - 0.8
    for name in ("kd_digits", "sw_digits", "fd_digits"):
        assert lost[name] > 2 * whole[name]


@pytest.mark.slow
def test_noise_lowers_precision_and_density_more_than_recall(digits):
    _, _, images, _ = digits
    noise = 40 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    whole, noisy = values(digits, images), values(digits, (images + noise).clamp(0, 255).to(torch.uint8))
    assert noisy["precision"] < whole["precision"] - 0.1 and noisy["density"] < whole["density"] - 0.2
    assert noisy["recall"] > whole["recall"] - 0.08
    assert noisy["vendi_digits"] > whole["vendi_digits"]  # variety alone: it takes noise for diversity
    for name in ("kd_digits", "sw_digits", "fd_digits"):
        assert noisy[name] > 2 * whole[name]


@pytest.mark.slow
def test_blur_lowers_precision_and_recall(digits):
    _, _, images, _ = digits
    blurred = torch.nn.functional.avg_pool2d(images.float(), 3, 1, 1).to(torch.uint8)
    whole, smooth = values(digits, images), values(digits, blurred)
    for name in ("precision", "recall", "density", "coverage", "vendi_digits"):  # blurred images are alike
        assert smooth[name] < 0.7 * whole[name], name


def deviations(estimate: Estimate) -> Tensor:
    assert estimate.deviations is not None
    return estimate.deviations


def generated(n: int, seed: int, better: bool) -> dict[str, Tensor]:
    """Samples of one of two generators, with common noise; bounded, as the kernel has sixth moments of the features."""
    noise = 3 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) - 1.5
    other = normal(n, 4, seed + 500_000)
    if better:
        return {"features": 1.1 * noise + 0.2, "logits": 3 * other}
    return {"features": 1.3 * noise + 0.5, "logits": 2 * other + 0.3 * normal(n, 4, seed + 900_000)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, n, names",
    [
        (KernelDistance, 500, ["kd_features"]),
        pytest.param(FrechetDistance, 500, ["fd_features"], marks=pytest.mark.exhaustive),
        pytest.param(DensityCoverage, 200, ["density", "coverage"], marks=pytest.mark.exhaustive),
        pytest.param(PrecisionRecall, 200, ["precision", "recall"], marks=pytest.mark.exhaustive),
        pytest.param(partial(InceptionScore, splits=1), 500, ["inception_score"], marks=pytest.mark.exhaustive),
        pytest.param(
            partial(SlicedWasserstein, num_projections=32), 500, ["sw_features"], marks=pytest.mark.exhaustive
        ),
    ],
)
def test_intervals_of_differences_hold_the_expected_difference(make, n, names):
    real = RealFeatures(normal(150, 3, 7), num_classes=4)
    rows = []
    for repeat in range(400):
        first, second = (estimates(make(), real, **generated(n, 1000 + repeat, better)) for better in (True, False))
        for name in names:
            spread = deviations(second[name]) - deviations(first[name])
            rows.append((second[name].value - first[name].value, float(spread.std())))
    for name, (change, error) in zip(names, np.array(rows).reshape(400, -1, 2).transpose(1, 2, 0), strict=True):
        held = np.mean(abs(change - change.mean()) <= 1.96 * error)
        print(f"\n{name}: {held:.4f} of the intervals, {error.mean() / change.std():.3f} of the spread")
        # recall and coverage are not means over samples, so their spread may be too large
        assert 0.93 <= held <= (0.99 if name in ("recall", "coverage") else 0.97), name
