"""Base class of adversarial models: a generator and a critic, trained in alternation."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from lit_gen.core.errors import UserError, belonging_to
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.gan.networks.blocks import statistics_kept
from lit_gen.families.gan.truncation import Truncation
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.families.settings import Sampler
from lit_gen.families.two_networks import TwoNetworks
from lit_gen.metrics.duplicates import duplicate_rate
from lit_gen.metrics.manifold import density_and_coverage

GeneratorFactory = Callable[[tuple[int, int, int], int, int], nn.Module]
CriticFactory = Callable[[tuple[int, int, int], int], nn.Module]
NUM_COMPARED = 256
"""Number of generated images, and of training images, that diagnostics compare."""


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


class AdversarialModel(TwoNetworks):
    """A generator and a critic, each with its own optimizer, trained in alternation.

    Every batch is one step of the critic, on its real images and as many generated ones. Every `critic_steps`-th batch
    is then also a step of the generator. Each step changes one network: the parameters of the other get no gradient,
    and its running statistics and power iterations stay constant. The learning rates may differ (two time scales:
    Heusel et al. 2017, https://arxiv.org/abs/1706.08500).

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        generator: Called with (image_shape, latent_dim, num_classes), returns the network (z, labels) -> images.
        critic: Called with (image_shape, num_classes), returns the network (images, labels) -> scores (N,).
        critic_steps: Critic steps per generator step.
        critic_optimizer: Optimizer of the critic's parameters.
        num_classes: Number of classes of the data; comes from the data.
        class_conditional: Condition both networks on the class label.
        latent_dim: Dimension of z ~ N(0, I).
        optimizer: Optimizer of the generator's parameters.
        gradient_clip: Largest norm of the gradient of each network; null disables clipping.
        compile: Compile the generator with torch.compile.

    Raises:
        UserError: If a number is out of range, or if a network does not take its inputs or returns another shape.
    """

    capabilities = Capabilities(samplers=(Truncation,))

    critic_name: ClassVar[Literal["critic", "discriminator"]] = "critic"
    """Name of the critic in the keys of the family."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        generator: GeneratorFactory,
        critic: CriticFactory,
        critic_steps: int,
        critic_optimizer: OptimizerFactory,
        num_classes: int = 0,
        class_conditional: bool = False,
        latent_dim: int = 64,
        optimizer: OptimizerFactory = AdversarialAdam,
        gradient_clip: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(image_shape, num_classes, class_conditional, compile=compile)
        for name, value in (("latent_dim", latent_dim), (f"{self.critic_name}_steps", critic_steps)):
            if value < 1:
                raise UserError(f"model.{name}: {value} is too small; give at least 1")
        self.use_two_optimizers(gradient_clip)
        self.latent_dim = latent_dim
        self.critic_steps = critic_steps
        with belonging_to("model.generator"):
            self.generating_network = generator(self.image_shape, latent_dim, self.num_classes)
            self._check_network(self.generating_network, torch.zeros(2, latent_dim), self.image_shape)
        with belonging_to(f"model.{self.critic_name}"):
            self.critic = critic(self.image_shape, self.num_classes)
            self._check_network(self.critic, torch.zeros(2, *self.image_shape), ())
        self.optimizer = optimizer
        self.critic_optimizer = critic_optimizer

    @torch.no_grad()
    def _check_network(self, network: nn.Module, inputs: Tensor, shape: tuple[int, ...]) -> None:
        """Raise a UserError unless a network returns an output of the given shape for each of two inputs."""
        name = type(network).__name__
        labels = torch.zeros(2, dtype=torch.long) if self.num_classes else None
        try:
            found = tuple(network.eval()(inputs, labels).shape[1:])
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{name} does not take inputs of shape {tuple(inputs.shape)}: {reason}; choose another network"
            ) from error
        if found != shape:
            raise UserError(f"{name} returns an output of shape {found}, not {shape}; choose another network")
        network.train()

    @property
    def generator(self) -> nn.Module:
        return self.generating_network

    def optimizer_factories(self) -> dict[str, OptimizerFactory]:
        return {"optimizer": self.optimizer, f"{self.critic_name}_optimizer": self.critic_optimizer}

    @abstractmethod
    def critic_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        """Return the loss of the critic, and log its terms; `fake` has no graph."""

    @abstractmethod
    def generator_loss(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        """Return the loss of the generator."""

    def constrain(self) -> None:
        """Project the critic back onto its class of functions after a step; does nothing by default."""

    @property
    def step_periods(self) -> tuple[int, ...]:
        return (self.critic_steps,)

    def configure_optimizers(self) -> Any:
        return [
            self.optimizer(self.generating_network.parameters()),
            self.critic_optimizer(self.critic.parameters()),
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        generator_optimizer, critic_optimizer = cast(list[Optimizer], self.optimizers())
        (descent,) = self.differentiate(self.critic_losses(batch), self.critic)
        self.descend(critic_optimizer, self.critic, descent.gradients)
        self.constrain()
        self.log_training(loss=descent.loss)
        if self.clock.batches_seen % self.critic_steps == 0:
            (descent,) = self.differentiate(self.generator_losses(batch), self.generating_network)
            self.descend(generator_optimizer, self.generating_network, descent.gradients)
            self.log_training(generator_loss=descent.loss)
        self.share_statistics()

    def critic_losses(self, batch: Batch) -> Iterator[tuple[Tensor]]:
        """Yield the critic's loss of each micro-batch."""
        for real, labels, z in self.micro_batches(
            batch.images, self.conditioning(batch), self.latents(len(batch.images))
        ):
            with statistics_kept(self.generating_network), torch.no_grad():
                fake = self.generating_network(z, labels)
            # within `cached` a normalised weight is computed once: one step of power iteration per pass
            with parametrize.cached():
                yield (self.critic_loss(real, fake, labels),)

    def generator_losses(self, batch: Batch) -> Iterator[tuple[Tensor]]:
        """Yield the generator's loss of each micro-batch."""
        for labels, z in self.micro_batches(self.conditioning(batch), self.latents(len(batch.images))):
            with statistics_kept(self.critic), parametrize.cached():
                yield (self.generator_loss(self.generating_network(z, labels), labels),)

    def latents(self, num: int) -> Tensor:
        """Sample z (num, latent_dim) for training, from the global generator."""
        return self.drawn(num, lambda n: torch.randn(n, self.latent_dim, device=self.device))

    def scores(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Return the critic's scores (N,) in float32: losses and their means are not computed in half precision."""
        out: Tensor = self.critic(images, labels).float()
        return out

    @torch.no_grad()
    def share_statistics(self) -> None:
        """Average running means and variances over processes, so that all of them generate the same images."""
        if self.trainer.world_size == 1:
            return
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]
        for statistic in (s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None):
            statistic.copy_(self.trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))

    def validation_fakes(self, batch: Batch, labels: Tensor | None) -> Tensor:
        """Return as many generated images as the batch has real ones, the same at each validation."""
        z = Noise(0, batch.index).normal((self.latent_dim,)).to(self.device)
        images: Tensor = self.generating_network(z, labels)
        return images

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        if isinstance(sampler, Truncation):
            z = sampler.latents(noise, self.latent_dim)
        else:
            z = noise.normal((self.latent_dim,))
        self.nfe = 1.0
        images: Tensor = self.generating_network(z.to(self.device), labels)
        return images

    def diagnostics(self, noise: Noise) -> dict[str, float]:
        """Return the duplicate rate, density and coverage of 256 samples, by pixels: they reveal a mode collapse."""
        data: ImageDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        real = data.examples("train", NUM_COMPARED).images.flatten(1)
        fake = self.sample(Noise(noise.seed, range(len(real)), self.device)).flatten(1).cpu()
        density, coverage = density_and_coverage(real, fake)
        return {"duplicate_rate": duplicate_rate(real, fake), "density": density, "coverage": coverage}
