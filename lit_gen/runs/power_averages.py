r"""The mathematics of weight averages: half-life, power-function profiles, and any width of them after the training.

The power-function average of the weights theta over a training of length T (in images) is

    theta_hat(T) = int_0^T p(t) theta(t) dt,    p(t) = (gamma + 1) t^gamma / T^(gamma + 1):

its profile p stretches with the training, so that its width is one number for all lengths: the relative standard
deviation `std` of p, divided by T. Unlike the profile of a fixed decay it is exactly 0 at the first weights.

A profile is kept up to date from weights to weights (`power_decay`). Profiles stored at a few times and widths span
those of other widths: `combine` finds the combination nearest to the one that is asked for, in the sense of least
squares between profiles, all inner products of which have closed forms (`inner_product`).

Paper: Karras et al. 2024, https://arxiv.org/abs/2312.02696
"""

import math

import numpy as np
from numpy.typing import NDArray

from lit_gen.core.errors import UserError

MAX_STD = 12**-0.5
"""The width of the plain mean of all weights, gamma = 0: the widest average, short of favouring the first weights."""

Numbers = NDArray[np.float64]


def halflife_decay(batch: float, images: float, halflife: float, ramp: float) -> float:
    """beta = 0.5^(batch / min(halflife, ramp images)): the average's decay over a batch.

    Paper: Karras et al. 2022, https://arxiv.org/abs/2206.00364 (their training code)

    Args:
        batch: Images between the last update and this one.
        images: Images seen, with these.
        halflife: Images after which a weight counts half.
        ramp: The half-life is no longer than this share of the images seen.
    """
    return float(0.5 ** (batch / min(halflife, ramp * images)))


def power_decay(batch: float, images: float, gamma: float) -> float:
    """beta = (1 - batch / images)^(gamma + 1), with which average <- beta average + (1 - beta) theta has the profile.

    Exactly so for weights that stand still between updates; the first update gives the weights themselves.

    Args:
        batch: Images between the last update and this one.
        images: Images seen, with these.
        gamma: The exponent of the profile.
    """
    return float((1 - batch / images) ** (gamma + 1))


def std_of(gamma: float) -> float:
    """The relative standard deviation sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))) of the profile of an exponent."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def gamma_of(std: float, key: str = "std") -> float:
    """The exponent of the profile of a relative standard deviation, at least 0.

    It is the largest root of gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + 12 - std^-2.

    Args:
        std: The relative standard deviation.
        key: What an error calls it.

    Raises:
        UserError: the std is not in (0, 12^-1/2].
    """
    if not 1e-6 <= std <= MAX_STD:  # the square of a smaller one is lost in rounding
        widest = math.floor(MAX_STD * 1e6) / 1e6  # rounded down: it must itself be accepted
        raise UserError(f"{key}: {std:.8g} is not the relative width of an average; give a number in (0, {widest}]")
    roots = np.roots([1.0, 7.0, 16 - std**-2, 12 - std**-2])
    gamma = max(float(root.real) for root in roots)
    return max(gamma, 0.0)


def profile(t: Numbers, length: float, gamma: float) -> Numbers:
    """p(t) of a training of a length; 0 beyond its end."""
    inside: Numbers = np.where(t <= length, (gamma + 1) / length * (t / length) ** gamma, 0.0)
    return inside


def inner_product(length: Numbers, gamma: Numbers, other_length: Numbers, other_gamma: Numbers) -> Numbers:
    """int p(t) q(t) dt of two profiles; the arguments broadcast.

    (gamma + 1) (gamma' + 1) / (gamma + gamma' + 1) / T_long (T_short / T_long)^(gamma of the longer one).
    """
    short, long = np.minimum(length, other_length), np.maximum(length, other_length)
    exponent = np.where(length > other_length, gamma, other_gamma)
    product: Numbers = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) / long * (short / long) ** exponent
    return product


def combine(lengths: Numbers, stds: Numbers, length: float, std: float) -> tuple[Numbers, float]:
    """The combination of stored profiles that is nearest to another one.

    Its coefficients sum to 1, so that it is an average: weights that never changed stay as they are. (The paper lets
    the sum differ, which with few stored profiles scales all weights.) It minimises int (sum_i c_i p_i - p)^2 dt.

    Args:
        lengths: Lengths (N,) of the stored profiles, in images.
        stds: Relative standard deviations (N,) of the stored profiles.
        length: Length of the profile that is asked for.
        std: Its relative standard deviation.

    Returns:
        The coefficients (N,), and the error sqrt(int (sum_i c_i p_i - p)^2 dt / int p^2 dt).

    Raises:
        UserError: a std is out of range.
    """
    same = (lengths == length) & (stds == std)
    if same.any():
        return same / same.sum(), 0.0
    lengths = lengths / length  # lengths near 1 keep the equations well scaled
    gammas = np.array([gamma_of(float(value)) for value in stds])
    target_length, target = np.ones(1), np.array([gamma_of(std)])
    products = inner_product(lengths[:, None], gammas[:, None], lengths, gammas)
    projections = inner_product(lengths, gammas, target_length, target)
    ones = np.ones((len(lengths), 1))
    bordered = np.block([[products, ones], [ones.T, np.zeros((1, 1))]])
    coefficients = np.linalg.solve(bordered, np.append(projections, 1.0))[:-1]
    norm = float(inner_product(target_length, target, target_length, target)[0])
    error = norm + float(coefficients @ (products @ coefficients - 2 * projections))
    return coefficients, math.sqrt(max(error, 0.0) / norm)
