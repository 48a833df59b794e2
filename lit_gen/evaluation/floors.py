"""Scores of real images in place of samples: what no model can be expected to beat, and what a copier would score.

| row | images | what it shows |
| --- | --- | --- |
| train | as many training images as samples, drawn with replacement | the score of a model that only copies |
| held_out | the held-out images, at most as many as samples | the score of images that no model has seen |

A distance depends on the number of images, so each row records its number.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically
from lit_gen.core.processes import from_first, ranks
from lit_gen.core.records import NUMBER, check_fields, read_record, values_of
from lit_gen.evaluation.real_images import DataImages
from lit_gen.metrics.base import Estimate, SampleMetric, ScoredBatch
from lit_gen.metrics.real import Part

ROWS: tuple[Part, ...] = ("train", "held out")
BATCH_SIZE = 4096
SEED = 0


def floors(
    metrics: Sequence[SampleMetric], protocols: dict[str, dict[str, Any]], real: DataImages, num_samples: int
) -> dict[str, dict[str, Any]]:
    """Return the scores of real images: `{"train": {"num_images": n, "scores": {name: value}}, "held_out": ...}`.

    They are computed once and cached for each data set, feature net, protocol and number of images. Points have none.
    Scores that are not defined for the number of images are left out.

    Args:
        metrics: The metrics of the evaluation.
        protocols: Their protocols.
        real: The real images.
        num_samples: Number of samples of the evaluation.
    """
    if not real.data.source.quantised:
        return {}
    found = {}
    for part in ROWS:
        if real.has(part):
            found[part.replace(" ", "_")] = _row(part, metrics, protocols, real, num_samples)
    return found


def _row(
    part: Part,
    metrics: Sequence[SampleMetric],
    protocols: dict[str, dict[str, Any]],
    real: DataImages,
    num_samples: int,
) -> dict[str, Any]:
    num_images = num_samples if part == "train" else min(num_samples, len(real.data.images(real.split(part))))
    scores: dict[str, float] = {}
    errors: dict[str, float] = {}
    for metric in metrics:
        if part == "held out" and "held out" in metric.needs:  # they would be compared with themselves
            continue
        names = list(metric.directions(real))
        key: list[Any] = [part, num_images, SEED, real.split("reference"), {name: protocols[name] for name in names}]
        key += [real.data.fingerprint(split) for split in (real.split("reference"), real.split(part))]
        key += [list(real.data.image_shape), real.net_name, real.net.version, real.net.resize]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        path = real.cache / f"{real.data.name}-floor-{names[0]}-{digest}.json"
        estimates = _cached(path) or _compute(path, part, metric, real, num_images)
        scores |= estimates["scores"]
        errors |= estimates["standard_errors"]
    return {"num_images": num_images, "scores": scores, "standard_errors": errors}


def _cached(path: Path) -> dict[str, Any] | None:
    """Return the scores in a file of the cache, the same on every process; None if there are none."""

    def read() -> dict[str, Any] | None:
        try:
            data = read_record(path, "delete it")
            kinds = {name: values_of(NUMBER) for name in ("scores", "standard_errors")}
            check_fields(data, kinds, frozenset(kinds), path, "delete it")
        except (UserError, FileNotFoundError):
            return None
        return data

    found: dict[str, Any] | None = from_first(read() if ranks()[0] == 0 else None)
    return found


def _compute(path: Path, part: Part, metric: SampleMetric, real: DataImages, num_images: int) -> dict[str, Any]:
    """Score real images with a metric on every process alike, and cache the scores."""
    index = torch.arange(num_images)
    num_real = len(real.data.images(real.split(part)))
    if part == "train":
        index = torch.randint(num_real, (num_images,), generator=torch.Generator().manual_seed(SEED))
    else:
        index = index * num_real // num_images
    try:
        estimates = _score(part, metric, real, index)
    except UserError:  # not defined for this number of images
        estimates = {}
    found = {
        "scores": {name: estimate.value for name, estimate in estimates.items()},
        "standard_errors": {
            name: error for name, each in estimates.items() if (error := each.standard_error) is not None
        },
    }
    if ranks()[0] == 0:
        write_atomically(path, json.dumps(found) + "\n")
    return found


def _score(part: Part, metric: SampleMetric, real: DataImages, chosen: torch.Tensor) -> dict[str, Estimate]:
    outputs, labels = real.outputs(part), real.labels(part)
    images = real.data.images(real.split(part)) if "images" in metric.needs else None
    metric = metric.prepare(real, len(chosen)).to(real.device)
    metric.distributed_available_fn = lambda: False  # every process scores all images
    for start in range(0, len(chosen), BATCH_SIZE):
        rows = chosen[start : start + BATCH_SIZE]
        both = torch.from_numpy(outputs[rows.numpy()]).to(real.device)
        batch = ScoredBatch(
            torch.arange(start, start + len(rows)),
            None if images is None else torch.from_numpy(images[rows.numpy()]).to(real.device),
            both[:, : real.net.width],
            both[:, real.net.width :],
            None if labels is None else labels[rows.to(labels.device)],
        )
        metric.update(batch)
    return metric.compute()
