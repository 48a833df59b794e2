"""Evaluate a run: sample, quantise and score its images, and compute the likelihood of test images."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from lit_gen.core.files import MEBIBYTE, write_arrays
from lit_gen.core.processes import from_first, ranks
from lit_gen.data.module import ImageDataModule
from lit_gen.evaluation import drawn_classes
from lit_gen.evaluation.cost import flops_per_image
from lit_gen.evaluation.device import device_name
from lit_gen.evaluation.file_objects import ABSENT
from lit_gen.evaluation.floors import floors
from lit_gen.evaluation.likelihood import compute_likelihood, likelihood_floors
from lit_gen.evaluation.metrics import check_needs, default_metrics, missing_metrics, score_protocols
from lit_gen.evaluation.protocol import Evaluation
from lit_gen.evaluation.real_images import DataImages
from lit_gen.evaluation.result_file import (
    LikelihoodScores,
    OtherData,
    Protocol,
    ResultRecord,
    RunFacts,
    Timing,
    load_likelihood,
    load_result,
    save_deviations,
    save_likelihood,
    save_result,
)
from lit_gen.evaluation.sampling import ImageBatches, Samples, Sampling
from lit_gen.evaluation.scoring import Scoring, load_kept, save_kept
from lit_gen.families.base import GenerativeModel
from lit_gen.families.settings import Sampler, defaults
from lit_gen.metrics import is_copy
from lit_gen.metrics.base import Estimate, SampleMetric
from lit_gen.pictures.grids import save_picture
from lit_gen.pictures.neighbours import find_neighbours, save_neighbours
from lit_gen.runs.directory import Run

NUM_WITH_NEIGHBOURS = 8
"""Number of samples that are shown beside their nearest training images."""
MOST_BYTES_OF_NEIGHBOURS = 256 * MEBIBYTE


@dataclass(frozen=True)
class Subject:
    """The subject of an evaluation: a run and its model, data and sampler.

    Attributes:
        run: The run.
        model: Its model, with the weights to evaluate, on the device of the evaluation.
        data: Its data.
        sampler: The sampler; None for the one way of a family that has no other.
    """

    run: Run
    model: GenerativeModel
    data: ImageDataModule
    sampler: Sampler | None


def evaluate_repeats(
    evaluation: Evaluation, subject: Subject, cache: Path
) -> Iterator[tuple[ResultRecord, Path, bool]]:
    """Evaluate with each sampling seed, and yield what `evaluate` returns as soon as it is written; collective.

    The feature net and the real images are loaded once.
    """
    real = _real_images(evaluation, subject, cache)
    for repeat in evaluation.repeats():
        yield evaluate(repeat, subject, cache, real)


def evaluate(
    evaluation: Evaluation, subject: Subject, cache: Path, real: DataImages | None = None
) -> tuple[ResultRecord, Path, bool]:
    """Sample, quantise and score, and compute the likelihood of test images if it is asked for; collective.

    An existing result is kept; metrics that the evaluation names and a likelihood that it lacks are added to it.

    Args:
        evaluation: The protocol.
        subject: What is evaluated.
        cache: Folder of the features and scores of real images.
        real: The real images with the feature net; None to load them.

    Returns:
        The result, the path of its result.json, and whether something was computed now (False: it existed).
    """
    real = real or _real_images(evaluation, subject, cache)
    result, path, computed = score_samples(evaluation, subject, real)
    if evaluation.least_of > 1 and result.least_of != evaluation.least_of:
        result = replace(result, least_of=evaluation.least_of)
        if ranks()[0] == 0:
            save_result(path, result)
    if evaluation.likelihood:
        scores = score_test_images(evaluation, subject)
        if result.likelihood != scores.likelihood:
            num_images = scores.likelihood.protocol.num_images
            assert isinstance(num_images, int)
            known = from_first(likelihood_floors(subject.data, num_images) if ranks()[0] == 0 else {})
            result = replace(
                result,
                metrics=result.metrics | scores.metrics,
                likelihood=scores.likelihood,
                floors=result.floors | known,
            )
            if ranks()[0] == 0:
                _replace_result(path, result)
            computed = True
    return result, path, computed


def _real_images(evaluation: Evaluation, subject: Subject, cache: Path) -> DataImages:
    """Return the real images, with the feature net on the device of the model."""
    evaluation.compare_data(subject.run, subject.model, subject.data)
    net = evaluation.features_of(subject.data).to(subject.model.device)
    return DataImages(subject.data, evaluation.split, net, cache)


def score_samples(evaluation: Evaluation, subject: Subject, real: DataImages) -> tuple[ResultRecord, Path, bool]:
    """Sample, quantise and score, unless the result has all scores; returns as `evaluate` does; collective."""
    model, data = subject.model, subject.data
    subject = replace(subject, sampler=subject.sampler or model.default_sampler())
    other_data = evaluation.compare_data(subject.run, model, data)
    protocol = evaluation.protocol(data, real.net)
    counts = data.class_counts(evaluation.split) if model.num_classes else None
    place = evaluation.directory(subject.run, subject.sampler, protocol, model.images_seen, counts, other_data)
    sampling = Sampling(
        model,
        subject.sampler,
        data.source.unchecked,
        evaluation.num_samples,
        evaluation.batch_size,
        evaluation.num_kept,
        evaluation.seed,
        counts,
    )

    def describe(samples: Samples) -> ResultRecord:
        result = _result(evaluation, subject, protocol, other_data, samples)
        with torch.inference_mode():
            return replace(result, metrics=model.eval().further_scores(data, real.net))

    return score_images(evaluation, sampling, real, place, describe, other_data is not None)


def score_images(
    evaluation: Evaluation,
    images: ImageBatches,
    real: DataImages,
    place: Path,
    describe: Callable[[Samples], ResultRecord],
    other_data: bool = False,
) -> tuple[ResultRecord, Path, bool]:
    """Score images, unless the result has all scores; returns as `evaluate` does; collective.

    Args:
        evaluation: The protocol.
        images: The images.
        real: The real images.
        place: Folder of the result.
        describe: Returns a new result, with scores that come in addition to those of the metrics.
        other_data: Whether the model was trained on other images than the real ones.
    """
    path = place / "result.json"
    found = _find_result(path)
    if found is not None and evaluation.metrics is None:
        return found, path, False
    metrics = evaluation.metrics or default_metrics(real, evaluation.inception_splits, images.num_samples, other_data)
    check_needs(metrics, real, images.labels(torch.arange(1)) is not None)
    protocols = score_protocols(metrics, real)
    if found is not None:
        metrics = missing_metrics(metrics, protocols, real, found, path)
        if not metrics:
            return found, path, False
    with _all_or_nothing(place):
        scores, samples = _score(evaluation, images, metrics, real, place, again=found is not None)
        real_scores = floors(metrics, protocols, real, images.num_samples)
        if found is None:
            assert samples is not None
            new = describe(samples)
            result = _with_scores(replace(new, metrics={}), scores, protocols, real_scores)
            result = replace(result, metrics=result.metrics | new.metrics)
        else:
            result = _with_scores(found, scores, protocols, real_scores)
        if ranks()[0] == 0:
            if samples is not None:
                write_arrays(place / "samples.npz", images=samples.kept.numpy())
                save_picture(samples.kept, real.data.source, place / "samples.png")
                if any("training images" in metric.needs for metric in metrics):
                    _save_neighbours(samples.kept[:NUM_WITH_NEIGHBOURS], real, place / "neighbours.png")
            known = {name: each.deviations for name, each in scores.items() if each.deviations is not None}
            save_deviations(path, {name: deviations.numpy() for name, deviations in known.items()})
            _replace_result(path, result)
    _wait_for_all()
    return result, path, True


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    """Remove the files that the block has written into a folder, if it raises."""
    before = set(folder.glob("*"))
    try:
        yield
    except BaseException:
        if ranks()[0] == 0:
            for path in set(folder.glob("*")) - before:
                path.unlink(missing_ok=True)
            with suppress(OSError):  # it holds older files
                folder.rmdir()
        raise


def _score(
    evaluation: Evaluation,
    images: ImageBatches,
    metrics: Sequence[SampleMetric],
    real: DataImages,
    place: Path,
    again: bool,
) -> tuple[dict[str, Estimate], Samples | None]:
    """Return the estimates of all scores, and the samples unless the features that were kept of them suffice."""
    scoring = Scoring(metrics, real, images.num_samples, images.device)
    if again and not any("images" in metric.needs for metric in metrics):
        known = load_kept(place / "features.npz", images.num_samples, real) if ranks()[0] == 0 else None
        if from_first(known is not None):
            if known is not None:
                scoring.add(replace(known, labels=images.labels(known.index)).to(images.device))
            return scoring.compute(), None
    flops = flops_per_image(images) if isinstance(images, Sampling) else None
    description = f"evaluating{evaluation.repeat} {place.name}"
    samples = replace(images.score(scoring, description, evaluation.repeat), flops_per_image=flops)
    kept = scoring.kept()
    if ranks()[0] == 0:
        save_kept(place / "features.npz", kept)
    return scoring.compute(), samples


def _save_neighbours(samples: Tensor, real: DataImages, path: Path) -> None:
    """Save a picture of samples beside their nearest training images, unless those take too much memory."""
    images = real.data.images("train")
    if images.nbytes <= MOST_BYTES_OF_NEIGHBOURS:
        train = torch.from_numpy(np.array(images))
        features = real.net(samples.to(real.device))[0].cpu()
        by_features, by_pixels = find_neighbours(samples, train, features, real.features("train").cpu())
        save_neighbours(samples, train, by_features, by_pixels, path)


def _with_scores(
    result: ResultRecord,
    scores: dict[str, Estimate],
    protocols: dict[str, dict[str, Any]],
    real_scores: dict[str, dict[str, Any]],
) -> ResultRecord:
    """Return a result with more scores, their protocols, their standard errors and the scores of real images."""
    errors = {name: error for name, each in scores.items() if (error := each.standard_error) is not None}
    values = {name: each.value for name, each in scores.items()}
    older_errors = {name: error for name, error in result.standard_errors.items() if name not in values}
    before = result.floors
    rows = {
        row: facts | {key: before.get(row, {}).get(key, {}) | facts[key] for key in ("scores", "standard_errors")}
        for row, facts in real_scores.items()
    }
    return replace(
        result,
        metrics=result.metrics | values,
        score_protocols=result.score_protocols | {name: protocols[name] for name in scores},
        standard_errors=older_errors | errors,
        floors=before | rows,
        copies=is_copy(values["copy_z"], values.get("copy_rate_z", 0.0)) if "copy_z" in values else result.copies,
    )


def _result(
    evaluation: Evaluation, subject: Subject, protocol: Protocol, other_data: OtherData | None, samples: Samples
) -> ResultRecord:
    """Return the result of an evaluation that was made now, without scores."""
    model, metadata, stage = subject.model, subject.run.metadata, subject.model.first_stage
    num_parameters = sum(parameter.numel() for parameter in model.generator.parameters())
    return ResultRecord(
        run=RunFacts(
            name=subject.run.directory.name,
            identity=metadata["identity"],
            recipe=metadata["recipe"],
            finished=subject.run.finished,
            directory=subject.run.directory.name,
        ),
        model=model.title,
        num_parameters=num_parameters + (stage.num_parameters if stage is not None else 0),
        first_stage=None if stage is None else stage.describe(),
        images_seen=model.images_seen,
        training_seconds=metadata.get("training_seconds"),
        earlier_seconds=metadata.get("earlier_seconds", 0.0),
        training_flops=metadata.get("training_flops", ABSENT),
        earlier_flops=metadata.get("earlier_flops", ABSENT),
        training_seed=metadata["seed"],
        sampler=None if subject.sampler is None else subject.sampler.to_dict(),
        defaults={} if subject.sampler is None else defaults(subject.sampler),
        nfe=samples.nfe,
        flops_per_image=ABSENT if samples.flops_per_image is None else samples.flops_per_image,
        weights=evaluation.weights,
        best=metadata.get("best", ABSENT) if evaluation.weights == "best" else ABSENT,
        seed=evaluation.seed,
        protocol=protocol,
        other_data=other_data,
        metrics={},
        further=model.further_protocol(subject.data),
        timing=Timing(
            sampling_seconds=samples.seconds,
            images_per_second=evaluation.num_samples / samples.seconds,
            device=device_name(model.device, ranks()[1]),
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def score_test_images(evaluation: Evaluation, subject: Subject) -> LikelihoodScores:
    """Return the likelihood of test images; collective.

    It does not depend on a sampler, so it is computed once for a run and kept in a file of its own.
    """
    model, data, method = subject.model, subject.data, evaluation.likelihood_method
    protocol = evaluation.likelihood_protocol(model, data)
    facts = json.dumps([protocol.to_dict(), evaluation.seed, evaluation.weights, model.images_seen], sort_keys=True)
    path = subject.run.evaluations / f"likelihood-{hashlib.sha256(facts.encode()).hexdigest()[:10]}.json"
    rank = ranks()[0]
    found: LikelihoodScores | None = from_first(load_likelihood(path) if rank == 0 and path.exists() else None)
    if found is not None:
        return found
    scores = compute_likelihood(model, data, protocol, method, evaluation.seed, evaluation.batch_size)
    if rank == 0:
        save_likelihood(path, scores)
    _wait_for_all()
    return scores


def _find_result(path: Path) -> ResultRecord | None:
    """Return the result in a file, the same on every process; None if there is none.

    The file of an older version, for which the rules of `evaluation.drawn_classes` give the same classes, then names
    the rule.
    """
    rank = ranks()[0]
    found: ResultRecord | None = from_first(load_result(path) if rank == 0 and path.exists() else None)
    if found is not None and found.protocol.drawn_classes != drawn_classes.RULE:
        found = replace(found, protocol=replace(found.protocol, drawn_classes=drawn_classes.RULE))
        if rank == 0:
            save_result(path, found)
    return found


def _replace_result(path: Path, result: ResultRecord) -> None:
    """Write a result; W&B, which may hold the one that it replaces, is then told the new one."""
    save_result(path, result)
    path.with_name("wandb_runs").unlink(missing_ok=True)


def _wait_for_all() -> None:
    """Wait until the first process has written its files."""
    if ranks()[1] > 1:
        distributed.barrier()
