"""Evaluations during training: a score of the averaged weights against images seen, and the checkpoint of the best.

At regular numbers of training images, and at the end, a fixed number of images is sampled with the averaged weights and
scored by the code of an evaluation. The scores have the names that an evaluation gives them, in metrics.csv and in W&B.

    protocol    feature net, reference split and batch size of `evaluation`; number, seed, sampler, metrics of `monitor`
    best        the checkpoint with the best value of one score so far, `checkpoints/best.ckpt`

Every process samples its share of the images. The scores are logged, and the best checkpoint is saved, before the next
`last.ckpt`, so a resumed run repeats what a kill has lost. No global random state is used.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import distributed, nn

from lit_gen.core import scores
from lit_gen.core.errors import UserError, belonging_to
from lit_gen.core.modes import evaluating
from lit_gen.core.pixels import NotFiniteError
from lit_gen.core.processes import from_first, ranks
from lit_gen.data.module import ImageDataModule
from lit_gen.evaluation.metrics import check_needs, default_metrics, score_protocols
from lit_gen.evaluation.protocol import Evaluation
from lit_gen.evaluation.real_images import DataImages
from lit_gen.evaluation.sampling import Sampling
from lit_gen.evaluation.scoring import Scoring
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.families.settings import Sampler
from lit_gen.metrics import FrechetDistance, WassersteinDistance
from lit_gen.metrics.base import Direction, SampleMetric
from lit_gen.training.callbacks.checkpoint import Checkpoint
from lit_gen.training.callbacks.ema import EMA

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MonitorSettings:
    """Evaluations of the averaged weights during training; `checkpoints/best.ckpt` is that of the best score.

    The feature net, the reference split and the batch size are those of `evaluation`.

    Args:
        every: Training images between two evaluations; the last weights are evaluated too. 0: none during training.
        num_samples: Number of samples of each evaluation.
        seed: Seed of the noise, the same each time. It is not that of an evaluation, so that the noise that chooses the
            best checkpoint does not also score it.
        sampler: The sampler; null: the default sampler of the model.
        metrics: Metrics of the samples; null: the Frechet distances to the reference and to held-out images, or the
            Wasserstein distance between points.
        score: Name of the score that chooses the best checkpoint; null: the distance between reconstructions and images
            for a first stage, or else the distance to held-out images, or else the first score.
    """

    every: int = 0
    num_samples: int = 1000
    seed: int = 100
    sampler: Sampler | None = None
    metrics: list[SampleMetric] | None = None
    score: str | None = None

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UserError(f"monitor.every: {self.every} is negative; give a number of images, or 0 for no evaluation")
        if self.num_samples < 2:
            raise UserError(f"monitor.num_samples: {self.num_samples} is too few; give at least 2")

    def protocol(self, evaluation: Evaluation) -> Evaluation:
        """Return the protocol: that of the evaluation with the settings of this class."""
        return Evaluation(
            feature_net=evaluation.feature_net,
            metrics=self.metrics,
            num_samples=self.num_samples,
            split=evaluation.split,
            seed=self.seed,
            inception_splits=min(evaluation.inception_splits, self.num_samples),
            batch_size=evaluation.batch_size,
            num_kept=1,
        )

    def check(self, evaluation: Evaluation, model: GenerativeModel, data: ImageDataModule) -> None:
        """Raise a UserError before training if the model cannot be evaluated with these settings."""
        sampler = self.sampler
        if isinstance(sampler, DiffusionSampler) and sampler.guidance is not None and sampler.guidance.run is not None:
            raise UserError(
                "monitor.sampler.guidance.run: a weaker model is not loaded during training; remove it, and evaluate "
                "the run with it afterwards"
            )
        with belonging_to("monitor"):
            model.rehearse(sampler)
            model.check_scored(sampler, data)
        with named():
            Monitored(self, evaluation, model, data, Path())


class UndefinedScoreError(UserError):
    """Samples for which a score is not defined, such as points that are not finite."""


class Monitored:
    """Protocol, real images, metrics and names of scores that all evaluations of one training run share.

    Args:
        settings: The settings.
        evaluation: The protocol of the experiment.
        model: The model.
        data: Its data.
        cache: Folder of the features and moments of real images.

    Raises:
        UserError: If data, feature net or model lack an input of a metric, or no metric gives the score.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        evaluation: Evaluation,
        model: GenerativeModel,
        data: ImageDataModule,
        cache: Path,
    ) -> None:
        self.protocol = settings.protocol(evaluation)
        self.sampler = settings.sampler or model.default_sampler()
        net = self.protocol.features_of(data).to(model.device)
        self.real = DataImages(data, self.protocol.split, net, cache)
        facts = self.protocol.protocol(data, net)
        self.counts = data.class_counts(self.protocol.split) if model.num_classes else None
        self.metrics = settings.metrics or _distances(self.real, settings.num_samples)
        check_needs(self.metrics, self.real, self.counts is not None)
        self.reconstructs = "reconstruction" in model.further_protocol(data)
        directions: dict[str, Direction] = {
            name: better for metric in self.metrics for name, better in metric.directions(self.real).items()
        }
        if self.reconstructs:
            directions = {f"r{net.distance_name}": "lower", **directions}
        self.score = settings.score or _choosing(directions)
        if self.score not in directions:
            raise UserError(f"monitor.score: {self.score} is not a score here; choose one of {', '.join(directions)}")
        self.better: Direction = directions[self.score]
        self.names = list(directions)
        kept = {"protocol": facts.to_dict(), "scores": score_protocols(self.metrics, self.real), "score": self.score}
        sampler = None if self.sampler is None else self.sampler.to_dict()
        self.facts = json.dumps({**kept, "sampler": sampler, "seed": settings.seed}, sort_keys=True)
        """Everything that two values of the score must share to be compared, as text."""

    def scoring(self, model: GenerativeModel) -> Scoring:
        """Return the metrics, ready for samples; the first call computes what they need of the real images."""
        return Scoring(self.metrics, self.real, self.protocol.num_samples, model.device)

    def scores(self, model: GenerativeModel) -> dict[str, float]:
        """Sample images with the weights of a model and return their scores; collective.

        Raises:
            UndefinedScoreError: If a score is not defined for the samples; raised on every process.
        """
        protocol, data = self.protocol, self.real.data
        model.prepare_sampler(self.sampler, data)
        scoring = self.scoring(model)
        sampling = Sampling(
            model,
            self.sampler,
            data.source.unchecked,
            protocol.num_samples,
            protocol.batch_size,
            protocol.num_kept,
            protocol.seed,
            self.counts,
        )
        try:
            sampling.score(scoring, None)
        except NotFiniteError as error:
            raise UndefinedScoreError(str(error)) from None
        try:
            found = {name: estimate.value for name, estimate in scoring.compute().items()}
        except UserError as error:
            raise UndefinedScoreError(str(error)) from None
        if self.reconstructs:
            with torch.inference_mode(), evaluating(model):
                found |= model.further_scores(data, self.real.net)
        return found

    def is_better(self, value: float, best: float | None) -> bool:
        """Return whether a value of the score is better than the best so far."""
        if not math.isfinite(value):
            return False
        return best is None or (value < best if self.better == "lower" else value > best)


