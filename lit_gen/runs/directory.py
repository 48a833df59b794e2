"""A run: the directory of one training run, found again by the identity of its configuration.

ROOT/NAME-IDENTITY/
    config.yaml      the resolved configuration
    run.json         identity, status, versions, commit, data fingerprint, device, cost
    checkpoints/     last.ckpt: both sets of weights, optimizers, position in the data; best.ckpt: the same at the best
                     score of the evaluations during training; ema/: snapshots of averages
    metrics.csv      every logged number against images seen
    samples/         pictures made during training
    wandb/           the files of W&B
    first_stage/     the first of two stages, with its own config.yaml and run.json
    evaluations/     one folder with result.json per sampler setting and protocol
"""

import glob
import json
import platform
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from lit_gen.core.data_facts import FIELDS as FACTS
from lit_gen.core.errors import UserError
from lit_gen.core.files import replacing, write_atomically
from lit_gen.core.records import (
    AMOUNT,
    COUNT,
    FLAG,
    RECORD,
    RECORDS,
    TEXT,
    check_fields,
    either,
    optional,
    read_record,
    values_of,
)

VERSIONED_PACKAGES = (
    *("lit_gen", "lightning", "torch", "torchvision", "torchmetrics", "torch-fidelity"),
    *("numpy", "scikit-learn", "jsonargparse", "wandb"),
)

TRAINED_FIRST = ("reflow.teacher", "first_stage.run")
"""Keys that name a run, or an experiment to train first: `KEY.budget.num_images` is a setting of that experiment."""

REFERENCE = ".reference"
"""Folder, beside the runs, of the cached statistics of real images."""
SECONDS_BETWEEN_SIGNS_OF_LIFE = 30.0

_FIELDS = {
    **{key: TEXT for key in ("identity", "recipe", "title", "status", "wandb_id", "device", "python", "platform")},
    **{key: COUNT for key in ("resumed", "flow", "images_seen")},
    "seed": either(COUNT, FLAG),
    "training": RECORD,
    "best": RECORD,
    "continued": RECORDS,
    "training_seconds": AMOUNT,
    "earlier_seconds": AMOUNT,
    "training_flops": AMOUNT,
    "earlier_flops": AMOUNT,
    "data": RECORD,
    "data.fingerprint": TEXT,
    **FACTS,
    "packages": values_of(TEXT),
    "git_commit": optional(TEXT),
    "git_dirty": optional(FLAG),
}
_REQUIRED = frozenset({"identity", "recipe", "seed", "status", "wandb_id"})


@dataclass
class RunSettings:
    """The place of a run.

    Args:
        root: Folder of the runs.
        name: First part of the run directory's name; if None, the data and the model.
    """

    root: str = "runs"
    name: str | None = None


