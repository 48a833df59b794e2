"""Read the samples that an evaluation kept, and the real images that they are like.

Files may be damaged or come from someone else: each is validated whole.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.core.files import read_arrays
from lit_gen.core.records import read_each
from lit_gen.report.results import Result
from lit_gen.runs.directory import Run

MOST_BYTES = 2**28
"""Largest size in bytes of the samples of one evaluation."""


def read_samples(results: Sequence[Result]) -> tuple[list[Result], list[np.ndarray]]:
    """Return the evaluations whose samples can be read, and their samples (N, C, H, W).

    A warning names each of the other evaluations.

    Raises:
        UserError: If no samples can be read.
    """
    found = read_each(results, lambda result: (result, samples_of(result)), "the samples side by side leave it out")
    return [result for result, _ in found], [samples for _, samples in found]


def samples_of(result: Result) -> np.ndarray:
    """Return the samples (N, C, H, W) that an evaluation kept: uint8 images, or float points of the plane.

    Raises:
        UserError: If they cannot be read.
    """
    file = result.path.with_name("samples.npz")
    try:
        images: np.ndarray = read_arrays(file, MOST_BYTES)["images"]
        if result.protocol.get("quantisation") == "none":
            fits = images.dtype.kind == "f" and images.shape[1:] == (2, 1, 1) and np.isfinite(images).all()
        else:
            fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] != 2 and max(images.shape) <= 4096
        if not fits or not images.size:
            raise ValueError(f"an array {images.shape} of {images.dtype}")
    except Exception as error:  # a damaged archive raises any of a dozen
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file}: cannot read the samples ({reason}); evaluate the run again") from None
    return images


def common_seed(groups: Sequence[Sequence[Result]]) -> int:
    """Return the sampling seed that most groups of results have; of several, the lowest."""
    seeds = Counter(seed for group in groups for seed in {result.record.seed for result in group})
    return min(seeds, key=lambda seed: (-seeds[seed], seed))


def of_one_seed(groups: Sequence[Sequence[Result]]) -> list[Result]:
    """Return one result per group, of the seed that most groups have, if it is there."""
    seed = common_seed(groups) if groups else 0
    return [min(group, key=lambda result: result.record.seed != seed) for group in groups]


def real_images(results: Sequence[Result], num: int) -> np.ndarray | None:
    """Return evenly spaced real images (num, C, H, W) of the split that the results are scored against.

    They come from the data of a run. The result is None for foreign samples alone, and if the split is unknown.

    Args:
        results: Evaluations of one protocol.
        num: Largest number of images.

    Raises:
        UserError: If the data cannot be read, or its images are no longer those of the protocol.
    """
    split: str = results[0].protocol.get("split", "")  # older versions did not record it
    own = [result for result in results if split and not result.foreign and not result.record.other_data]
    directories = dict.fromkeys(result.path.parents[2] for result in own)
    directory = next((each for each in directories if (each / "config.yaml").is_file()), None)
    if directory is None:
        return None
    from lit_gen.experiment.loading import load_objects  # imports torch

    data = load_objects(Run(directory)).data.with_facts(None)
    if data.fingerprint(split) != own[0].protocol.get("data_fingerprint"):
        raise UserError(f"{directory}: the images of its data are no longer those of the protocol; restore the data")
    images = data.images(split)
    index = np.arange(min(num, len(images))) * len(images) // min(num, len(images))
    redrawn = data.source.redraw(index, 0) if split == "train" else None
    return np.array(images[index]) if redrawn is None else redrawn
