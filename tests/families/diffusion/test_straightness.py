"""Straightness of the sampling paths."""

import pytest
import torch

from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import GaussianMixtureDenoiser
from lit_gen.families.diffusion.straightness import straightness


@pytest.mark.parametrize("std", [0.3, 1.0, 2.5])
def test_normal_data_have_the_straightness_of_the_closed_form(std):
    """For N(0, s^2), x_t = r(t) x_1 with r(t)^2 = (1 - t)^2 s^2 + t^2, so v = r'(t) x_1."""
    denoiser = GaussianMixtureDenoiser(torch.zeros(1, 2), torch.tensor([std]))
    found = straightness(denoiser, Noise(3, range(5)), (2,), steps=4000)
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    velocity = (t - (1 - t) * std**2) / ((1 - t).square() * std**2 + t.square()).sqrt()
    start = Noise(3, range(5)).normal((2,), torch.float64)
    exact = (velocity - (1 - std)).square().mean() * start.square().mean(1)
    torch.testing.assert_close(found, exact, rtol=2e-2, atol=0)


@pytest.mark.parametrize("std", [0.3, 1.0, 2.5])
def test_two_steps_meet_the_velocities_at_their_beginnings(std):
    """The variance of two velocities is half their difference, squared.

    At t = 1 the velocity is x_1, so x_1/2 = x_1 / 2, at which it is x_1 (1 - s^2) / (1 + s^2).
    """
    denoiser = GaussianMixtureDenoiser(torch.zeros(1, 2), torch.tensor([std], dtype=torch.float64))
    found = straightness(denoiser, Noise(3, range(5)), (2,), steps=2)
    start = Noise(3, range(5)).normal((2,), torch.float64)
    exact = start.square().mean(1) * (std**2 / (1 + std**2)) ** 2
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=0)


def test_on_the_line_paths_keep_their_quantile():
    """Paths on the line never cross, so F_t(x_t) is the same at all t, with F_t the distribution function of x_t."""
    mean, std, num = 0.9, 0.2, 2000
    denoiser = GaussianMixtureDenoiser(torch.tensor([[mean], [-mean]]), torch.full((2,), std))
    found = straightness(denoiser, Noise(0, range(7)), (1,), steps=4000)
    start = Noise(0, range(7)).normal((1,), torch.float64)
    t = torch.linspace(1, 0, num + 1, dtype=torch.float64)
    spread = ((1 - t).square() * std**2 + t.square()).sqrt()
    low, high = (torch.full((7, num + 1), end, dtype=torch.float64) for end in (-9.0, 9.0))
    for _ in range(50):
        x = (low + high) / 2
        share = sum(torch.special.ndtr((x - (1 - t) * m) / spread) for m in (mean, -mean)) / 2
        below = share < torch.special.ndtr(start)
        low, high = torch.where(below, x, low), torch.where(below, high, x)
    velocity = (low + high).diff() / 2 * -num
    exact = velocity.square().mean(1) - velocity.mean(1).square()
    assert exact.std() > 0.02 * exact.mean()
    torch.testing.assert_close(found, exact, rtol=2e-3, atol=0)


def test_a_point_is_reached_on_straight_paths():
    denoiser = GaussianMixtureDenoiser(torch.tensor([[0.3, -0.7]]), torch.zeros(1))
    found = straightness(denoiser, Noise(0, range(7)), (2,), steps=9)
    torch.testing.assert_close(found, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-12)