def _distances(real: DataImages, num_samples: int) -> list[SampleMetric]:
    """Return the distances among the metrics of an evaluation that does not name its own."""
    metrics = default_metrics(real, 1, num_samples)
    return [metric for metric in metrics if isinstance(metric, (FrechetDistance, WassersteinDistance))]


def _choosing(directions: dict[str, Direction]) -> str:
    """Return the score that chooses the best checkpoint, unless the settings name one."""
    names = list(directions)
    reconstructed = [name for name in names if name.startswith(("rfd_", "rfid"))]
    return next(iter(reconstructed + [name for name in names if name.endswith("_held_out")] + names))


class ScoreMonitor(Callback):
    """Callback that scores the averaged weights, logs the scores, and saves the checkpoint of the best.

    Args:
        settings: The settings.
        evaluation: The protocol of the experiment.
        checkpoint: The callback that writes checkpoints.
        path: Path of the best checkpoint.
        cache: Folder of the features and moments of real images.
        saved: Function that the first process calls with the facts of each best checkpoint.
        axes: Function from images seen to further x axes of a row by name, such as the operations of training so far.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        evaluation: Evaluation,
        checkpoint: Checkpoint,
        path: Path,
        cache: Path,
        saved: Callable[[dict[str, Any]], object] = lambda best: None,
        axes: Callable[[int], dict[str, float]] = lambda images: {},
    ) -> None:
        self.settings = settings
        self.evaluation = evaluation
        self.checkpoint = checkpoint
        self.path = path
        self.cache = cache
        self.saved = saved
        self.axes = axes
        self._monitored: Monitored | None = None
        self._scored_at = 0
        self._best: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        with named():
            self._monitored = Monitored(self.settings, self.evaluation, pl_module, data, self.cache)
            self._monitored.scoring(pl_module)  # before the first step, not after many
        if trainer.is_global_zero:
            for listener in scores.listeners:
                listener.expect(self._monitored.names)
        self._scored_at = pl_module.images_seen
        if self._best.get("protocol") != self._monitored.facts:  # values of other samples cannot be compared
            self._best = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.settings.every
        if pl_module.whole_step and pl_module.images_seen // every > self._scored_at // every:
            found = self._score(trainer, pl_module)
            if trainer.is_global_zero and any([each.hear(self._scored_at, found) for each in scores.listeners]):
                self.checkpoint.stop()

    def on_train_end(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        if pl_module.images_seen != self._scored_at:
            self._score(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: GenerativeModel, checkpoint: dict[str, Any]) -> None:
        if self._best:
            checkpoint["monitor"] = self._best

    def on_load_checkpoint(self, trainer: Trainer, pl_module: GenerativeModel, checkpoint: dict[str, Any]) -> None:
        self._best = checkpoint.get("monitor", {})

    def _score(self, trainer: Trainer, model: GenerativeModel) -> dict[str, float]:
        """Score the averaged weights on all processes, log the scores, and save the checkpoint if it is the best.

        Returns:
            The scores; empty if they are not defined for the samples.
        """
        monitored = self._monitored
        assert monitored is not None
        images = self._scored_at = model.images_seen
        ema = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))  # type: ignore[attr-defined]
        try:
            with torch.no_grad(), named(), ema.averaged(model.generator), _buffers_of_first(model.generator):
                found = monitored.scores(model)
        except UndefinedScoreError as error:  # weights whose samples have no score may still become better
            log.warning("no score after %s images: %s", f"{images:,}", error)
            return {}
        for logger in trainer.loggers:
            logger.log_metrics({**found, **self.axes(images)}, images)
        value = found[monitored.score]
        if from_first(monitored.is_better(value, self._best.get("value"))):
            best = {"score": monitored.score, "value": value, "images_seen": images}
            best |= {"num_samples": self.settings.num_samples, "seed": self.settings.seed}
            self._best = best | {"protocol": monitored.facts}
            self.checkpoint.save_as(self.path, trainer, model)
            if trainer.is_global_zero:
                self.saved(best)
        return found


@contextmanager
def named() -> Iterator[None]:
    """Name the settings of this group, not those of the evaluation, in the messages of the block."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for key in ("metrics", "num_samples"):
            text = text.replace(f"evaluation.{key}", f"monitor.{key}")
        raise type(error)(text) from None


@contextmanager
def _buffers_of_first(network: nn.Module) -> Iterator[None]:
    """Give all processes the buffers of the first, whose checkpoint is saved: each has statistics of its own batches.

    The caller restores the buffers after the block.
    """
    if ranks()[1] > 1:
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)
    yield