@dataclass(frozen=True)
class Run:
    """A run directory; its content is read from disk each time."""

    directory: Path

    @classmethod
    def of(cls, settings: RunSettings, default_name: str, identity: str) -> "Run":
        """Return the run of a training identity, the same run for every process and every repetition.

        Without a name in the settings, any directory of this identity is the run: the default name contains the name
        of the data, which changes if their file is renamed.

        Args:
            settings: The place of the run.
            default_name: First part of the directory's name if the settings have no name.
            identity: Hash of the configuration of the training.
        """
        name = re.sub(r"[^\w.=-]+", "_", settings.name or default_name)
        run = cls(Path(settings.root) / f"{name}-{identity[:10]}")
        if settings.name is not None or run.metadata_path.is_file():
            return run
        others = [cls(path) for path in sorted(Path(settings.root).glob(f"*-{identity[:10]}"))]
        same = [other for other in others if other.metadata.get("identity") == identity]
        return next((other for other in same if other.finished), same[0] if same else run)

    @classmethod
    def open(cls, directory: str | Path) -> "Run":
        """Open an existing run.

        Raises:
            UserError: If the directory is not a run, or the run has not saved a checkpoint yet.
        """
        run = cls(Path(directory))
        if (run.directory / "model.safetensors").is_file() and not run.metadata_path.is_file():
            raise UserError(
                f"{directory}: an exported model and not a run; make a run of it with lit-gen import {directory}"
            )
        if not run.config.is_file() or not run.metadata_path.is_file():
            raise UserError(
                f"{directory}: not a run directory (no config.yaml and run.json); make one with lit-gen fit, "
                "or list the evaluated ones with lit-gen leaderboard"
            )
        if not run.checkpoint.is_file():
            raise UserError(f"{directory}: the run has not saved a checkpoint yet; resume it with lit-gen fit")
        return run

    @property
    def config(self) -> Path:
        return self.directory / "config.yaml"

    @property
    def metadata_path(self) -> Path:
        return self.directory / "run.json"

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        return self.directory / "checkpoints" / "best.ckpt"

    @property
    def snapshots(self) -> Path:
        return self.directory / "checkpoints" / "ema"

    @property
    def samples(self) -> Path:
        return self.directory / "samples"

    @property
    def evaluations(self) -> Path:
        return self.directory / "evaluations"

    @property
    def metadata(self) -> dict[str, Any]:
        """The content of run.json; empty before the training has started."""
        try:
            return read_metadata(self.metadata_path, "restore the file, or delete the run")
        except FileNotFoundError:
            return {}

    @property
    def images_fingerprint(self) -> str | None:
        """The fingerprint of the training images; None if an older version did not record it.

        A model of pairs or codes was trained on other data, whose fingerprint is `data.fingerprint` in run.json.
        """
        metadata, first = self.metadata, self.directory / "first_stage"
        data = metadata.get("data", {})
        if "images_fingerprint" in data:
            return str(data["images_fingerprint"])
        if (first / "run.json").is_file():  # the images of the second stage are those of the first
            return Run(first).images_fingerprint
        pairs = "reflow" in metadata.get("training", {"reflow": "unknown"})
        return None if pairs or "fingerprint" not in data else str(data["fingerprint"])

    @property
    def finished(self) -> bool:
        return self.metadata.get("status") == "finished" and self.checkpoint.is_file()

    def create(self, config: dict[str, Any], **facts: Any) -> None:
        """Write config.yaml and run.json; if they exist, count one more resume in run.json.

        Args:
            config: The resolved configuration.
            **facts: Further entries of run.json.
        """
        if self.metadata_path.is_file():
            self.update(resumed=self.metadata.get("resumed", 0) + 1)
            return
        facts |= {"status": "training", "wandb_id": uuid.uuid4().hex[:12], **environment()}
        with replacing(self.metadata_path) as temporary:  # renamed last: a run exists if it has this file
            temporary.write_text(json.dumps(facts, indent=2) + "\n")
            write_atomically(self.config, yaml.safe_dump(config, sort_keys=False))

    def update(self, **facts: Any) -> None:
        """Add entries to run.json, or replace them."""
        write_atomically(self.metadata_path, json.dumps(self.metadata | facts, indent=2) + "\n")

    def named_alike(self) -> list[Path]:
        """Return the run directories beside this one whose names differ in the identity only, sorted."""
        name = glob.escape(self.directory.name.rpartition("-")[0])
        return sorted(path.parent for path in self.directory.parent.glob(f"{name}-*/run.json"))

    def is_locked(self) -> bool:
        """Return whether another command holds the lock of the run, for longer than it takes to ask."""
        for _ in range(10):
            try:
                with self._lock.acquire(timeout=0):
                    return False
            except Timeout:
                time.sleep(0.1)
        return True

    @property
    def _lock(self) -> FileLock:
        return FileLock(self.directory.parent / f".{self.directory.name}.lock")

    @contextmanager
    def lock(self, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Hold the lock of the run, so that one process at a time trains it; a second process waits.

        The system releases the lock when its holder ends, even by SIGKILL.

        Args:
            waiting: Called every 30 seconds while another process holds the lock.
        """
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        lock = self._lock
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting: another process is training {self.directory}", flush=True)
            while not lock.is_locked:
                waiting()
                with suppress(Timeout):
                    lock.acquire(timeout=SECONDS_BETWEEN_SIGNS_OF_LIFE)
        try:
            yield
        finally:
            lock.release()


def read_metadata(path: Path, remedy: str) -> dict[str, Any]:
    """Read a run.json.

    Args:
        path: The file.
        remedy: Advice at the end of an error message.

    Raises:
        UserError: If the file cannot be read, or a field is missing or has the wrong type; the message names both.
        FileNotFoundError: If there is no such file.
    """
    metadata = read_record(path, remedy)
    check_fields(metadata, _FIELDS, _REQUIRED, path, remedy)
    return metadata


def environment() -> dict[str, Any]:
    """Return package versions, Python, platform, the git commit of the code, and whether the work tree was dirty."""
    packages = {}
    for name in VERSIONED_PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    code = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "--no-optional-locks", "-C", str(code), *words], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--", ".")
    return {
        "packages": packages,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
    }
