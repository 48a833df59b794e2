r"""The mathematics of weight averages: half-life, power-function profiles, and any width after training.

The power-function average of the weights theta over a training run of length T (in images) is

    theta_hat(T) = int_0^T p(t) theta(t) dt,    p(t) = (gamma + 1) t^gamma / T^(gamma + 1):

Its profile p stretches with the training, so that one number is its width at all lengths: the relative standard
deviation `std`, the standard deviation of p divided by T. Unlike the profile of a fixed decay, p is exactly 0 at the
initial weights.

`power_decay` updates an average step by step. Linear combinations of averages stored at a few times and widths
approximate averages of other widths: `combine` finds the least-squares combination of their profiles, whose inner
products have closed forms (`inner_product`).

Paper: Karras et al. 2024, https://arxiv.org/abs/2312.02696
"""

import math

import numpy as np
from numpy.typing import NDArray

from lit_gen.core.errors import UserError

MAX_STD = 12**-0.5
"""Width of the plain mean of all weights, gamma = 0: the widest average that does not favor the initial weights."""

Numbers = NDArray[np.float64]


def halflife_decay(batch: float, images: float, halflife: float, ramp: float) -> float:
    """Return beta = 0.5^(batch / min(halflife, ramp images)), the decay of the average over a batch.

    Paper: Karras et al. 2022, https://arxiv.org/abs/2206.00364 (their training code)

    Args:
        batch: Images between the last update and this one.
        images: Images seen, with these.
        halflife: Half-life in images.
        ramp: Largest half-life as a fraction of the images seen.
    """
    return float(0.5 ** (batch / min(halflife, ramp * images)))


def power_decay(batch: float, images: float, gamma: float) -> float:
    """Return beta = (1 - batch / images)^(gamma + 1), the decay of average <- beta average + (1 - beta) theta.

    The average has exactly the profile of gamma if the weights are constant between updates; the first update returns
    the weights themselves.

    Args:
        batch: Images between the last update and this one.
        images: Images seen, with these.
        gamma: The exponent of the profile.
    """
    return float((1 - batch / images) ** (gamma + 1))


def std_of(gamma: float) -> float:
    """Return the relative standard deviation sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))) of a profile."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def gamma_of(std: float, key: str = "std") -> float:
    """Return the exponent, at least 0, of the profile of a relative standard deviation.

    It is the largest root of gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + 12 - std^-2.

    Args:
        std: The relative standard deviation.
        key: Name of the standard deviation in an error message.

    Raises:
        UserError: If the std is not in (0, 12^-1/2].
    """
    if not 1e-6 <= std <= MAX_STD:  # the square of a smaller one is lost in rounding
        widest = math.floor(MAX_STD * 1e6) / 1e6  # rounded down: it must itself be accepted
        raise UserError(f"{key}: {std:.8g} is not the relative width of an average; give a number in (0, {widest}]")
    roots = np.roots([1.0, 7.0, 16 - std**-2, 12 - std**-2])
    gamma = max(float(root.real) for root in roots)
    return max(gamma, 0.0)


def profile(t: Numbers, length: float, gamma: float) -> Numbers:
    """Return p(t) for a training length; 0 beyond the end."""
    inside: Numbers = np.where(t <= length, (gamma + 1) / length * (t / length) ** gamma, 0.0)
    return inside


def inner_product(length: Numbers, gamma: Numbers, other_length: Numbers, other_gamma: Numbers) -> Numbers:
    """Return int p(t) q(t) dt of two profiles; the arguments broadcast.

    It is (gamma + 1) (gamma' + 1) / (gamma + gamma' + 1) / T_long (T_short / T_long)^(gamma of the longer one).
    """
    short, long = np.minimum(length, other_length), np.maximum(length, other_length)
    exponent = np.where(length > other_length, gamma, other_gamma)
    product: Numbers = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) / long * (short / long) ** exponent
    return product


def combine(lengths: Numbers, stds: Numbers, length: float, std: float) -> tuple[Numbers, float]:
    """Return the least-squares combination of stored profiles for another profile.

    It minimises int (sum_i c_i p_i - p)^2 dt subject to sum_i c_i = 1, so that constant weights stay as they are. (The
    paper has no such constraint, which scales all weights if few profiles are stored.)

    Args:
        lengths: Lengths (N,) of the stored profiles, in images.
        stds: Relative standard deviations (N,) of the stored profiles.
        length: Length of the wanted profile, in images.
        std: Relative standard deviation of the wanted profile.

    Returns:
        The coefficients (N,), and the error sqrt(int (sum_i c_i p_i - p)^2 dt / int p^2 dt).

    Raises:
        UserError: If a std is out of range.
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
