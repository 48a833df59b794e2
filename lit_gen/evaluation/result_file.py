"""The schema of result.json, and of the likelihood-*.json in the same run: written and read here alone.

The protocol of points has no inception splits, and files of older versions lack some keys.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.core.files import MEBIBYTE, read_arrays, write_arrays, write_atomically
from lit_gen.core.records import (
    AMOUNT,
    COUNT,
    FLAG,
    NUMBER,
    POSITIVE,
    RECORD,
    SCORE,
    TEXT,
    Kind,
    check_fields,
    check_texts,
    either,
    list_of,
    look_up,
    optional,
    read_record,
    values_of,
)
from lit_gen.evaluation import drawn_classes
from lit_gen.evaluation.file_objects import ABSENT, ANYTHING, Absent, Record, Schema, key, maybe, scores

SCHEMA = 1
REMEDY = "delete it and evaluate the run again"


@dataclass(frozen=True, kw_only=True)
class RunFacts(Record):
    """The training run that was evaluated.

    Attributes:
        name: Name of its directory.
        identity: Hash of its configuration and data.
        recipe: The same without the seed.
        finished: False for a run that is evaluated before its end.
        directory: Name of its directory.
        foreign: Whether other software made the samples, outside any run.
        images: Hash of such samples as a set, of their pixels and labels.
    """

    name: str = key(TEXT)
    identity: str = key(TEXT)
    recipe: str | None | Absent = maybe(optional(TEXT))
    finished: bool | Absent = maybe(FLAG)
    directory: Any = maybe(ANYTHING)
    foreign: bool | Absent = maybe(FLAG)
    images: str | Absent = maybe(TEXT)


@dataclass(frozen=True, kw_only=True)
class Protocol(Record):
    """Everything that two rows of a leaderboard must share.

    Attributes:
        data: Name of the data.
        data_fingerprint: Hash of the images of the split.
        split: The split that is the reference.
        image_shape: (C, H, W).
        num_real: Number of real images.
        num_samples: Number of samples.
        feature_net: Name of the feature net.
        feature_net_version: Hash of its weights.
        feature_width: Number of its features.
        resize: How it resizes images.
        quantisation: How samples are quantised: uint8 or none.
        drawn_classes: The rule of the classes of samples; see `evaluation.drawn_classes`.
        inception_splits: Splits of the samples for the inception score, if there is one.
    """

    data: str = key(TEXT)
    data_fingerprint: str | None | Absent = maybe(optional(TEXT))
    split: str | Absent = maybe(Kind("train, val or test", lambda value: value in ("train", "val", "test")))
    image_shape: list[int] | Absent = maybe(list_of(COUNT, 3, 3))
    num_real: int | Absent = maybe(COUNT)
    num_samples: int | Absent = maybe(COUNT)
    feature_net: str | Absent = maybe(TEXT)
    feature_net_version: str | Absent = maybe(TEXT)
    feature_width: int | Absent = maybe(COUNT)
    resize: str | Absent = maybe(TEXT)
    quantisation: str | Absent = maybe(Kind("uint8 or none", lambda value: value in ("uint8", "none")))
    drawn_classes: Any = maybe(ANYTHING)
    inception_splits: int | Absent = maybe(COUNT)


@dataclass(frozen=True, kw_only=True)
class OtherData(Record):
    """Fingerprints of training images that differ from those of the run.

    Attributes:
        trained_on: Fingerprint of the images that the run was trained on.
        given: Fingerprint of the images of the evaluation.
    """

    trained_on: str = key(TEXT)
    given: str = key(TEXT)


@dataclass(frozen=True, kw_only=True)
class LikelihoodProtocol(Record):
    """Everything that two likelihoods must share to be compared, and the method.

    Attributes:
        kind: exact, estimate or bound.
        split: The split of the images.
        data_fingerprint: Hash of its images.
        num_images: Number of images.
        conditional: Whether the classes are given.
        dequantisation: How pixels are made continuous.
        method: Settings of the method; None for the one way of a family that has no other.
    """

    kind: str | Absent = maybe(TEXT)
    split: Any = maybe(ANYTHING)
    data_fingerprint: Any = maybe(ANYTHING)
    num_images: int | Absent = maybe(COUNT)
    conditional: Any = maybe(ANYTHING)
    dequantisation: Any = maybe(ANYTHING)
    method: dict[str, Any] | None | Absent = maybe(optional(RECORD), keys={"name": TEXT}, needed=("name",))


@dataclass(frozen=True, kw_only=True)
class LikelihoodRecord(Record):
    """How a likelihood was computed.

    Attributes:
        protocol: The protocol.
        nfe: Network evaluations per image.
        seed: Seed of the noise.
        seconds: Time that the slowest process took.
        device: Name of the device.
    """

    protocol: LikelihoodProtocol = key(RECORD, record=LikelihoodProtocol)
    nfe: Any = maybe(ANYTHING)
    seed: Any = maybe(ANYTHING)
    seconds: Any = maybe(ANYTHING)
    device: Any = maybe(ANYTHING)


@dataclass(frozen=True, kw_only=True)
class LikelihoodScores(Record):
    """The content of a likelihood-*.json.

    Attributes:
        metrics: The likelihood of the test images, with its standard error.
        likelihood: How it was computed.
    """

    metrics: dict[str, float] = key(values_of(SCORE))
    likelihood: LikelihoodRecord = key(RECORD, record=LikelihoodRecord)


@dataclass(frozen=True, kw_only=True)
class Timing(Record):
    """Speed of sampling.

    Attributes:
        sampling_seconds: Time that the slowest process took to sample.
        images_per_second: Images of all processes per second; None if unknown.
        device: Name of the device.
    """

    sampling_seconds: Any = maybe(ANYTHING)
    images_per_second: float | None = key(optional(POSITIVE))
    device: Any = maybe(ANYTHING)


_SAMPLER = {
    "name": TEXT,
    "grid": optional(RECORD),
    "grid.name": TEXT,
    "schedule": optional(RECORD),
    "schedule.name": TEXT,
    "guidance": optional(RECORD),
    "guidance.weight": NUMBER,
    "guidance.interval": list_of(either(NUMBER, TEXT), 2, 2),
    "guidance.run": TEXT,
}


_PROTOCOL_OF_SCORE = Kind(
    "an object with a text `metric` and `better`, higher or lower",
    lambda value: (
        isinstance(value, dict) and TEXT.fits(value.get("metric")) and value.get("better") in ("higher", "lower")
    ),
)
_FLOOR = Kind(
    "an object with `num_images` and an object `scores`",
    lambda value: (
        isinstance(value, dict)
        and COUNT.fits(value.get("num_images"))
        and values_of(SCORE).fits(value.get("scores"))
        and values_of(AMOUNT).fits(value.get("standard_errors", {}))
    ),
)


_KNOWN_OF_A_RUN = {
    **dict.fromkeys(("num_parameters", "images_seen"), COUNT),
    **dict.fromkeys(("nfe", "timing.images_per_second"), POSITIVE),
    "training_seed": either(COUNT, FLAG),
}
"""Fields that may be null, for foreign samples alone."""


@dataclass(frozen=True, kw_only=True)
class ResultRecord(Record):
    """The content of a result.json; None where a fact of samples of other software is unknown.

    Attributes:
        schema: Version of the format.
        run: The training run.
        model: Title of the model.
        num_parameters: Number of parameters of the generating network and the first stage.
        first_stage: Facts of the first stage, if there is one.
        images_seen: Number of images that the model was trained on.
        training_seconds: Training time.
        earlier_seconds: Training time of the runs that the run builds on.
        training_flops: Floating-point operations of the training, see `training.callbacks.cost`.
        earlier_flops: Those of the runs that the run builds on.
        training_seed: Seed of the training run.
        sampler: Settings of the sampler; None for the one way of a family that has no other.
        defaults: Default settings of the sampler and its parts in this version, by the name of the class.
        nfe: Mean number of network evaluations per sample.
        flops_per_image: Floating-point operations of one sample, see `evaluation.cost`.
        weights: Which weights were evaluated, such as ema or raw.
        best: How the weights `best` were chosen: score, its value, images seen, number of samples and seed.
        seed: Seed of the noise.
        least_of: Number of sampling seeds whose least scores tables print beside the mean, if they do.
        protocol: The protocol.
        other_data: Both fingerprints, if other images than those of the run were accepted.
        metrics: Scores by name.
        standard_errors: Standard errors over samples, by the name of the score.
        score_protocols: What two results must share for a score to be compared, by its name: metric, settings, and
            which values are better.
        floors: Scores of real images in place of samples; see `evaluation.floors`.
        copies: Whether the samples copy training images, by the rule `metrics.is_copy`, if it was tested.
        timing: Speed of sampling.
        created: Time of the evaluation.
        likelihood: How the likelihood of test images was computed, if it was.
    """

    FURTHER: ClassVar[Mapping[str, Schema]] = {
        "reconstruction": Schema(optional(RECORD), False, keys={"protocol": RECORD}, needed=("protocol",))
    }
    FURTHER_BEFORE: ClassVar[str] = "timing"

    schema: int = field(default=SCHEMA, metadata={"schema": Schema(Kind(str(SCHEMA), lambda value: value == SCHEMA))})
    run: RunFacts = key(RECORD, record=RunFacts)
    model: str = key(TEXT)
    num_parameters: int | None = key(optional(COUNT))
    first_stage: dict[str, Any] | None | Absent = maybe(optional(RECORD))
    images_seen: int | None = key(optional(COUNT))
    training_seconds: float | None | Absent = maybe(optional(AMOUNT))
    earlier_seconds: float | None | Absent = maybe(optional(AMOUNT))
    training_flops: float | None | Absent = maybe(optional(AMOUNT))
    earlier_flops: float | None | Absent = maybe(optional(AMOUNT))
    training_seed: int | None = key(optional(either(COUNT, FLAG)))
    sampler: dict[str, Any] | None = key(
        optional(RECORD),
        keys=_SAMPLER,
        needed=("name", "grid.name", "schedule.name", "guidance.weight", "guidance.interval"),
    )
    defaults: dict[str, dict[str, Any]] = scores(RECORD)
    nfe: float | None = key(optional(POSITIVE))
    flops_per_image: int | Absent = maybe(COUNT)
    weights: str = key(TEXT)
    best: dict[str, Any] | Absent = maybe(RECORD)
    seed: int = key(COUNT)
    least_of: int | Absent = maybe(COUNT)
    protocol: Protocol = key(RECORD, record=Protocol)
    other_data: OtherData | None | Absent = maybe(optional(RECORD), record=OtherData)
    metrics: dict[str, float] = key(values_of(SCORE))
    standard_errors: dict[str, float] = scores(AMOUNT)
    score_protocols: dict[str, dict[str, Any]] = scores(_PROTOCOL_OF_SCORE)
    floors: dict[str, dict[str, Any]] = scores(_FLOOR)
    copies: bool | Absent = maybe(FLAG)
    timing: Timing = key(RECORD, record=Timing)
    created: str | Absent = maybe(TEXT)
    likelihood: LikelihoodRecord | None | Absent = maybe(optional(RECORD), record=LikelihoodRecord)


def load_result(path: Path) -> ResultRecord:
    """Read one result.json.

    Raises:
        UserError: If it cannot be read, or a field is missing or of a wrong type; the message names file and key.
    """
    try:
        data = read_record(path, REMEDY)
    except FileNotFoundError:
        raise UserError(f"{path}: the file does not exist; evaluate the run again") from None
    if (schema := data.get("schema")) != SCHEMA or isinstance(schema, bool):
        raise UserError(f"{path}: schema: expected {SCHEMA}, got {schema!r:.60}; {REMEDY}")
    _check(data, ResultRecord, path)
    if not data["run"].get("foreign"):
        check_fields(data, _KNOWN_OF_A_RUN, frozenset(), path, REMEDY)
    data["protocol"].setdefault("drawn_classes", drawn_classes.rule_of_older_result(data))
    return ResultRecord.from_dict(data)


def score_protocol(result: ResultRecord, name: str) -> dict[str, Any] | None:
    """Return the protocol of a score of a result, which files of older versions do not hold.

    It is None for scores that have none of their own: likelihoods and reconstructions.
    """
    if (known := result.score_protocols.get(name)) is not None:
        return known
    if name.startswith("inception_score"):
        better = "lower" if name.endswith("_std") else "higher"
        splits = result.protocol.inception_splits
        return {"metric": "InceptionScore", "better": better, "splits": None if splits is ABSENT else splits}
    if name == "fid" or name.startswith("fd_"):
        return {"metric": "FrechetDistance", "better": "lower", "against": "reference"}
    if name.startswith("w2_"):
        return {"metric": "WassersteinDistance", "better": "lower"}
    return None


def save_deviations(path: Path, deviations: dict[str, np.ndarray]) -> None:
    """Add the deviations of scores to deviations.npz next to a result.json, from which two results are compared."""
    file = path.with_name("deviations.npz")
    write_arrays(file, **(load_deviations(path) | {name: each.astype(np.float32) for name, each in deviations.items()}))


def load_deviations(path: Path) -> dict[str, np.ndarray]:
    """Return the deviations (R,) of the scores of a result.json by name; empty if there are none that can be read."""
    try:
        arrays = read_arrays(path.with_name("deviations.npz"), MEBIBYTE)
    except Exception:  # a damaged archive raises any of a dozen; without it, standard errors are known all the same
        return {}
    return {
        name: array
        for name, array in arrays.items()
        if array.dtype == np.float32 and array.ndim == 1 and len(array) > 1 and np.isfinite(array).all()
    }


def save_result(path: Path, result: ResultRecord) -> None:
    """Write one result.json, whole or not at all."""
    _write(path, result)


def load_likelihood(path: Path) -> LikelihoodScores:
    """Read one likelihood-*.json.

    Raises:
        UserError: If it cannot be read, or a field is missing or of a wrong type; the message names file and key.
    """
    data = read_record(path, REMEDY)
    _check(data, LikelihoodScores, path)
    return LikelihoodScores.from_dict(data)


def save_likelihood(path: Path, scores: LikelihoodScores) -> None:
    """Write one likelihood-*.json, whole or not at all."""
    _write(path, scores)


def _write(path: Path, record: Record) -> None:
    write_atomically(path, json.dumps(record.to_dict(), indent=2) + "\n")


def _check(data: dict[str, Any], record: type[Record], path: Path) -> None:
    """Raise a UserError unless an object has the keys and values of a record."""
    check_texts(data, path, REMEDY)
    kinds = list(record.kinds())
    required = {key for key, _, required in kinds if required and isinstance(_holder(data, key), dict)}
    check_fields(data, {key: kind for key, kind, _ in kinds}, frozenset(required), path, REMEDY)


def _holder(data: dict[str, Any], key: str) -> Any:
    above = key.rpartition(".")[0]
    return look_up(data, above) if above else data
