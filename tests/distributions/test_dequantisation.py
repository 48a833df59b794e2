"""8-bit values as points of a density, and back."""

import math

import pytest
import torch
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.core.pixels import BIN_WIDTH, quantise
from lit_gen.distributions.dequantisation import bits_per_dim, dequantise, log_mass

VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def test_a_value_moves_within_its_bin_and_all_over_it() -> None:
    images = VALUES.repeat(200, 1)
    moved = dequantise(images, Noise(0, range(200)))
    assert torch.equal(quantise(moved), torch.arange(256, dtype=torch.uint8).expand(200, 256))
    place = ((moved - images) / BIN_WIDTH + 0.5).flatten().sort().values
    ranks = torch.arange(len(place), dtype=torch.float64) / len(place)
    assert (place - ranks).abs().max() < 1.63 / math.sqrt(len(place)), "Kolmogorov-Smirnov at 1 %"


def test_the_place_is_that_of_the_index() -> None:
    images = torch.zeros(5, 2, 3)
    batch, alone = dequantise(images, Noise(1, range(5))), dequantise(images[3:4], Noise(1, [3]))
    assert torch.equal(batch[3], alone[0])


def test_values_without_a_pattern_have_eight_bits() -> None:
    def flat(x: Tensor, noise: Noise) -> Tensor:
        """Uniform on all 256 bins together, in every dimension."""
        inside = (x.abs() <= 1 + BIN_WIDTH / 2).flatten(1).all(1)
        return torch.where(inside, -12 * math.log(256 * BIN_WIDTH), -math.inf)

    images = VALUES.reshape(-1, 2, 2, 1).repeat(1, 1, 1, 3)
    bits = bits_per_dim(log_mass(flat, images, Noise(0, range(64)), num_draws=3), 12)
    torch.testing.assert_close(bits, torch.full_like(bits, 8.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_draws", [1, 4])
def test_the_bound_on_a_mass_is_the_mean_log_density_over_the_bin(num_draws: int) -> None:
    """For a normal density narrower than a bin, where the two differ; the mean is known, and so is the mass."""
    std, distance = 0.3 * BIN_WIDTH, 0.2 * BIN_WIDTH
    value = VALUES[100]
    normal = torch.distributions.Normal(value + distance, std)

    def log_density(x: Tensor, noise: Noise) -> Tensor:
        return normal.log_prob(x[:, 0])

    estimates = log_mass(log_density, value.expand(20_000, 1), Noise(0, range(20_000)), num_draws)
    expected = normal.log_prob(normal.mean) - (distance**2 + BIN_WIDTH**2 / 12) / (2 * std**2) + math.log(BIN_WIDTH)
    standard_error = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - expected) < 4 * standard_error
    assert standard_error < 0.01
    mass = normal.cdf(value + BIN_WIDTH / 2) - normal.cdf(value - BIN_WIDTH / 2)
    assert expected < mass.log() - 0.05
    everywhere = normal.log_prob(value + torch.linspace(-0.5, 0.5, 10_001, dtype=torch.float64) * BIN_WIDTH)
    assert estimates.std() == pytest.approx(float(everywhere.std()) / math.sqrt(num_draws), rel=0.05)
