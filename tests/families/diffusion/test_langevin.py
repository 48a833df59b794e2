"""Langevin steps: the papers' algorithms, and the marginals that they preserve."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import (
    DiscreteVP,
    EDMSchedule,
    GaussianMixtureDenoiser,
    Rectified,
    Schedule,
    UniformLogSNR,
)
from lit_gen.families.diffusion.samplers import DDIM, DDPM, AnnealedLangevin, PredictorCorrector
from tests.families.diffusion.exact_answers import (
    Fixed,
    Silent,
    at_time,
    kolmogorov_smirnov,
    moments_for_normal_data,
    run,
)

EDM = EDMSchedule()


def score(mixture: GaussianMixtureDenoiser, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the score by autograd, at alpha = 1."""
    x = x.detach().requires_grad_()
    log_density = mixture.log_density(x, torch.tensor(1.0), torch.tensor(sigma, dtype=torch.float64))
    return torch.autograd.grad(log_density.sum(), x)[0]


# Predictor and corrector.


@pytest.mark.parametrize(
    ("predictor", "same"), [("ancestral", DDPM(steps=9, variance="small")), ("probability_flow", DDIM(steps=9))]
)
def test_without_corrector_it_is_its_predictor(mixture, schedule, predictor, same):
    images = run(PredictorCorrector(steps=9, predictor=predictor, corrector_steps=0), mixture, schedule)
    torch.testing.assert_close(images, run(same, mixture, schedule), rtol=1e-10, atol=1e-10)


def test_without_corrector_the_flow_draws_no_noise(mixture):
    sampler = PredictorCorrector(steps=9, predictor="probability_flow", corrector_steps=0)
    sampler.sample(mixture, DiscreteVP(), Silent(3, range(8)), (2, 3))


def test_is_the_algorithm_of_the_paper(mixture):
    """Compare with algorithm 2 (reverse diffusion and Langevin, variance exploding), with norms per image."""
    steps, corrector_steps, snr = 12, 2, 0.2
    sigmas = EDM.ratio(UniformLogSNR()(EDM, steps)).tolist()
    noise = Noise(1, range(6))
    x = sigmas[0] * noise.normal((2, 3), torch.float64)
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (sigma**2 - after**2) * score(mixture, x, sigma)
        if after == 0:
            break
        x = x + math.sqrt(sigma**2 - after**2) * noise.normal((2, 3), torch.float64)
        for _ in range(corrector_steps):
            gradient, z = score(mixture, x, after), noise.normal((2, 3), torch.float64)
            norms = torch.stack([image.norm() for image in gradient])
            size = (2 * (snr * math.sqrt(6) / norms) ** 2)[:, None, None]
            x = x + size * gradient + (2 * size).sqrt() * z
    sampler = PredictorCorrector(steps=steps, corrector_steps=corrector_steps, snr=snr, grid=UniformLogSNR())
    ours = sampler.sample(mixture, EDM, Noise(1, range(6)), (2, 3))
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("norm", ["image", "level"])
def test_snr_is_the_ratio_of_drift_and_noise(mixture, norm):
    """For pure noise, the ratio of both norms; with the norm of the image, for any x."""
    snr, t = 0.1, 1.0 if norm == "level" else 0.02
    sampler = PredictorCorrector(steps=1, predictor="probability_flow", snr=snr, norm=norm)
    x = EDM(t)[1] * Noise(0, range(50)).normal((2, 3), torch.float64)
    s = t * (1 - 1e-9)
    calm, noisy = (sampler.step(mixture, EDM, x, t, s, Fixed(z, 50)) for z in (0.0, 1.0))
    plain = DDIM(steps=1).step(mixture, EDM, x, t, s, Noise(0, range(50)))
    drift, spread = (calm - plain).flatten(1).norm(dim=1), (noisy - calm).flatten(1).norm(dim=1)
    if norm == "image":
        torch.testing.assert_close(drift / spread, torch.full_like(drift, snr), rtol=1e-4, atol=0)
    else:
        assert float((drift**2 / spread**2).mean().sqrt()) == pytest.approx(snr, rel=0.1)


@pytest.mark.parametrize("schedule", [EDMSchedule(), DiscreteVP(), Rectified()])
@pytest.mark.parametrize("predictor", ["probability_flow", "ancestral", "reverse_diffusion"])
def test_the_corrector_keeps_the_marginal(mixture_1d, schedule: Schedule, predictor):
    """A hundred corrector steps after a short predictor step."""
    t, s = (float(schedule.time(level)) for level in (0.4, 0.39))
    sampler = PredictorCorrector(steps=1, predictor=predictor, corrector_steps=100, snr=0.1, norm="level")
    x = sampler.step(mixture_1d, schedule, at_time(mixture_1d, schedule, t, 2000), t, s, Noise(1, range(2000)))
    assert kolmogorov_smirnov(mixture_1d, x, *schedule(s)) < 0.036


