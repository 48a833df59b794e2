"""Quality of reconstructions: PSNR, SSIM, and the distance between the features of images and reconstructions."""

from collections.abc import Callable
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lit_gen.core.errors import NoTestImagesError
from lit_gen.core.pixels import BIN_WIDTH, quantise, to_float
from lit_gen.data.module import ImageDataModule
from lit_gen.metrics.feature_nets import FeatureNet
from lit_gen.metrics.frechet import frechet_distance
from lit_gen.metrics.moments import Moments


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio 10 log10(2^2 / mean((x - y)^2)) of images in [-1, 1], (N,) in dB.

    Values outside that range are clamped. An error of 0 counts as one grey level in one pixel, so that means are
    finite.

    Args:
        images: (N, C, H, W).
        others: (N, C, H, W).
    """
    error = (images.clamp(-1, 1) - others.clamp(-1, 1)).square().flatten(1)
    return 10 * torch.log10(4 / error.mean(1).clamp(min=BIN_WIDTH**2 / error.shape[1]))


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Return the structural similarity (Wang et al. 2004) of images in [-1, 1], (N,); 1 for equal images.

    The window is a Gaussian of standard deviation 1.5 pixels (11x11), or 0.5 (5x5) for images smaller than 16x16.

    Args:
        images: (N, C, H, W).
        others: (N, C, H, W).
    """
    sigma = 1.5 if min(images.shape[2:]) >= 16 else 0.5
    # it compares means as brightness, which must not be negative
    one, other = ((x.float().clamp(-1, 1) + 1) / 2 for x in (images, others))
    value = structural_similarity_index_measure(one, other, sigma=sigma, data_range=1.0, reduction="none")
    return cast(Tensor, value)


def reconstructed_split(data: ImageDataModule) -> Literal["test", "train"]:
    """Return the split whose images are reconstructed: test, or train if the data has no test part."""
    try:
        data.images("test")
    except NoTestImagesError:
        return "train"
    return "test"


@torch.inference_mode()
def reconstruction_scores(
    reconstruct: Callable[[Tensor], Tensor],
    data: ImageDataModule,
    net: FeatureNet,
    device: torch.device,
    batch_size: int = 256,
) -> dict[str, float]:
    """Return the scores of the reconstructions of all images of `reconstructed_split`.

    Every process computes the same scores; no operation is collective.

    Args:
        reconstruct: Function from images (N, C, H, W) in [-1, 1] to their reconstructions.
        data: The data.
        net: Feature net on the device.
        device: Device of the computation.
        batch_size: Number of images at once.

    Returns:
        `psnr`, `ssim`, and the Frechet distance between the features of the reconstructions and those of the images:
        `rfid` for Inception, `rfd_digits` for the digits net.
    """
    images = data.images(reconstructed_split(data))
    values: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "features": [], "reconstructed": []}
    for first in range(0, len(images), batch_size):
        stored = torch.from_numpy(np.array(images[first : first + batch_size])).to(device)
        batch = to_float(stored)
        reconstructions = reconstruct(batch).float()
        values["psnr"].append(psnr(reconstructions, batch))
        values["ssim"].append(ssim(reconstructions, batch).reshape(-1))
        values["features"].append(net(stored)[0])
        values["reconstructed"].append(net(quantise(reconstructions))[0])
    parts = {name: torch.cat(parts).double().cpu() for name, parts in values.items()}
    distance = frechet_distance(Moments.of(parts["reconstructed"]), Moments.of(parts["features"]))
    means = {name: float(parts[name].mean()) for name in ("psnr", "ssim")}
    return {f"r{net.distance_name}": distance} | means
