"""Consistency training: its grid, its loss, and its expected gradient in closed form."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import ConsistencyTraining, ResidualMLP, UNet
from lit_gen.families.diffusion.samplers import FlowMapSampler

SHAPE = (1, 8, 8)


def model(network: Any = ResidualMLP, **options: Any) -> ConsistencyTraining:
    built = ConsistencyTraining(SHAPE, network=network, **options)
    for parameter in built.network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return built


@pytest.mark.parametrize(("seen", "num"), [(0, 4), (99, 4), (100, 8), (250, 16), (10_000, 20)])
def test_times_are_neighbours_of_a_grid_that_doubles(seen: int, num: int) -> None:
    built = model(first_levels=4, last_levels=20, double_every=100)
    built.clock.images_seen = seen
    ends = 0.002 ** (1 / 7), 80 ** (1 / 7)
    levels = torch.tensor([(ends[0] + k / num * (ends[1] - ends[0])) ** 7 for k in range(num + 1)], dtype=torch.float64)
    torch.testing.assert_close(built.levels(), levels, rtol=1e-12, atol=0)
    sigma = (torch.randn(500, dtype=torch.float64) * 2 - 1.1).exp().clamp(0.003, 79)
    t, s = built.spans(sigma / 80, torch.rand(500))
    above = [next(k for k in range(num + 1) if levels[k] >= value) for value in sigma]
    torch.testing.assert_close(t * 80, levels[above], rtol=1e-12, atol=0)
    torch.testing.assert_close(s * 80, levels[[k - 1 for k in above]], rtol=1e-12, atol=0)
    outside, below = built.spans(torch.tensor([1e-9, 1.0]), torch.rand(2))
    torch.testing.assert_close(outside * 80, levels[[1, -1]])
    torch.testing.assert_close(below * 80, levels[[0, -2]])


def test_the_loss_is_that_of_the_paper() -> None:
    """(sqrt(|f_t - f_s|^2 + c^2) - c) / (sigma_t - sigma_s), with one eps, and no gradient through f_s."""
    built = model(huber=0.01, sigma_data=0.6).double()
    x_0, eps = torch.rand(3, *SHAPE, dtype=torch.float64), torch.randn(3, *SHAPE, dtype=torch.float64)
    sigmas = torch.tensor([[0.1, 2.0, 30.0], [0.05, 1.5, 20.0]], dtype=torch.float64)

    def f(sigma: Tensor) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        norm = (sigma**2 + 0.36).sqrt()
        output = built.network((x_0 + sigma * eps) / norm, sigma.flatten().log() / 4)
        return 0.36 / norm**2 * (x_0 + sigma * eps) + 0.6 * sigma / norm * output

    squares = (f(sigmas[0]) - f(sigmas[1]).detach()).square().sum((1, 2, 3))
    expected = ((squares + (0.01 * 8) ** 2).sqrt() - 0.08) / (sigmas[0] - sigmas[1])
    t, s = sigmas / 80
    loss = built.reweighted(built.error(x_0, t, s, eps, None, None), t, s)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    for one, other in zip(
        torch.autograd.grad(loss.sum(), list(built.network.parameters())),
        torch.autograd.grad(expected.sum(), list(built.network.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10)


def test_the_expected_gradient_is_that_of_the_closed_form() -> None:
    """With data N(0, v^2) and f(x, sigma) = (a + delta) x, a = v / sqrt(v^2 + sigma^2), which is the exact function:

    d/d delta E |f(x_t) - f(x_s)|^2 = 2 (a_t (v^2 + sigma_t^2) - a_s (v^2 + sigma_t sigma_s)), of the second order in
    the step, so training by neighbours has the exact function as its limit.
    """
    v, built = 0.7, model()
    delta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    num = 20_000  # 64 independent pixels each

    def exact(x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        sigma = (4 * c_noise.double()).exp()
        norm = (sigma**2 + 0.25).sqrt()
        slope = v / (v**2 + sigma**2).sqrt() + delta
        return ((slope - 0.25 / norm**2) / (0.5 * sigma / norm) * norm).reshape(-1, 1, 1, 1) * x

    built.denoiser.network = exact
    x_0, eps = torch.randn(2, num, *SHAPE, dtype=torch.float64)
    gradients = []
    for high, low in ((3.0, 1.0), (0.5, 0.4)):
        t, s = (torch.full((num,), sigma / 80, dtype=torch.float64) for sigma in (high, low))
        (found,) = torch.autograd.grad(built.error(v * x_0, t, s, eps, None, None).mean(), delta)
        a_t, a_s = (v / math.sqrt(v**2 + sigma**2) for sigma in (high, low))
        expected = 2 * (a_t * (v**2 + high**2) - a_s * (v**2 + high * low))
        spread = 2 * (high**2 + v**2) / math.sqrt(num * 64)  # above the standard error
        assert float(found) == pytest.approx(expected, abs=4 * spread)
        gradients.append(expected)
    assert abs(gradients[0]) > 30 * abs(gradients[1]) > 0


def test_both_points_have_one_dropout_mask() -> None:
    def network(shape: tuple[int, int, int], classes: int) -> UNet:
        return UNet(shape, classes, channels=8, channel_mult=(1,), num_blocks=1, dropout=0.5)

    built = model(network).train()
    x_0, eps = torch.rand(6, *SHAPE), torch.randn(6, *SHAPE)
    t = torch.full((6,), 0.02, dtype=torch.float64)
    assert built.error(x_0, t, t, eps, None, None).max() == 0, "equal points have no error"
    assert built.error(x_0, t, t / 2, eps, None, None).min() > 0
    torch.manual_seed(1)
    built.error(x_0, t, t, eps, None, None)
    after = torch.rand(1)
    torch.manual_seed(1)
    built.flow_map.denoised(x_0, t, t, None)
    assert torch.equal(after, torch.rand(1)), "the state of the generator is that after one pass"


def test_steps_go_to_the_data_and_back() -> None:
    built = model()
    images = built.sample(Noise(0, range(3)))
    eps = Noise(0, range(3)).normal(SHAPE)
    expected = built.flow_map.denoised(80 * eps, torch.ones((), dtype=torch.float64), torch.zeros(()), None)
    torch.testing.assert_close(images, expected)
    built.sample(Noise(0, range(3)), sampler=FlowMapSampler(levels=(0.8,)))
    assert built.nfe == 2
    assert built.capabilities.samplers == (FlowMapSampler,) and built.capabilities.likelihood_kind is None


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"p_std": 0.0}, "model.p_std"),
        ({"sigma_data": 0.0}, "model.sigma_data"),
        ({"first_levels": 1}, "model.first_levels"),
        ({"first_levels": 40, "last_levels": 20}, "model.first_levels"),
        ({"double_every": 0}, "model.double_every"),
        ({"huber": 0.0}, "model.huber"),
        ({"weight": "x"}, "model.weight"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        ConsistencyTraining(SHAPE, network=ResidualMLP, **options)
