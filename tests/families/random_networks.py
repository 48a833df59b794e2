"""Networks with random weights, and inputs for them."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def randomise(network: Network, seed: int = 0) -> Network:
    """Return the network with random parameters, so that no zero or one of the initialisation hides an error."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / math.sqrt(fan_in)
        parameter.data.copy_(noise)
    return network


def batch(num: int, image_shape: tuple[int, int, int], num_classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, noise levels and labels; images and noise levels are float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, *image_shape, generator=generator, dtype=torch.float64)
    return x, 999 * torch.rand(num, generator=generator, dtype=torch.float64), torch.arange(num) % num_classes


def check_independence(network: nn.Module, function: Callable[[Tensor], Tensor], inputs: Tensor) -> None:
    """Check that an output depends on its own input alone, and that gradients reach every parameter."""
    together = function(inputs)
    for i in range(len(inputs)):
        torch.testing.assert_close(function(inputs[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)
    (together - torch.randn_like(together)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
