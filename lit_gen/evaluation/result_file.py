"""The schema of result.json, and of the likelihood-*.json in the same run: written and read here alone.

A dataclass names the keys of each object of a file, in their order, with the kind of each value. `ABSENT` stands for a
key that a file does not have: files of older versions lack some, and the protocol of points has no inception splits.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

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

SCHEMA = 1
REMEDY = "delete it and evaluate the run again"


class Absent(Enum):
    """The value of a key that a file does not have."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT
ANYTHING = Kind("any value", lambda value: True)


class _Schema(NamedTuple):
    """The schema of a key.

    Attributes:
        kind: The kind of its value.
        required: Whether every object has it.
        record: The class of a value whose keys are fields.
        keys: The kinds of the keys of any other object, by dotted key.
        needed: The keys among them that every such object has.
        sparse: Whether an empty value is not written.
    """

    kind: Kind
    required: bool = True
    record: "type[Record] | None" = None
    keys: Mapping[str, Kind] = MappingProxyType({})
    needed: Collection[str] = ()
    sparse: bool = False


def _key(kind: Kind, **schema: Any) -> Any:
    """Return the field of a key that every file has."""
    return field(metadata={"schema": _Schema(kind, **schema)})


def _maybe(kind: Kind, **schema: Any) -> Any:
    """Return the field of a key that a file may lack."""
    return field(default=ABSENT, metadata={"schema": _Schema(kind, required=False, **schema)})


def _scores(kind: Kind) -> Any:
    """Return the field of an object with a value for each of some scores; it is not written if it is empty."""
    schema = _Schema(values_of(kind), required=False, sparse=True)
    return field(default_factory=dict, metadata={"schema": schema})


