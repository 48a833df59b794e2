"""Base class of all diffusion and flow-matching models: a network, its training and its sampling.

All of them learn one function, E[x_0 | x_t] under x_t = alpha(t) x_0 + sigma(t) eps. They differ only in the schedule,
the parameterization of the network, the density and weight of the training times, and the coupling of images and noise.
Any sampler therefore works with any of them.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.modes import evaluating
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.families.base import GenerativeModel
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.diffusion.augment import EDMAugmentation
from lit_gen.families.diffusion.denoisers import GaussianMixtureDenoiser, NetworkDenoiser, Parameterization
from lit_gen.families.diffusion.densities import TimeDensity, lattice
from lit_gen.families.diffusion.guidance import Guidance
from lit_gen.families.diffusion.likelihood import DiffusionLikelihood, ProbabilityFlow
from lit_gen.families.diffusion.networks.unet import UNet
from lit_gen.families.diffusion.objectives import LossWeight, Uncertainty, diffusion_loss, weighted
from lit_gen.families.diffusion.samplers.base import DiffusionSampler, GridSampler
from lit_gen.families.diffusion.samplers.ode import Heun
from lit_gen.families.diffusion.schedules import Schedule
from lit_gen.families.diffusion.searched import Searched
from lit_gen.families.latents import Latents
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.families.settings import LikelihoodMethod, Sampler

NetworkFactory = Callable[[tuple[int, int, int], int], nn.Module]


class _Rehearsal(GaussianMixtureDenoiser):
    """Exact denoiser of N(0, 1) that stands in for a network, with a learned variance if the network has one."""

    def __init__(self, learned: bool) -> None:
        super().__init__(torch.zeros(1, 1), torch.ones(1))
        self.learned = learned

    def denoise_with_variance(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return self.denoise(x, alpha, sigma, labels), torch.zeros_like(x) if self.learned else None


def check_not_given(model: GenerativeModel, settings: Mapping[str, Any], *fixed: str) -> None:
    """Raise a UserError if the settings contain one that the class of the model sets itself."""
    for name in fixed:
        if name in settings:
            raise UserError(f"model.{name}: {type(model).__name__} sets it; remove it, or use Diffusion")


class Diffusion(GenerativeModel):
    """Diffusion model with any schedule, parameterization and density of training times.

    The loss of an image is the mean over pixels of |F(c_in x_t, c_noise, label) - target(x_0, eps, t)|^2 with t from
    the density and eps ~ N(0, I). A subclass chooses these three parts and passes on the other arguments; this class
    trains any combination of them.

    Args:
        schedule: alpha(t) and sigma(t) of x_t = alpha x_0 + sigma eps.
        parameterization: Prediction target of the network.
        density: Density of the training times.
        network: Factory of the network, which is called with (x, c_noise, labels).
        optimizer: Optimizer of the network's parameters.
        clip: Clamp E[x_0 | x_t] to [-clip, clip] when sampling.
        weight: Weight of |E[x_0 | x_t] - x_0|^2 at each time. Default: the weight that gives the network's own error.
        stratified: Stratify the times over the batch of all processes instead of sampling them independently, which
            reduces the variance of the loss and its gradient.
        label_drop: Probability of training on an image without its class. A class-conditional model can then also
            sample without a class, which classifier-free guidance needs; 0.1 is usual.
        uncertainty: Learn how well each noise level can be denoised, and divide its loss by that (EDM2, Karras et al.
            2024, https://arxiv.org/abs/2312.02696).
        augment: Random transforms of the training images; the network is conditioned on their labels, so samples are
            not transformed.

    Raises:
        UserError: If label_drop is not a probability below 1, there are no labels to drop, or a setting is unused.
    """

    capabilities = Capabilities(
        samplers=(DiffusionSampler,),
        likelihood_kind="estimate",
        likelihood_methods=(DiffusionLikelihood,),
        dequantisation="uniform",
        learns="latents",
    )
    learns_variance: ClassVar[bool] = False
    """Whether the network predicts the variance of an ancestral step in addition to the denoised image."""

    unused: ClassVar[frozenset[str]] = frozenset()
    """Optional settings, such as `weight`, that the subclass does not use; any value but their default is refused."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        schedule: Schedule,
        parameterization: Parameterization,
        density: TimeDensity,
        *,
        network: NetworkFactory = UNet,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=2e-4),
        clip: float | None = None,
        weight: LossWeight | None = None,
        stratified: bool = False,
        uncertainty: bool = False,
        label_drop: float = 0.0,
        augment: EDMAugmentation | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_shape=image_shape, **kwargs)
        self._check_used(
            clip=clip,
            weight=weight,
            stratified=stratified,
            uncertainty=uncertainty,
            label_drop=label_drop,
            augment=augment,
        )
        if not 0 <= label_drop < 1:
            raise UserError(f"model.label_drop: {label_drop} is not a probability below 1; give a number in [0, 1)")
        if label_drop and not self.num_classes:
            raise UserError("model.label_drop: there are no labels to drop; set --model.class_conditional true")
        self.label_drop = label_drop
        self.augment = augment
        self.network = self._build(network)
        self.optimizer = optimizer
        self.schedule = schedule
        self.density = self.proposal = density
        self.weight = weight
        self.stratified = stratified
        self.uncertainty = Uncertainty() if uncertainty else None
        self.denoiser = NetworkDenoiser(self.network, schedule, parameterization, clip)

    def _check_used(self, **settings: Any) -> None:
        """Raise a UserError if a setting has another value than its default (None, False or 0) and is unused."""
        for name, value in settings.items():
            if name in self.unused and value not in (None, False):
                raise UserError(f"model.{name}: {type(self).__name__} does not use it; remove the key")

    @property
    def generator(self) -> nn.Module:
        return self.network

    def follow(self, first_stage: Latents) -> None:
        """Train on the latents of a first stage; their range is unbounded, so sampling does not clamp them.

        Raises:
            UserError: If there is an augmentation, which transforms images.
        """
        if self.augment is not None:
            raise UserError("model.augment: the augmentation transforms images and not latents; set it to null")
        super().follow(first_stage)
        self.denoiser.clip = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        batch, augment_labels = self.augmented(batch)
        t = self.training_times(len(batch.images))
        loss = self.loss(batch.images, t, self.training_noise(batch), self.conditioning(batch), augment_labels)
        self.log_training(loss=loss.detach().mean())
        if self.uncertainty is not None:
            loss = self.uncertainty(loss, self.schedule.ratio(t))
        return loss.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        t = self.density.quantile(self.schedule, Noise(0, batch.index).uniform((), torch.float64))
        loss = self.loss(batch.images, t, self.validation_noise(batch), self.conditioning(batch))
        self.log_validation(batch, loss=loss.mean())

    def loss(
        self,
        images: Tensor,
        t: Tensor,
        eps: Tensor,
        labels: Tensor | None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted loss (N,) of images paired with noise eps at times t (N,)."""
        loss = diffusion_loss(self.denoiser, images, t, eps, labels, augment_labels)
        return weighted(loss, self.denoiser, self.weight, self.density, t)

    def training_times(self, num: int) -> Tensor:
        """Sample the times (num,) of this process's images in a training step."""
        if not self.stratified:
            return self.proposal(self.schedule, num, self.device)
        offset = torch.rand((), dtype=torch.float64, generator=self.common_generator("times", "cpu"))
        total = num * self.trainer.world_size
        u = lattice(float(offset), self.global_rank * num, num, total, self.device)
        return self.proposal.quantile(self.schedule, u)

    def augmented(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """Return the batch with augmented images, and their augmentation labels or None without an augmentation.

        The transform of an image is a function of the seed, the step and the image's index.

        Raises:
            UserError: If the images are paired with noise, which does not fit a transformed image.
        """
        if self.augment is None:
            return batch, None
        if batch.noise is not None:
            raise UserError("model.augment: these images are paired with their noise; set it to null")
        noise = Noise(self.clock.seed_of("augment"), batch.index)
        images, labels = self.augment(batch.images, noise)
        return batch._replace(images=images), labels

    def _build(self, network: NetworkFactory) -> nn.Module:
        if self.augment is None:
            return network(self.image_shape, self.num_classes)
        try:
            return network(self.image_shape, self.num_classes, augment_dim=self.augment.dim)  # type: ignore[call-arg]
        except TypeError as error:
            if "augment_dim" not in str(error):
                raise
            raise UserError("model.augment: this network takes no augmentation labels; choose UNet or DiT") from None

    def training_noise(self, batch: Batch) -> Tensor:
        """Return the eps paired with each image of a training step."""
        return torch.randn_like(batch.images)

    def validation_noise(self, batch: Batch) -> Tensor:
        """Return the eps paired with each image in validation, the same every time and for any number of processes."""
        return Noise(1, batch.index).normal(self.image_shape).to(batch.images)

    def gathered(self, values: Tensor) -> Tensor:
        """Concatenate the values (N, ...) of all processes, which must have equal shapes."""
        everywhere = self.all_gather(values)
        assert isinstance(everywhere, Tensor)
        return everywhere.reshape(-1, *values.shape[1:])

    def common_generator(self, purpose: str, device: torch.device | str) -> torch.Generator:
        """Return a generator for one purpose in this training step, the same in every process."""
        return torch.Generator(device).manual_seed(self.clock.seed_of(purpose))

    def conditioning(self, batch: Batch) -> Tensor | None:
        """Return the labels of a batch; in training some of them are dropped (-1)."""
        labels = super().conditioning(batch)
        if labels is None or not self.label_drop or not self.training:
            return labels
        return torch.where(torch.rand(len(labels), device=labels.device) < self.label_drop, -1, labels)

    def rehearse(self, sampler: Sampler | None) -> None:
        super().rehearse(sampler)
        if isinstance(sampler, DiffusionSampler):
            trial = sampler.guided(None)
            if isinstance(trial, GridSampler):
                trial.grid = trial.grid.before_search()
            trial.sample(_Rehearsal(self.learns_variance), self.schedule, Noise(0, range(1)), (1,))
            self.check_guidance(sampler.guidance)

    def prepare_sampler(self, sampler: Sampler | None, data: ImageDataModule) -> None:
        super().prepare_sampler(sampler, data)
        if not isinstance(sampler, GridSampler) or not isinstance(sampler.grid, Searched):
            return
        noise = Noise(sampler.grid.seed, range(sampler.grid.num_images), self.device)
        labels = self.drawn_classes(noise.index)
        labels = None if labels is None else labels.to(self.device)
        guidance, schedule = sampler.guidance, sampler.schedule
        path = self.schedule if schedule is None else schedule.with_levels_of(self.schedule)
        with evaluating(self):
            denoiser = self.denoiser.given(labels) if guidance is None else guidance(self.denoiser, labels)
            sampler.grid.search(denoiser, path, self.image_shape, noise)

    def check_guidance(self, guidance: Guidance | None) -> None:
        """Raise a UserError if classifier-free guidance is requested and the model was not trained without a class."""
        if guidance is not None and guidance.classifier_free and not self.label_drop:
            raise UserError(
                "sampler.guidance: this model was trained without model.label_drop and cannot sample without a class; "
                "train with --model.class_conditional true --model.label_drop 0.1, or name a weaker run in "
                "sampler.guidance.run"
            )

    def default_sampler(self) -> DiffusionSampler:
        return Heun(steps=18)

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        assert isinstance(sampler, DiffusionSampler)
        self.check_guidance(sampler.guidance)
        before = self.denoiser.evaluations
        images = sampler.sample(self.denoiser, self.schedule, noise, self.image_shape, labels)
        self.nfe = float(self.denoiser.evaluations - before)
        return images

    def log_prob(self, images: Tensor, noise: Noise, labels: Tensor | None, method: LikelihoodMethod | None) -> Tensor:
        assert isinstance(method, DiffusionLikelihood)
        before = self.denoiser.evaluations
        log_p = method.log_likelihood(self.denoiser.given(labels), self.schedule, images, noise)
        self.nfe = float(self.denoiser.evaluations - before)
        return log_p

    def default_likelihood_method(self) -> DiffusionLikelihood:
        return ProbabilityFlow()

    def check_likelihood(self, method: LikelihoodMethod | None = None) -> None:
        super().check_likelihood(method)
        chosen = method or self.default_likelihood_method()
        assert isinstance(chosen, DiffusionLikelihood)
        chosen.check(self.schedule)
