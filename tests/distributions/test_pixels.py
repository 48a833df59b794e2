"""Pixel likelihoods compared with exact sums, and their samples with their masses."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Binarised, Digits, ImageDataModule, Spiral
from lit_gen.distributions.dequantisation import log_mass
from lit_gen.distributions.pixels import (
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    Gaussian,
    LogisticMixture,
    PixelLikelihood,
    clipped_logistic_mean,
    discretised_logistic_log_prob,
)

VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1
OF_BYTES = [
    Categorical(),
    DiscretisedLogistic(),
    DiscretisedLogistic(per_pixel=False).double().requires_grad_(False),
    LogisticMixture(1),
    LogisticMixture(4),
]


def params_of(likelihood: PixelLikelihood, channels: int = 1, num: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, likelihood.num_params(channels), 1, 1, generator=generator, dtype=torch.float64)


def masses(likelihood: PixelLikelihood, params: Tensor) -> Tensor:
    """Return P of the 256 values of a single-channel pixel."""
    return likelihood.log_prob(VALUES.view(-1, 1, 1, 1), params.expand(256, -1, 1, 1)).exp()


def goodness_of_fit(counts: Tensor, expected: Tensor) -> float:
    """Return the p-value of a chi-square test, with values of small expected counts merged."""
    rare = expected < 10
    pooled = [torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts.double(), expected)]
    kept = pooled[1] > 5
    statistic = ((pooled[0] - pooled[1]).square() / pooled[1])[kept].sum()
    return float(chi2.sf(float(statistic), int(kept.sum()) - 1))


@pytest.mark.parametrize("likelihood", OF_BYTES, ids=repr)
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_masses_of_the_256_values_sum_to_one(likelihood: PixelLikelihood, spread: float) -> None:
    for seed in range(5):
        assert abs(masses(likelihood, spread * params_of(likelihood, seed=seed)).sum().item() - 1) < 1e-12


@pytest.mark.parametrize("num_components", [1, 3])
def test_masses_of_three_channels_sum_to_one(num_components: int) -> None:
    """Summed over blue, they are the masses of red and green, whose sum over green gives the masses of red."""
    likelihood = LogisticMixture(num_components)
    logits, mean, log_scale, coefficients = (
        torch.randn(1, num_components, width, 1, 1, dtype=torch.float64) for width in (1, 3, 3, 3)
    )

    def params(channels: int) -> Tensor:
        pairs = channels * (channels - 1) // 2
        parts = (logits, mean[:, :, :channels], log_scale[:, :, :channels] - 1, coefficients[:, :, :pairs])
        return torch.cat([part.flatten(1, 2) for part in parts], 1)

    assert params(3).shape[1] == likelihood.num_params(3) == 10 * num_components
    for channels in (2, 3):
        for seed in range(3):
            first = VALUES[torch.randint(256, (channels - 1,), generator=torch.Generator().manual_seed(seed))]
            images = torch.cat([first.expand(256, -1), VALUES[:, None]], 1)[:, :, None, None]
            total = likelihood.log_prob(images, params(channels).expand(256, -1, 1, 1)).exp().sum()
            expected = likelihood.log_prob(first.view(1, -1, 1, 1), params(channels - 1)).exp().sum()
            torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)
    assert abs(masses(likelihood, params(1)).sum().item() - 1) < 1e-12


def test_blue_depends_on_red_and_green_and_green_on_red_alone() -> None:
    """With one narrow component, the most likely value of a channel shows its mean."""
    likelihood = LogisticMixture(1)
    slopes = torch.tensor([0.5, -0.25, 0.75], dtype=torch.float64)
    params = torch.cat([torch.zeros(1), torch.tensor([0.1, -0.2, 0.05]), -5 * torch.ones(3), slopes.atanh()])
    params = params.double().view(1, -1, 1, 1)
    red, green = VALUES[100], VALUES[200]
    for channel, expected in ((1, -0.2 + 0.5 * red), (2, 0.05 - 0.25 * red + 0.75 * green)):
        images = torch.stack([red, green, VALUES[30]]).expand(256, 3).clone()
        images[:, channel] = VALUES
        log_p = likelihood.log_prob(images[:, :, None, None], params.expand(256, -1, 1, 1))
        if channel == 1:  # without the dependence of blue's mass on green
            blue_mean = 0.05 - 0.25 * red + 0.75 * VALUES
            log_p = log_p - discretised_logistic_log_prob(VALUES[30], blue_mean, torch.tensor(-5.0))
        assert abs(VALUES[log_p.argmax()] - expected) <= 1 / 255


def test_masses_are_differences_of_the_logistic_cdf() -> None:
    mean, scale = torch.randn(256, generator=torch.Generator().manual_seed(0)).double(), 0.3

    def cdf(x: Tensor) -> Tensor:
        return torch.sigmoid((x - mean) / scale)

    expected = cdf(VALUES + 1 / 255) - cdf(VALUES - 1 / 255)
    expected[0] = cdf(VALUES + 1 / 255)[0]
    expected[-1] = 1 - cdf(VALUES - 1 / 255)[-1]
    log_p = discretised_logistic_log_prob(VALUES, mean, torch.tensor(math.log(scale), dtype=torch.float64))
    torch.testing.assert_close(log_p.exp(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("likelihood", [*OF_BYTES, Gaussian(), Gaussian(per_pixel=False)], ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1.0, 30.0, 300.0])
def test_in_the_tails_values_and_gradients_are_finite_in_float32(
    likelihood: PixelLikelihood, channels: int, size: float
) -> None:
    params = (size * params_of(likelihood, channels, num=256)).float().requires_grad_()
    log_p = likelihood.log_prob(VALUES.float().view(-1, 1, 1, 1).expand(-1, channels, 1, 1), params)
    (gradient,) = torch.autograd.grad(log_p.sum(), params)
    assert torch.isfinite(log_p).all() and torch.isfinite(gradient).all()
    assert torch.isfinite(likelihood.mean(params)).all()


def test_far_from_the_mean_the_gradient_still_points_to_the_value() -> None:
    mean = torch.full((256,), -1.0, requires_grad=True)
    discretised_logistic_log_prob(VALUES.float(), mean, torch.tensor(-7.0)).sum().backward()
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad[5:-1], torch.full((250,), math.exp(7)))


def test_bernoulli_is_that_of_torch() -> None:
    logits = params_of(Bernoulli(), 3, num=4).expand(4, 3, 2, 2)
    bits = torch.randint(2, (4, 3, 2, 2), generator=torch.Generator().manual_seed(0)).double()
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(bits).flatten(1).sum(1)
    torch.testing.assert_close(Bernoulli().log_prob(2 * bits - 1, logits), expected)
    torch.testing.assert_close(Bernoulli().mean(logits), 2 * logits.sigmoid() - 1)


def test_categorical_takes_its_maps_channel_by_channel() -> None:
    likelihood = Categorical(num_levels=5)
    params = params_of(likelihood, 2)
    images = torch.tensor([-0.5, 1.0], dtype=torch.float64).view(1, 2, 1, 1)
    expected = params[0, :5, 0, 0].log_softmax(0)[1] + params[0, 5:, 0, 0].log_softmax(0)[4]
    torch.testing.assert_close(likelihood.log_prob(images, params), expected[None])


@pytest.mark.parametrize("per_pixel", [True, False])
def test_the_gaussian_is_that_of_torch_and_its_dequantised_mass_a_bound(per_pixel: bool) -> None:
    likelihood = Gaussian(per_pixel)
    params = params_of(likelihood)
    mean = params[:, :1]
    log_scale = params[:, 1:] if per_pixel else torch.tensor(-1.0).double()
    density = torch.distributions.Normal(mean, log_scale.exp())
    points = torch.randn(5, 1, 1, 1).double()
    expected = density.log_prob(points).flatten()
    torch.testing.assert_close(likelihood.log_prob(points, params.expand(5, -1, 1, 1)), expected)
    values = VALUES[[3, 120, 250]].view(-1, 1, 1, 1)
    exact = (density.cdf(values + 1 / 255) - density.cdf(values - 1 / 255)).log().flatten()
    bound = log_mass(lambda x, _: likelihood.log_prob(x, params.expand(3, -1, 1, 1)), values, Noise(0, range(3)), 400)
    assert (bound < exact + 5e-3).all() and (bound > exact - 5e-3).all(), "in narrow bins the bound is tight"


@pytest.mark.parametrize("likelihood", [*OF_BYTES, Categorical(5)], ids=repr)
def test_mean_is_that_of_the_masses(likelihood: PixelLikelihood) -> None:
    for seed in range(5):
        params = params_of(likelihood, seed=seed)
        if isinstance(likelihood, Categorical):
            values = torch.linspace(-1, 1, likelihood.num_levels, dtype=torch.float64)
            torch.testing.assert_close(likelihood.mean(params).item(), float(params.flatten().softmax(0) @ values))
        else:
            assert abs(likelihood.mean(params).item() - float(masses(likelihood, params) @ VALUES)) < 1e-5


def test_mean_of_a_narrow_logistic_is_within_half_a_bin() -> None:
    means = torch.linspace(-1.2, 1.2, 1001, dtype=torch.float64)
    for log_scale in (-7.0, -6.0, -5.0):
        log_p = discretised_logistic_log_prob(VALUES, means[:, None], torch.tensor(log_scale))
        exact = log_p.exp() @ VALUES
        assert (clipped_logistic_mean(means, torch.tensor(log_scale).double()) - exact).abs().max() <= 1 / 255


@pytest.mark.parametrize("likelihood", OF_BYTES, ids=repr)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_frequencies_of_samples_are_the_masses(likelihood: PixelLikelihood, temperature: float) -> None:
    params = params_of(likelihood, seed=3)
    num = 20_000
    samples = likelihood.sample(params.expand(num, -1, 1, 1), Noise(0, range(num)), temperature)
    levels = (samples + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-9
    counts = torch.bincount(levels.round().long().flatten(), minlength=256)
    assert goodness_of_fit(counts, num * masses(*sharpened(likelihood, params, temperature))) > 1e-3


def sharpened(likelihood: PixelLikelihood, params: Tensor, temperature: float) -> tuple[PixelLikelihood, Tensor]:
    """Return the single-channel likelihood at temperature 1 that equals another at the given temperature."""
    params = params.clone()
    if isinstance(likelihood, Categorical):
        return likelihood, params / temperature
    if isinstance(likelihood, LogisticMixture):
        k = likelihood.num_components
        params[:, :k] /= temperature
        params[:, 2 * k :] += math.log(temperature)
    elif isinstance(likelihood, DiscretisedLogistic) and likelihood.log_scale is not None:
        log_scale = torch.full_like(params, float(likelihood.log_scale) + math.log(temperature))
        return DiscretisedLogistic(), torch.cat([params, log_scale], 1)
    else:
        params[:, 1:] += math.log(temperature)
    return likelihood, params


def test_samples_of_three_channels_have_the_probabilities_of_coarse_events() -> None:
    """The eight events "above zero or not" of the channels, summed over all colours of one component's chain."""
    likelihood = LogisticMixture(2)
    params = params_of(likelihood, 3, seed=1)
    num = 40_000
    samples = likelihood.sample(params.expand(num, -1, 1, 1), Noise(5, range(num)))[:, :, 0, 0]
    events = (samples > 0).long() @ torch.tensor([4, 2, 1])
    counts = torch.bincount(events, minlength=8)
    # P(event) exactly: every second value of red and green would do, but all are summed over for one event of blue
    logits, mean, log_scale, coefficients = likelihood._split(params)
    weights, blue = logits.softmax(1).flatten(), torch.zeros(2, 2, 2, dtype=torch.float64)
    for k in range(2):
        m, s, a = mean[0, k, :, 0, 0], log_scale[0, k, :, 0, 0], coefficients[0, k, :, 0, 0]
        red = discretised_logistic_log_prob(VALUES, m[0], s[0]).exp()
        green = discretised_logistic_log_prob(VALUES[None], m[1] + a[0] * VALUES[:, None], s[1]).exp()
        blue_mean = m[2] + a[1] * VALUES[:, None] + a[2] * VALUES
        above = 1 - torch.sigmoid(-(blue_mean - 0.0) / s[2].exp())  # zero is between the values 127 and 128
        joint = weights[k] * red[:, None] * green
        for b, part in ((1, joint * above), (0, joint * (1 - above))):
            blue[:, :, b] += part.view(2, 128, 2, 128).sum((1, 3))
    assert abs(blue.sum().item() - 1) < 1e-12
    assert goodness_of_fit(counts, num * blue.flatten()) > 1e-3
    means = likelihood.mean(params)[0, :, 0, 0]
    assert (samples.mean(0) - means).abs().max() < 0.05


