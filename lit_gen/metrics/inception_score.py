r"""The inception score: high if each image is recognisable and all images together are diverse.

    IS = exp( E_x KL(p(y|x) || p(y)) ),    p(y) = E_x p(y|x)

It lies between 1 and the number of classes. Over a split of n images, with the entropies of probabilities p_i:

    log IS = 1/n sum_i sum_y p_i(y) log p_i(y)  -  sum_y q(y) log q(y),    q = 1/n sum_i p_i

so a split needs only the sums of p_i and of p_i log p_i.

Salimans et al., "Improved Techniques for Training GANs", 2016, https://arxiv.org/abs/1606.03498.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_gen.core.errors import UserError


class InceptionScore(Metric):
    """Metric: mean and standard deviation of the inception score over splits of a known number of images.

    The index alone determines the split of an image: split k of S holds floor(kN/S) <= i < floor((k + 1)N/S), as in
    torch-fidelity without shuffling. The result therefore does not depend on the order or the number of processes, but
    the images should not be sorted by class.

    The state consists of float64 sums per split, which DDP adds up. `compute` is collective: call it on every rank.

    Args:
        num_classes: Number of logits.
        num_samples: Number of images to score, over all ranks.
        splits: Number of splits. Few images per split bias the score downwards.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        UserError: If there are fewer images than splits.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    count: Tensor
    probability: Tensor
    negentropy: Tensor

    def __init__(self, num_classes: int, num_samples: int, splits: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_samples < splits:
            raise UserError(
                f"an inception score of {splits} splits needs at least {splits} images, not {num_samples}; sample more"
            )
        self.num_samples = num_samples
        self.splits = splits
        self.add_state("count", torch.zeros(splits, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("probability", torch.zeros(splits, num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("negentropy", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, index: Tensor) -> None:
        """Add the logits (N, num_classes) of the images with the given indices, (N,) in 0 .. num_samples - 1."""
        log_p = logits.to(self.probability).log_softmax(1)
        p = log_p.exp()
        split = ((index.to(self.count) + 1) * self.splits - 1) // self.num_samples
        self.count.index_add_(0, split, torch.ones_like(split))
        self.probability.index_add_(0, split, p)
        self.negentropy.index_add_(0, split, (p * log_p).sum(1))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (divisor: the number of splits) over the splits, float64 scalars.

        Raises:
            UserError: If some logits are not finite; raised on every rank.
            ValueError: If the number of images seen is not `num_samples`.
        """
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
        return scores.mean(), scores.std(correction=0)
