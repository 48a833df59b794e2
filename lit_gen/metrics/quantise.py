"""From float images to uint8: the one place, since every metric sees images as they would be saved."""

import torch
from torch import Tensor

from lit_gen.data.sources import ImageSource
from lit_gen.errors import UserError


def as_stored(samples: Tensor, source: ImageSource) -> Tensor:
    """Samples in the form of a data set's images: uint8 by `quantise`, or the float32 points of one that has points.

    Samples of binary images become 0 or 255, whichever is nearer.

    Raises:
        UserError: Some value is not finite.
    """
    if not source.quantised:
        return _finite(samples).float()
    images = quantise(samples)
    return images if source.num_levels > 2 else (images >= 128).to(torch.uint8) * 255


def quantise(images: Tensor) -> Tensor:
    """Rounds images in [-1, 1] to uint8: `u = floor(127.5 x + 128)`, clamped to 0 .. 255.

    The inverse of the data module's `x = u / 127.5 - 1`, exactly; values outside of [-1, 1] saturate.

    Args:
        images: Float, of any shape.

    Raises:
        UserError: Some value is not finite; it would become an arbitrary grey level and be scored as if it were one.
    """
    images = _finite(images.to(torch.promote_types(images.dtype, torch.float32)))
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def _finite(images: Tensor) -> Tensor:
    finite = torch.isfinite(images)
    if not finite.all():
        raise UserError(
            f"{int((~finite).sum())} of {images.numel()} pixels of the generated images are not finite: the model or "
            "the sampler diverged; train with a lower learning rate, or sample with more steps or in float64"
        )
    return images
