"""Optimal transport between images and noise."""

from itertools import permutations

import pytest
import torch

from lit_gen.families.diffusion import optimal_transport


def cost(images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (images - noise).square().sum()


@pytest.mark.parametrize("labels", [None, [0, 1, 0, 0, 1, 4]])
@pytest.mark.parametrize("seed", range(5))
def test_no_order_costs_less(seed, labels):
    """Compare with all permutations of the noise, or all permutations within classes."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 + 2 * torch.randn(6, 1, 2, 2, generator=generator)
    noise = torch.randn(6, 1, 2, 2, generator=generator)
    classes = labels or [0] * 6
    orders = [order for order in permutations(range(6)) if [classes[i] for i in order] == classes]
    costs = torch.stack([cost(images, noise[list(order)]) for order in orders])
    paired = optimal_transport(images, noise, None if labels is None else torch.tensor(labels))
    torch.testing.assert_close(cost(images, paired), costs.min())
    assert len(orders) == (720 if labels is None else 12)
    assert costs.min() < costs.median() - (1 if labels is None else 0)


def test_it_only_rearranges():
    images, noise = torch.randn(40, 3), torch.randn(40, 3)
    paired = optimal_transport(images, noise)
    assert {tuple(row) for row in paired.tolist()} == {tuple(row) for row in noise.tolist()}
    assert paired.dtype == noise.dtype


def test_the_noise_of_each_class_stays_normal():
    """A coupling across classes would give each class the noise in its direction."""
    generator = torch.Generator().manual_seed(0)
    kept: dict[str, list[torch.Tensor]] = {"each": [], "all": []}
    for _ in range(400):
        labels = torch.randint(2, (24,), generator=generator)
        images = torch.randn(24, 2, generator=generator) * 0.3 + (2 * labels[:, None] - 1)
        noise = torch.randn(24, 2, generator=generator)
        kept["each"].append(optimal_transport(images, noise, labels)[labels == 1])
        kept["all"].append(optimal_transport(images, noise)[labels == 1])
    each, whole = torch.cat(kept["each"]), torch.cat(kept["all"])
    assert each.mean(0).abs().max() < 4 / len(each) ** 0.5
    assert (each.T.cov() - torch.eye(2)).abs().max() < 4 * (2 / len(each)) ** 0.5
    assert whole.mean(0).min() > 0.3


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
    """Between N(0, 1) and N(0, s^2) on the line the transport is x = s eps, with cost (s - 1)^2."""
    generator = torch.Generator().manual_seed(0)
    costs = []
    for _ in range(40):
        images, noise = 0.4 * torch.randn(100, 1, generator=generator), torch.randn(100, 1, generator=generator)
        costs.append([cost(images, optimal_transport(images, noise)) / 100, cost(images, noise) / 100])
    near, independent = torch.tensor(costs).mean(0).tolist()
    assert near == pytest.approx(0.36, rel=0.1)
    assert independent == pytest.approx(1.16, rel=0.1)
