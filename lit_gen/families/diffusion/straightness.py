"""Straightness of the paths of the probability flow: the straighter they are, the fewer steps a sampler needs."""

import torch
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser


@torch.no_grad()
def straightness(
    denoiser: Denoiser, noise: Noise, shape: tuple[int, ...], steps: int = 20, labels: Tensor | None = None
) -> Tensor:
    r"""Return S = int_0^1 mean over pixels of |(x_1 - x_0) - v(x_t, t)|^2 dt for each path, (N,) float64.

    The path x_t = (1 - t) x_0 + t eps of rectified flow is integrated from x_1 = eps to x_0 in equal Euler steps. Then
    x_1 - x_0 is the mean of the velocities v = (x_t - D) / t along the path, and S is their variance. S is 0 for
    straight paths, on which one Euler step gives the same result as many.

    Paper: Liu et al. 2022, https://arxiv.org/abs/2209.03003

    Args:
        denoiser: Denoiser of any model.
        noise: Source of x_1.
        shape: Shape of one image.
        steps: Number of steps, each with one network evaluation.
        labels: Classes (N,) for a conditional model.
    """
    x = noise.normal(shape, torch.float64)
    denoiser = denoiser.given(labels)
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(steps):
        t = torch.tensor(1 - step / steps, dtype=torch.float64, device=x.device)
        velocity = (x - denoiser(x, 1 - t, t)) / t
        x = x - velocity / steps
        mean += velocity / steps
        square += velocity.square() / steps
    return (square - mean.square()).flatten(1).mean(1)
