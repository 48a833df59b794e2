"""Generative adversarial networks: what all share of training two networks against each other, and two families."""

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
from lit_gen.families.base import OptimizerFactory
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.gan.adversarial import (
    BOUNDARIES,
    LOSSES,
    AdaptiveAugment,
    Augmentation,
    DiffAugment,
    gradient_penalty,
    r1_penalty,
    wasserstein_of_gap,
)
from lit_gen.families.gan.networks import (
    Critic,
    DCGANDiscriminator,
    DCGANGenerator,
    Generator,
    SNGANDiscriminator,
    has_batch_norm,
    normalise_spectrally,
    statistics_kept,
)
from lit_gen.families.gan.truncation import Truncation
from lit_gen.families.settings import Sampler
from lit_gen.families.two_networks import TwoNetworks
from lit_gen.metrics.diversity import density_and_coverage, duplicate_rate
from lit_gen.metrics.wasserstein import wasserstein

GeneratorFactory = Callable[[tuple[int, int, int], int, int], nn.Module]
CriticFactory = Callable[[tuple[int, int, int], int], nn.Module]
NUM_COMPARED = 256
"""Generated and training images that diagnostics compare."""
NUM_POINTS = 1000
"""Likewise points, by an exact distance."""
PENALTY = 10.0
"""Weight of the gradient penalty, as published."""
CLIP = 0.01
"""Largest magnitude of a clipped parameter, as published."""


TITLES = {
    "minimax": "Minimax-GAN",
    "non_saturating": "GAN",
    "hinge": "Hinge-GAN",
    "least_squares": "LSGAN",
    "wasserstein": "GAN, wasserstein loss",
}
"""Of each loss, in the words of the field; a WGAN is one whose critic is constrained."""


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
    """A generator and a critic, with an optimizer each, trained by turns.

    Every batch is one step of the critic, on its real images and as many generated ones; every `critic_steps`-th batch
    is then also a step of the generator. Each step changes one network: the other's parameters get no gradient, and
    its running statistics and power iterations stay as they are. Learning rates may differ (two time scales: Heusel et
    al. 2017, https://arxiv.org/abs/1706.08500).

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        num_classes: Number of classes of the data; comes from the data.
        class_conditional: Condition both networks on the class label.
        latent_dim: Dimension of z ~ N(0, I).
        critic_steps: Critic steps for each generator step.
        generator: Called with (image_shape, latent_dim, num_classes), gives the network (z, labels) -> images.
        critic: Called with (image_shape, num_classes), gives the network (images, labels) -> scores (N,).
        optimizer: Optimizer of the generator's parameters.
        critic_optimizer: Optimizer of the critic's parameters.
        gradient_clip: Largest norm of a network's gradient; null does not clip.
        compile: Compile the generator with torch.compile.
    """

    capabilities = Capabilities(samplers=(Truncation,))

    critic_name: ClassVar[Literal["critic", "discriminator"]] = "critic"
    """What the keys of the family call the critic."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        class_conditional: bool,
        latent_dim: int,
        critic_steps: int,
        generator: GeneratorFactory,
        critic: CriticFactory,
        optimizer: OptimizerFactory,
        critic_optimizer: OptimizerFactory,
        gradient_clip: float | None,
        compile: bool,
    ) -> None:
        super().__init__(image_shape, num_classes, class_conditional, compile=compile)
        for name, value in (("latent_dim", latent_dim), (f"{self.critic_name}_steps", critic_steps)):
            if value < 1:
                raise UserError(f"model.{name}: {value} is too few; give at least 1")
        self.use_two_optimizers(gradient_clip)
        self.latent_dim = latent_dim
        self.critic_steps = critic_steps
        with belonging_to("model.generator"):
            self.generating_network = generator(self.image_shape, latent_dim, self.num_classes)
            self._try(self.generating_network, torch.zeros(2, latent_dim), self.image_shape)
        with belonging_to(f"model.{self.critic_name}"):
            self.critic = critic(self.image_shape, self.num_classes)
            self._try(self.critic, torch.zeros(2, *self.image_shape), ())
        self.optimizer = optimizer
        self.critic_optimizer = critic_optimizer

    @torch.no_grad()
    def _try(self, network: nn.Module, inputs: Tensor, shape: tuple[int, ...]) -> None:
        """Raises a UserError unless a network gives an output of a shape for each of two inputs."""
        name = type(network).__name__
        labels = torch.zeros(2, dtype=torch.long) if self.num_classes else None
        try:
            found = tuple(network.eval()(inputs, labels).shape[1:])
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{name} does not take {tuple(inputs.shape)}: {reason}; choose another network") from error
        if found != shape:
            raise UserError(f"{name} gives an output of shape {found}, not {shape}; choose another network")
        network.train()

    @property
    def generator(self) -> nn.Module:
        return self.generating_network

    def optimizer_factories(self) -> dict[str, OptimizerFactory]:
        return {"optimizer": self.optimizer, f"{self.critic_name}_optimizer": self.critic_optimizer}

    @abstractmethod
    def critic_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        """What the critic minimises, and logs its parts; `fake` has no graph."""

    @abstractmethod
    def generator_loss(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        """What the generator minimises."""

    def constrain(self) -> None:
        """Brings the critic back into its class of functions after a step; by default nothing."""

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
        """The critic's loss of each part of a batch."""
        for real, labels, z in self.parts(batch.images, self.conditioning(batch), self.latents(len(batch.images))):
            with statistics_kept(self.generating_network), torch.no_grad():
                fake = self.generating_network(z, labels)
            # within `cached` a normalised weight is computed once: one step of power iteration for each pass
            with parametrize.cached():
                yield (self.critic_loss(real, fake, labels),)

    def generator_losses(self, batch: Batch) -> Iterator[tuple[Tensor]]:
        """The generator's loss of each part of a batch."""
        for labels, z in self.parts(self.conditioning(batch), self.latents(len(batch.images))):
            with statistics_kept(self.critic), parametrize.cached():
                yield (self.generator_loss(self.generating_network(z, labels), labels),)

    def latents(self, num: int) -> Tensor:
        """z (num, latent_dim) for training, from the global generator."""
        return torch.randn(num, self.latent_dim, device=self.device)

    def scores(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The critic's scores (N,), float32: losses and their means are computed outside of half precision."""
        scores: Tensor = self.critic(images, labels).float()
        return scores

    @torch.no_grad()
    def share_statistics(self) -> None:
        """Averages running means and variances over processes, so that all draw the same images."""
        if self.trainer.world_size == 1:
            return
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]
        for statistic in (s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None):
            statistic.copy_(self.trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))

    def validation_fakes(self, batch: Batch, labels: Tensor | None) -> Tensor:
        """As many generated images as the batch has real ones, the same at each validation."""
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
        """Whether the generator has collapsed: duplicates, density and coverage of 256 samples, by pixels."""
        data: ImageDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        real = data.examples("train", NUM_COMPARED).images.flatten(1)
        fake = self.sample(Noise(noise.seed, range(len(real)), self.device)).flatten(1).cpu()
        density, coverage = density_and_coverage(real, fake)
        return {"duplicate_rate": duplicate_rate(real, fake), "density": density, "coverage": coverage}


