"""What every family has in common: how it is sampled, counted and trained."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_gen.core.accumulation import SumOverParts
from lit_gen.core.errors import NoTestImagesError, UserError
from lit_gen.core.modes import evaluating
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.data.class_order import classes_of
from lit_gen.data.module import ImageDataModule
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.clock import Clock
from lit_gen.families.latents import Latents
from lit_gen.families.settings import LikelihoodMethod, Sampler
from lit_gen.metrics.feature_nets import FeatureNet

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


class GenerativeModel(LightningModule, ABC):
    """A generative image model: a network, how it is trained, and how it is sampled.

    Images are float tensors (N, C, H, W) in [-1, 1]. The clock of a training is `images_seen`, the number of images
    that all processes together have trained on; it is the x axis of every curve.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        num_classes: Number of classes of the data, 0 where there are none; comes from the data.
        class_conditional: Condition the model on the class label.
        warmup: Images over which the learning rate rises linearly from zero.
        compile: Compile the network with torch.compile; the checkpoint's keys stay as they are.
    """

    capabilities: Capabilities = Capabilities()
    """What the family can do; a model that can do less than its class has a record of its own."""

    accumulate: int = 1
    """Parts in which each optimization step is computed, to save memory. With automatic optimization a batch is one
    part, and Lightning adds up their gradients; otherwise it is the whole step, and the model splits it."""

    first_stage: Latents | None = None
    """What makes images of what the model draws; it is trained before, and no part of the model."""

    class_counts: tuple[int, ...] | None = None
    """Number of training images of each class, which drawn images follow; None: as many of each class."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        class_conditional: bool = False,
        warmup: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if class_conditional and not num_classes:
            raise UserError("model.class_conditional: the data has no labels; set it to false or choose labelled data")
        channels, height, width = image_shape
        if warmup < 0:
            raise UserError(f"model.warmup: {warmup} is not a number of images; 0 is none")
        self.image_shape = (channels, height, width)
        self.num_classes = num_classes if class_conditional else 0
        self.warmup = warmup
        self.compiled = compile
        self.title = type(self).__name__
        """What results call the model."""
        self.nfe = 0.0
        """Number of network evaluations per image of the latest `sample` or `log_likelihood`."""
        self.clock = Clock()
        self._stop_asked = False
        self.training_values: dict[str, Tensor | float] = {}
        """The latest of each value that `log_training` was given."""

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override]
        """Raise a UserError: a checkpoint holds no settings, which stand in the `config.yaml` of its run."""
        raise UserError(
            f"{cls.__name__}.load_from_checkpoint: {checkpoint_path} holds weights and no settings; load its run with "
            "lit_gen.experiment.loading.load(RUN), or draw from it with lit-gen sample RUN"
        )

    @property
    @abstractmethod
    def generator(self) -> nn.Module:
        """The generating network: what EMA averages and what draws images."""

    @abstractmethod
    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        """Draws one image (C, H, W) for each index of `noise`, or what a first stage decodes, and sets `nfe`."""

    def follow(self, first_stage: Latents) -> None:
        """Makes the model the second of two stages; a likelihood of codes or latents is none of images."""
        self.first_stage = first_stage
        self.capabilities = replace(self.capabilities, likelihood_kind=None)
        self.title = f"{first_stage.title} + {self.title}"

    def follow_classes(self, data: ImageDataModule) -> None:
        """Let drawn images that are given no labels follow the class frequencies of the training split."""
        if self.num_classes:
            self.class_counts = data.class_counts("train")

    def drawn_classes(self, index: Tensor) -> Tensor | None:
        """Return the classes (N,) of drawn images with the given indices; None for a model without classes."""
        if not self.num_classes:
            return None
        classes = classes_of(index.cpu().numpy(), self.class_counts or (1,) * self.num_classes)
        return torch.from_numpy(classes).to(index.device)

    def diagnostics(self, noise: Noise) -> dict[str, float]:
        """Numbers that are logged beside each grid of samples, with the averaged weights; by default none."""
        return {}

    def further_scores(self, data: ImageDataModule, net: FeatureNet) -> dict[str, float]:
        """Metrics of an evaluation beside those of the samples; by default none. Every process calls it.

        Args:
            data: The data.
            net: Feature net of the evaluation, on the device of the model.
        """
        return {}

    def further_protocol(self, data: ImageDataModule) -> dict[str, Any]:
        """What `further_scores` are measured on, by keys of their own in a result; by default nothing."""
        return {}

    def picture(
        self, name: str, images: Tensor, labels: Tensor | None, noise: Noise, sampler: Sampler | None = None
    ) -> Tensor:
        """Return one of the pictures of the family, made of images of the data.

        Args:
            name: Which.
            images: (N, C, H, W) in [-1, 1].
            labels: (N,) classes for a conditional model.
            noise: Random numbers keyed by the index of the image.
            sampler: How to draw what is drawn; the model's own if not given.

        Returns:
            Tiles (rows, columns, C, H, W) in [-1, 1].
        """
        raise NotImplementedError

    @torch.inference_mode()
    def show(self, name: str, data: ImageDataModule, num: int, seed: int, sampler: Sampler | None = None) -> Tensor:
        """Return a picture of evenly spaced test images, or of training images if the data has no test split.

        Args:
            name: Which.
            data: The data.
            num: Number of images.
            seed: Seed of the noise.
            sampler: How to draw; the model's own if not given.

        Returns:
            Tiles (rows, columns, C, H, W) in [-1, 1].

        Raises:
            UserError: the family has no such picture, or a sampler is given for one that is not drawn.
        """
        self.capabilities.check_picture(type(self).__name__, name, sampler)
        self.check_sampler(sampler)
        try:
            batch = data.examples("test", num)
        except NoTestImagesError:
            batch = data.examples("train", num)
        images, labels = batch.images.to(self.device), self.conditioning(batch)
        labels = labels.to(self.device) if labels is not None else None
        with evaluating(self):
            return self.picture(name, images, labels, Noise(seed, batch.index, self.device), sampler)

    def check_data(self, data: ImageDataModule) -> None:
        """Raises a UserError if the data is not what the model is of, before anything is trained; by default never."""

    def check_trainer(self, settings: Any) -> None:
        """Raises a UserError if the family does not train with settings of the trainer; by default never."""

    def check_training(self) -> None:
        """Raises a UserError if what training alone needs is missing, before a run is made; by default never."""

    def optimizer_factories(self) -> dict[str, OptimizerFactory]:
        """What makes the optimizers, by the keys of the model."""
        return {name: value for name, value in vars(self).items() if name.endswith("optimizer")}

    def check_optimizers(self) -> None:
        """Nothing, if the optimizers take their settings.

        Raises:
            UserError: one of them does not.
        """
        for name, factory in self.optimizer_factories().items():
            try:
                optimizer = factory([nn.Parameter(torch.zeros(1, 1))])
            except (ValueError, UserError) as error:  # of one of several optimizers of a class, its builder names any
                reason = error.__cause__ or error
                if isinstance(reason, UserError):
                    raise
                raise UserError(f"model.{name}: {' '.join(str(reason).split())}; choose another value") from None
            if not all(math.isfinite(group["lr"]) for group in optimizer.param_groups):
                raise UserError(f"model.{name}.lr: the learning rate is not finite; give a finite number")

    @property
    def num_initial(self) -> int:
        """How many training images `initialise` is given, where there are as many."""
        return 512

    def initialise(self, images: Tensor) -> None:
        """Sets initial values by the data, before a training begins; by default none.

        Args:
            images: (N, C, H, W) in [-1, 1], evenly spaced in the training split: the same in every process.
        """

    def default_sampler(self) -> Sampler | None:
        """What draws images when no sampler is named."""
        return None

    def check_sampler(self, sampler: Sampler | None) -> None:
        """Nothing, if the family takes the sampler.

        Raises:
            UserError: it takes none, or others.
        """
        self.capabilities.check_sampler(type(self).__name__, sampler)

    def check_scored(self, sampler: Sampler | None, data: ImageDataModule) -> None:
        """Raise a UserError if what the sampler draws cannot be compared with the data; by default never."""

    def prepare_sampler(self, sampler: Sampler | None, data: ImageDataModule) -> None:
        """Give a sampler what it needs to know of the trained model and the training images; by default nothing."""
        self.check_sampler(sampler)

    def rehearse(self, sampler: Sampler | None) -> None:
        """As `check_sampler`, and tries what can be tried of the sampler without the network."""
        self.check_sampler(sampler)

    @torch.inference_mode()
    def sample(self, noise: Noise, labels: Tensor | None = None, sampler: Sampler | None = None) -> Tensor:
        """Draws images, image i from the random numbers of index i alone.

        Afterwards `nfe` is the number of network evaluations that each image took.

        Args:
            noise: Random numbers keyed by sample index.
            labels: (N,) classes of a conditional model; `drawn_classes` if not given.
            sampler: How to draw; the model's own if not given.

        Returns:
            Images (N, C, H, W), float32; where they leave [-1, 1] it is `quantise` that clamps them.

        Raises:
            UserError: a sampler is given to a family that has none, or labels to a model without classes.
        """
        self.check_sampler(sampler)
        if labels is not None and not self.num_classes:
            raise UserError(f"labels: this {type(self).__name__} was not trained with model.class_conditional=true")
        if labels is None:
            labels = self.drawn_classes(noise.index)
        if labels is not None:
            labels = labels.to(self.device)
        with evaluating(self):
            images = self.draw(noise, labels, sampler or self.default_sampler())
        if self.first_stage is not None:
            images = self.first_stage.decode(images)
        return images.float()

    def log_prob(self, images: Tensor, noise: Noise, labels: Tensor | None, method: LikelihoodMethod | None) -> Tensor:
        """log P of each 8-bit image, (N,) in nats, and sets `nfe`; for a family that has a likelihood."""
        raise NotImplementedError

    def default_likelihood_method(self) -> LikelihoodMethod | None:
        """How the likelihood is computed when no method is named."""
        return None

    def check_likelihood(self, method: LikelihoodMethod | None = None) -> None:
        """Nothing, if the family has a likelihood and takes the method.

        Raises:
            UserError: it has none, or takes no method or others.
        """
        if self.capabilities.likelihood_kind is None:
            raise UserError(f"evaluation.likelihood: {self.title} has no likelihood; leave it at 0")
        self.capabilities.check_likelihood_method(type(self).__name__, method)

    @torch.no_grad()
    def log_likelihood(
        self, images: Tensor, noise: Noise, labels: Tensor | None = None, method: LikelihoodMethod | None = None
    ) -> Tensor:
        """log P(image) of 8-bit images, or log P(image | label) of a conditional model.

        A model of a density dequantises the images itself, so that the numbers of all families are of the same thing;
        `capabilities` say what they are. Afterwards `nfe` is the number of network evaluations
        that each image took.

        Args:
            images: (N, C, H, W), the values u / 127.5 - 1 of 8-bit u.
            noise: Random numbers keyed by the index of the image.
            labels: (N,) classes; those of the images for a conditional model, and else not used.
            method: How; the model's own if not given.

        Returns:
            Nats per image, (N,), float64.

        Raises:
            UserError: the family has no likelihood, or takes no method; a conditional model is given no labels.
        """
        self.check_likelihood(method)
        if labels is None and self.num_classes:
            raise UserError(f"labels: this {type(self).__name__} is class-conditional; its likelihood needs them")
        labels = labels.to(self.device) if labels is not None and self.num_classes else None
        with evaluating(self):
            log_p = self.log_prob(images.to(self.device), noise, labels, method or self.default_likelihood_method())
        return log_p.double()

    def conditioning(self, batch: Batch) -> Tensor | None:
        """The labels of a batch if the model is class-conditional."""
        return batch.labels if self.num_classes else None

    # --- the clock, and randomness that does not depend on what happened before ---

    def split_steps(self, parts: int) -> None:
        """Has each optimization step computed in so many parts."""
        self.accumulate = parts
        for module in self.modules():
            if isinstance(module, SumOverParts):
                module.num_parts = parts

    @property
    def images_seen(self) -> int:
        """Number of images that all processes together have trained on, the x axis of every curve."""
        return self.clock.images_seen

    @property
    def whole_step(self) -> bool:
        """Whether all parts of the optimization step that the latest batch belongs to are done."""
        return self.clock.is_whole_step(self.trainer.accumulate_grad_batches)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Counts the images of a step with its first part, and reseeds the global generator for each part.

        So a resumed training draws the same numbers, and the clock stands still within a step.
        """
        self.clock.reseed(self.global_rank, self.device)
        parts = self.trainer.accumulate_grad_batches
        self.clock.start_batch(len(batch.images) * self.trainer.world_size * parts, parts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self.clock.state_dict()
        # a step may set some of them alone, and is logged with the others as they were
        checkpoint["training_values"] = {name: float(value) for name, value in self.training_values.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.clock.load_state_dict(checkpoint)
        self.training_values = dict(checkpoint.get("training_values", {}))  # older checkpoints do not hold them

    # --- what families share in training ---

    def configure_model(self) -> None:
        if self.compiled:
            self.generator.compile()

    def warmup_schedule(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer with its linear learning-rate warm-up, as Lightning takes it."""
        steps = self.warmup / self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / steps) if steps else 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def log_training(self, **values: Tensor | float) -> None:
        """Takes values of this step, to be logged under `train/` against images seen if this is a logging step.

        Tensors must have no graph. Of a step in parts the means over them are logged.
        """
        done = self.clock.micro_batch
        if done:
            means = {name: self.training_values.get(name, value) for name, value in values.items()}
            values = {name: means[name] + (value - means[name]) / (done + 1) for name, value in values.items()}
        self.training_values |= values

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs the latest training values at logging steps alone: Lightning spends a millisecond on them.

        It comes after all callbacks, and a training that one of them stops within a step ends with the whole of it.
        """
        if not self.whole_step:
            self._stop_asked |= self.trainer.should_stop
            self.trainer.should_stop = False
            return
        self.trainer.should_stop |= self._stop_asked
        self._stop_asked = False
        if self.trainer._logger_connector.should_update_logs:
            self.log_dict({f"train/{name}": value for name, value in self.training_values.items()})
            self.log("step", float(self.images_seen))

    def log_validation(self, batch: Batch, **means: Tensor) -> None:
        """Logs means over the validation split under `val/`, given those over a batch; a stand-in counts nothing.

        All processes call it for as many batches, so that none waits for another in vain.
        """
        metrics = {f"val/{name}": mean for name, mean in means.items()}
        # a float, since Lightning averages the numbers of images over processes, and cuts off the half of an integer
        num_images: Any = 0.0 if batch.stand_in else float(len(batch.images))
        self.log_dict(metrics, batch_size=num_images, sync_dist=True, on_step=False, on_epoch=True)
        self.log("step", float(self.images_seen), on_step=False, on_epoch=True, reduce_fx="max")
