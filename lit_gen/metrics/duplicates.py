"""The share of samples that repeat another sample.

A sample is a duplicate if its nearest other sample is identical, or nearer than half the median distance between a real
image and its nearest different real image. The rate of real images is therefore above 0 if some of them repeat, as
binarised images may.
"""

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics.base import Direction, Estimate, ScoredBatch, StoredMetric
from lit_gen.metrics.halves import mean_deviations
from lit_gen.metrics.nearest import nearest
from lit_gen.metrics.real import RealImages


def duplicate_rate(real: Tensor, fake: Tensor) -> float:
    """Return the share of generated images (m, d) that are duplicates, given real images (n, d).

    Raises:
        ValueError: If there are fewer than two generated images.
    """
    return float(duplicates(real, fake).double().mean())


def duplicates(real: Tensor, fake: Tensor) -> Tensor:
    """Return which generated images (m, d) are duplicates of another, bool (m,), given real images (n, d)."""
    distance = nearest(fake, fake, own=torch.arange(len(fake), device=fake.device)).distance[:, 0]
    different, repeats = real.unique(dim=0, return_counts=True)
    if len(different) < 2:
        return distance == 0
    gaps = nearest(different, different, own=torch.arange(len(different), device=real.device)).distance[:, 0]
    return (distance < gaps.repeat_interleave(repeats).median() / 2) | (distance == 0)


class Duplicates(StoredMetric):
    """Share of samples that duplicate another sample, by features.

    It grows with the number of samples, so it is comparable at equal numbers only. Its spread treats the samples as
    independent. As many real images as there are samples, evenly spaced over the reference split, set the limit.

    Args:
        max_images: Number of samples that are compared.
    """

    needs = frozenset({"features"})

    def __init__(self, max_images: int = 10_000) -> None:
        super().__init__()
        self.max_images = max_images

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {"duplicate_rate": "lower"}

    def begin(self) -> None:
        if self.num_stored < 2:
            raise UserError("evaluation.num_samples: one sample cannot duplicate another; sample at least 2 images")
        super().begin()

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        assert samples.features is not None
        found = duplicates(self.real.evenly("reference", self.num_stored), samples.features).double()
        return {"duplicate_rate": Estimate(float(found.mean()), mean_deviations(found))}
