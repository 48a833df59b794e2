"""A run: one directory that holds all of one training, and the identity by which two commands know it is the same.

ROOT/NAME-IDENTITY/
    config.yaml      the resolved configuration
    run.json         identity, status, versions, commit, data fingerprint, device, cost
    checkpoints/     last.ckpt: both sets of weights, optimizers, position in the data
    metrics.csv      every logged number against images seen
    samples/         grids drawn during training
    wandb/           the files of W&B
    first_stage/     of two stages: the first, with its own config.yaml and run.json
    evaluations/     one folder for each sampler setting and protocol, with result.json
"""

import json
import platform
import re
import subprocess
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
"""Keys that name a run, or an experiment that is trained first: `KEY.budget.num_images` is a setting of that one."""

SECONDS_BETWEEN_SIGNS_OF_LIFE = 30.0

_FIELDS = {
    **{key: TEXT for key in ("identity", "recipe", "title", "status", "wandb_id", "device", "python", "platform")},
    **{key: COUNT for key in ("resumed", "flow", "images_seen")},
    "seed": either(COUNT, FLAG),
    "training": RECORD,
    "training_seconds": AMOUNT,
    "earlier_seconds": AMOUNT,
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
    """Where a run is kept.

    Args:
        root: Folder of the runs.
        name: First part of the run directory's name; the data and the model if not given.
    """

    root: str = "runs"
    name: str | None = None


@dataclass(frozen=True)
class Run:
    """A run directory; what it holds is read from disk, never remembered."""

    directory: Path

    @classmethod
    def of(cls, settings: RunSettings, default_name: str, identity: str) -> "Run":
        """Return the run of a training identity: the same for every process and every repetition.

        Without a name in the settings, that is a run of this identity whatever its directory is called: the default
        name comes from the data's, which changes when a file is renamed.
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
        """An existing run.

        Raises:
            UserError: there is no run at that place, or its training has not written a checkpoint yet.
        """
        run = cls(Path(directory))
        if not run.config.is_file() or not run.metadata_path.is_file():
            raise UserError(
                f"{directory}: not a run directory (no config.yaml and run.json); lit-gen fit makes one, "
                "and lit-gen leaderboard lists those that were evaluated"
            )
        if not run.checkpoint.is_file():
            raise UserError(f"{directory}: the training has saved no checkpoint yet; start it again with lit-gen fit")
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
        """What run.json says; empty before the training has started."""
        try:
            return read_metadata(self.metadata_path, "restore the file, or delete the run")
        except FileNotFoundError:
            return {}

    @property
    def images_fingerprint(self) -> str | None:
        """Fingerprint of the images of the data that it was trained on; None if an older version did not record it.

        What a model of pairs or codes was trained on has a fingerprint of its own.
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
        """Writes config.yaml and run.json, unless the training was started before and is now resumed."""
        if self.metadata_path.is_file():
            self.update(resumed=self.metadata.get("resumed", 0) + 1)
            return
        facts |= {"status": "training", "wandb_id": uuid.uuid4().hex[:12], **environment()}
        with replacing(self.metadata_path) as temporary:  # named last: it says that the run was created
            temporary.write_text(json.dumps(facts, indent=2) + "\n")
            write_atomically(self.config, yaml.safe_dump(config, sort_keys=False))

    def update(self, **facts: Any) -> None:
        """Adds to run.json."""
        write_atomically(self.metadata_path, json.dumps(self.metadata | facts, indent=2) + "\n")

    @contextmanager
    def lock(self, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
        """One process at a time trains a run; a second waits. The lock falls with its holder, even under SIGKILL.

        Args:
            waiting: Called now and then while the lock is held elsewhere.
        """
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.directory.parent / f".{self.directory.name}.lock")
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
        remedy: What an error tells the user to do.

    Raises:
        UserError: It cannot be read, or a field is missing or of a wrong type; the message names file and key.
        FileNotFoundError: There is no such file.
    """
    metadata = read_record(path, remedy)
    check_fields(metadata, _FIELDS, _REQUIRED, path, remedy)
    return metadata


def environment() -> dict[str, Any]:
    """Package versions, the commit of the code and whether it was dirty, Python and platform."""
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