class GAN(AdversarialModel):
    """Generative adversarial network (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661).

    The discriminator learns to tell real from generated images, the generator to be taken for real; `loss` says by
    which functions of the discriminator's scores (see `adversarial`). R1, r1 / 2 E |grad D(x)|^2, is added to
    the discriminator's loss at every `r1_every`-th step with `r1_every` times the weight. An augmentation transforms
    all images that the discriminator sees, in the steps of both networks.

    Logged are the mean scores of real and generated images and the share of each that the discriminator is right about:
    both near 1 where it has won, near 1/2 where it has lost. The Wasserstein loss knows no right and wrong.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        num_classes: Number of classes of the data; comes from the data.
        class_conditional: Condition the generator by scale and shift and the discriminator by projection.
        latent_dim: Dimension of z ~ N(0, I).
        loss: minimax, non_saturating, hinge, least_squares or wasserstein.
        r1: gamma, the weight of R1; 0 for none. Refused of a discriminator with batch normalisation.
        r1_every: Discriminator steps from one R1 to the next.
        discriminator_steps: Discriminator steps for each generator step.
        augment: What the discriminator sees instead of the images; null: the images.
        generator: Called with z (N, latent_dim) and labels, gives images in [-1, 1].
        discriminator: Called with images and labels, gives (N,) scores.
        optimizer: Optimizer of the generator's parameters.
        discriminator_optimizer: Optimizer of the discriminator's parameters.
        gradient_clip: Largest norm of a network's gradient; null does not clip.
        compile: Compile the generator with torch.compile.
    """

    critic_name = "discriminator"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        class_conditional: bool = False,
        latent_dim: int = 64,
        loss: Literal["minimax", "non_saturating", "hinge", "least_squares", "wasserstein"] = "non_saturating",
        r1: float = 0.0,
        r1_every: int = 16,
        discriminator_steps: int = 1,
        augment: Augmentation | None = None,
        generator: GeneratorFactory = DCGANGenerator,
        discriminator: CriticFactory = DCGANDiscriminator,
        optimizer: OptimizerFactory = AdversarialAdam,
        discriminator_optimizer: OptimizerFactory = AdversarialAdam,
        gradient_clip: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(
            image_shape,
            num_classes,
            class_conditional,
            latent_dim,
            discriminator_steps,
            generator,
            discriminator,
            optimizer,
            discriminator_optimizer,
            gradient_clip,
            compile,
        )
        if r1 < 0 or r1_every < 1:
            raise UserError(f"model.r1: the weight ({r1}) must be at least 0 and r1_every ({r1_every}) at least 1")
        if isinstance(augment, AdaptiveAugment) and loss not in BOUNDARIES:
            raise UserError(
                f"model.augment: AdaptiveAugment follows how often D is right, which the {loss} loss does not say; use "
                "DiffAugment, or another model.loss"
            )
        if r1 and has_batch_norm(self.critic):
            raise UserError(
                "model.r1: R1 is of single images, which batch normalisation mixes; leave it out, or choose a "
                "model.discriminator without"
            )
        self.loss = loss
        self.r1 = r1
        self.r1_every = r1_every
        self.augment = augment
        self.title = TITLES[loss]
        if isinstance(self.critic, SNGANDiscriminator) and self.critic.spectral:
            self.title = "SNGAN" if loss == "hinge" else f"SNGAN, {loss.replace('_', ' ')} loss"

    def check_data(self, data: ImageDataModule) -> None:
        if isinstance(self.augment, DiffAugment) and not data.source.quantised:
            raise UserError(
                f"model.augment: {type(self.augment).__name__} transforms images, but {data.name} holds points; leave "
                "it out, or choose a data.source of images"
            )

    def critic_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        regularised = self.r1 > 0 and self.clock.batches_seen % self.r1_every == 0
        real = real.detach().requires_grad_(regularised)
        of_real, of_fake = self.scores(self.seen(real), labels), self.scores(self.seen(fake), labels)
        loss = LOSSES[self.loss][0](of_real, of_fake)
        if regularised:
            penalty = r1_penalty(of_real, real, self.r1)
            loss = loss + self.r1_every * penalty
            self.log_training(r1_penalty=penalty.detach())
        if self.augment is not None:
            self.augment.observe(
                of_real.detach() - BOUNDARIES.get(self.loss, 0.0),
                lambda counts: self.trainer.strategy.reduce(counts, reduce_op="sum"),
            )
            if isinstance(self.augment, AdaptiveAugment):
                self.log_training(augment_p=self.augment.p)
        self.log_training(real_score=of_real.detach().mean(), fake_score=of_fake.detach().mean())
        if self.loss in BOUNDARIES:
            self.log_training(
                real_accuracy=(of_real.detach() > BOUNDARIES[self.loss]).float().mean(),
                fake_accuracy=(of_fake.detach() < BOUNDARIES[self.loss]).float().mean(),
            )
        return loss

    def generator_loss(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        return LOSSES[self.loss][1](self.scores(self.seen(fake), labels))

    def seen(self, images: Tensor) -> Tensor:
        """What the discriminator sees of images."""
        return images if self.augment is None else self.augment(images)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        labels = self.conditioning(batch)
        of_real, of_fake = (self.scores(x, labels) for x in (batch.images, self.validation_fakes(batch, labels)))
        self.log_validation(batch, loss=LOSSES[self.loss][0](of_real, of_fake), real_score=of_real.mean())


class WGAN(AdversarialModel):
    """Wasserstein GAN (Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875).

    The critic maximises the gap E D(x) - E D(G(z)), which over all 1-Lipschitz functions D has the Wasserstein distance
    as its maximum; the generator maximises E D(G(z)). What keeps D from growing steep is the `constraint`:

    - penalty: - lambda E (|grad D(x_hat)| - 1)^2, x_hat uniform on the line between a real and a generated image
      (Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028);
    - clipping, the original: all parameters of the critic are clamped to [-clip, clip] after each step, so that D is
      K-Lipschitz for a K that nobody knows, and the gap an estimate of K times the distance;
    - spectral: each weight matrix is divided by its largest singular value (Miyato et al. 2018,
      https://arxiv.org/abs/1802.05957), which bounds the slope of each layer but for how a kernel overlaps itself.

    The critic's estimate of the distance is logged as `wasserstein`, under its class of functions: of the gap under a
    penalty, the solution W of gap = W + W^2 / (2 lambda); else the gap itself.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        num_classes: Number of classes of the data; comes from the data.
        class_conditional: Condition both networks on the class label.
        latent_dim: Dimension of z ~ N(0, I).
        critic_steps: Critic steps for each generator step.
        constraint: penalty, clipping or spectral.
        penalty: lambda, the weight of the gradient penalty; refused under another constraint.
        clip: Largest magnitude of a clipped parameter; refused under another constraint.
        generator: Called with z (N, latent_dim) and labels, gives images in [-1, 1].
        critic: Called with images and labels, gives (N,) scores.
        optimizer: Optimizer of the generator's parameters.
        critic_optimizer: Optimizer of the critic's parameters.
        gradient_clip: Largest norm of a network's gradient; null does not clip.
        compile: Compile the generator with torch.compile.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        class_conditional: bool = False,
        latent_dim: int = 64,
        critic_steps: int = 5,
        constraint: Literal["penalty", "clipping", "spectral"] = "penalty",
        penalty: float = PENALTY,
        clip: float = CLIP,
        generator: GeneratorFactory = Generator,
        critic: CriticFactory = Critic,
        optimizer: OptimizerFactory = AdversarialAdam,
        critic_optimizer: OptimizerFactory = AdversarialAdam,
        gradient_clip: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(
            image_shape,
            num_classes,
            class_conditional,
            latent_dim,
            critic_steps,
            generator,
            critic,
            optimizer,
            critic_optimizer,
            gradient_clip,
            compile,
        )
        for name, value, default, user in (
            ("penalty", penalty, PENALTY, "penalty"),
            ("clip", clip, CLIP, "clipping"),
        ):
            if not value > 0:
                raise UserError(f"model.{name}: {value} is not positive; leave it out for the default")
            if value != default and constraint != user:
                raise UserError(
                    f"model.{name}: {value} is not used by the constraint {constraint}; leave it out, or set "
                    f"model.constraint to {user}"
                )
        if constraint == "penalty" and has_batch_norm(self.critic):
            raise UserError(
                "model.critic: a gradient penalty is of single images, which batch normalisation mixes; use a critic "
                "without, or another model.constraint"
            )
        self.constraint = constraint
        self.penalty = penalty
        self.clip = clip
        self.title = {"clipping": "Clipping-WGAN", "spectral": "Spectral-WGAN"}.get(constraint, "WGAN")
        if constraint == "spectral":
            normalise_spectrally(self.critic)
        self.constrain()

    @torch.no_grad()
    def constrain(self) -> None:
        if self.constraint == "clipping":
            torch._foreach_clamp_min_(list(self.critic.parameters()), -self.clip)
            torch._foreach_clamp_max_(list(self.critic.parameters()), self.clip)

    def gap(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        """E D(x) - E D(G(z))."""
        return self.scores(real, labels).mean() - self.scores(fake, labels).mean()

    def critic_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        gap = self.gap(real, fake, labels)
        distance = gap.detach()
        self.log_training(critic_gap=distance)
        if self.constraint != "penalty":
            self.log_training(wasserstein=distance)
            return -gap
        penalty = gradient_penalty(self.critic, real, fake, labels)
        self.log_training(gradient_penalty=penalty.detach(), wasserstein=wasserstein_of_gap(distance, self.penalty))
        return self.penalty * penalty - gap

    def diagnostics(self, noise: Noise) -> dict[str, float]:
        """As of any GAN; of points also the exact distance that the critic estimates, between 1000 and 1000."""
        numbers = super().diagnostics(noise)
        if self.image_shape[1:] == (1, 1):
            data: ImageDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
            real = data.examples("train", NUM_POINTS).images.flatten(1)
            fake = self.sample(Noise(noise.seed, range(len(real)), self.device)).flatten(1).cpu()
            numbers["wasserstein"] = wasserstein(real, fake, order=1)
        return numbers

    def generator_loss(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        return -self.scores(fake, labels).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        labels = self.conditioning(batch)
        gap = self.gap(batch.images, self.validation_fakes(batch, labels), labels)
        self.log_validation(batch, critic_gap=gap)
