"""Flow maps: the identities of the exact map, and its sampler."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import (
    Cosine,
    DiT,
    EDMPreconditioning,
    EDMSchedule,
    FlowMap,
    GaussianMixtureDenoiser,
    MixtureFlowMap,
    NetworkDenoiser,
    NetworkFlowMap,
    Rectified,
    ResidualMLP,
    Schedule,
    UNet,
    UniformAngle,
    Velocity,
)
from lit_gen.families.diffusion.flow_maps import condition_on_span
from lit_gen.families.diffusion.samplers import FlowMapSampler, Heun

MIXTURE = GaussianMixtureDenoiser(torch.tensor([[-0.5, 0.3], [0.6, 0.0]]), torch.tensor([0.3, 0.5]))
SCHEDULES = [Rectified(), Cosine(), EDMSchedule(0.002, 10.0)]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)


def states(schedule: Schedule, t: float) -> Tensor:
    alpha, sigma = schedule(t)
    x_0, _ = MIXTURE.draw(Noise(0, range(4)))
    return alpha * x_0 + sigma * Noise(1, range(4)).normal((2,), torch.float64)


def velocity(schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """Return dx/dt of the probability flow, by the exact denoiser."""
    (alpha, sigma), (d_alpha, d_sigma) = schedule(t), schedule.derivatives(t)
    denoised = MIXTURE.denoise(x, alpha, sigma)
    alpha, sigma, d_alpha, d_sigma = (value[:, None] for value in (alpha, sigma, d_alpha, d_sigma))
    return d_alpha * denoised + d_sigma * (x - alpha * denoised) / sigma


@schedules
def test_the_exact_map_of_a_gaussian(schedule: Schedule) -> None:
    gaussian = GaussianMixtureDenoiser(torch.tensor([[0.4, -0.2]]), torch.tensor([0.5]))
    t, s = 0.9, 0.2
    x = states(schedule, t)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    ratio = torch.hypot(alpha_s * 0.5, sigma_s) / torch.hypot(alpha_t * 0.5, sigma_t)
    exact = alpha_s * gaussian.means + ratio * (x - alpha_t * gaussian.means)
    torch.testing.assert_close(MixtureFlowMap(gaussian, schedule, 40)(x, t, s), exact, rtol=0, atol=2e-6)
    finer = MixtureFlowMap(gaussian, schedule, 80)(x, t, s)
    coarse = (MixtureFlowMap(gaussian, schedule, 40)(x, t, s) - exact).abs().max()
    assert 12 < coarse / (finer - exact).abs().max() < 20, "the rule has order four"


@schedules
def test_the_identities_of_the_exact_map(schedule: Schedule) -> None:
    """Semigroup, derivatives in s and t, and the identity of the mean velocity; by autodiff in float64."""
    flow_map = MixtureFlowMap(MIXTURE, schedule, 50)
    s = torch.tensor([0.0, 0.2, 0.5, 0.8], dtype=torch.float64, requires_grad=True)
    t = torch.full_like(s, 0.9, requires_grad=True)
    x = states(schedule, 0.9).requires_grad_()
    end = flow_map(x, t, s)
    of_each = [torch.autograd.grad(end[:, k].sum(), (x, t, s), retain_graph=True) for k in range(2)]
    by_x, by_t, by_s = (torch.stack(parts, 1) for parts in zip(*of_each, strict=True))
    scale = float(schedule(1.0)[1])
    with torch.no_grad():
        assert (end - x).abs().max() > 0.1 * scale
        middle = flow_map(x, t, 0.85)
        torch.testing.assert_close(flow_map(middle, torch.full_like(s, 0.85), s), end, rtol=0, atol=1e-5 * scale)
        v, v_s = velocity(schedule, x, t), velocity(schedule, end[1:], s[1:])
        torch.testing.assert_close(by_s[1:], v_s, rtol=0, atol=1e-4 * scale)
        along = (by_x * v[:, None]).sum(2) + by_t
        torch.testing.assert_close(along, torch.zeros_like(x), rtol=0, atol=1e-4 * scale)
        assert by_t.abs().max() > 0.1 * scale
        torch.testing.assert_close(flow_map(x, t, t), x, rtol=0, atol=1e-12 * scale)
    u = (x - end) / (t - s)[:, None]
    of_u = [torch.autograd.grad(u[:, k].sum(), (x, t), retain_graph=True) for k in range(2)]
    u_x, u_t = (torch.stack(parts, 1) for parts in zip(*of_u, strict=True))
    target = v - (t - s)[:, None] * ((u_x * v[:, None]).sum(2) + u_t)
    torch.testing.assert_close(u, target, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("noise", [0.0, 0.6, 1.0])
def test_an_exact_map_keeps_the_marginals_for_any_share_of_fresh_noise(noise: float) -> None:
    for schedule in (Rectified(), EDMSchedule(0.002, 80.0)):
        flow_map = MixtureFlowMap(GaussianMixtureDenoiser(torch.tensor([[0.4]]), torch.tensor([0.5])), schedule, 16)
        x = FlowMapSampler(steps=3, noise=noise).sample(flow_map, Noise(0, range(2000)), (1,))
        assert flow_map.evaluations == 3
        assert float(x.mean()) == pytest.approx(0.4, abs=0.04) and float(x.std()) == pytest.approx(0.5, abs=0.04)
        alone = FlowMapSampler(steps=3, noise=noise).sample(flow_map, Noise(0, [17]), (1,))
        torch.testing.assert_close(alone, x[17:18], rtol=0, atol=1e-12)


def test_any_number_of_exact_steps_leads_to_the_same_point() -> None:
    flow_map = MixtureFlowMap(MIXTURE, Rectified(), 40)
    noise = range(8)
    one, three, levels = (
        FlowMapSampler(**settings).sample(flow_map, Noise(0, noise), (2,))  # type: ignore[arg-type]
        for settings in ({}, {"nfe": 3}, {"levels": (3.0, 0.5)})
    )
    torch.testing.assert_close(three, one, rtol=0, atol=1e-5)
    torch.testing.assert_close(levels, one, rtol=0, atol=1e-5)
    heun = Heun(steps=200).sample(MIXTURE, Rectified(), Noise(0, noise), (2,))
    torch.testing.assert_close(heun, one, rtol=0, atol=0.02)  # it starts at sigma = 80


class Recorded(FlowMap):
    """A map that always leads to 0, and records its times."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.times = schedule, list[tuple[float, float]]()

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        self.times.append((float(t), float(s)))
        return torch.zeros_like(x)


