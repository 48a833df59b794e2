"""Compare a run with its repetition: what differs in code, packages, data and machine, then weights, curves and scores.

The same configuration, code, packages, data, device and number of threads give the same bits.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.evaluation.result_file import ResultRecord
from lit_gen.experiment.identity import training_config, training_identity
from lit_gen.experiment.imported import changed_settings
from lit_gen.experiment.loading import read_checkpoint
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.metrics.feature_nets import FeatureNet
from lit_gen.runs.differences import Difference, differences
from lit_gen.runs.directory import Run, environment
from lit_gen.runs.metrics_file import read_metrics

OF_TIME = ("second", "images_per", "time/", "flops")
"""Parts of the names of curves that measure the machine."""


@dataclass(frozen=True)
class Outcome:
    """Comparison of one kind of numbers.

    Attributes:
        what: Kind of the numbers, such as weights.
        num: How many were compared.
        changed: Names of those that differ.
        largest: Largest relative difference; infinite if a number is missing on one side.
        where: Name of the number with the largest difference.
        not_repeated: Names of numbers of the first run that the second does not have, and that do not count.
    """

    what: str
    num: int
    changed: tuple[str, ...] = ()
    largest: float = 0.0
    where: str = ""
    not_repeated: tuple[str, ...] = ()

    def within(self, tolerance: float) -> bool:
        """Return whether all differences are within a relative tolerance."""
        return not self.changed or self.largest <= tolerance

    def __str__(self) -> str:
        rest = f"; not repeated: {', '.join(self.not_repeated)}" if self.not_repeated else ""
        if not self.changed:
            return f"{self.what}: {self.num} bit-identical{rest}"
        size = "one is missing" if math.isinf(self.largest) else f"largest relative difference {self.largest:.2g}"
        return f"{self.what}: {len(self.changed)} of {self.num} differ, {size} ({self.where}){rest}"


def edited_keys(run: Run) -> list[Difference]:
    """Return the keys of config.yaml that are not those of the identity, as recorded and as in the file.

    A run of an older version recorded no settings; then a changed identity has no key.
    """
    metadata, config = run.metadata, ExperimentCLI(["--config", str(run.config)]).resolved()
    if "imported" in metadata:
        return changed_settings(run, config)
    fingerprint = metadata.get("data", {}).get("fingerprint")
    if fingerprint is None or training_identity(config, fingerprint) == metadata["identity"]:
        return []
    found = differences(metadata["training"], training_config(config)) if "training" in metadata else []
    return found or [Difference("identity", metadata["identity"], training_identity(config, fingerprint))]


def changed_surroundings(run: Run, fingerprint: str, device: str, num_threads: int) -> list[Difference]:
    """Return the differences between the surroundings that a run recorded and those of now.

    Args:
        run: The run.
        fingerprint: Fingerprint of the training images of now.
        device: Name of the device of now; empty if unknown.
        num_threads: Number of CPU threads of now.
    """
    metadata, now = run.metadata, environment()
    keys = [key for key in ("packages", "python", "platform", "git_commit", "git_dirty") if key in metadata]
    found = differences(metadata, now, *keys)
    if metadata.get("git_dirty") and now["git_dirty"]:
        found.append(Difference("code", "uncommitted changes, not recorded", "uncommitted changes"))
    recorded = run.images_fingerprint
    if recorded is not None and recorded != fingerprint:
        found.append(Difference("data.fingerprint", recorded, fingerprint))
    if device and metadata.get("device", device) != device:
        found.append(Difference("device", metadata["device"], device))
    if metadata.get("continued"):
        found.append(Difference("processes", "their number changed during the run", "the same throughout"))
    threads = recorded_threads(run)
    if threads is not None and threads != num_threads:
        found.append(Difference("threads", threads, num_threads))
    return found


def recorded_threads(run: Run) -> int | None:
    """Return the number of CPU threads of a training run; None if it is unknown."""
    threads: int | None = read_checkpoint(run).get("num_threads")
    return threads


def compare_weights(one: Run, other: Run) -> list[Outcome]:
    """Return the comparisons of the raw and the averaged weights of two runs."""
    checkpoints = [read_checkpoint(run) for run in (one, other)]
    raw = [checkpoint["state_dict"] for checkpoint in checkpoints]
    averaged = [checkpoint.get("ema", {}).get("weights", {}) for checkpoint in checkpoints]
    return [
        _compare_tensors("tensors of raw weights", *raw),
        _compare_tensors("tensors of averaged weights", *averaged),
    ]


def _compare_tensors(what: str, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Outcome:
    sizes: dict[str, float] = {}
    for name in dict.fromkeys([*one, *other]):
        if name not in one or name not in other or one[name].shape != other[name].shape:
            sizes[name] = math.inf
        elif not torch.equal(one[name], other[name]):
            scale = max(float(one[name].double().abs().max()), 1e-30)
            sizes[name] = float((one[name].double() - other[name].double()).abs().max()) / scale
    return _outcome(what, len({*one, *other}), sizes)


def compare_curves(one: Run, other: Run) -> Outcome:
    """Return the comparison of the rows of metrics.csv of two runs, without curves that measure the machine."""
    sides = [dict(_points(run.directory / "metrics.csv")) for run in (one, other)]
    return compare_numbers("points of curves", *sides)


def _points(path: Path) -> Iterable[tuple[str, float]]:
    for row in read_metrics(path) if path.is_file() else []:
        for name, value in row.items():
            if name != "images" and not any(part in name for part in OF_TIME):
                yield f"{name} at {row['images']} images", float(value)


def compare_numbers(what: str, one: Mapping[str, float], other: Mapping[str, float]) -> Outcome:
    """Return the comparison of numbers by name; NaN equals NaN."""
    sizes: dict[str, float] = {}
    for name in dict.fromkeys([*one, *other]):
        if name not in one or name not in other:
            sizes[name] = math.inf
        elif not (one[name] == other[name] or (math.isnan(one[name]) and math.isnan(other[name]))):
            size = abs(one[name] - other[name]) / max(abs(one[name]), 1e-30)
            sizes[name] = size if math.isfinite(size) else math.inf
    return _outcome(what, len({*one, *other}), sizes)


def compare_scores(what: str, one: ResultRecord, other: ResultRecord) -> Outcome:
    """Return the comparison of the scores of two results that have the same protocol.

    Scores that only the first has, such as of a metric that the command line named, are not repeated. If there are no
    others, nothing was reproduced.
    """
    sides = (one.score_protocols, other.score_protocols)
    same = one.protocol == other.protocol
    shared = [
        name for name in one.metrics if same and name in other.metrics and sides[0].get(name) == sides[1].get(name)
    ]
    rest = tuple(name for name in one.metrics if name not in shared)
    if not shared:
        return Outcome(what, len(rest), rest, math.inf, rest[0] if rest else "no scores", rest)
    found = compare_numbers(what, {name: one.metrics[name] for name in shared}, {n: other.metrics[n] for n in shared})
    return replace(found, not_repeated=rest)


def _outcome(what: str, num: int, sizes: dict[str, float]) -> Outcome:
    if not sizes:
        return Outcome(what, num)
    where = max(sizes, key=sizes.__getitem__)
    return Outcome(what, num, tuple(sizes), sizes[where], where)


def arguments_of(result: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    """Return the arguments that repeat an evaluation of a run.

    Args:
        result: Content of its result.json.
        evaluation: Settings of evaluations in the configuration of the run.

    Raises:
        UserError: If the sampler is guided by another run, whose place the result does not hold, or the result is one
            of an older version and lacks a part of the protocol.
    """
    protocol, sampler = result["protocol"], result["sampler"]
    for name in ("num_samples", "split"):
        if name not in protocol:
            raise UserError(f"protocol.{name}: the result does not hold it; evaluate the run with lit-gen evaluate")
    words = [f"--evaluation.{key}={protocol[key]}" for key in ("num_samples", "split")]
    words += [f"--evaluation.seed={result['seed']}", f"--evaluation.weights={result['weights']}"]
    if "inception_splits" in protocol:
        words.append(f"--evaluation.inception_splits={protocol['inception_splits']}")
    by_name = {getattr(net, "name", ""): net.__name__ for net in _below(FeatureNet)}
    if evaluation.get("feature_net") is None and protocol.get("feature_net") in by_name:
        words.append(f"--evaluation.feature_net={by_name[protocol['feature_net']]}")
    if sampler is not None:
        if isinstance(sampler.get("guidance"), dict) and "run" in sampler["guidance"]:
            raise UserError(
                "sampler.guidance.run: the result does not hold its place; evaluate it with lit-gen evaluate"
            )
        text = yaml.safe_dump(_configured(sampler), default_flow_style=True, width=math.inf).strip()
        words.append(f"--sampler={text}")
    return words


def _below(base: type) -> Iterator[type]:
    children: list[type] = base.__subclasses__()
    for child in children:
        yield child
        yield from _below(child)


def _configured(described: Any) -> Any:
    """Return the configuration of an object that `families.settings.describe` has described."""
    if isinstance(described, list):
        return [_configured(item) for item in described]
    if described in ("inf", "-inf"):
        return float(described)
    if not isinstance(described, dict):
        return described
    settings = {key: _configured(value) for key, value in described.items() if key != "name"}
    return {"class_path": described["name"], "init_args": settings}
