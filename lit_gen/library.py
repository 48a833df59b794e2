"""The commands as functions: load a run, evaluate it, score other images, and rank the results.

import lit_gen

model = lit_gen.load("runs/digits_edm-1a2b3c4d5e")
result = lit_gen.evaluate(model, Heun(steps=18), num_samples=1000)
print(lit_gen.leaderboard("runs"))
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.data.given import arrange, read_given
from lit_gen.data.module import ImageDataModule
from lit_gen.data.sources import ImageSource
from lit_gen.evaluation.evaluate import Subject
from lit_gen.evaluation.evaluate import evaluate as evaluate_subject
from lit_gen.evaluation.foreign import Foreign, score_foreign
from lit_gen.evaluation.protocol import Evaluation, FeatureNetFactory
from lit_gen.experiment.checks import check_scored
from lit_gen.experiment.loading import load_objects
from lit_gen.experiment.trained import TrainedModel, load
from lit_gen.families.settings import LikelihoodMethod, Sampler
from lit_gen.metrics.base import SampleMetric
from lit_gen.metrics.feature_nets import FeatureNet
from lit_gen.report.leaderboard import rank
from lit_gen.report.results import Result, load_results
from lit_gen.report.table import Table
from lit_gen.runs.directory import REFERENCE, Run
from lit_gen.training import processes

__all__ = ["Result", "Table", "TrainedModel", "evaluate", "leaderboard", "load", "score"]


@contextmanager
def _arguments_named() -> Iterator[None]:
    """Name the arguments of Python in errors: `num_samples`, not `evaluation.num_samples`."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("--parameters", "num_parameters")
        text = re.sub(r"(?:--)?\bevaluation\.(?=[a-z_]+\b)", "", text)
        raise type(error)(re.sub(r"(?<![\w-])--(?=(by|where|paired|sampler|name|nfe)\b)", "", text)) from None


def evaluate(
    run: str | Path | TrainedModel,
    sampler: Sampler | None = None,
    *,
    weights: str | None = None,
    num_samples: int | None = None,
    seed: int | None = None,
    metrics: Sequence[SampleMetric] | None = None,
    feature_net: FeatureNet | FeatureNetFactory | None = None,
    split: Literal["train", "val", "test"] | None = None,
    inception_splits: int | None = None,
    batch_size: int | None = None,
    num_kept: int | None = None,
    likelihood: int | Literal["all"] | None = None,
    likelihood_method: LikelihoodMethod | None = None,
    other_data: bool | None = None,
    device: torch.device | str | None = None,
) -> Result:
    """Score a run as `lit-gen evaluate` does, and return the result with its path.

    The result is the file that the command would write, and the same arguments return the result that exists. Arguments
    that are None have the values of the run's configuration. There is no W&B run of the evaluation.

    Args:
        run: The run directory, or a model that `load` returned, which saves loading it for each sampler.
        sampler: The sampler, such as `Heun(steps=18)`; if not given that of the run, which imported runs have, or else
            that of the family.
        weights: `ema`, `raw`, `best` or an average such as `ema:0.1`; by default those of a loaded model.
        num_samples: Number of samples.
        seed: Seed of the noise.
        metrics: Metrics of the samples, such as `[FrechetDistance(), VendiScore()]`.
        feature_net: Feature net of the metrics, such as `DigitsFeatures()`.
        split: Split of the data that is the reference.
        inception_splits: Splits of the samples for the inception score.
        batch_size: Images that are sampled at once.
        num_kept: Images that are kept in samples.npz.
        likelihood: Test images whose likelihood is computed: 0, a number or all.
        likelihood_method: Method of the likelihood.
        other_data: Accept images other than those that the run was trained on.
        device: The device; that of a loaded model, or as the command chooses it.

    Raises:
        UserError: If an argument is out of range, or the model, the sampler, the data and the metrics do not suit each
            other.
    """
    with _arguments_named():
        model = run if isinstance(run, TrainedModel) else _opened(Run.open(run), weights)
        Run.open(model.run.directory)  # an exported folder holds no results
        if weights is not None and weights != model.weights:
            raise UserError(f"weights: {weights} are not those of the loaded model; give the run directory instead")
        if device is not None:
            model.to(device)
        evaluation = model.experiment.evaluation.changed(
            **{"feature_net": _factory(feature_net), "metrics": None if metrics is None else list(metrics)},
            **{"num_samples": num_samples, "seed": seed, "split": split, "inception_splits": inception_splits},
            **{"batch_size": batch_size, "num_kept": num_kept, "likelihood": likelihood, "other_data": other_data},
            **{"likelihood_method": likelihood_method, "weights": model.weights, "num_repeats": 1},
        )
        evaluation.compare_data(model.run, model.module, model.data)
        sampler = sampler or model.experiment.sampler
        check_scored(replace(model.experiment, sampler=sampler, evaluation=evaluation), model.device)
        model.module.follow_classes(model.data)
        subject = Subject(model.run, model.module, model.data, model.prepare(sampler))
        record, path, _ = evaluate_subject(evaluation, subject, model.run.directory.parent / REFERENCE)
    return Result(path, record)


