"""Mean and covariance of features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_gen.core.errors import UserError


@dataclass(frozen=True)
class Moments:
    """Mean and unbiased covariance of features, float64.

    Attributes:
        n: Number of samples.
        mean: (d,)
        cov: (d, d), with the divisor n - 1.
    """

    n: int
    mean: Tensor
    cov: Tensor

    @classmethod
    def from_sums(cls, n: int, total: Tensor, outer: Tensor, origin: Tensor) -> "Moments":
        """Return the moments, given sums over the differences y = x - origin.

        Every origin gives the same moments; an origin near the mean avoids cancellation.

        Args:
            n: Number of samples.
            total: sum y, (d,).
            outer: sum y y^T, (d, d).
            origin: (d,)

        Raises:
            UserError: If there are fewer than two samples, or a feature is not finite.
        """
        if n < 2:
            raise UserError(f"a Frechet distance needs at least 2 images of each kind, not {n}; raise their number")
        if not (torch.isfinite(total).all() and torch.isfinite(outer).all()):
            raise UserError(
                f"some features of {n} images are not finite, so the Frechet distance is undefined; run the feature "
                "net in float32, and check its weights file"
            )
        mean = total / n
        return cls(n, origin + mean, (outer - n * torch.outer(mean, mean)) / (n - 1))

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Return the moments of features (n, d); raises as `from_sums` does."""
        features = features.double()
        origin = features[:1].sum(0)
        centred = features - origin
        return cls.from_sums(len(features), centred.sum(0), centred.T @ centred, origin)
