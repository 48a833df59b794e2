"""Score the samples of an evaluation with all of its metrics."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.files import MEBIBYTE, read_arrays, write_arrays
from lit_gen.core.processes import gather, ranks
from lit_gen.evaluation.real_images import DataImages
from lit_gen.metrics.base import Estimate, SampleMetric, ScoredBatch

MOST_KEPT_BYTES = 64 * MEBIBYTE
"""Largest size of the features and logits that an evaluation keeps, in float16."""


class Scoring:
    """Metrics of a known number of samples over all processes, and the features that may be kept of them.

    Args:
        metrics: The metrics.
        real: The real images.
        num_samples: Number of samples.
        device: Device of the samples.

    Raises:
        UserError: If a metric is not defined for these numbers of images.
    """

    def __init__(
        self, metrics: Sequence[SampleMetric], real: DataImages, num_samples: int, device: torch.device
    ) -> None:
        self.real = real
        self.metrics: list[SampleMetric] = []
        for metric in metrics:
            with _metrics_named():
                self.metrics.append(metric.prepare(real, num_samples).to(device))
        outputs = real.net.width + real.net.num_classes
        self.keeps = real.net.dtype == torch.uint8 and 2 * num_samples * outputs <= MOST_KEPT_BYTES
        # one block of memory, since many small ones would leave gaps that are not given back
        self._kept = torch.empty(num_samples if self.keeps else 0, outputs, dtype=torch.float16, device=device)
        self._kept_index: list[Tensor] = []

    def update(self, images: Tensor, index: Tensor, labels: Tensor | None = None) -> None:
        """Add samples (N, C, H, W), as the data are stored, with their indices (N,), on the CPU, and classes (N,)."""
        features, logits = self.real.net(images)
        labels = None if labels is None else labels.to(images.device, non_blocking=True)
        self.add(ScoredBatch(index, images, features, logits, labels))
        if self.keeps:  # on the device until the end: a copy to the CPU would wait for this batch
            rows = index.to(images.device, non_blocking=True)
            self._kept[rows] = torch.cat([features, logits], 1).half()
            self._kept_index.append(index)

    def add(self, batch: ScoredBatch) -> None:
        """Add samples whose features and logits are known."""
        for metric in self.metrics:
            metric.update(batch)

    def compute(self) -> dict[str, Estimate]:
        """Return the estimates by name; collective: call it on every rank.

        Raises:
            UserError: If a metric gives other names than it says, or a score is not defined for the samples.
        """
        found: dict[str, Estimate] = {}
        for metric in self.metrics:
            with _metrics_named():
                estimates, names = metric.compute(), metric.directions(self.real)
            if estimates.keys() != names.keys():
                raise UserError(
                    f"evaluation.metrics: {type(metric).__name__} gives {', '.join(estimates)}, and its directions "
                    f"name {', '.join(names)}; make them agree"
                )
            found |= estimates
        return found

    def kept(self) -> ScoredBatch | None:
        """Return index, features and logits of all samples in float16, in order, or None; collective."""
        index = torch.cat([torch.empty(0, dtype=torch.int64), *self._kept_index])
        outputs = self._kept.cpu()
        if ranks()[1] > 1:
            for own, rows in gather((index, outputs[index])):
                outputs[own] = rows
        if not self.keeps:
            return None
        features, logits = outputs.split([self.real.net.width, self.real.net.num_classes], dim=1)
        return ScoredBatch(torch.arange(len(outputs)), None, features, logits)


@contextmanager
def _metrics_named() -> Iterator[None]:
    """Prefix a UserError of a metric with the key, unless it names one."""
    try:
        yield
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith("evaluation.") else f"evaluation.metrics: {text}") from None


def save_kept(path: Path, kept: ScoredBatch | None) -> None:
    """Write the features and logits that an evaluation keeps, if it keeps some."""
    if kept is not None and kept.features is not None and kept.logits is not None:
        write_arrays(path, features=kept.features.numpy(), logits=kept.logits.numpy())


def load_kept(path: Path, num_samples: int, real: DataImages) -> ScoredBatch | None:
    """Return the features and logits that an evaluation kept, or None if it kept none that can be read."""
    try:
        arrays = read_arrays(path)
        features, logits = arrays["features"], arrays["logits"]
    except Exception:  # a damaged archive raises any of a dozen, and a missing one has the same remedy
        return None
    shapes = (num_samples, real.net.width), (num_samples, real.net.num_classes)
    if not (np.isfinite(features).all() and np.isfinite(logits).all()):  # too large for float16
        return None
    if (features.shape, logits.shape) != shapes or {features.dtype, logits.dtype} != {np.dtype(np.float16)}:
        return None
    return ScoredBatch(torch.arange(num_samples), None, *(torch.from_numpy(x).float() for x in (features, logits)))
