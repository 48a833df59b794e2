"""Choose the metrics of an evaluation, and state the protocol that makes a score of two results comparable."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.evaluation.real_images import DataImages
from lit_gen.evaluation.result_file import ResultRecord, score_protocol
from lit_gen.metrics import (
    CopyRate,
    DensityCoverage,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    WassersteinDistance,
)
from lit_gen.metrics.base import Need, SampleMetric
from lit_gen.metrics.real import Part

LEAST_NEIGHBOURS = 50
"""Least number of samples and of real images for the nearest-neighbour metrics of the default."""
PARTS: dict[Need, Part] = {"training images": "train", "held out": "held out"}
"""Parts of the data that a metric may need in addition to the reference."""
LEAST_COUNTS = {"k": 1, "max_images": 2, "num_projections": 1}
"""Least values of settings that metrics have in common."""


def default_metrics(
    real: DataImages, inception_splits: int, num_samples: int, other_data: bool = False
) -> list[SampleMetric]:
    """Return the metrics of an evaluation that does not name its own: those that the data and the net permit.

    Metrics of nearest neighbours are left out for fewer samples or real images than `LEAST_NEIGHBOURS`, and the
    distance to held-out images unless there are more of them than features.

    Args:
        real: The real images.
        inception_splits: Splits of the inception score.
        num_samples: Number of samples.
        other_data: Whether the model was trained on other images: held-out images and copies are then unknown.
    """
    if not real.data.source.quantised:
        return [WassersteinDistance()]
    metrics: list[SampleMetric] = [FrechetDistance()]
    num_held_out = len(real.data.images(real.split("held out"))) if real.has("held out") and not other_data else 0
    if num_held_out > real.net.width and real.split("held out") != real.split("reference"):
        metrics.append(FrechetDistance(against="held out"))
    if real.num_classes:
        metrics.append(InceptionScore(splits=inception_splits))
    metrics.append(KernelDistance())
    num_real = len(real.data.images(real.split("reference")))
    if min(num_samples, num_real) >= LEAST_NEIGHBOURS:
        metrics += [PrecisionRecall(), DensityCoverage()]
        metrics += [CopyRate()] if num_held_out >= LEAST_NEIGHBOURS else []
    return metrics


def missing_metrics(
    metrics: Sequence[SampleMetric],
    protocols: dict[str, dict[str, Any]],
    real: DataImages,
    result: ResultRecord,
    path: Path,
) -> list[SampleMetric]:
    """Return the metrics with a score that a result lacks.

    Raises:
        UserError: If the result has a score of that name by another protocol, which would be lost.
    """
    for name, now in protocols.items():
        before = score_protocol(result, name) or {} if name in result.metrics else now
        for field in {**before, **now}:
            if before.get(field) != now.get(field):
                raise UserError(
                    f"evaluation.metrics: {path} holds {name} with {field} {before.get(field)}, not {now.get(field)}; "
                    "give the settings that it has, or delete the file to score with others"
                )
    return [metric for metric in metrics if not metric.directions(real).keys() <= result.metrics.keys()]


def check_needs(metrics: Sequence[SampleMetric], real: DataImages, conditional: bool) -> None:
    """Raise a UserError unless data, feature net and model have what the metrics need.

    Args:
        metrics: The metrics.
        real: The real images.
        conditional: Whether samples have classes.
    """
    names: dict[str, SampleMetric] = {}
    for metric in metrics:
        name = type(metric).__name__
        for setting, least in LEAST_COUNTS.items():
            if isinstance(value := getattr(metric, setting, None), int) and value < least:
                raise UserError(f"evaluation.metrics: {name}: {setting} {value} is too few; give at least {least}")
        for need in metric.needs:
            lacks = {
                "logits": not real.num_classes and f"{real.net_name} features come without logits",
                "labels": not conditional and "the model has no classes",
                "real labels": real.labels("reference") is None and f"{real.data.name} has no labels",
                "held out": not real.has("held out") and f"{real.data.name} has no held-out images",
            }
            if reason := lacks.get(need):
                raise UserError(f"evaluation.metrics: {name} needs {need}, and {reason}; remove it")
        for score in metric.directions(real):
            if score in names:
                raise UserError(
                    f"evaluation.metrics: {type(names[score]).__name__} and {name} both give {score}; remove one"
                )
            names[score] = metric


def score_protocols(metrics: Sequence[SampleMetric], real: DataImages) -> dict[str, dict[str, Any]]:
    """Return the protocol of each score, in addition to that of the evaluation."""
    return {
        name: _protocol(metric, real, better) for metric in metrics for name, better in metric.directions(real).items()
    }


def _protocol(metric: SampleMetric, real: DataImages, better: str) -> dict[str, Any]:
    kind = type(metric)
    own = kind.__module__.partition(".")[0] == "lit_gen"
    protocol = {"metric": kind.__name__ if own else f"{kind.__module__}.{kind.__name__}", "better": better}
    if isinstance(metric, FrechetDistance) and (imported := real.imported(metric.against)) is not None:
        protocol["imported_statistics"] = imported
    for need, part in PARTS.items():
        if need in metric.needs:
            split = real.split(part)
            protocol[part.replace(" ", "_")] = real.data.fingerprint(split)
    return protocol | metric.settings()
