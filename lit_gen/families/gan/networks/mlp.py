"""Multilayer perceptrons for points of the plane: generator and critic."""

import math

import torch
from torch import Tensor, nn

from lit_gen.families.gan.networks.blocks import Projection
from lit_gen.networks.blocks import check_positive


class MLPGenerator(nn.Module):
    """Multilayer perceptron: latents (N, latent_dim) -> (N, C, H, W), unbounded; for points of the plane.

    Args:
        image_shape: (C, H, W) of the output.
        latent_dim: Dimension of the latent.
        num_classes: Number of classes to condition on, by an embedding concatenated to the latent; 0 for none.
        width: Width of the hidden layers.
        depth: Number of hidden layers.

    Raises:
        UserError: If width or depth is below 1.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        num_classes: int = 0,
        width: int = 128,
        depth: int = 3,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        features = latent_dim * (2 if num_classes else 1)
        self.layers = nn.Sequential(*_hidden(features, width, depth), nn.Linear(width, math.prod(image_shape)))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], dim=1)
        out: Tensor = self.layers(z).unflatten(1, self.image_shape)
        return out


class MLPCritic(nn.Module):
    """Multilayer perceptron: (N, C, H, W) -> scores (N,); for points of the plane.

    Args:
        image_shape: (C, H, W) of the input.
        num_classes: Number of classes to condition on, by projection; 0 for none.
        width: Width of the hidden layers.
        depth: Number of hidden layers.

    Raises:
        UserError: If width or depth is below 1.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int = 0, width: int = 128, depth: int = 3
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_hidden(math.prod(image_shape), width, depth))
        self.head = Projection(width, num_classes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        score: Tensor = self.head(self.layers(x.flatten(1)), labels)
        return score


def _hidden(features: int, width: int, depth: int) -> list[nn.Module]:
    """Return the hidden layers, linear maps and leaky ReLUs, of a perceptron with `features` inputs."""
    check_positive("width", width)
    check_positive("depth", depth)
    sizes = [features, *[width] * depth]
    pairs = zip(sizes, sizes[1:], strict=False)
    return [layer for before, after in pairs for layer in (nn.Linear(before, after), nn.LeakyReLU(0.2))]
