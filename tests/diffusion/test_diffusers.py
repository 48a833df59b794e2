"""Equality with the schedulers of diffusers, given the same network, grid and noise.

Faults there, stepped around: DDIMScheduler finds the previous step by a fixed stride, which is right only where the
number of steps divides that of the chain (huggingface/diffusers#11347, #12633); DDPMScheduler with fixed_large leaves
the noise of the last step in the image unless that is step 0 of the chain. Its tables are float32, hence the tolerance.
"""

import pytest
import torch
from exact_answers import exact_network
from torch import Tensor

from lit_gen.diffusion import (
    DDIM,
    DDPM,
    DiscreteVP,
    EDMPreconditioning,
    EDMSchedule,
    Epsilon,
    Euler,
    Grid,
    Heun,
    Karras,
    NetworkDenoiser,
    Sampler,
    Schedule,
    Uniform,
)
from lit_gen.noise import Noise

diffusers = pytest.importorskip("diffusers")

VP, EDM = DiscreteVP(), EDMSchedule()
SHAPE = (2, 3)


class Knots(Grid):
    """Chosen steps of the chain."""

    def __init__(self, steps: list[int]) -> None:
        self.knots = steps

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        return torch.tensor([*self.knots, 0], dtype=torch.float64) / 1000


UNEVEN = [1000, 950, 700, 699, 400, 150, 37, 2, 1]


def the_same_noise(monkeypatch: pytest.MonkeyPatch, module: str) -> Tensor:
    """Makes a scheduler draw as our samplers do, and returns the first draw."""
    noise = Noise(3, range(8))
    scheduling = pytest.importorskip(f"diffusers.schedulers.{module}")
    monkeypatch.setattr(
        scheduling, "randn_tensor", lambda shape, dtype=None, **_: noise.normal(shape[1:], dtype), raising=True
    )
    return noise.normal(SHAPE, torch.float64)


def ours(sampler: Sampler, network, schedule: Schedule, parameterization) -> Tensor:
    denoiser = NetworkDenoiser(network, schedule, parameterization)
    return sampler.sample(denoiser, schedule, Noise(3, range(8)), SHAPE)


def network_of(mixture, schedule, parameterization):
    """An exact network, a little spoilt."""
    exact = exact_network(mixture, schedule, parameterization)
    return lambda x, c_noise, labels: exact(x, c_noise, labels) + 0.05 * torch.sin(3 * x)


def loop(scheduler, network, x: Tensor, scaled: bool = False) -> Tensor:
    for index in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, index) if scaled else x
        output = network(model_input, torch.full((8,), float(index), dtype=torch.float64), None)
        x = scheduler.step(output, index, x).prev_sample
    return x


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [[*range(1000, 0, -100), 1], [*range(1000, 0, -25), 1], UNEVEN])
def test_ddpm(mixture, monkeypatch, variance, steps):
    network = network_of(mixture, VP, Epsilon())
    scheduler = diffusers.DDPMScheduler(variance_type=f"fixed_{variance}", clip_sample=False)
    scheduler.set_timesteps(timesteps=[k - 1 for k in steps])
    x = float(VP(1.0)[1]) * the_same_noise(monkeypatch, "scheduling_ddpm")
    theirs = loop(scheduler, network, x)
    sampler = DDPM(steps=len(steps), variance=variance, grid=Knots(steps))
    torch.testing.assert_close(ours(sampler, network, VP, Epsilon()), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("betas", ["linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(mixture, monkeypatch, betas, eta: float):
    # The cosine chain is left out at its last steps, where D is the difference of huge float32 numbers.
    schedule = DiscreteVP(betas)
    network = network_of(mixture, schedule, Epsilon())
    names = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    scheduler = diffusers.DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule=names[betas], clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(20)
    first = 0 if betas == "linear" else 1
    scheduler.timesteps = scheduler.timesteps[first:]
    knots = [int(index) + 1 for index in scheduler.timesteps]
    assert knots == [*range(1000 - 50 * first, 0, -50)]
    x = float(schedule(knots[0] / 1000)[1]) * the_same_noise(monkeypatch, "scheduling_ddim")
    for index in scheduler.timesteps:
        output = network(x, torch.full((8,), float(index), dtype=torch.float64), None)
        x = scheduler.step(output, index, x, eta=eta).prev_sample
    sampler = DDIM(steps=len(knots), eta=eta, grid=Knots(knots))
    torch.testing.assert_close(ours(sampler, network, schedule, Epsilon()), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("coordinates", ["sigma", "rectified"])
def test_euler(mixture, coordinates, steps: int):
    network = network_of(mixture, VP, Epsilon())
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x = float(VP.ratio(1.0)) * Noise(3, range(8)).normal(SHAPE, torch.float64)
    # The start is scaled as x / alpha: ours is sigma eps.
    theirs = loop(scheduler, network, x, scaled=True)
    sampler = Euler(steps=steps, grid=Uniform(), coordinates=coordinates)
    torch.testing.assert_close(ours(sampler, network, VP, Epsilon()), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [10, 20])
def test_heun(mixture, steps: int):
    network = network_of(mixture, VP, Epsilon())
    scheduler = diffusers.HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == 2 * steps - 1
    x = float(VP.ratio(1.0)) * Noise(3, range(8)).normal(SHAPE, torch.float64)
    theirs = loop(scheduler, network, x, scaled=True)
    sampler = Heun(steps=steps, grid=Uniform())
    torch.testing.assert_close(ours(sampler, network, VP, Epsilon()), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", [Euler(steps=18, coordinates="sigma"), DDIM(steps=18), Euler(steps=18)])
def test_edm_euler(mixture, sampler: Sampler):
    network = network_of(mixture, EDM, EDMPreconditioning())
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(18)
    torch.testing.assert_close(scheduler.sigmas.double()[:-1], EDM.ratio(Karras()(EDM, 18))[:-1], rtol=1e-5, atol=0)
    x = 80 * Noise(3, range(8)).normal(SHAPE, torch.float64)
    theirs = loop(scheduler, network, x, scaled=True)
    torch.testing.assert_close(ours(sampler, network, EDM, EDMPreconditioning()), theirs.double(), rtol=1e-4, atol=1e-4)
