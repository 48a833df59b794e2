"""How latents of adversarial models are drawn, other than from the whole normal distribution."""

from typing import Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.settings import Sampler


class Truncation(Sampler):
    """Latents of a truncated normal distribution: nearer to the mean, so fewer kinds of images.

    Paper: Brock et al. 2018, https://arxiv.org/abs/1809.11096

    Args:
        threshold: Largest magnitude of a component of z.
        method: resample, as in the paper: components beyond it are drawn again until they are within, which is the
            normal distribution given |z| < threshold, drawn here by its inverse distribution function; or clip them.

    Raises:
        UserError: the threshold is not positive.
    """

    def __init__(self, threshold: float = 1.0, method: Literal["resample", "clip"] = "resample") -> None:
        if not threshold > 0:
            raise UserError(
                f"sampler.threshold: {threshold} is not positive; leave the sampler out for the whole normal"
            )
        self.threshold = threshold
        self.method = method

    def latents(self, noise: Noise, dim: int) -> Tensor:
        """z (N, dim), float32."""
        if self.method == "clip":
            return noise.normal((dim,)).clamp(-self.threshold, self.threshold)
        u = noise.uniform((dim,), torch.float64)
        below = torch.special.ndtr(torch.tensor(-self.threshold, dtype=torch.float64, device=u.device))
        z: Tensor = torch.special.ndtri(below + u * (1 - 2 * below))
        return z.clamp(-self.threshold, self.threshold).float()
