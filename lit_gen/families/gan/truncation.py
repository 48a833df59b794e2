"""Truncation: sampling latents from less than the whole normal distribution."""

from typing import Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.settings import Sampler


class Truncation(Sampler):
    """Latents from a truncated normal distribution: closer to the mean, at the cost of variety.

    Paper: Brock et al. 2018, https://arxiv.org/abs/1809.11096

    Args:
        threshold: Largest magnitude of a component of z.
        method: `resample` draws components beyond the threshold again until they are within it, as in the paper. This
            is the normal distribution given |z| < threshold, sampled by its inverse distribution function. `clip`
            clamps them to the threshold.

    Raises:
        UserError: If the threshold is not positive.
    """

    def __init__(self, threshold: float = 1.0, method: Literal["resample", "clip"] = "resample") -> None:
        if not threshold > 0:
            raise UserError(
                f"sampler.threshold: {threshold} is not positive; give a positive number, or remove the sampler to "
                "sample the whole normal distribution"
            )
        self.threshold = threshold
        self.method = method

    def latents(self, noise: Noise, dim: int) -> Tensor:
        """Sample z (N, dim), float32."""
        if self.method == "clip":
            return noise.normal((dim,)).clamp(-self.threshold, self.threshold)
        u = noise.uniform((dim,), torch.float64)
        below = torch.special.ndtr(torch.tensor(-self.threshold, dtype=torch.float64, device=u.device))
        z: Tensor = torch.special.ndtri(below + u * (1 - 2 * below))
        return z.clamp(-self.threshold, self.threshold).float()
