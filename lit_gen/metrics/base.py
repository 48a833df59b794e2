"""The interface of a metric of samples: what it needs, its names and directions, its settings, its estimates.

A metric in a configuration holds settings alone. `prepare` returns a copy that knows the real images and the number of
samples; `update` adds scored batches on any rank, `compute` returns an estimate for each name, the same on every rank.

    metric = KernelDistance().prepare(RealFeatures(real), num_samples=1000)
    metric.update(ScoredBatch(index, features=features))
    metric.compute()["kd_features"].value
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_gen.core.errors import UserError
from lit_gen.core.processes import gather
from lit_gen.metrics.real import RealImages
from lit_gen.metrics.rows import all_finite

Direction = Literal["higher", "lower"]
"""Direction in which a score improves."""

Need = Literal["images", "features", "logits", "labels", "real images", "real labels", "training images", "held out"]
"""An input of a metric.

Of the samples: their images, features, logits, and the classes that they were sampled with. Of the data: images of the
reference split, their labels, training images, and held-out images.
"""


class Estimate(NamedTuple):
    """A score with its spread over samples.

    Attributes:
        value: The score of all samples.
        deviations: Deviations (R,) whose standard deviation is the standard error, see `metrics.halves`; None if
            unknown.
    """

    value: float
    deviations: Tensor | None = None

    @property
    def standard_error(self) -> float | None:
        """The standard error over samples; None if unknown."""
        return None if self.deviations is None else float(self.deviations.std())


@dataclass(frozen=True)
class ScoredBatch:
    """Samples with what a feature net says about them; None for what no metric of the evaluation needs.

    Attributes:
        index: Indices of the samples, (N,) in 0 .. num_samples - 1; each index is added once, on one rank. They stay
            on the CPU, since a choice by indices on a GPU waits for the GPU.
        images: (N, C, H, W), as the data are stored.
        features: (N, d).
        logits: (N, K).
        labels: Classes that the samples were given, (N,).
    """

    index: Tensor
    images: Tensor | None = None
    features: Tensor | None = None
    logits: Tensor | None = None
    labels: Tensor | None = None

    def take(self, chosen: Tensor) -> "ScoredBatch":
        """Return the samples that an index (M,) chooses."""
        return self._map(lambda part: part[chosen.to(part.device, non_blocking=True)])

    def first(self, num: int) -> "ScoredBatch":
        """Return the samples whose index is below a number; the batch itself, without a copy, if that is all."""
        chosen = self.index < num
        return self if bool(chosen.all()) else self.take(chosen.nonzero()[:, 0])

    def to(self, device: torch.device) -> "ScoredBatch":
        """Return the batch on a device, except for its indices."""
        return replace(self._map(lambda part: part.to(device)), index=self.index.cpu())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ScoredBatch":
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(part) for name, part in parts.items() if part is not None})


class SampleMetric(Metric, ABC):
    """A metric of a known number of samples, comparable between results whose protocols agree.

    Arguments of the constructor are settings; subclasses store each under its own name.
    """

    is_differentiable = False
    full_state_update = False

    needs: frozenset[Need]
    """Inputs of the metric, which `update` and `prepare` receive."""

    num_samples: int
    real: RealImages

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=_gather_rows)

    @abstractmethod
    def directions(self, real: RealImages) -> dict[str, Direction]:
        """Return the names of the scores, which may contain that of the feature net, with their directions."""

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the constructor, which are part of the protocol of each score."""
        names = inspect.signature(type(self)).parameters
        if missing := [name for name in names if not hasattr(self, name)]:
            raise UserError(
                f"evaluation.metrics: {type(self).__name__} does not keep its argument {missing[0]}; store it as an "
                "attribute of that name"
            )
        return {name: getattr(self, name) for name in names}

    def prepare(self, real: RealImages, num_samples: int) -> Self:
        """Return a copy that is ready to be updated.

        Args:
            real: The real images, with features on the device of the samples.
            num_samples: Number of samples over all ranks.

        Raises:
            UserError: If there are too few samples or real images, or the data lack something.
        """
        metric = copy.deepcopy(self)
        metric.real, metric.num_samples = real, num_samples
        metric.begin()
        return metric

    @abstractmethod
    def begin(self) -> None:
        """Add the states, given `real` and `num_samples`; raise a UserError if the metric is not defined for them."""

    @abstractmethod
    def update(self, batch: ScoredBatch) -> None:
        """Add samples."""

    @abstractmethod
    def compute(self) -> dict[str, Estimate]:
        """Return the estimates by name; collective: call it on every rank.

        Raises:
            UserError: If a score is not defined for these samples; raised on every rank.
            ValueError: If the number of samples is not `num_samples`.
        """


class StoredMetric(SampleMetric):
    """A metric that is computed from stored samples: the first `max_images` of them, in float32.

    Subclasses implement `score`, a pure function of the stored samples.
    """

    max_images: int

    index: list[Tensor]

    def begin(self) -> None:
        for name in ("index", *self.stored()):
            self.add_state(name, [], dist_reduce_fx="cat")

    def stored(self) -> list[str]:
        """Return the attributes of `ScoredBatch` that are stored."""
        return [name for name in ("images", "features", "logits", "labels") if name in self.needs]

    @property
    def num_stored(self) -> int:
        """Number of samples that are stored over all ranks."""
        return min(self.num_samples, self.max_images)

    def update(self, batch: ScoredBatch) -> None:
        chosen = batch.first(self.num_stored)  # also if it is none, so that ranks agree on types and shapes
        for name in ("index", *self.stored()):
            getattr(self, name).append(getattr(chosen, name))

    def samples(self) -> ScoredBatch:
        """Return the stored samples of this rank, or of all ranks while the metric is synced, in order of their index.

        Raises:
            ValueError: If their number is not the expected one.
        """
        seen = sum(len(index) for index in self.index) if isinstance(self.index, list) else len(self.index)
        if seen != self.num_stored:
            raise ValueError(f"{type(self).__name__} expects {self.num_stored} samples, but saw {seen}")
        parts = {name: dim_zero_cat(getattr(self, name)) for name in ("index", *self.stored())}
        index = parts["index"]
        in_order = bool((index[1:] > index[:-1]).all())  # those of one process: they need no copy
        return ScoredBatch(**parts) if in_order else ScoredBatch(**parts).take(index.argsort())

    def compute(self) -> dict[str, Estimate]:
        with torch.inference_mode():
            return self.score(self.samples())

    @abstractmethod
    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        """Return the estimates of samples, whose number is `num_stored`."""


def _gather_rows(part: Tensor, group: Any = None) -> list[Tensor]:
    """Return the tensors of all ranks, without the empty ones of ranks that had no samples.

    torchmetrics replaces the samples of such a rank by an empty vector, which its own operation cannot gather with
    matrices.
    """
    parts = [other.to(part.device) for other in gather(part.cpu())]
    return [other for other in parts if other.numel()] or parts[:1]


def check_points(points: Tensor, least: int, score: str, what: str, kind: str = "features") -> None:
    """Raise a UserError unless a score has enough points (n, d), all of them finite.

    Args:
        points: Features of samples or of real images.
        least: Least number of points.
        score: Name of the score.
        what: Name of the points, such as samples.
        kind: Name of their values.
    """
    if len(points) < least:
        raise UserError(f"{score} needs at least {least} {what}, not {len(points)}; raise their number")
    if not all_finite(points):
        raise UserError(
            f"some {kind} of {len(points)} {what} are not finite, so {score} is undefined; run the feature net in "
            "float32, and check its weights file"
        )