def score(
    images: str | Path | Tensor | np.ndarray,
    data: ImageSource | ImageDataModule,
    name: str | None = None,
    *,
    labels: Tensor | np.ndarray | None = None,
    nfe: float | None = None,
    num_parameters: int | None = None,
    num_samples: int | None = None,
    metrics: Sequence[SampleMetric] | None = None,
    feature_net: FeatureNet | FeatureNetFactory | None = None,
    split: Literal["train", "val", "test"] = "train",
    inception_splits: int = 10,
    batch_size: int = 256,
    num_kept: int = 64,
    root: str | Path = "runs",
    device: torch.device | str = "cpu",
) -> Result:
    """Score images that other software made as `lit-gen score` does, and return the result with its path.

    Args:
        images: A folder or file, as in `lit_gen.data.given`, or an array or tensor of its forms.
        data: The real images.
        name: Name of the row; that of the file if not given.
        labels: Classes (N,) of an array, for metrics that need them.
        nfe: Network evaluations per image, if known.
        num_parameters: Number of parameters of the model that made the images, if known.
        num_samples: Number of images, the first ones; all if not given.
        metrics: Metrics of the images, such as `[FrechetDistance(), VendiScore()]`.
        feature_net: Feature net of the metrics, such as `DigitsFeatures()`.
        split: Split of the data that is the reference.
        inception_splits: Splits of the images for the inception score.
        batch_size: Images that are scored at once.
        num_kept: Images that are kept in samples.npz.
        root: Folder of the runs, which the result is written below.
        device: The device that scores.

    Raises:
        UserError: If the images cannot be read, are not like those of the data, or do not suit the metrics.
    """
    with _arguments_named():
        module = data if isinstance(data, ImageDataModule) else ImageDataModule(data)
        if isinstance(images, str | Path):
            if labels is not None:
                raise UserError("labels: those of a file come from the file; give the images as an array, too")
            given, name = read_given(Path(images), module, num_samples), name or Path(images).resolve().stem
        else:
            given = arrange(images, labels, module, num_samples)
        if name is None:
            raise UserError("name: missing; name the row of these images")
        evaluation = Evaluation(
            feature_net=_factory(feature_net),
            metrics=None if metrics is None else list(metrics),
            split=split,
            inception_splits=inception_splits,
            batch_size=batch_size,
            num_kept=num_kept,
        )
        foreign = Foreign(given, name, nfe, num_parameters)
        record, path, _ = score_foreign(evaluation, foreign, module, Path(root), torch.device(device))
    return Result(path, record)


def leaderboard(folder: str | Path = "runs", by: str | None = None, where: Mapping[str, object] | None = None) -> Table:
    """Rank the evaluations below a folder as `lit-gen leaderboard` does.

    Args:
        folder: A folder of runs, a run, or the folder of a sweep.
        by: The metric to rank by; the distance if not given.
        where: Values of dotted keys that select results, such as `{"protocol.num_samples": 1000}`.

    Raises:
        UserError: If there are no results, or their protocols differ.
    """
    with _arguments_named():
        return Table(rank(load_results(folder), by, [f"{key}={value}" for key, value in (where or {}).items()]))


def _opened(run: Run, weights: str | None) -> TrainedModel:
    """Return the model of a run with the weights and the device that `lit-gen evaluate` chooses."""
    experiment = load_objects(run)
    model = TrainedModel(run, experiment, weights or experiment.evaluation.weights)
    return model.to(processes.device(experiment.trainer))


def _factory(net: FeatureNet | FeatureNetFactory | None) -> FeatureNetFactory | None:
    """Return what makes a feature net; for a feature net, what returns it."""
    return (lambda: net) if isinstance(net, FeatureNet) else net
