import pytest
import torch

from lit_gen.diffusion import GaussianMixtureDenoiser
from lit_gen.diffusion.straightness import straightness
from lit_gen.noise import Noise


@pytest.mark.parametrize("std", [0.3, 1.0, 2.5])
def test_normal_data_have_the_straightness_of_the_closed_form(std):
    """For N(0, s^2), x_t = r(t) x_1 with r(t)^2 = (1 - t)^2 s^2 + t^2, so that v = r'(t) x_1."""
    denoiser = GaussianMixtureDenoiser(torch.zeros(1, 2), torch.tensor([std]))
    found = straightness(denoiser, Noise(3, range(5)), (2,), steps=4000)
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    velocity = (t - (1 - t) * std**2) / ((1 - t).square() * std**2 + t.square()).sqrt()
    start = Noise(3, range(5)).normal((2,), torch.float64)
    exact = (velocity - (1 - std)).square().mean() * start.square().mean(1)
    torch.testing.assert_close(found, exact, rtol=2e-2, atol=0)


def test_a_point_is_reached_on_straight_paths():
    denoiser = GaussianMixtureDenoiser(torch.tensor([[0.3, -0.7]]), torch.zeros(1))
    found = straightness(denoiser, Noise(0, range(7)), (2,), steps=9)
    torch.testing.assert_close(found, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-12)
    two_points = GaussianMixtureDenoiser(torch.tensor([[0.9], [-0.9]]), torch.full((2,), 1e-3))
    assert (straightness(two_points, Noise(0, range(7)), (1,), steps=50) > 1e-3).any()
