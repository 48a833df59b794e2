"""A trained network as one of diffusers: equal outputs for every architecture that agrees, else the reason."""

import copy
from typing import Any

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion import DiT, UNet
from lit_gen.families.diffusion.networks.to_diffusers import to_diffusers
from tests.families.random_networks import batch, randomise

pytest.importorskip("diffusers")
SHAPE = (2, 8, 12)
AGREES: dict[str, Any] = {"channels": 128, "channel_mult": (1, 1), "num_blocks": 1, "resample_filter": (1, 1)}


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"scale_shift": False, "attention_resolutions": (4,), "head_channels": 32},
        {"attention_resolutions": (8, 4), "num_blocks": 2, "resample_filter": (3, 3)},
        {"channel_mult": (1,), "num_blocks": 2, "resample_filter": (), "attention_resolutions": (8,)},
    ],
)
@torch.inference_mode()
def test_outputs_are_equal(more: dict[str, Any], num_classes: int) -> None:
    ours = randomise(UNet(SHAPE, num_classes, **(AGREES | more))).float().eval()
    before = copy.deepcopy(ours.state_dict())
    theirs = to_diffusers(ours, SHAPE)
    x, c_noise, labels = (each.float() if each.is_floating_point() else each for each in batch(3, SHAPE))
    classes = torch.where(labels < 0, num_classes, labels) if num_classes else None
    expected = theirs(x, timestep=c_noise, class_labels=classes).sample
    torch.testing.assert_close(ours(x, c_noise, labels if num_classes else None), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.05 and sum(p.numel() for p in theirs.parameters()) == sum(
        p.numel() for p in ours.parameters()
    )
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    "more, reason",
    [
        ({"time_embedding": "fourier"}, "time_embedding is fourier"),
        ({"augment_dim": 4}, "conditioned on augmentations"),
        ({"progressive_input": True}, "progressive input"),
        ({"skip_scale": 0.5}, "skip_scale is not 1"),
        ({"out_channels": 4}, "other channels than the images"),
        ({"resample_filter": ()}, r"resample_filter is not \[1, 1\]"),
        ({"resample_filter": (1, 3, 3, 1)}, r"resample_filter is not \[1, 1\]"),
        ({"resample_filter": (1, 1, 1, 1)}, r"resample_filter is not \[1, 1\]"),
        ({"channel_mult": (1, 2)}, "channel_mult is not 1 at every level"),
        ({"channel_mult": (2,)}, "channel_mult is not 1 at every level"),
        ({"channels": 64}, "channels is not a multiple of 128"),
    ],
)
def test_a_difference_is_named(more: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"^--format: this UNet .* diffusers: .*{reason}; train a model.network "):
        to_diffusers(UNet(SHAPE, 3, **(AGREES | more)), SHAPE)


def test_a_network_with_two_times_or_of_another_kind_is_refused() -> None:
    network = UNet(SHAPE, 0, **AGREES)
    network.condition_on_span()
    with pytest.raises(UserError, match="it has two times"):
        to_diffusers(network, SHAPE)
    with pytest.raises(UserError, match="^--format: diffusers has no network that agrees with DiT; train"):
        to_diffusers(DiT((1, 8, 8), 2, width=8, depth=1, num_heads=1), (1, 8, 8))
