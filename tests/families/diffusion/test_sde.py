"""Euler-Maruyama of the reverse SDEs: the equation, and the marginals that it preserves."""

from functools import partial

import pytest
import torch

from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import (
    VE,
    DiscreteVP,
    EDMSchedule,
    Grid,
    LinearVP,
    Rectified,
    Schedule,
    SubVP,
    Uniform,
    UniformLogSNR,
)
from lit_gen.families.diffusion.samplers import Euler, EulerMaruyama
from tests.families.diffusion.exact_answers import Fixed, Silent, kolmogorov_smirnov, moments_for_normal_data, run


@pytest.mark.parametrize("noise_scale", [0.0, 0.6, 1.0, 1.7])
@pytest.mark.parametrize("path", [LinearVP(), SubVP(), VE(), EDMSchedule(), Rectified(), DiscreteVP("cosine")])
def test_a_step_is_that_of_the_reverse_sde(mixture, path: Schedule, noise_scale: float):
    """Compare with dx = [f x - (1 + c^2) / 2 g^2 score] dt + c g dw, with the score by autograd."""
    t, s = 0.4321, 0.4
    x = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    alpha, sigma = path(t)
    (score,) = torch.autograd.grad(mixture.log_density(x, alpha, sigma).sum(), x)
    x = x.detach()
    f, g_squared = path.sde(t)
    drift = f * x - (1 + noise_scale**2) / 2 * g_squared * score
    expected = x + (s - t) * drift + noise_scale * (g_squared * (t - s)).sqrt() * 0.7
    sampler = EulerMaruyama(steps=1, noise_scale=noise_scale, coordinates="schedule")
    torch.testing.assert_close(sampler.step(mixture, path, x, t, s, Fixed(0.7, 4)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("coordinates", "path"), [("sigma", EDMSchedule()), ("rectified", Rectified())])
@pytest.mark.parametrize("g", ["forward", "damped"])
def test_coordinates_are_the_time_of_another_schedule(mixture, schedule, coordinates, path: Schedule, g):
    levels = torch.tensor([3.0, 1.8], dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def step(name, at: Schedule):
        (t, s), (scale, scale_s) = at.time(levels).tolist(), (1 / at(at.time(level))[0] for level in levels)
        sampler = EulerMaruyama(steps=1, noise_scale=0.8, coordinates=name, g=g)
        return scale_s * sampler.step(mixture, at, x / scale, t, s, Fixed(0.7, 4))

    torch.testing.assert_close(step(coordinates, schedule), step("schedule", path), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coordinates", ["sigma", "rectified", "schedule"])
def test_without_noise_it_is_euler_and_draws_none(mixture, schedule, coordinates):
    sampler = EulerMaruyama(steps=9, noise_scale=0.0, coordinates=coordinates)
    images = sampler.sample(mixture, schedule, Silent(3, range(8)), (2, 3))
    euler = run(Euler(steps=9, coordinates=coordinates), mixture, schedule)
    torch.testing.assert_close(images, euler, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("t", [1.0, 0.7, 0.2])
def test_damped_noise_on_the_straight_path(mixture_1d, t: float):
    """Check g^2 = 2 c^2 u, including at pure noise."""
    s, x = t - 0.1, torch.full((1, 1), 0.3, dtype=torch.float64)
    sampler = EulerMaruyama(steps=1, noise_scale=0.9, g="damped", coordinates="schedule")
    zero, one = (sampler.step(mixture_1d, Rectified(), x, t, s, Fixed(z, 1)) for z in (0.0, 1.0))
    assert float(one - zero) ** 2 == pytest.approx(2 * 0.9**2 * t * 0.1, rel=1e-12)


@pytest.mark.parametrize(
    ("sampler", "schedule", "grid"),
    [
        (EulerMaruyama, EDMSchedule(), UniformLogSNR()),
        (partial(EulerMaruyama, coordinates="rectified", g="damped"), Rectified(), Uniform()),
        (partial(EulerMaruyama, coordinates="schedule"), LinearVP(), Uniform()),
    ],
)
def test_many_steps_give_the_distribution_of_the_data(mixture_1d, sampler, schedule: Schedule, grid: Grid):
    x = sampler(steps=150, grid=grid).sample(mixture_1d, schedule, Noise(0, range(2000)), (1,))
    assert kolmogorov_smirnov(mixture_1d, x) < 0.036


def test_noise_without_its_drift_would_be_seen(mixture_1d):
    """The test above fails for dx = flow + g dw."""

    class Driftless(EulerMaruyama):
        def step(self, denoiser, schedule, x, t, s, noise):
            calm, noisy = (super(Driftless, self).step(denoiser, schedule, x, t, s, Fixed(z, len(x))) for z in (0, 1))
            x = Euler(steps=1).step(denoiser, schedule, x, t, s, noise)
            return x + (noisy - calm) * noise.normal(x.shape[1:], x.dtype)

    for sampler, seen in ((EulerMaruyama, False), (Driftless, True)):
        x = sampler(steps=150).sample(mixture_1d, EDMSchedule(), Noise(0, range(2000)), (1,))
        assert (kolmogorov_smirnov(mixture_1d, x) > 0.036) is seen
        _, std = moments_for_normal_data(sampler(steps=60), EDMSchedule(), 0.3, 0.5)
        assert (abs(std - 0.5) > 0.1) is seen
