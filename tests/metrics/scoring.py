"""Scores of samples that are given as tensors."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from lit_gen.metrics.base import Estimate, SampleMetric, ScoredBatch
from lit_gen.metrics.real import RealImages


def scored(rows: Tensor, **parts: Tensor) -> ScoredBatch:
    """Return a batch of the samples with these indices."""
    batch = ScoredBatch(rows)
    return replace(batch, **{name: part[rows] for name, part in parts.items()})


def estimates(metric: SampleMetric, real: RealImages, **parts: Tensor) -> dict[str, Estimate]:
    """Return the estimates of a metric of samples with these features, logits, labels or images."""
    n = len(next(iter(parts.values())))
    metric = metric.prepare(real, n)
    for rows in torch.arange(n).split(37):
        metric.update(scored(rows, **parts))
    found = metric.compute()
    assert found.keys() == metric.directions(real).keys()
    return found


def value(metric: SampleMetric, real: RealImages, **parts: Tensor) -> float:
    (estimate,) = estimates(metric, real, **parts).values()
    assert math.isfinite(estimate.value)
    return estimate.value


def standard_error(estimate: Estimate) -> float:
    assert estimate.deviations is not None
    return float(estimate.deviations.std())
