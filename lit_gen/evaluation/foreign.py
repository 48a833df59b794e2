"""Score images that other software made, by the protocol of the runs: one row on the same leaderboard.

The images are named by their content. They lie below the runs in a folder of their own, which is not a run:

ROOT/NAME-HASH/evaluations/images-HASH/result.json
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lit_gen.core.errors import UserError
from lit_gen.data.given import content_hash
from lit_gen.data.module import ImageDataModule
from lit_gen.data.sources import ImageSet
from lit_gen.evaluation.device import device_name
from lit_gen.evaluation.evaluate import score_images
from lit_gen.evaluation.protocol import Evaluation
from lit_gen.evaluation.real_images import DataImages
from lit_gen.evaluation.result_file import Protocol, ResultRecord, RunFacts, Timing, save_result
from lit_gen.evaluation.sampling import GivenImages
from lit_gen.runs.directory import REFERENCE

OF_A_MODEL = ("seed", "num_repeats", "least_of", "weights", "likelihood", "likelihood_method", "other_data")
"""Settings of an evaluation that only a model has."""


@dataclass(frozen=True)
class Foreign:
    """Images of other software, and what is known about it.

    Attributes:
        images: The images, as the data stores them.
        name: Name of the row.
        nfe: Network evaluations per image, if known.
        num_parameters: Number of parameters of the model that made them, if known.
    """

    images: ImageSet
    name: str
    nfe: float | None = None
    num_parameters: int | None = None

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 200 or not self.name.isprintable():
            raise UserError(f"--name: {self.name[:50]!r} is not a name; give 1 to 200 printable letters")
        if self.nfe is not None and not (0 < self.nfe < math.inf):
            raise UserError(f"--nfe: {self.nfe} is not a number of network evaluations; give a number above 0")
        if self.num_parameters is not None and self.num_parameters < 0:
            raise UserError(f"--parameters: {self.num_parameters} is not a number of parameters; give 0 or more")


def check_settings(evaluation: Evaluation) -> None:
    """Raise a UserError if a setting that only a model has differs from its default."""
    default = Evaluation()
    for name in OF_A_MODEL:
        if getattr(evaluation, name) != getattr(default, name):
            raise UserError(
                f"evaluation.{name}: {getattr(evaluation, name)} is a setting of a model, and these images exist "
                f"already; remove it, or set it to {getattr(default, name)}"
            )


def score_foreign(
    evaluation: Evaluation, foreign: Foreign, data: ImageDataModule, root: Path, device: torch.device
) -> tuple[ResultRecord, Path, bool]:
    """Score images as `evaluation.evaluate.evaluate` scores those of a run, and return what it returns.

    Args:
        evaluation: The protocol; the number of samples is that of the images.
        foreign: The images.
        data: The real images.
        root: Folder of the runs.
        device: Device that they are scored on.

    Raises:
        UserError: If the protocol, the data and the metrics do not suit each other.
    """
    check_settings(evaluation)
    images, labels = foreign.images
    evaluation = evaluation.changed(num_samples=len(images))
    net = evaluation.features_of(data).to(device)
    real = DataImages(data, evaluation.split, net, root / REFERENCE)
    protocol = evaluation.protocol(data, net)
    content = content_hash(foreign.images)
    identity = hashlib.sha256(json.dumps([content, foreign.name]).encode()).hexdigest()
    name = re.sub(r"[^\w.=-]+", "_", foreign.name)[:80]
    folder = root / f"{name}-{identity[:10]}"
    facts = json.dumps(protocol.to_dict(), sort_keys=True)
    place = folder / "evaluations" / f"images-{hashlib.sha256(facts.encode()).hexdigest()[:10]}"
    run = RunFacts(
        name=folder.name, identity=identity, finished=True, directory=folder.name, foreign=True, images=content
    )

    given = GivenImages(
        torch.from_numpy(images),
        None if labels is None else torch.from_numpy(labels),
        evaluation.batch_size,
        evaluation.num_kept,
        device,
    )
    result, path, computed = score_images(
        evaluation, given, real, place, lambda _: _result(foreign, run, protocol, device)
    )
    facts_now = {"nfe": foreign.nfe, "num_parameters": foreign.num_parameters}
    added: dict[str, Any] = {
        key: value for key, value in facts_now.items() if value not in (None, getattr(result, key))
    }
    if added:  # the images were scored before, and now more is known about their model
        result = replace(result, **added)
        save_result(path, result)
    return result, path, computed


def _result(foreign: Foreign, run: RunFacts, protocol: Protocol, device: torch.device) -> ResultRecord:
    """Return a new result without scores; what is unknown is None."""
    return ResultRecord(
        run=run,
        model=foreign.name,
        num_parameters=foreign.num_parameters,
        first_stage=None,
        images_seen=None,
        training_seconds=None,
        training_seed=None,
        sampler=None,
        nfe=foreign.nfe,
        weights="unknown",
        seed=0,
        protocol=protocol,
        metrics={},
        timing=Timing(sampling_seconds=None, images_per_second=None, device=device_name(device)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