def test_the_times_of_the_steps() -> None:
    flow_map = Recorded(EDMSchedule(0.002, 80.0))
    FlowMapSampler(levels=(0.8,), noise=1.0).sample(flow_map, Noise(0, range(2)), (1,))
    assert flow_map.times == [(1.0, 0.0), (pytest.approx(0.01), 0.0)]
    flow_map.times.clear()
    FlowMapSampler(levels=(0.8,), noise=0.6).sample(flow_map, Noise(0, range(2)), (1,))
    assert flow_map.times[0] == (1.0, pytest.approx(0.008))


@schedules
def test_equal_angles(schedule: Schedule) -> None:
    times = UniformAngle()(schedule, 4)
    assert times[0] == 1 and times[-1] == 0 and bool((times[1:] < times[:-1]).all())
    alpha, sigma = schedule(times)
    angles = torch.atan2(sigma, alpha)
    torch.testing.assert_close(angles, angles[0] * torch.linspace(1, 0, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"steps": 2, "nfe": 2}, "sampler.steps"),
        ({"levels": (1.0,), "grid": UniformAngle()}, "sampler.levels"),
        ({"steps": 0}, "sampler.steps"),
        ({"levels": (1.0, 2.0)}, "sampler.levels"),
        ({"levels": (1.0, 0.0)}, "sampler.levels"),
        ({"noise": 1.5}, "sampler.noise"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, key: str) -> None:
    with pytest.raises(UserError, match=key):
        FlowMapSampler(**settings)


def test_levels_above_those_of_the_map_are_refused() -> None:
    with pytest.raises(UserError, match=r"sampler\.levels: 90"):
        FlowMapSampler(levels=(90.0,)).sample(Recorded(EDMSchedule()), Noise(0, [0]), (1,))


@pytest.mark.parametrize("make", [ResidualMLP, DiT, UNet])
def test_networks_of_two_times(make: type) -> None:
    """Without a span they are the network of one time; trained, they depend on both times."""
    small: dict[type, dict[str, Any]] = {
        UNet: {"channels": 8, "channel_mult": (1,), "num_blocks": 1},
        DiT: {"width": 8, "depth": 1, "num_heads": 2},
        ResidualMLP: {"width": 8, "depth": 1},
    }
    network = make((1, 8, 8), **small[make])
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    x, c = torch.randn(3, 1, 8, 8), torch.tensor([1.0, 20.0, 500.0])
    one_time = network(x, c)
    with pytest.raises(UserError, match="one time"):
        network(x, torch.stack([c, c], 1))
    condition_on_span(network)
    torch.testing.assert_close(network(x, torch.stack([c, c / 2], 1)), one_time)
    for parameter in network.embed_span.parameters():
        parameter.data += torch.randn(parameter.shape)
    torch.testing.assert_close(network(x, torch.stack([c, 0 * c], 1)), network(x, c))
    assert (network(x, torch.stack([c, c / 2], 1)) - network(x, c)).abs().amax((1, 2, 3)).min() > 1e-4


def test_a_network_without_a_second_time_is_refused() -> None:
    with pytest.raises(UserError, match="Linear is conditioned on one time"):
        condition_on_span(torch.nn.Linear(1, 1))


def test_the_map_of_a_network() -> None:
    """On the straight path x_s = x_t - (t - s) u; at s = 0 it is the denoiser, whose parameterization is any."""
    seen = []

    def network(x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(c_noise)
        return x.square()

    x, t, s = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0.9, 0.5, 0.4]).double(), torch.tensor(0.3).double()
    flow_map = NetworkFlowMap(NetworkDenoiser(network, Rectified(), Velocity()), two_times=True)
    torch.testing.assert_close(flow_map(x, t, s), x - (t - s)[:, None] * x.square())
    torch.testing.assert_close(seen.pop(), 999 * torch.stack([t, t - s], 1))
    denoiser = NetworkDenoiser(network, EDMSchedule(), EDMPreconditioning())
    consistency = NetworkFlowMap(denoiser, two_times=False)
    assert flow_map.fresh == 0 and consistency.fresh == 1
    torch.testing.assert_close(consistency(x, t, 0.0), denoiser(x, *denoiser.schedule(t)))
    x_s = consistency(x, t, s)
    eps = (x - consistency(x, t, 0.0)) / (80 * t)[:, None]
    torch.testing.assert_close(x_s, consistency(x, t, 0.0) + 80 * s * eps)
    assert consistency.evaluations == 4
