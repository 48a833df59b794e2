"""MLP against its equation, and errors. Properties that all networks share are in test_conditioning.py."""

import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion import ResidualMLP
from lit_gen.families.diffusion.networks.mlp import MLPBlock
from lit_gen.networks.embeddings import sinusoids
from tests.families.random_networks import batch, randomise


@pytest.mark.parametrize("octaves", [0, 2])
def test_mlp_against_its_equation(octaves: int) -> None:
    network = randomise(ResidualMLP((2, 1, 1), 3, width=6, depth=2, octaves=octaves, out_channels=5)).double()
    x, c_noise, labels = batch(4, (2, 1, 1))

    def silu(h: Tensor) -> Tensor:
        return h / (1 + (-h).exp())

    first, _, second = network.embed_noise
    assert network.embed_label is not None
    e = second(silu(first(sinusoids(c_noise, 6)))) + network.embed_label.weight[labels]
    values = x[:, :, 0, 0]
    if octaves:
        sinusoids_of_x = [values.sin(), (2 * values).sin(), values.cos(), (2 * values).cos()]
        values = torch.cat([values, *sinusoids_of_x], dim=1)
    h = network.stem(values)
    for block in network.blocks:
        assert isinstance(block, MLPBlock)
        h = h + block.second(silu(block.first(silu(h)) + block.emb(silu(e))))
    expected = network.out(silu(h)).reshape(4, 5, 1, 1)
    torch.testing.assert_close(network(x, c_noise, labels), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{"width": 7}, {"width": 2}, {"depth": 0}, {"octaves": -1}])
def test_unsuitable_settings(settings: dict) -> None:
    with pytest.raises(UserError, match=r"^model\.network: width .* give an even width"):
        ResidualMLP((2, 1, 1), **settings)
