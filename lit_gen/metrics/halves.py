"""The spread of a score over samples, from its values on random halves of them.

R halves of n samples are drawn without replacement, the same for every result with n samples. For scores that are close
to a mean over samples, the deviations of a score on the halves from its mean over all halves have the variance of the
score on all n samples: a half doubles the variance, and sampling without replacement halves it. Unlike a bootstrap
sample, a half holds no sample twice, which metrics of nearest neighbours would take for a copy.

Deviations of two results are paired half by half. Image i of a seed has the same noise in both, so the spread of their
difference accounts for the common noise.

McCarthy, "Pseudo-replication: half samples", 1969; Shao and Wu, "A general theory for jackknife variance estimation",
1989, https://doi.org/10.1214/aos/1176347263.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

NUM_HALVES = 200


def half_samples(n: int, num_halves: int = NUM_HALVES) -> Tensor:
    """Return random halves of n samples, bool (R, n) on the CPU, each with n // 2 samples; the same in every call."""
    generator = torch.Generator().manual_seed(n)
    halves = torch.zeros(num_halves, n, dtype=torch.bool)
    for half in halves:
        half[torch.randperm(n, generator=generator)[: n // 2]] = True
    return halves


def deviations(score: Callable[[Tensor], float], n: int, num_halves: int = NUM_HALVES) -> Tensor:
    """Return deviations (R,), float64, whose standard deviation is the standard error of a score of n samples.

    Args:
        score: Function of a mask (n,) of samples.
        n: Number of samples.
        num_halves: Number of halves.
    """
    values = torch.tensor([score(half) for half in half_samples(n, num_halves)], dtype=torch.float64)
    return from_halves(values, n)


def mean_deviations(values: Tensor, num_halves: int = NUM_HALVES) -> Tensor:
    """Return the `deviations` of a mean of values (n,), or of a score on which samples have these influences."""
    n = len(values)
    halves, values = half_samples(n, num_halves).to(values.device), values.double()
    sums = [block.double() @ values for block in halves.split(16)]
    return from_halves((torch.cat(sums) / (n // 2)).cpu(), n)


def from_halves(values: Tensor, n: int) -> Tensor:
    """Return the `deviations` of a score of n samples, given its values (R,) on their `half_samples`."""
    half = n // 2  # the variance of the mean of a half of n values is s^2 (n - half) / (n half), that of all s^2 / n
    return (values - values.mean()) * math.sqrt(half / (n - half))
