"""An evaluation: one run x one sampler setting x one protocol -> one result.json.

The protocol fixes the images, their number, their quantisation, the feature net and the reference. Sampling is in
`evaluation.sampling`, the likelihood of test images in `evaluation.likelihood`, the schema of result.json in
`evaluation.result_file`.
"""

import copy
import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from lit_gen.core.errors import UserError
from lit_gen.core.seeds import MAX_SEED
from lit_gen.data.class_order import are_balanced
from lit_gen.data.module import ImageDataModule
from lit_gen.evaluation import drawn_classes
from lit_gen.evaluation.file_objects import ABSENT
from lit_gen.evaluation.likelihood import likelihood_protocol
from lit_gen.evaluation.metrics import check_needs
from lit_gen.evaluation.real_images import DataImages
from lit_gen.evaluation.result_file import (
    LikelihoodProtocol,
    OtherData,
    Protocol,
)
from lit_gen.families.base import GenerativeModel
from lit_gen.families.settings import LikelihoodMethod, Sampler
from lit_gen.metrics.base import SampleMetric
from lit_gen.metrics.feature_nets import FeatureNet, Points, default_feature_net
from lit_gen.runs.directory import Run
from lit_gen.runs.weights import parse_weights

FeatureNetFactory = Callable[[], FeatureNet]


class Repeat(NamedTuple):
    """The place of an evaluation among those that one command makes with several sampling seeds.

    Attributes:
        number: Its number, from 1.
        num: Number of all of them.
    """

    number: int = 1
    num: int = 1

    def __str__(self) -> str:
        return f" ({self.number} of {self.num})" if self.num > 1 else ""


