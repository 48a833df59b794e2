"""The layers of Glow and RealNVP agree with separate formulas."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gen.families.flows import Compose, ConvCoupling, Coupling, Glow, Masked, MultiScale, RealNVP
from lit_gen.families.flows.models.image_flows import NormalizingFlow
from tests.families.flows.test_bijections import randomised

Small = partial(ConvCoupling, channels=8, num_blocks=1)


def scales(model: NormalizingFlow) -> Any:
    bijection: Any = model.network.flow.bijection
    (found,) = [part for part in bijection.parts if isinstance(part, MultiScale)]
    return found


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_glow_learns_a_normal_density_of_the_half_that_leaves(num_levels: int) -> None:
    """z = (x_leaves - mean) / std, both a 3x3 convolution of the half that stays, and |log std| < 2."""
    model = Glow((1, 8, 8), num_levels=num_levels, num_steps=2, network=Small)
    randomised(model, 0.1)
    x = torch.randn(3, 1, 8, 8).double()
    latents = scales(model)(x)[0]
    for level in scales(model).levels[:-1]:
        *steps, last = level.parts
        assert len(steps) == 1 + 3 * 2
        stays, leaves = Compose(steps)(x)[0].chunk(2, 1)
        weight, bias = last.network.weight, last.network.bias
        padded = nn.functional.pad(stays, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        shift, scale = (torch.einsum("nchwij,dcij->ndhw", padded, weight) + bias[:, None, None]).chunk(2, 1)
        z = leaves * (2 * torch.tanh(scale / 2)).exp() + shift
        assert (z - leaves).abs().max() > 0.05
        torch.testing.assert_close(latents[:, : z[0].numel()], z.flatten(1), rtol=0, atol=1e-12)
        latents, x = latents[:, z[0].numel() :], stays
    assert len(scales(model).levels[-1].parts) == 1 + 3 * 2


@pytest.mark.parametrize("num_levels", [1, 2])
@pytest.mark.parametrize("num_couplings", [1, 2, 3])
def test_realnvp_ends_with_one_more_checkerboard(num_levels: int, num_couplings: int) -> None:
    model = RealNVP((1, 8, 8), num_levels=num_levels, num_couplings=num_couplings, network=Small)
    stay = [
        [
            part.partition.mask
            for part in level.parts
            if isinstance(part, Coupling) and isinstance(part.partition, Masked)
        ]
        for level in scales(model).levels
    ]
    assert [len(masks) for masks in stay] == [num_couplings] * (num_levels - 1) + [num_couplings + 1]
    for masks in stay:
        for number, mask in enumerate(masks):
            row, column = torch.meshgrid(*(torch.arange(size) for size in mask.shape[1:]), indexing="ij")
            expected: Tensor = (row + column + number) % 2 == 1
            assert torch.equal(mask, expected.expand(mask.shape))
