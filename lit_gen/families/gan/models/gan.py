"""Generative adversarial networks with a discriminator (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661)."""

from typing import Any, Literal

from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.families.gan.augmentation import AdaptiveAugment, Augmentation, DiffAugment
from lit_gen.families.gan.losses import BOUNDARIES, LOSSES, r1_penalty
from lit_gen.families.gan.models.adversarial import (
    AdversarialAdam,
    AdversarialModel,
    CriticFactory,
    GeneratorFactory,
)
from lit_gen.families.gan.networks.blocks import has_batch_norm
from lit_gen.families.gan.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from lit_gen.families.gan.networks.sngan import SNGANDiscriminator
from lit_gen.families.optimizers import OptimizerFactory

TITLES = {
    "minimax": "Minimax-GAN",
    "non_saturating": "GAN",
    "hinge": "Hinge-GAN",
    "least_squares": "LSGAN",
    "wasserstein": "GAN, wasserstein loss",
}
"""Name of the model by loss, as in the literature; only a constrained critic makes a WGAN."""


class GAN(AdversarialModel):
    """Generative adversarial network (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661).

    The discriminator learns to tell real from generated images, and the generator to make the discriminator take its
    images for real. `loss` names the functions of the scores that both minimise (see `losses`). R1,
    r1 / 2 E |grad D(x)|^2, is added to the discriminator's loss at every `r1_every`-th step with `r1_every` times the
    weight. An augmentation transforms all images that the discriminator sees, in the steps of both networks.

    The logged values are the mean scores of real and generated images, and the share of each that the discriminator
    classifies correctly: both near 1 if it has won, near 1/2 if it has lost. The Wasserstein loss has no such share.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        loss: minimax, non_saturating, hinge, least_squares or wasserstein.
        r1: gamma, the weight of R1; 0 disables it. Not supported for a discriminator with batch normalisation.
        r1_every: Discriminator steps from one R1 to the next.
        discriminator_steps: Discriminator steps per generator step.
        augment: Augmentation of the discriminator's inputs; null for none.
        generator: Called with z (N, latent_dim) and labels, returns images in [-1, 1].
        discriminator: Called with images and labels, returns scores (N,).
        discriminator_optimizer: Optimizer of the discriminator's parameters.
        **kwargs: Arguments of `AdversarialModel`.

    Raises:
        UserError: If a number is out of range, or if the discriminator or the augmentation does not suit the loss.
    """

    critic_name = "discriminator"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        loss: Literal["minimax", "non_saturating", "hinge", "least_squares", "wasserstein"] = "non_saturating",
        r1: float = 0.0,
        r1_every: int = 16,
        discriminator_steps: int = 1,
        augment: Augmentation | None = None,
        generator: GeneratorFactory = DCGANGenerator,
        discriminator: CriticFactory = DCGANDiscriminator,
        discriminator_optimizer: OptimizerFactory = AdversarialAdam,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image_shape=image_shape,
            generator=generator,
            critic=discriminator,
            critic_steps=discriminator_steps,
            critic_optimizer=discriminator_optimizer,
            **kwargs,
        )
        self.loss = loss
        self.r1 = r1
        self.r1_every = r1_every
        self.augment = augment
        self._check_settings()
        self.title = TITLES[loss]
        if isinstance(self.critic, SNGANDiscriminator) and self.critic.spectral:
            self.title = "SNGAN" if loss == "hinge" else f"SNGAN, {loss.replace('_', ' ')} loss"

    def _check_settings(self) -> None:
        if self.r1 < 0:
            raise UserError(f"model.r1: {self.r1} is negative; give a positive weight, or 0 for no R1")
        if self.r1_every < 1:
            raise UserError(f"model.r1_every: {self.r1_every} is too small; give at least 1")
        if isinstance(self.augment, AdaptiveAugment) and self.loss not in BOUNDARIES:
            raise UserError(
                f"model.augment: AdaptiveAugment counts how often the discriminator is right, which the {self.loss} "
                "loss does not define; use DiffAugment, or choose another model.loss"
            )
        if self.r1 and has_batch_norm(self.critic):
            raise UserError(
                f"model.r1: R1 ({self.r1}) is defined for single images, which batch normalisation mixes; set it to "
                "0, or choose a model.discriminator without batch normalisation"
            )

    def check_data(self, data: ImageDataModule) -> None:
        if isinstance(self.augment, DiffAugment) and not data.source.quantised:
            raise UserError(
                f"model.augment: {type(self.augment).__name__} transforms images, but {data.name} holds points; remove "
                "the key, or choose a data.source of images"
            )

    @property
    def step_periods(self) -> tuple[int, ...]:
        return (*super().step_periods, self.r1_every) if self.r1 else super().step_periods

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
        """Return the images as the discriminator sees them."""
        return images if self.augment is None else self.augment(images)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        labels = self.conditioning(batch)
        of_real, of_fake = (self.scores(x, labels) for x in (batch.images, self.validation_fakes(batch, labels)))
        self.log_validation(batch, loss=LOSSES[self.loss][0](of_real, of_fake), real_score=of_real.mean())