def test_the_corrector_finds_the_marginal(mixture_1d):
    """Corrector steps alone map points from a wrong distribution to that of the level."""
    t, s = 0.4 / 80, 0.399 / 80
    x = torch.zeros(2000, 1, dtype=torch.float64)
    for corrector_steps, near in ((3, False), (250, True)):
        sampler = PredictorCorrector(
            steps=1, predictor="probability_flow", corrector_steps=corrector_steps, snr=0.15, norm="level"
        )
        found = sampler.step(mixture_1d, EDM, x, t, s, Noise(1, range(2000)))
        assert (kolmogorov_smirnov(mixture_1d, found, *EDM(s)) < 0.036) is near


def test_with_norms_of_images_many_pixels_keep_their_distribution():
    data = GaussianMixtureDenoiser(torch.full((1, 400), 0.3), torch.tensor([0.5], dtype=torch.float64))
    x = PredictorCorrector(steps=200, snr=0.1).sample(data, EDM, Noise(0, range(50)), (400,))
    assert float(x.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, rel=0.06)


# Annealed Langevin dynamics.


@pytest.mark.parametrize("denoise", [True, False])
def test_is_the_algorithm_of_song_and_ermon(mixture, denoise: bool):
    """Compare with algorithm 1 of the second paper, with its epsilon."""
    epsilon, steps_each, steps = 0.05 * 0.002**2, 3, 12
    sigmas = EDM.ratio(UniformLogSNR()(EDM, steps)).tolist()[:-1]
    noise = Noise(1, range(6))
    x = sigmas[0] * noise.normal((2, 3), torch.float64)
    for sigma in sigmas:
        size = epsilon * sigma**2 / sigmas[-1] ** 2
        for _ in range(steps_each):
            x = x + size * score(mixture, x, sigma) + math.sqrt(2 * size) * noise.normal((2, 3), torch.float64)
    if denoise:
        x = x + sigmas[-1] ** 2 * score(mixture, x, sigmas[-1])
    sampler = partial(AnnealedLangevin, steps=steps, steps_each=steps_each, step_size=0.05, grid=UniformLogSNR())
    ours = sampler(denoise=denoise).sample(mixture, EDM, Noise(1, range(6)), (2, 3))
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", [EDMSchedule(), DiscreteVP(), Rectified()])
def test_langevin_keeps_the_marginal_of_a_level(mixture_1d, schedule: Schedule):
    t, s = (float(schedule.time(level)) for level in (0.4, 0.39))
    sampler = AnnealedLangevin(steps=1, steps_each=100, step_size=0.03)
    x = sampler.step(mixture_1d, schedule, at_time(mixture_1d, schedule, t, 2000), t, s, Noise(1, range(2000)))
    x = schedule(t)[0] / schedule(s)[0] * x  # only the scale changes to that of s
    assert kolmogorov_smirnov(mixture_1d, x, *schedule(t)) < 0.036


def test_at_rest_the_bias_is_of_first_order_in_the_step():
    """With w = std^2 + sigma^2, the variance of normal data is w / (1 - a / 2) with a = step_size sigma^2 / w."""
    biases = []
    for step_size in (0.4, 0.2):
        grid = UniformLogSNR(sigma_min=0.5, sigma_max=5)
        sampler = AnnealedLangevin(steps=3, steps_each=100, step_size=step_size, denoise=False, grid=grid)
        mean, std = moments_for_normal_data(sampler, EDM, 0.3, 0.5)
        assert mean == pytest.approx(0.3, rel=1e-6)
        assert std**2 == pytest.approx(0.5 / (1 - step_size / 4), rel=1e-6)
        biases.append(std**2 - 0.5)
    assert 1 < math.log2(biases[0] / biases[1]) < 1.1


def test_annealing_converges_with_many_levels_and_small_steps():
    """Four times the levels and half the step size halve both the lag behind the levels and the stationary bias."""
    errors = []
    for steps, step_size in ((60, 0.8), (240, 0.4), (960, 0.2)):
        sampler = AnnealedLangevin(steps=steps, steps_each=1, step_size=step_size, grid=UniformLogSNR())
        mean, std = moments_for_normal_data(sampler, EDM, 0.3, 0.5)
        assert mean == pytest.approx(0.3, abs=1e-9)
        errors.append(std**2 - 0.25)
    first, second = (math.log2(coarse / fine) for coarse, fine in pairwise(errors))
    assert 1 < second < 1.25 < first < 1.5
    assert 0.012 < errors[-1] < 0.02


def test_the_variance_of_a_level_is_too_large_by_the_step_size():
    """For data at one point, the stationary factor is 1 / (1 - step_size / 2)."""
    sampler = AnnealedLangevin(steps=1, steps_each=300, step_size=0.3, denoise=False)
    _, std = moments_for_normal_data(sampler, EDM, 0.0, 1e-9)
    assert std**2 == pytest.approx(80**2 / (1 - 0.15), rel=1e-6)
