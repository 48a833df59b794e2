from itertools import permutations

import pytest
import torch

from lit_gen.diffusion import optimal_transport


def cost(images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (images - noise).square().sum()


@pytest.mark.parametrize("seed", range(5))
def test_no_order_costs_less(seed):
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 + 2 * torch.randn(6, 1, 2, 2, generator=generator)
    noise = torch.randn(6, 1, 2, 2, generator=generator)
    costs = torch.stack([cost(images, noise[list(order)]) for order in permutations(range(6))])
    paired = optimal_transport(images, noise)
    torch.testing.assert_close(cost(images, paired), costs.min())
    assert costs.min() < costs.median() - 1


def test_it_only_rearranges():
    images, noise = torch.randn(40, 3), torch.randn(40, 3)
    paired = optimal_transport(images, noise)
    assert {tuple(row) for row in paired.tolist()} == {tuple(row) for row in noise.tolist()}
    assert paired.dtype == noise.dtype


def test_on_the_line_it_sorts():
    generator = torch.Generator().manual_seed(1)
    images, noise = torch.randn(50, 1, generator=generator), torch.randn(50, 1, generator=generator)
    paired = optimal_transport(images, noise)
    assert torch.equal(paired[images.flatten().argsort()].flatten(), noise.flatten().sort().values)


def test_half_precision_is_compared_in_double():
    images, noise = torch.randn(30, 500), torch.randn(30, 500)
    with torch.autocast("cpu", torch.bfloat16):
        paired = optimal_transport(images, noise)
    assert torch.equal(paired, optimal_transport(images, noise))


def test_batches_approach_the_transport_of_the_distributions():
    """Between N(0, 1) and N(0, s^2) on the line it is x = s eps, whose cost is (s - 1)^2."""
    generator = torch.Generator().manual_seed(0)
    costs = []
    for _ in range(40):
        images, noise = 0.4 * torch.randn(100, 1, generator=generator), torch.randn(100, 1, generator=generator)
        costs.append([cost(images, optimal_transport(images, noise)) / 100, cost(images, noise) / 100])
    near, independent = torch.tensor(costs).mean(0).tolist()
    assert near == pytest.approx(0.36, rel=0.1)
    assert independent == pytest.approx(1.16, rel=0.1)