def test_moments_of_gaussian_and_bernoulli_samples() -> None:
    num = 20_000
    gaussian = torch.tensor([0.1, math.log(0.2)]).double().view(1, 2, 1, 1).expand(num, -1, 1, 1)
    for temperature in (1.0, 0.5):
        samples = Gaussian().sample(gaussian, Noise(0, range(num)), temperature)
        assert abs(samples.mean().item() - 0.1) < 4 * 0.2 / math.sqrt(num)
        assert abs(samples.std().item() - 0.2 * temperature) < 4 * 0.2 / math.sqrt(2 * num)
        logit = torch.full((num, 1, 1, 1), 0.7)
        ones = (Bernoulli().sample(logit, Noise(1, range(num)), temperature) > 0).double().mean().item()
        p = 1 / (1 + math.exp(-0.7 / temperature))
        assert abs(ones - p) < 4 * math.sqrt(p * (1 - p) / num)


@pytest.mark.parametrize("likelihood", [*OF_BYTES, Bernoulli(), Gaussian()], ids=repr)
def test_a_sample_is_of_its_index(likelihood: PixelLikelihood) -> None:
    params = params_of(likelihood, 3, num=4).expand(4, -1, 2, 2).float()
    together = likelihood.sample(params, Noise(0, range(4)))
    assert together.shape == (4, 3, 2, 2) == likelihood.mean(params).shape and together.dtype == torch.float32
    assert torch.equal(likelihood.sample(params[2:3], Noise(0, [2])), together[2:3])


