"""The base class of all families: what an author of a family defines, and how a model is sampled and scored."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.modes import evaluating
from lit_gen.core.noise import Noise
from lit_gen.core.trainer_settings import TrainerSettings
from lit_gen.data.batches import Batch
from lit_gen.data.class_order import classes_of
from lit_gen.data.module import ImageDataModule
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.latents import Latents
from lit_gen.families.optimizers import OptimizerFactory as OptimizerFactory
from lit_gen.families.pictures import MakesPictures
from lit_gen.families.settings import LikelihoodMethod, Sampler
from lit_gen.families.training_steps import TrainsInSteps
from lit_gen.metrics.feature_nets import FeatureNet


class GenerativeModel(TrainsInSteps, MakesPictures, ABC):
    """A generative image model: a network, its training objective, and its way to sample.

    Images are float tensors (N, C, H, W) in [-1, 1].

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        num_classes: Number of classes of the data, 0 for data without labels; comes from the data.
        class_conditional: Condition the model on the class label.
        warmup: Images over which the learning rate rises linearly from zero.
        compile: Compile the network with torch.compile; the checkpoint's keys stay as they are.

    Raises:
        UserError: If the model is to be class-conditional and the data has no labels, or the warm-up is negative.
    """

    capabilities: Capabilities = Capabilities()
    """Capabilities of the family; a model that can do less than its class has a record of its own."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        class_conditional: bool = False,
        warmup: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__(warmup, compile)
        if class_conditional and not num_classes:
            raise UserError("model.class_conditional: the data has no labels; set it to false or choose labelled data")
        channels, height, width = image_shape
        self.image_shape = (channels, height, width)
        self.num_classes = num_classes if class_conditional else 0
        # state, not a setting: the constructor does not know the run
        self.title = type(self).__name__
        """Name of the model in results. A first stage (`follow`) or a teacher (`learn_pairs`) adds to it, and
        `load_model` restores it."""
        self.nfe = 0.0
        """Number of network evaluations per image of the latest call of `sample` or `log_likelihood`."""
        self.first_stage: Latents | None = None
        """First stage that decodes the samples of the model; it is trained before, and is not a submodule."""
        self.class_counts: tuple[int, ...] | None = None
        """Number of training images of each class, whose frequencies samples follow; None: all classes equally."""

    @property
    @abstractmethod
    def generator(self) -> nn.Module:
        """The generating network, which EMA averages and samples come from."""

    @abstractmethod
    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        """Sample one image (C, H, W), or the input of a first stage, for each index of `noise`, and set `nfe`."""

    # --- the data, and the first stage ---

    def follow(self, first_stage: Latents) -> None:
        """Make the model the second of two stages; it gives no likelihood of images, only of codes or latents."""
        self.first_stage = first_stage
        self.capabilities = replace(self.capabilities, likelihood_kind=None)
        self.title = f"{first_stage.title} + {self.title}"

    def follow_classes(self, data: ImageDataModule) -> None:
        """Let samples without given labels follow the class frequencies of the training split."""
        if self.num_classes:
            self.class_counts = data.class_counts("train")

    def drawn_classes(self, index: Tensor) -> Tensor | None:
        """Return the classes (N,) of samples with the given indices; None for a model without classes."""
        if not self.num_classes:
            return None
        classes = classes_of(index.cpu().numpy(), self.class_counts or (1,) * self.num_classes)
        return torch.from_numpy(classes).to(index.device)

    def conditioning(self, batch: Batch) -> Tensor | None:
        """Return the labels of a batch if the model is class-conditional."""
        return batch.labels if self.num_classes else None

    @property
    def num_initial(self) -> int:
        """Number of training images for `initialise`, or all of them if there are fewer."""
        return 512

    def initialise(self, images: Tensor) -> None:
        """Set initial values from the data before training starts; by default none.

        Args:
            images: (N, C, H, W) in [-1, 1], evenly spaced in the training split: the same in every process.
        """

    # --- checks before training starts ---

    def check_data(self, data: ImageDataModule) -> None:
        """Raise a UserError if the family does not model such data; by default never."""

    def check_trainer(self, settings: TrainerSettings) -> None:
        """Raise a UserError if the family does not train with these settings of the trainer; by default never."""

    def check_training(self) -> None:
        """Raise a UserError if something is missing that only training needs; by default never."""

    # --- sampling ---

    def default_sampler(self) -> Sampler | None:
        """Return the sampler that `sample` uses if none is given."""
        return None

    def check_sampler(self, sampler: Sampler | None) -> None:
        """Raise a UserError unless the family supports the sampler."""
        self.capabilities.check_sampler(type(self).__name__, sampler)

    def check_scored(self, sampler: Sampler | None, data: ImageDataModule) -> None:
        """Raise a UserError if samples of this sampler cannot be compared with the data; by default never."""

    def prepare_sampler(self, sampler: Sampler | None, data: ImageDataModule) -> None:
        """Give a sampler what it needs to know of the trained model and the training images; by default nothing."""
        self.check_sampler(sampler)

    def rehearse(self, sampler: Sampler | None) -> None:
        """Check the sampler like `check_sampler`, and try as much of it as possible without the network."""
        self.check_sampler(sampler)

    @torch.inference_mode()
    def sample(self, noise: Noise, labels: Tensor | None = None, sampler: Sampler | None = None) -> Tensor:
        """Sample images, image i from the random numbers of index i alone, and set `nfe`.

        Args:
            noise: Random numbers keyed by sample index.
            labels: (N,) classes of a conditional model; `drawn_classes` if not given.
            sampler: The sampler; `default_sampler` if not given.

        Returns:
            Images (N, C, H, W), float32. Values outside [-1, 1] are clamped later, by `quantise`.

        Raises:
            UserError: If the family does not support the sampler, or labels are given to a model without classes.
        """
        self.check_sampler(sampler)
        if labels is not None and not self.num_classes:
            raise UserError(
                f"labels: this {type(self).__name__} was not trained with model.class_conditional=true; remove them"
            )
        if labels is None:
            labels = self.drawn_classes(noise.index)
        if labels is not None:
            labels = labels.to(self.device, non_blocking=True)
        with evaluating(self):
            images = self.draw(noise, labels, sampler or self.default_sampler())
        if self.first_stage is not None:
            images = self.first_stage.decode(images)
        return images.float()

    # --- the likelihood ---

    def log_prob(self, images: Tensor, noise: Noise, labels: Tensor | None, method: LikelihoodMethod | None) -> Tensor:
        """Return log P of each 8-bit image, (N,) in nats, and set `nfe`; for families that have a likelihood."""
        raise NotImplementedError

    def default_likelihood_method(self) -> LikelihoodMethod | None:
        """Return the method that `log_likelihood` uses if none is given."""
        return None

    def check_likelihood(self, method: LikelihoodMethod | None = None) -> None:
        """Raise a UserError unless the model has a likelihood and supports the method."""
        if self.capabilities.likelihood_kind is None:
            raise UserError(f"evaluation.likelihood: {self.title} has no likelihood; leave it at 0")
        self.capabilities.check_likelihood_method(type(self).__name__, method)

    @torch.no_grad()
    def log_likelihood(
        self, images: Tensor, noise: Noise, labels: Tensor | None = None, method: LikelihoodMethod | None = None
    ) -> Tensor:
        """Return log P(image) of 8-bit images, or log P(image | label) of a conditional model, and set `nfe`.

        A model that defines a density dequantises the images itself, so the numbers of all families refer to the same
        8-bit images. `capabilities` state whether a number is exact, an estimate or a bound, and the dequantisation.

        Args:
            images: (N, C, H, W), the values u / 127.5 - 1 of 8-bit u.
            noise: Random numbers keyed by the index of the image.
            labels: (N,) classes of the images, required by a conditional model and ignored by any other.
            method: The method; `default_likelihood_method` if not given.

        Returns:
            Nats per image, (N,), float64.

        Raises:
            UserError: If the model has no likelihood or does not support the method, or labels are missing.
        """
        self.check_likelihood(method)
        if labels is None and self.num_classes:
            raise UserError(f"labels: this {type(self).__name__} is class-conditional; give the labels of the images")
        labels = labels.to(self.device) if labels is not None and self.num_classes else None
        with evaluating(self):
            log_p = self.log_prob(images.to(self.device), noise, labels, method or self.default_likelihood_method())
        return log_p.double()

    # --- what a family reports in addition to its samples ---

    def diagnostics(self, noise: Noise) -> dict[str, float]:
        """Return numbers of the averaged weights, to be logged with each grid of samples; by default none."""
        return {}

    def further_scores(self, data: ImageDataModule, net: FeatureNet) -> dict[str, float]:
        """Return metrics of an evaluation in addition to those of the samples; by default none.

        Every process calls it. The feature net is that of the evaluation, on the device of the model.
        """
        return {}

    def further_protocol(self, data: ImageDataModule) -> dict[str, Any]:
        """Return the protocol of `further_scores`, under keys of its own in a result; by default nothing."""
        return {}
