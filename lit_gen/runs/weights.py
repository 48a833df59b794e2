"""Power-function averages of a run: snapshots saved during training, and averages of any width made from them.

checkpoints/ema/000102400-0.05.safetensors    a snapshot: the average of relative std 0.05 after 102,400 images
checkpoints/ema_0.100.safetensors             an average of another width, reconstructed after the last snapshot
checkpoints/ema_0.100-000051200.safetensors   an average reconstructed after 51,200 images
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically
from lit_gen.runs.directory import Run
from lit_gen.runs.power_averages import combine, gamma_of

MAX_PROFILE_ERROR = 0.1
"""Largest relative error of the profile of a reconstruction."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Width:
    """A power-function average, written `ema:0.1`, or `ema:0.1@51200` for one before the end.

    Args:
        std: Relative standard deviation of the profile.
        images: Images seen; if None, those of the last snapshot.
    """

    std: float
    images: int | None = None

    def __str__(self) -> str:
        return f"ema:{self.std:g}" + ("" if self.images is None else f"@{self.images}")

    @property
    def file_name(self) -> str:
        std = f"{self.std:.3f}" if round(self.std, 3) == self.std else f"{self.std:g}"
        return f"ema_{std}" + ("" if self.images is None else f"-{self.images:09d}") + ".safetensors"


@dataclass(frozen=True)
class Snapshot:
    """One power-function average at one time of the training."""

    path: Path
    images: int
    std: float


def parse_weights(text: str, key: str) -> Width | None:
    """Return the average that a text names; None for `ema`, `raw` and `best`, the weights of a checkpoint.

    Args:
        text: `ema`, `raw`, `best`, `ema:STD` or `ema:STD@IMAGES`.
        key: Name of the setting in an error message.

    Raises:
        UserError: If the text is none of these, or the std is out of range.
    """
    if text in ("ema", "raw", "best"):
        return None
    found = re.fullmatch(r"ema:([\d.]+(?:e-?\d+)?)(?:@(\d+))?", text)
    try:
        width = Width(float(found[1]), None if found[2] is None else int(found[2])) if found else None
    except ValueError:
        width = None
    if width is None:
        raise UserError(
            f"{key}: {text!r} names no weights; give ema, raw, best, ema:STD (such as ema:0.1) or ema:STD@IMAGES"
        )
    gamma_of(width.std, key)
    return width


def save_snapshot(folder: Path, images: int, std: float, weights: Weights, dtype: torch.dtype) -> Path:
    """Save an average atomically, in place of one of the same time and std."""
    path = folder / f"{images:09d}-{std!r}.safetensors"
    stored = {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in weights.items()}
    _save(path, stored, {})
    return path


def find_snapshots(run: Run) -> list[Snapshot]:
    """Return the snapshots of a run in the order of time.

    Raises:
        UserError: If there are none.
    """
    number = r"\d+(?:\.\d+)?(?:e-?\d+)?"
    names = [
        (path, re.fullmatch(rf"(0*[1-9]\d{{0,17}})-({number})\.safetensors", path.name))
        for path in run.snapshots.glob("*")
    ]
    found = [Snapshot(path, int(match[1]), float(match[2])) for path, match in names if match and path.is_file()]
    for snapshot in found:
        gamma_of(snapshot.std, str(snapshot.path))
    if not found:
        raise UserError(
            f"{run.directory}: the run has no snapshots of power-function averages; train with --ema.stds '[0.05, 0.1]'"
        )
    return sorted(found, key=lambda snapshot: (snapshot.images, snapshot.std))


def reconstruct(run: Run, width: Width) -> tuple[Path, dict[str, str]]:
    """Compute and save the average of a width from the snapshots of a run up to its time.

    Returns:
        The file, and its metadata: `std`, `images`, `snapshots` and `profile_error`.

    Raises:
        UserError: If there are no snapshots, none at that time, or too few for that width.
    """
    snapshots = find_snapshots(run)
    times = sorted({snapshot.images for snapshot in snapshots})
    images = times[-1] if width.images is None else width.images
    if images not in times:
        near = ", ".join(str(time) for time in sorted(sorted(times, key=lambda time: abs(time - images))[:4]))
        raise UserError(
            f"{run.directory}: no power-function average was saved after {images} images; choose one near it: {near}"
        )
    snapshots = [snapshot for snapshot in snapshots if snapshot.images <= images]
    lengths = np.array([snapshot.images for snapshot in snapshots], np.float64)
    stds = np.array([snapshot.std for snapshot in snapshots])
    coefficients, error = combine(lengths, stds, images, width.std)
    if error > MAX_PROFILE_ERROR:
        kept = ", ".join(f"{std:g}" for std in sorted(set(stds)))
        raise UserError(
            f"{run.directory}: {len(snapshots)} snapshots of std {kept} do not give an average of std {width.std:g} "
            f"(profile error {error:.0%}); choose a std closer to those, or train with a smaller --ema.every or more "
            "--ema.stds"
        )
    sums: Weights = {}
    for snapshot, coefficient in zip(snapshots, coefficients.tolist(), strict=True):
        weights = _load(snapshot.path)
        if sums and _shapes(weights) != _shapes(sums):
            raise UserError(f"{snapshot.path}: from another network than the other snapshots; delete it, or restore it")
        for name, weight in weights.items():
            if weight.is_floating_point():
                part = coefficient * weight.double()
                sums[name] = sums[name].add_(part) if name in sums else part
            else:
                sums[name] = weight  # a counter: the latest counts
    average = {name: weight.float() if weight.is_floating_point() else weight for name, weight in sums.items()}
    facts = {
        "std": repr(width.std),
        "images": str(images),
        "snapshots": str(len(snapshots)),
        "profile_error": f"{error:.2e}",
    }
    path = run.checkpoint.parent / width.file_name
    _save(path, average, facts)
    return path, facts


def load_average(run: Run, width: Width) -> tuple[Weights, int]:
    """Load the average of a width and its number of images seen; reconstruct it unless its file is up to date.

    Raises:
        UserError: If it cannot be reconstructed, or its file is damaged.
    """
    path = run.checkpoint.parent / width.file_name
    facts = _facts(path) if path.is_file() else {}
    latest = str(find_snapshots(run)[-1].images) if width.images is None else str(width.images)
    if facts.get("images") != latest or facts.get("std") != repr(width.std):
        path, facts = reconstruct(run, width)
    return _load(path), int(facts["images"])


def _save(path: Path, weights: Weights, facts: dict[str, str]) -> None:
    write_atomically(path, save({name: weight.cpu().contiguous() for name, weight in weights.items()}, facts))


def _load(path: Path) -> Weights:
    try:
        weights: Weights = load_file(path)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); delete it, or restore it") from None
    return weights


def _shapes(weights: Weights) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


def _facts(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            facts: dict[str, str] = file.metadata() or {}
    except SafetensorError:
        return {}
    return facts
