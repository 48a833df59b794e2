"""The density of a bijection f and a base distribution: log p(x) = log p(f(x)) + log |det df/dx|."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gen.core.noise import Noise
from lit_gen.families.flows.bijections import Bijection, Shape, sum_over_image


class Base(nn.Module, ABC):
    """A distribution of independent values z, with a learned mean per class if there are classes.

    Args:
        shape: Shape of z of one image.
        num_classes: Number of classes, 0 for none.
    """

    mean: nn.Parameter | None

    def __init__(self, shape: Shape, num_classes: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.mean = nn.Parameter(torch.zeros(num_classes, *shape)) if num_classes else None

    @abstractmethod
    def log_density(self, z: Tensor) -> Tensor:
        """Return the log-density of each value, for mean 0."""

    @abstractmethod
    def draw(self, noise: Noise, dtype: torch.dtype) -> Tensor:
        """Draw values of mean 0."""

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log p(z) or log p(z | label), (N,) in nats."""
        return sum_over_image(self.log_density(z if self.mean is None else z - self.mean[labels]))

    def sample(
        self, noise: Noise, labels: Tensor | None = None, temperature: float = 1.0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Sample a z per index of the noise, with its distance from the mean multiplied by the temperature."""
        z = temperature * self.draw(noise, dtype)
        return z if self.mean is None else z.to(self.mean.device) + self.mean[labels]


class Normal(Base):
    """The standard normal distribution, log p(z) = -(z^2 + log 2 pi) / 2."""

    def log_density(self, z: Tensor) -> Tensor:
        log_p: Tensor = torch.distributions.Normal(0.0, 1.0, validate_args=False).log_prob(z)
        return log_p

    def draw(self, noise: Noise, dtype: torch.dtype) -> Tensor:
        return noise.normal(self.shape, dtype)


class Logistic(Base):
    """The standard logistic distribution, log p(z) = -softplus(z) - softplus(-z)."""

    def log_density(self, z: Tensor) -> Tensor:
        return F.logsigmoid(z) + F.logsigmoid(-z)

    def draw(self, noise: Noise, dtype: torch.dtype) -> Tensor:
        return noise.uniform(self.shape, torch.float64).logit().to(dtype)


class Flow(nn.Module):
    """The density of an x for which f(x) has the base distribution.

    Args:
        bijection: The map f.
        base: Distribution of f(x).
    """

    def __init__(self, bijection: Bijection, base: Base) -> None:
        super().__init__()
        self.bijection = bijection
        self.base = base

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log p(x), (N,) in nats."""
        z, log_det = self.bijection(x)
        log_p: Tensor = self.base.log_prob(z, labels) + log_det
        return log_p

    def sample(self, noise: Noise, labels: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Sample an x per index of the noise."""
        weight = next(self.bijection.parameters())
        z = self.base.sample(noise, labels, temperature, weight.dtype)
        return self.bijection.inverse(z.to(weight.device))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set data-dependent initial values of the bijection from x."""
        self.bijection.initialise(x)
