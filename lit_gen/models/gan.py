"""Generative adversarial networks."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_gen.data import Batch
from lit_gen.methods import Sampler
from lit_gen.models.base import GenerativeModel, OptimizerFactory
from lit_gen.networks.gan import Critic, Generator
from lit_gen.noise import Noise

GeneratorFactory = Callable[[tuple[int, int, int], int], nn.Module]
CriticFactory = Callable[[tuple[int, int, int]], nn.Module]


class AdversarialAdam(torch.optim.Adam):
    """Adam with beta_1 = 0 and beta_2 = 0.9, the setting of WGAN-GP: no momentum towards where the other network was.

    Args:
        params: Parameters to optimise.
        lr: Learning rate.
        betas: Decay rates of the averages of gradient and squared gradient.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 2e-4, betas: tuple[float, float] = (0.0, 0.9)
    ) -> None:
        super().__init__(params, lr=lr, betas=betas)


class WGAN(GenerativeModel):
    """Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028).

    The critic maximises E D(x) - E D(G(z)) - lambda E (|grad D(x_hat)| - 1)^2 with x_hat uniform on the line between a
    real and a generated image; the generator maximises E D(G(z)). Every batch is one critic step, and every
    `critic_steps`-th batch is also a generator step. The critic's gap E D(x) - E D(G(z)) is logged: it estimates the
    Wasserstein distance under the critic's class of functions.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        num_classes: Number of classes of the data; comes from the data.
        latent_dim: Dimension of z ~ N(0, I).
        critic_steps: Critic steps for each generator step.
        penalty: lambda, the weight of the gradient penalty.
        generator: Called with z (N, latent_dim), gives images in [-1, 1].
        critic: Called with images, gives (N,) scores.
        optimizer: Optimizer of the generator's parameters.
        critic_optimizer: Optimizer of the critic's parameters.
        compile: Compile the generator with torch.compile.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        latent_dim: int = 64,
        critic_steps: int = 5,
        penalty: float = 10.0,
        generator: GeneratorFactory = Generator,
        critic: CriticFactory = Critic,
        optimizer: OptimizerFactory = AdversarialAdam,
        critic_optimizer: OptimizerFactory = AdversarialAdam,
        compile: bool = False,
    ) -> None:
        super().__init__(image_shape, num_classes, compile=compile)
        self.automatic_optimization = False
        self.latent_dim = latent_dim
        self.critic_steps = critic_steps
        self.penalty = penalty
        self.generating_network = generator(self.image_shape, latent_dim)
        self.critic = critic(self.image_shape)
        self.optimizer = optimizer
        self.critic_optimizer = critic_optimizer

    @property
    def generator(self) -> nn.Module:
        return self.generating_network

    def configure_optimizers(self) -> Any:
        return [
            self.optimizer(self.generating_network.parameters()),
            self.critic_optimizer(self.critic.parameters()),
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        generator_optimizer, critic_optimizer = cast(list[Optimizer], self.optimizers())
        real = batch.images
        z = torch.randn(len(real), self.latent_dim, device=real.device)
        with torch.no_grad():
            fake = self.generating_network(z)
        gap = self.critic(real).mean() - self.critic(fake).mean()
        penalty = gradient_penalty(self.critic, real, fake)
        critic_loss = self.penalty * penalty - gap
        self.descend(critic_optimizer, critic_loss, self.critic.parameters())
        self.log_training(loss=critic_loss.detach(), critic_gap=gap.detach(), gradient_penalty=penalty.detach())
        if self._batches_seen % self.critic_steps == 0:
            z = torch.randn(len(real), self.latent_dim, device=real.device)
            loss = -self.critic(self.generating_network(z)).mean()
            self.descend(generator_optimizer, loss, self.generating_network.parameters())
            self.log_training(generator_loss=loss.detach())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        z = Noise(0, batch.index).normal((self.latent_dim,)).to(self.device)
        gap = self.critic(batch.images).mean() - self.critic(self.generating_network(z)).mean()
        self.log_validation(batch, critic_gap=gap)

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        z = noise.normal((self.latent_dim,)).to(self.device)
        self.nfe = 1.0
        return self.generating_network(z)

    def descend(self, optimizer: Optimizer, loss: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        """One optimizer step on these parameters alone; gradients are averaged over processes.

        Gradients are asked for by name, not accumulated by a backward pass, so the other network gets none.
        """
        parameters = list(parameters)
        gradients = torch.autograd.grad(loss, parameters)
        if self.trainer.world_size > 1:
            gradients = tuple(self.trainer.strategy.reduce(g, reduce_op="mean") for g in gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """E (|grad D(x_hat)|_2 - 1)^2 with x_hat = u x + (1 - u) G(z), u uniform for each image; a scalar.

    The norm is over all pixels and channels of an image.
    """
    u = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype)
    between = (u * real + (1 - u) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
