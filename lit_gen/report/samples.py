"""Read the samples that an evaluation kept, which may be damaged or come from someone else: validated whole."""

from collections.abc import Sequence

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.core.files import read_arrays
from lit_gen.core.records import read_each
from lit_gen.report.results import Result

MOST_BYTES = 2**28
"""Largest size in bytes of the samples of one evaluation."""


def read_samples(results: Sequence[Result]) -> tuple[list[Result], list[np.ndarray]]:
    """Return the evaluations whose samples can be read, and their samples (N, C, H, W).

    A warning names each of the other evaluations.

    Raises:
        UserError: If no samples can be read.
    """
    found = read_each(results, lambda result: (result, _samples(result)), "the samples side by side leave it out")
    return [result for result, _ in found], [samples for _, samples in found]


def _samples(result: Result) -> np.ndarray:
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
