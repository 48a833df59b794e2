"""Equality with the schedulers of diffusers, given the same network, grid and noise.

Known faults of diffusers, avoided here:

- DDIMScheduler finds the previous step by a fixed stride, which is right only if the number of steps divides that of
  the chain (huggingface/diffusers#11347, #12633).
- DDPMScheduler with fixed_large leaves the noise of the last step in the image unless that is step 0 of the chain.
- FlowMatchEulerDiscreteScheduler shifts its smallest level twice if it chooses the levels itself: with shift = 3 and
  10 steps the last level before 0 is 0.0089 instead of 0.0030. It accepts s_churn and ignores it.
- FlowMatchHeunDiscreteScheduler with s_churn raises u by 1 + gamma but neither scales x by (1 - u') / (1 - u), nor
  evaluates the network at u': at s_churn = 10, its samples of N(0.3, 0.5^2) have mean 0.58 and std 0.72 with 80 steps,
  and 0.59 and 0.70 with 320, while `Heun` gives 0.30 and 0.50. Without churn the two are equal.

Different by design: FlowMatchEulerDiscreteScheduler with stochastic_sampling keeps no noise from step to step (c is
sigma_s, while DDIM's maximum is sigma_s sqrt(1 - q^2)): its std of the same data is 0.34 with 80 steps, 0.35 with 320.
EDMEulerScheduler with s_churn is first-order Euler with churn, which this package does not have.

The tables of diffusers are float32, hence the tolerance.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import (
    DiscreteVP,
    EDMPreconditioning,
    EDMSchedule,
    Epsilon,
    Grid,
    Karras,
    NetworkDenoiser,
    Rectified,
    Schedule,
    TimeShift,
    Uniform,
    UniformLogSNR,
    Velocity,
)
from lit_gen.families.diffusion.samplers import (
    DDIM,
    DDPM,
    DEIS,
    LMS,
    DiffusionSampler,
    DPMSolver,
    Euler,
    Heun,
    PredictorCorrector,
    UniPC,
)
from tests.families.diffusion.exact_answers import exact_network

diffusers = pytest.importorskip("diffusers")

VP, EDM, STRAIGHT = DiscreteVP(), EDMSchedule(), Rectified()
SHAPE = (2, 3)


class Levels(Grid):
    """Grid of given noise levels."""

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        return torch.cat([schedule.time(self.levels), torch.zeros(1, dtype=torch.float64)])


class Knots(Grid):
    """Grid of given steps of the chain."""

    def __init__(self, steps: Sequence[float]) -> None:
        self.knots = steps

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        return torch.tensor([*self.knots, 0], dtype=torch.float64) / 1000


UNEVEN = [1000, 950, 700, 699, 400, 150, 37, 2, 1]


def the_same_noise(monkeypatch: pytest.MonkeyPatch, module: str) -> Tensor:
    """Make a scheduler use the noise of our samplers, and return the first random numbers."""
    noise = Noise(3, range(8))
    scheduling = pytest.importorskip(f"diffusers.schedulers.{module}")
    monkeypatch.setattr(
        scheduling, "randn_tensor", lambda shape, dtype=None, **_: noise.normal(shape[1:], dtype), raising=True
    )
    return noise.normal(SHAPE, torch.float64)


def ours(sampler: DiffusionSampler, network, schedule: Schedule, parameterization) -> Tensor:
    denoiser = NetworkDenoiser(network, schedule, parameterization)
    return sampler.sample(denoiser, schedule, Noise(3, range(8)), SHAPE)


def network_of(mixture, schedule, parameterization):
    """Return a slightly perturbed exact network."""
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
    # The last steps of the cosine chain are excluded, because D is the difference of huge float32 numbers there.
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


@pytest.mark.parametrize("steps", [10, 40])
@pytest.mark.parametrize("path", [VP, EDMSchedule(sigma_max=200)])
def test_euler_ancestral(mixture, monkeypatch, path: Schedule, steps: int):
    network = network_of(mixture, VP, Epsilon())
    scheduler = diffusers.EulerAncestralDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    knots = [1000 - k * 1000 // steps for k in range(steps)]
    levels = VP.ratio(torch.tensor(knots).double() / 1000)
    torch.testing.assert_close(scheduler.sigmas.double()[:-1], levels, rtol=1e-4, atol=0)
    x = float(VP.ratio(1.0)) * the_same_noise(monkeypatch, "scheduling_euler_ancestral_discrete")
    theirs = loop(scheduler, network, x, scaled=True)
    sampler = DDIM(steps=steps, eta=1.0, schedule=path, grid=Levels(levels))
    torch.testing.assert_close(ours(sampler, network, VP, Epsilon()), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", [Euler(steps=18, coordinates="sigma"), DDIM(steps=18), Euler(steps=18)])
def test_edm_euler(mixture, sampler: DiffusionSampler):
    network = network_of(mixture, EDM, EDMPreconditioning())
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(18)
    torch.testing.assert_close(scheduler.sigmas.double()[:-1], EDM.ratio(Karras()(EDM, 18))[:-1], rtol=1e-5, atol=0)
    x = 80 * Noise(3, range(8)).normal(SHAPE, torch.float64)
    theirs = loop(scheduler, network, x, scaled=True)
    torch.testing.assert_close(ours(sampler, network, EDM, EDMPreconditioning()), theirs.double(), rtol=1e-4, atol=1e-4)


# Rectified flow. The time of these schedulers is 1000 u, and their networks predict the velocity.


def of_velocity(network):
    return lambda x, index, labels: network(x, 0.999 * index, labels)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [10, 28])
@pytest.mark.parametrize("coordinates", ["rectified", "schedule"])
def test_flow_match_euler(mixture, coordinates, steps: int, shift: float):
    """Pass the levels before the shift, as pipelines do."""
    network = network_of(mixture, STRAIGHT, Velocity())
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    times = TimeShift(shift)(STRAIGHT, steps)
    torch.testing.assert_close(scheduler.sigmas.double(), times, rtol=1e-6, atol=0)
    theirs = loop(scheduler, of_velocity(network), Noise(3, range(8)).normal(SHAPE, torch.float64))
    sampler = Euler(steps=steps, grid=TimeShift(shift), coordinates=coordinates)
    torch.testing.assert_close(ours(sampler, network, STRAIGHT, Velocity()), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [5, 20])
def test_flow_match_heun(mixture, steps: int, shift: float):
    network = network_of(mixture, STRAIGHT, Velocity())
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == 2 * steps - 1
    u = torch.linspace(1, scheduler.sigma_min, steps, dtype=torch.float64)
    u = shift * u / (1 + (shift - 1) * u)
    torch.testing.assert_close(scheduler.sigmas[[0, *range(1, 2 * steps - 1, 2)]].double(), u, rtol=1e-5, atol=0)
    theirs = loop(scheduler, of_velocity(network), Noise(3, range(8)).normal(SHAPE, torch.float64))
    sampler = Heun(steps=steps, grid=Knots((1000 * u).tolist()), coordinates="rectified")
    torch.testing.assert_close(ours(sampler, network, STRAIGHT, Velocity()), theirs, rtol=1e-4, atol=1e-4)


# Exponential integrators. The schedulers receive their noise levels, which avoids rounding times to integers and
# searching for them. The multistep DPM-Solver computes in float32, the others in the type of x.


def with_levels(scheduler, steps: list[int]):
    """Return a scheduler of the chain of `VP` that visits the given steps and then 0."""
    scheduler.set_timesteps(len(steps))
    scheduler.timesteps = torch.tensor([k - 1 for k in steps])
    scheduler.sigmas = torch.cat([VP.ratio(torch.tensor(steps).double() / 1000), torch.zeros(1, dtype=torch.float64)])
    return scheduler


CHAIN = {"beta_start": 1e-4, "beta_end": 0.02, "solver_order": 2}
KNOTS = [[*range(1000, 0, -100)], [*range(1000, 0, -50)], UNEVEN]


@pytest.mark.parametrize("steps", KNOTS)
@pytest.mark.parametrize(
    ("settings", "sampler"),
    [
        ({"algorithm_type": "dpmsolver++"}, DPMSolver),
        ({"algorithm_type": "dpmsolver++", "solver_order": 1}, partial(DPMSolver, order=1)),
        ({"algorithm_type": "sde-dpmsolver++"}, partial(DPMSolver, eta=1.0)),
    ],
)
def test_dpm_solver_multistep(mixture, monkeypatch, settings, sampler, steps):
    network = network_of(mixture, VP, Epsilon())
    scheduler = diffusers.DPMSolverMultistepScheduler(**(CHAIN | settings), final_sigmas_type="zero")
    x = float(VP(1.0)[1]) * the_same_noise(monkeypatch, "scheduling_dpmsolver_multistep")
    theirs = loop(with_levels(scheduler, steps), network, x)
    sampler = sampler(steps=len(steps), grid=Knots(steps))
    torch.testing.assert_close(ours(sampler, network, VP, Epsilon()), theirs.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [8, 18, 40])
@pytest.mark.parametrize(
    ("settings", "sampler"),
    [
        ({}, DPMSolver),
        ({"solver_order": 1}, DDIM),
        ({"algorithm_type": "sde-dpmsolver++"}, partial(DPMSolver, eta=1.0)),
        ({"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, partial(DDIM, eta=1.0)),
    ],
)
def test_edm_dpm_solver_multistep(mixture, monkeypatch, settings, sampler, steps: int):
    network = network_of(mixture, EDM, EDMPreconditioning())
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(**settings)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(scheduler.sigmas.double()[:-1], EDM.ratio(Karras()(EDM, steps))[:-1], rtol=1e-4, atol=0)
    x = 80 * the_same_noise(monkeypatch, "scheduling_edm_dpmsolver_multistep")
    theirs = loop(scheduler, network, x, scaled=True)
    images = ours(sampler(steps=steps), network, EDM, EDMPreconditioning())
    torch.testing.assert_close(images, theirs.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [[1000, 600, 300, 100, 20], [900, 500, 400, 10]])
def test_dpm_solver_singlestep(mixture, steps):
    """A step of order 2 spans two grid times in diffusers; ours has its middle in between."""
    levels = VP.ratio(torch.tensor(steps).double() / 1000)
    middles = (levels[:-1] * levels[1:]).sqrt()
    between = torch.stack([levels[:-1], middles], dim=1).flatten()
    times = VP.time(torch.cat([between, levels[-1:]]))
    network = network_of(mixture, VP, Epsilon())
    scheduler = diffusers.DPMSolverSinglestepScheduler(**CHAIN, final_sigmas_type="zero")
    scheduler.set_timesteps(len(times))
    assert scheduler.order_list == [1, 2] * (len(steps) - 1) + [1]
    scheduler.timesteps, scheduler.sigmas = 1000 * times - 1, torch.cat([VP.ratio(times), torch.zeros(1)])
    theirs = loop(scheduler, network, float(VP(steps[0] / 1000)[1]) * Noise(3, range(8)).normal(SHAPE, torch.float64))
    sampler = DPMSolver(steps=len(steps), method="singlestep", grid=Knots(steps))
    torch.testing.assert_close(ours(sampler, network, VP, Epsilon()), theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", KNOTS)
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(mixture, order, variant, steps):
    network = network_of(mixture, VP, Epsilon())
    settings = CHAIN | {"solver_order": order, "solver_type": variant}
    scheduler = diffusers.UniPCMultistepScheduler(**settings, final_sigmas_type="zero")
    x = float(VP(1.0)[1]) * Noise(3, range(8)).normal(SHAPE, torch.float64)
    scheduler = with_levels(scheduler, steps)
    scheduler.sigmas[-1] = 1e-9  # at 0, bh1 multiplies an infinite B(h) by no difference, and returns NaN
    theirs = loop(scheduler, network, x)
    sampler = UniPC(steps=len(steps), order=order, variant=variant, grid=Knots(steps))
    torch.testing.assert_close(ours(sampler, network, VP, Epsilon()), theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [[*range(1000, 0, -100)], UNEVEN])
def test_unip(mixture, steps):
    network = network_of(mixture, VP, Epsilon())
    settings = CHAIN | {"solver_order": 3, "disable_corrector": [*range(len(steps))]}
    scheduler = diffusers.UniPCMultistepScheduler(**settings, final_sigmas_type="zero")
    x = float(VP(1.0)[1]) * Noise(3, range(8)).normal(SHAPE, torch.float64)
    theirs = loop(with_levels(scheduler, steps), network, x)
    sampler = UniPC(steps=len(steps), order=3, corrector=False, grid=Knots(steps))
    torch.testing.assert_close(ours(sampler, network, VP, Epsilon()), theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [KNOTS[0], UNEVEN])
def test_dpm_solver_of_order_3(mixture, steps):
    """From 15 steps on, the last but one step of diffusers has order 3, and ours order 2."""
    network = network_of(mixture, VP, Epsilon())
    scheduler = diffusers.DPMSolverMultistepScheduler(**(CHAIN | {"solver_order": 3}), final_sigmas_type="zero")
    x = float(VP(1.0)[1]) * Noise(3, range(8)).normal(SHAPE, torch.float64)
    theirs = loop(with_levels(scheduler, steps), network, x)
    images = ours(DPMSolver(steps=len(steps), order=3, grid=Knots(steps)), network, VP, Epsilon())
    torch.testing.assert_close(images, theirs.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", KNOTS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(mixture, order: Literal[1, 2, 3], steps: list[int]):
    """Its polynomials are in the logarithm of the noise level; its last step extrapolates, and ours returns D."""
    network = network_of(mixture, VP, Epsilon())
    scheduler = diffusers.DEISMultistepScheduler(**(CHAIN | {"solver_order": order, "lower_order_final": False}))
    scheduler = with_levels(scheduler, steps)
    scheduler.timesteps = scheduler.timesteps[:-1]
    theirs = loop(scheduler, network, float(VP(1.0)[1]) * Noise(3, range(8)).normal(SHAPE, torch.float64))
    x = last_but_one(DEIS(steps=len(steps), order=order, variable="log", grid=Knots(steps)), network)[0]
    torch.testing.assert_close(x, theirs.double(), rtol=1e-5, atol=1e-5)


def last_but_one(sampler: DiffusionSampler, network) -> tuple[Tensor, Tensor]:
    """Return the state before the last step of a sampler, and the scale of the data there."""
    states = list(sampler.trajectory(NetworkDenoiser(network, VP, Epsilon()), VP, Noise(3, range(8)), SHAPE))
    t, x = states[-2]
    return x, VP(t)[0]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("steps", [10, 20])
def test_lms(mixture, steps: int, order: Literal[1, 2, 3, 4]):
    network = network_of(mixture, VP, Epsilon())
    scheduler = diffusers.LMSDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x = float(VP.ratio(1.0)) * Noise(3, range(8)).normal(SHAPE, torch.float64)
    for index in scheduler.timesteps[:-1]:  # its last step extrapolates, ours returns D; it integrates to 1e-4
        output = network(scheduler.scale_model_input(x, index), torch.full((8,), float(index)).double(), None)
        x = scheduler.step(output, index, x, order=order).prev_sample
    ours, alpha = last_but_one(LMS(steps=steps, order=order, grid=Uniform()), network)
    torch.testing.assert_close(ours / alpha, x, rtol=1e-3, atol=1e-3)


def test_predictor_corrector(mixture, monkeypatch):
    """Compare one image, since diffusers uses means of norms over the batch, with noise scaled to our norm sqrt(dim).

    The pipeline corrects before it predicts, including at pure noise but not at the last level; the paper corrects
    after. It computes the size of a corrector step in the default data type, float64 here: in float32 the results
    differ by 2e-8.
    """
    steps, corrector_steps, grid = 12, 2, UniformLogSNR(0.01, 50.0)
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, **options: ones(*shape, **({"dtype": torch.float64} | options)))

    class Even(Noise):
        def normal(self, shape, dtype=torch.float32):
            z = super().normal(shape, dtype)
            return z * (z[0].numel() ** 0.5 / z.norm())

    noise = Even(3, [5])
    monkeypatch.setattr(
        pytest.importorskip("diffusers.schedulers.scheduling_sde_ve"),
        "randn_tensor",
        lambda shape, dtype=torch.float64, **_: noise.normal(shape[1:], dtype),
    )
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=steps, snr=0.16)
    scheduler.set_timesteps(steps, sampling_eps=0.0)
    levels = EDM.ratio(grid(EDM, steps))[:-1].flip(0)
    scheduler.discrete_sigmas = levels
    network = network_of(mixture, EDM, EDMPreconditioning())
    denoiser = NetworkDenoiser(network, EDM, EDMPreconditioning())

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return (denoiser(x, torch.ones_like(sigma), sigma) - x) / sigma**2

    x = levels[-1] * noise.normal(SHAPE, torch.float64)
    for index in reversed(range(steps)):
        step = scheduler.step_pred(score(x, levels[index]), index / (steps - 1) + 1e-6, x)
        x = step.prev_sample if index > 0 else step.prev_sample_mean
        for _ in range(corrector_steps if index > 0 else 0):
            x = scheduler.step_correct(score(x, levels[index - 1]), x).prev_sample
    sampler = PredictorCorrector(steps=steps, corrector_steps=corrector_steps, grid=grid)
    torch.testing.assert_close(sampler.sample(denoiser, EDM, Even(3, [5]), SHAPE), x, rtol=1e-8, atol=1e-8)
