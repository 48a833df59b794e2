"""Wasserstein GANs: a critic whose slope is bounded (Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875).

The training loop, with its critic steps, is in `adversarial.py`.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.families.gan.losses import gradient_penalty, wasserstein_of_gap
from lit_gen.families.gan.models.adversarial import (
    AdversarialAdam,
    AdversarialModel,
    CriticFactory,
    GeneratorFactory,
)
from lit_gen.families.gan.networks.blocks import has_batch_norm, normalise_spectrally
from lit_gen.families.gan.networks.residual import Critic, Generator
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.metrics.wasserstein import wasserstein

NUM_POINTS = 1000
"""Number of generated points, and of training points, between which the exact distance is computed."""
PENALTY = 10.0
"""Weight of the gradient penalty, as published."""
CLIP = 0.01
"""Largest magnitude of a clipped parameter, as published."""


class WGAN(AdversarialModel):
    """Wasserstein GAN (Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875).

    The critic maximises the gap E D(x) - E D(G(z)), whose maximum over all 1-Lipschitz functions D is the Wasserstein
    distance; the generator maximises E D(G(z)). The `constraint` bounds the slope of D:

    - penalty: - lambda E (|grad D(x_hat)| - 1)^2, x_hat uniform on the line between a real and a generated image
      (Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028);
    - clipping, the original: all parameters of the critic are clamped to [-clip, clip] after each step. D is then
      K-Lipschitz for an unknown K, and the gap an estimate of K times the distance;
    - spectral: each weight matrix is divided by its largest singular value (Miyato et al. 2018,
      https://arxiv.org/abs/1802.05957). This bounds the slope of each layer, except for the overlap of a convolution's
      kernel with itself.

    The critic's estimate of the distance, under its class of functions, is logged as `wasserstein`: under a penalty the
    solution W of gap = W + W^2 / (2 lambda), otherwise the gap itself.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        critic_steps: Critic steps per generator step.
        constraint: penalty, clipping or spectral.
        penalty: lambda, the weight of the gradient penalty; only for the constraint penalty.
        clip: Largest magnitude of a clipped parameter; only for the constraint clipping.
        generator: Called with z (N, latent_dim) and labels, returns images in [-1, 1].
        critic: Called with images and labels, returns scores (N,).
        critic_optimizer: Optimizer of the critic's parameters.
        **kwargs: Arguments of `AdversarialModel`.

    Raises:
        UserError: If a number is out of range or unused, or if a penalty meets a critic with batch normalisation.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        critic_steps: int = 5,
        constraint: Literal["penalty", "clipping", "spectral"] = "penalty",
        penalty: float = PENALTY,
        clip: float = CLIP,
        generator: GeneratorFactory = Generator,
        critic: CriticFactory = Critic,
        critic_optimizer: OptimizerFactory = AdversarialAdam,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image_shape=image_shape,
            generator=generator,
            critic=critic,
            critic_steps=critic_steps,
            critic_optimizer=critic_optimizer,
            **kwargs,
        )
        self.constraint = constraint
        self.penalty = penalty
        self.clip = clip
        self._check_settings()
        self.title = {"clipping": "Clipping-WGAN", "spectral": "Spectral-WGAN"}.get(constraint, "WGAN")
        if constraint == "spectral":
            normalise_spectrally(self.critic)
        self.constrain()

    def _check_settings(self) -> None:
        for name, value, default, user in (
            ("penalty", self.penalty, PENALTY, "penalty"),
            ("clip", self.clip, CLIP, "clipping"),
        ):
            if not value > 0:
                raise UserError(
                    f"model.{name}: {value} is not positive; give a positive number, or remove the key for {default}"
                )
            if value != default and self.constraint != user:
                raise UserError(
                    f"model.{name}: {value} is not used by the constraint {self.constraint}; remove the key, or set "
                    f"model.constraint to {user}"
                )
        if self.constraint == "penalty" and has_batch_norm(self.critic):
            raise UserError(
                "model.critic: the gradient penalty is defined for single images, which batch normalisation mixes; "
                "choose a critic without batch normalisation, or another model.constraint"
            )

    @torch.no_grad()
    def constrain(self) -> None:
        if self.constraint == "clipping":
            torch._foreach_clamp_min_(list(self.critic.parameters()), -self.clip)
            torch._foreach_clamp_max_(list(self.critic.parameters()), self.clip)

    def gap(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        """Return E D(x) - E D(G(z))."""
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
        """Return the numbers of any GAN and, for points, the exact distance that the critic estimates, of 1000 each."""
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
