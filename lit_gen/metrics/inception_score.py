r"""The inception score: high if each image is recognisable and all images together are diverse.

    IS = exp( E_x KL(p(y|x) || p(y)) ),    p(y) = E_x p(y|x)

It lies between 1 and the number of classes. Over a split of n images, with the entropies of probabilities p_i:

    log IS = 1/n sum_i sum_y p_i(y) log p_i(y)  -  sum_y q(y) log q(y),    q = 1/n sum_i p_i

so a split needs only the sums of p_i and of p_i log p_i.

Salimans et al., "Improved Techniques for Training GANs", 2016, https://arxiv.org/abs/1606.03498.
"""

import math
from typing import cast

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from lit_gen.core.errors import UserError
from lit_gen.metrics.base import Direction, Estimate, SampleMetric, ScoredBatch
from lit_gen.metrics.halves import mean_deviations
from lit_gen.metrics.real import RealImages

MAX_STORED = 10_000
"""Number of samples that give the spread of the score."""


class InceptionScore(SampleMetric):
    """Mean and standard deviation of the inception score over splits of the samples.

    The index alone determines the split of an image: split k of S holds floor(kN/S) <= i < floor((k + 1)N/S), as in
    torch-fidelity without shuffling. The result therefore does not depend on the order or the number of processes, but
    the images should not be sorted by class.

    The state consists of float64 sums per split, which DDP adds up, and the terms of each image for the spread.

    Args:
        splits: Number of splits. Few images per split bias the score downwards.
    """

    needs = frozenset({"logits"})

    count: Tensor
    probability: Tensor
    negentropy: Tensor
    index: list[Tensor]
    log_p: list[Tensor]

    def __init__(self, splits: int = 10) -> None:
        super().__init__()
        if splits < 1:
            raise UserError(f"splits: {splits} is too few; give at least 1")
        self.splits = splits

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {"inception_score": "higher", "inception_score_std": "lower"}

    def begin(self) -> None:
        num_classes, splits = self.real.num_classes, self.splits
        if self.num_samples < splits:
            raise UserError(
                f"an inception score of {splits} splits needs at least {splits} images, not {self.num_samples}; sample "
                "more"
            )
        self.add_state("count", torch.zeros(splits, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("probability", torch.zeros(splits, num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("negentropy", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("index", [], dist_reduce_fx="cat")
        self.add_state("log_p", [], dist_reduce_fx="cat")

    def update(self, batch: ScoredBatch) -> None:
        assert batch.logits is not None
        log_p = batch.logits.to(self.probability).log_softmax(1)
        p = log_p.exp()
        split = ((batch.index.to(self.count, non_blocking=True) + 1) * self.splits - 1) // self.num_samples
        self.count.index_add_(0, split, torch.ones_like(split))
        self.probability.index_add_(0, split, p)
        self.negentropy.index_add_(0, split, (p * log_p).sum(1))
        kept = ScoredBatch(batch.index, logits=log_p.float()).first(MAX_STORED)
        self.index.append(kept.index)  # also if it is none, so that ranks agree on types and shapes
        self.log_p.append(cast(Tensor, kept.logits))

    def compute(self) -> dict[str, Estimate]:
        seen = int(self.count.sum())
        if seen != self.num_samples:
            raise ValueError(f"the inception score expects {self.num_samples} images, but saw {seen}")
        if not torch.isfinite(self.negentropy).all():
            raise UserError(
                f"some logits of {seen} images are not finite, so the inception score is undefined; run the feature "
                "net in float32, and check its weights file"
            )
        marginal = self.probability / self.count[:, None]
        scores = (self.negentropy / self.count - torch.special.xlogy(marginal, marginal).sum(1)).exp()
        mean = float(scores.mean())
        estimate = Estimate(mean, mean * self._log_deviations())
        return {"inception_score": estimate, "inception_score_std": Estimate(float(scores.std(correction=0)))}

    def _log_deviations(self) -> Tensor:
        """Return the deviations of log IS: sample x has the influence KL(p(y|x) || p(y)) - E KL."""
        log_p = dim_zero_cat(self.log_p)[dim_zero_cat(self.index).argsort()].double()
        p = log_p.exp()
        marginal = p.mean(0)
        influence = (p * log_p).sum(1) - torch.special.xlogy(p, marginal).sum(1)
        return mean_deviations(influence) * math.sqrt(len(p) / self.num_samples)