class Evaluation:
    """The protocol of an evaluation.

    Args:
        feature_net: Feature net of the metrics; null: Inception, or EfficientNetLite0 for colour images if Inception's
            weights cannot be had.
        metrics: Metrics of the samples; null: those that data and feature net permit. A metric that an existing result
            lacks is added to it.
        num_samples: Number of samples, exactly, whatever the batch size.
        split: Split of the data that is the reference, all of it.
        seed: Seed of the noise; image i of a seed is the same in every evaluation of a run.
        num_repeats: Number of evaluations, with the seeds seed, seed + 1, ...; each has a result of its own, the same
            as if its seed had been given alone.
        least_of: Number of sampling seeds whose least score tables print beside the mean, for scores of which lower
            values are better; some papers publish it. 1: none. Results record it, and it makes no rows unlike.
        weights: The averaged weights (ema), those of the last step (raw), the averaged weights at the best score of
            the evaluations during training (best, see `monitor`), or a power-function average of any width: ema:0.1,
            or ema:0.1@51200 after so many images (see `lit-gen ema`).
        inception_splits: Splits of the samples for the mean and standard deviation of the inception score, if `metrics`
            does not name it.
        batch_size: Images that one process samples at once.
        num_kept: Images kept in samples.npz and shown in samples.png, the first of the seed.
        likelihood: Test images whose likelihood is computed, in bits per dimension: 0, a number (evenly spaced ones of
            the split) or all.
        likelihood_method: How the likelihood of a diffusion model is computed; null: its own way.
        other_data: Accept images other than those that the run was trained on; the result records both fingerprints.
    """

    def __init__(
        self,
        feature_net: FeatureNetFactory | None = None,
        metrics: list[SampleMetric] | None = None,
        num_samples: int = 10_000,
        split: Literal["train", "val", "test"] = "train",
        seed: int = 0,
        num_repeats: int = 1,
        least_of: int = 1,
        weights: str = "ema",
        inception_splits: int = 10,
        batch_size: int = 256,
        num_kept: int = 64,
        likelihood: int | Literal["all"] = 0,
        likelihood_method: LikelihoodMethod | None = None,
        other_data: bool = False,
    ) -> None:
        _check_least(2, num_samples=num_samples)
        _check_least(
            1,
            batch_size=batch_size,
            num_kept=num_kept,
            inception_splits=inception_splits,
            num_repeats=num_repeats,
            least_of=least_of,
        )
        if metrics is not None and not metrics:
            raise UserError(
                "evaluation.metrics: the list is empty; name a metric such as FrechetDistance, or remove the key"
            )
        _check_seeds(seed, num_repeats)
        _check_splits(inception_splits, num_samples)
        if likelihood != "all" and (likelihood < 0 or likelihood == 1):
            raise UserError(f"evaluation.likelihood: {likelihood} is too few; give at least 2, or 0 for none")
        self.feature_net = feature_net
        self.metrics = metrics
        self.num_samples = num_samples
        self.split = split
        self.seed = seed
        self.num_repeats = num_repeats
        self.least_of = least_of
        self.repeat = Repeat()
        self.weights = str(parse_weights(weights, "evaluation.weights") or weights)
        self.inception_splits = inception_splits
        self.batch_size = batch_size
        self.num_kept = num_kept
        self.likelihood = likelihood
        self.likelihood_method = likelihood_method
        self.other_data = other_data

    def changed(self, **settings: Any) -> "Evaluation":
        """Return an evaluation with other settings; those that are None stay as they are."""
        own = {name: getattr(self, name) for name in inspect.signature(Evaluation).parameters}
        return Evaluation(**own | {name: value for name, value in settings.items() if value is not None})

    def check(self, data: ImageDataModule, conditional: bool) -> None:
        """Raise a UserError before training, not after, if the evaluation lacks something.

        The feature net is built and applied to an image.

        Args:
            data: The data.
            conditional: Whether samples have classes.
        """
        net = self.features_of(data)
        net(torch.zeros(2, *data.image_shape, dtype=net.dtype))
        self.protocol(data, net)
        if self.metrics is not None:
            check_needs(self.metrics, DataImages(data, self.split, net, Path()), conditional)

    def repeats(self) -> list["Evaluation"]:
        """Return the evaluations with one sampling seed each."""
        found = []
        for number in range(self.num_repeats):
            one = copy.copy(self)
            one.seed, one.num_repeats = self.seed + number, 1
            one.repeat = Repeat(number + 1, self.num_repeats)
            found.append(one)
        return found

    def features_of(self, data: ImageDataModule) -> FeatureNet:
        """Return the feature net.

        Raises:
            UserError: If it takes images and the data are points, or the reverse.
        """
        net = default_feature_net(data.image_shape) if self.feature_net is None else self.feature_net()
        if (net.dtype == torch.uint8) != data.source.quantised:
            kind, remedy = ("images", "DigitsFeatures or Inception") if data.source.quantised else ("points", "Points")
            raise UserError(
                f"evaluation.feature_net: {data.name} holds {kind}, which do not have {net.name} features; use "
                f"--evaluation.feature_net {remedy}"
            )
        return net

    def compare_data(self, run: Run, model: GenerativeModel, data: ImageDataModule) -> OtherData | None:
        """Compare the training images of the data with those that the run was trained on.

        Returns:
            Both fingerprints if they differ and `other_data` accepts it; None if they are the same, or if a run of an
            older version did not record its own.

        Raises:
            UserError: If they differ and `other_data` is false, or their shape or classes are not those of the model.
        """
        recorded, now = run.images_fingerprint, data.fingerprint("train")
        if recorded in (None, now):
            return None
        if not self.other_data:
            raise UserError(
                f"data.source: {run.directory} was trained on other images (fingerprint {recorded[:12]}) than these "
                f"({now[:12]}); restore its images, name their place with --data.source, or accept these with "
                "--evaluation.other_data true"
            )
        given = data.with_facts(None)
        if given.image_shape != data.image_shape:
            ours, theirs = ("x".join(map(str, each.image_shape)) for each in (data, given))
            raise UserError(
                f"data.source: its images are {theirs}, but {run.directory} makes {ours}; choose other data"
            )
        if model.num_classes not in (0, given.num_classes):
            raise UserError(
                f"data.source: it has {given.num_classes or 'no'} classes, but {run.directory} makes images of "
                f"{model.num_classes}; choose other data"
            )
        return OtherData(trained_on=recorded, given=now)

    def protocol(self, data: ImageDataModule, net: FeatureNet) -> Protocol:
        """Return everything that two rows of a leaderboard must share.

        Raises:
            UserError: If there are fewer real points than samples.
        """
        num_real = len(data.images(self.split))
        if isinstance(net, Points):
            if num_real < self.num_samples:
                raise UserError(
                    f"evaluation.num_samples: a Wasserstein distance needs as many real points as samples, and the "
                    f"{self.split} split of {data.name} has {num_real}, not {self.num_samples}; give at most {num_real}"
                )
            num_real = self.num_samples
        return Protocol(
            data=data.name,
            data_fingerprint=data.fingerprint(self.split),
            split=self.split,
            image_shape=list(data.image_shape),
            num_real=num_real,
            num_samples=self.num_samples,
            feature_net=net.name,
            feature_net_version=net.version,
            feature_width=net.width,
            resize=net.resize,
            quantisation="uint8" if data.source.quantised else "none",
            drawn_classes=drawn_classes.RULE,
            inception_splits=self.inception_splits if net.num_classes else ABSENT,
        )

    def directory(
        self,
        run: Run,
        sampler: Sampler | None,
        protocol: Protocol,
        images_seen: int,
        class_counts: tuple[int, ...] | None = None,
        other_data: OtherData | None = None,
    ) -> Path:
        """Return the folder of the result of this evaluation of a run: the same settings give the same folder.

        Args:
            run: The run.
            sampler: The sampler.
            protocol: The protocol.
            images_seen: Images that the model was trained on.
            class_counts: Counts whose shares the classes of samples follow; None for a model without classes.
            other_data: What `compare_data` returned.
        """
        settings = None if sampler is None else sampler.to_dict()
        if class_counts is None or are_balanced(class_counts):  # older versions sampled the same, without naming a rule
            protocol = replace(protocol, drawn_classes=ABSENT)
        other = [] if other_data is None else [other_data.to_dict()]
        facts = json.dumps([settings, protocol.to_dict(), self.seed, self.weights, images_seen, *other], sort_keys=True)
        name = "one_pass" if settings is None else settings["name"]
        if settings is not None and "steps" in settings:
            name += f"-{settings['steps']}"
        return run.evaluations / f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:10]}"

    def likelihood_protocol(self, model: GenerativeModel, data: ImageDataModule) -> LikelihoodProtocol:
        """Return the protocol of the likelihood of test images.

        Raises:
            UserError: If `evaluation.likelihood.likelihood_protocol` raises one.
        """
        num_images = None if self.likelihood == "all" else self.likelihood
        return likelihood_protocol(model, data, num_images, self.likelihood_method)


def _check_least(minimum: int, **numbers: int) -> None:
    """Raise a UserError if one of the numbers is less than the minimum."""
    for name, value in numbers.items():
        if value < minimum:
            raise UserError(f"evaluation.{name}: {value} is too few; give at least {minimum}")


def _check_splits(inception_splits: int, num_samples: int) -> None:
    """Raise a UserError if there are more splits than samples."""
    if inception_splits > num_samples:
        raise UserError(
            f"evaluation.inception_splits: {inception_splits} splits need at least as many images, not {num_samples}; "
            "give fewer splits or more --evaluation.num_samples"
        )


def _check_seeds(seed: int, num_repeats: int) -> None:
    """Raise a UserError if the seeds of repeats pass the largest seed."""
    if seed + num_repeats - 1 > MAX_SEED:
        raise UserError(
            f"evaluation.num_repeats: {num_repeats} repeats from seed {seed} pass the largest, {MAX_SEED}; give fewer, "
            "or a smaller --evaluation.seed"
        )