@dataclass(frozen=True, kw_only=True)
class Record:
    """An object of a file.

    Attributes:
        further: Values of keys that are not fields.
        order: Keys in the order of the file that the record was read from; empty for a new record.
    """

    FURTHER: ClassVar[Mapping[str, _Schema]] = MappingProxyType({})
    """Schemas of keys that are not fields."""
    FURTHER_BEFORE: ClassVar[str] = ""
    """Field before which a new record writes the keys that are not fields; empty for the end."""

    further: dict[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def schemas(cls) -> dict[str, _Schema]:
        """Return the schema of each field."""
        return {each.name: each.metadata["schema"] for each in fields(cls) if "schema" in each.metadata}

    @classmethod
    def kinds(cls) -> Iterator[tuple[str, Kind, bool]]:
        """Yield each dotted key with the kind of its value and whether the object that holds it always has it."""
        for key, schema in {**cls.schemas(), **cls.FURTHER}.items():
            yield key, schema.kind, schema.required
            inner = schema.record.kinds() if schema.record is not None else ()
            for name, kind, required in inner:
                yield f"{key}.{name}", kind, required
            for name, kind in schema.keys.items():
                yield f"{key}.{name}", kind, name in schema.needed

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the record of an object that has been checked."""
        schemas = cls.schemas()
        values = {key: value for key, value in data.items() if key in schemas}
        for key, value in values.items():
            if (record := schemas[key].record) is not None and value is not None:
                values[key] = record.from_dict(value)
        further = {key: value for key, value in data.items() if key not in schemas}
        return cls(**values, further=further, order=tuple(data))

    def to_dict(self) -> dict[str, Any]:
        """Return the object as a file holds it."""
        order = list(self.order)
        for key in self.schemas():
            order += [*self.further, key] if key == self.FURTHER_BEFORE else [key]
        schemas = self.schemas()
        values = {key: getattr(self, key) for key in schemas} | self.further
        values = {key: value for key, value in values.items() if value or key not in schemas or not schemas[key].sparse}
        return {
            key: values[key].to_dict() if isinstance(values[key], Record) else values[key]
            for key in dict.fromkeys([*order, *self.further])
            if values.get(key, ABSENT) is not ABSENT
        }


@dataclass(frozen=True, kw_only=True)
class RunFacts(Record):
    """The training run that was evaluated.

    Attributes:
        name: Name of its directory.
        identity: Hash of its configuration and data.
        recipe: The same without the seed.
        finished: False for a run that is evaluated before its end.
        directory: Name of its directory.
    """

    name: str = _key(TEXT)
    identity: str = _key(TEXT)
    recipe: str | None | Absent = _maybe(optional(TEXT))
    finished: bool | Absent = _maybe(FLAG)
    directory: Any = _maybe(ANYTHING)


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

    data: str = _key(TEXT)
    data_fingerprint: str | None | Absent = _maybe(optional(TEXT))
    split: str | Absent = _maybe(Kind("train, val or test", lambda value: value in ("train", "val", "test")))
    image_shape: list[int] | Absent = _maybe(list_of(COUNT, 3, 3))
    num_real: int | Absent = _maybe(COUNT)
    num_samples: int | Absent = _maybe(COUNT)
    feature_net: str | Absent = _maybe(TEXT)
    feature_net_version: str | Absent = _maybe(TEXT)
    feature_width: int | Absent = _maybe(COUNT)
    resize: str | Absent = _maybe(TEXT)
    quantisation: str | Absent = _maybe(Kind("uint8 or none", lambda value: value in ("uint8", "none")))
    drawn_classes: Any = _maybe(ANYTHING)
    inception_splits: int | Absent = _maybe(COUNT)


@dataclass(frozen=True, kw_only=True)
class OtherData(Record):
    """Fingerprints of training images that differ from those of the run.

    Attributes:
        trained_on: Fingerprint of the images that the run was trained on.
        given: Fingerprint of the images of the evaluation.
    """

    trained_on: str = _key(TEXT)
    given: str = _key(TEXT)


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

    kind: str | Absent = _maybe(TEXT)
    split: Any = _maybe(ANYTHING)
    data_fingerprint: Any = _maybe(ANYTHING)
    num_images: int | Absent = _maybe(COUNT)
    conditional: Any = _maybe(ANYTHING)
    dequantisation: Any = _maybe(ANYTHING)
    method: dict[str, Any] | None | Absent = _maybe(optional(RECORD), keys={"name": TEXT}, needed=("name",))


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

    protocol: LikelihoodProtocol = _key(RECORD, record=LikelihoodProtocol)
    nfe: Any = _maybe(ANYTHING)
    seed: Any = _maybe(ANYTHING)
    seconds: Any = _maybe(ANYTHING)
    device: Any = _maybe(ANYTHING)


@dataclass(frozen=True, kw_only=True)
class LikelihoodScores(Record):
    """The content of a likelihood-*.json.

    Attributes:
        metrics: The likelihood of the test images, with its standard error.
        likelihood: How it was computed.
    """

    metrics: dict[str, float] = _key(values_of(SCORE))
    likelihood: LikelihoodRecord = _key(RECORD, record=LikelihoodRecord)


@dataclass(frozen=True, kw_only=True)
class Timing(Record):
    """Speed of sampling.

    Attributes:
        sampling_seconds: Time that the slowest process took to sample.
        images_per_second: Images of all processes per second.
        device: Name of the device.
    """

    sampling_seconds: Any = _maybe(ANYTHING)
    images_per_second: float = _key(POSITIVE)
    device: Any = _maybe(ANYTHING)


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
        and values_of(SCORE).fits(value.get("standard_errors", {}))
    ),
)


@dataclass(frozen=True, kw_only=True)
class ResultRecord(Record):
    """The content of a result.json.

    Attributes:
        schema: Version of the format.
        run: The training run.
        model: Title of the model.
        num_parameters: Number of parameters of the generating network and the first stage.
        first_stage: Facts of the first stage, if there is one.
        images_seen: Number of images that the model was trained on.
        training_seconds: Training time.
        earlier_seconds: Training time of the runs that the run builds on.
        training_seed: Seed of the training run.
        sampler: Settings of the sampler; None for the one way of a family that has no other.
        nfe: Mean number of network evaluations per sample.
        weights: Which weights were evaluated, such as ema or raw.
        seed: Seed of the noise.
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

    FURTHER: ClassVar[Mapping[str, _Schema]] = {
        "reconstruction": _Schema(optional(RECORD), False, keys={"protocol": RECORD}, needed=("protocol",))
    }
    FURTHER_BEFORE: ClassVar[str] = "timing"

    schema: int = field(default=SCHEMA, metadata={"schema": _Schema(Kind(str(SCHEMA), lambda value: value == SCHEMA))})
    run: RunFacts = _key(RECORD, record=RunFacts)
    model: str = _key(TEXT)
    num_parameters: int = _key(COUNT)
    first_stage: dict[str, Any] | None | Absent = _maybe(optional(RECORD))
    images_seen: int = _key(COUNT)
    training_seconds: float | None | Absent = _maybe(optional(AMOUNT))
    earlier_seconds: float | None | Absent = _maybe(optional(AMOUNT))
    training_seed: int = _key(either(COUNT, FLAG))
    sampler: dict[str, Any] | None = _key(
        optional(RECORD),
        keys=_SAMPLER,
        needed=("name", "grid.name", "schedule.name", "guidance.weight", "guidance.interval"),
    )
    nfe: float = _key(POSITIVE)
    weights: str = _key(TEXT)
    seed: int = _key(COUNT)
    protocol: Protocol = _key(RECORD, record=Protocol)
    other_data: OtherData | None | Absent = _maybe(optional(RECORD), record=OtherData)
    metrics: dict[str, float] = _key(values_of(SCORE))
    standard_errors: dict[str, float] = _scores(SCORE)
    score_protocols: dict[str, dict[str, Any]] = _scores(_PROTOCOL_OF_SCORE)
    floors: dict[str, dict[str, Any]] = _scores(_FLOOR)
    copies: bool | Absent = _maybe(FLAG)
    timing: Timing = _key(RECORD, record=Timing)
    created: str | Absent = _maybe(TEXT)
    likelihood: LikelihoodRecord | None | Absent = _maybe(optional(RECORD), record=LikelihoodRecord)


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
    data["protocol"].setdefault("drawn_classes", drawn_classes.rule_of_older_result(data))
    return ResultRecord.from_dict(data)


def score_protocol(result: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return the protocol of a score of a result.json, which files of older versions do not hold.

    It is None for scores that have none of their own: likelihoods and reconstructions.
    """
    if (known := result.get("score_protocols", {}).get(name)) is not None:
        protocol: dict[str, Any] = known
        return protocol
    if name.startswith("inception_score"):
        better = "lower" if name.endswith("_std") else "higher"
        return {"metric": "InceptionScore", "better": better, "splits": result["protocol"].get("inception_splits")}
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
