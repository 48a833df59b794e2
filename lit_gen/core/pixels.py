"""Maps between 8-bit images, u in 0 .. 255, and float images, x = u / 127.5 - 1 in [-1, 1].

Samples become uint8 in `ImageSource.unchecked`, by `to_levels`; `ImageSource.stored` first checks that they are finite,
and an evaluation checks all of them at its end. `quantise` does both for reconstructions (`metrics.reconstruction`),
pictures (`pictures.grids`), the pairs of `experiment.reflow` and tensors of your own (`data.given`).
"""

import torch
from torch import Tensor

from lit_gen.core.errors import UserError


class NotFiniteError(UserError):
    """Generated images with values that are not finite."""


BIN_WIDTH = 1 / 127.5
"""Distance between two neighbouring values x."""


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images as float32 u / 127.5 - 1 in [-1, 1], and any other tensor unchanged."""
    if images.dtype != torch.uint8:
        return images
    return images.to(torch.float32).div_(127.5).sub_(1)


def from_levels(levels: Tensor) -> Tensor:
    """Return u / 127.5 - 1 for float values u in 0 .. 255, which may lie between whole numbers."""
    return levels / 127.5 - 1


def nearest_levels(images: Tensor) -> Tensor:
    """Return the level u, as a float, whose value u / 127.5 - 1 is nearest to each pixel; not clamped to 0 .. 255.

    Unlike `quantise`, it keeps the data type, and rounds a value halfway between two levels to the even level.
    """
    return ((images + 1) * 127.5).round()


def quantise(images: Tensor) -> Tensor:
    """Round images in [-1, 1] to uint8: `u = floor(127.5 x + 128)`, clamped to 0 .. 255.

    It is the exact inverse of `to_float`; values outside [-1, 1] saturate.

    Args:
        images: Float tensor of any shape.

    Raises:
        NotFiniteError: If a value is not finite: it would become an arbitrary grey level, and be scored as one.
    """
    return to_levels(finite(images))


def to_levels(images: Tensor) -> Tensor:
    """Round images to uint8 as `quantise` does, without a check: a value that is not finite gives an arbitrary one."""
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def finite(images: Tensor) -> Tensor:
    """Return generated images unchanged, or raise a NotFiniteError if a value is not finite."""
    check_finite(int((~torch.isfinite(images)).sum()), images.numel())
    return images


def check_finite(num_bad: int, num_pixels: int) -> None:
    """Raise a NotFiniteError if some pixels of generated images are not finite.

    Args:
        num_bad: Number of pixels that are not finite.
        num_pixels: Number of pixels.
    """
    if num_bad:
        raise NotFiniteError(
            f"{num_bad} of {num_pixels} pixels of the generated images are not finite: the model or the sampler "
            "diverged; train with a lower learning rate, or sample with more steps or in float64"
        )