@pytest.mark.parametrize("likelihood", [*OF_BYTES, Bernoulli(), Gaussian()], ids=repr)
def test_half_precision_parameters_are_scored_in_float32(likelihood: PixelLikelihood) -> None:
    params = params_of(likelihood, num=3).bfloat16()
    images = torch.ones(3, 1, 1, 1)
    assert likelihood.log_prob(images, params).dtype == torch.float32
    torch.testing.assert_close(likelihood.log_prob(images, params), likelihood.log_prob(images, params.float()))


def test_what_does_not_suit_is_said() -> None:
    digits: Any = ImageDataModule(Digits())
    binary: Any = ImageDataModule(Binarised(Digits()))
    points: Any = ImageDataModule(Spiral())
    for likelihood, data, named in (
        (Bernoulli(), digits, "Binarised"),
        (Categorical(16), digits, "num_levels"),
        (Gaussian(), binary, "choose Bernoulli"),
        (LogisticMixture(), points, "contains points"),
    ):
        with pytest.raises(UserError, match=named):
            likelihood.check_levels(data.name, data.num_levels)
    for likelihood, data in (  # type: ignore[assignment]
        (Bernoulli(), binary),
        (Categorical(), binary),
        (DiscretisedLogistic(), binary),
        (Gaussian(), digits),
        (Categorical(), digits),
    ):
        likelihood.check_levels(data.name, data.num_levels)
    with pytest.raises(UserError, match="num_components"):
        LogisticMixture(0)
    with pytest.raises(UserError, match="num_levels"):
        Categorical(1)
