"""Moments of the features of real images, computed once per data set, split and feature net, and then cached."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from lit_gen.core.files import write_atomically
from lit_gen.data.module import ImageDataModule
from lit_gen.metrics.feature_nets import FeatureNet
from lit_gen.metrics.moments import Moments

log = logging.getLogger(__name__)


def reference_moments(
    data: ImageDataModule,
    split: str,
    feature_net: FeatureNet,
    cache_dir: str | Path,
    batch_size: int = 256,
    progress: Callable[[int], object] | None = None,
) -> Moments:
    """Return the moments of the features of all images of a split, without augmentation.

    They are cached in a file named by the fingerprint of the data, the split, the resolution, and the name and version
    of the feature net. The file is written atomically, so that several processes may call this at once. An unreadable
    file is replaced.

    Args:
        data: The data set.
        split: "train", "val" or "test".
        feature_net: Feature net on the device of the computation.
        cache_dir: Folder of the cache, which is created if missing.
        batch_size: Images per call of the feature net.
        progress: Function that is called with the number of images of each completed batch.

    Raises:
        UserError: If the split has fewer than two images, or the feature net does not support them.
    """
    key = {
        "fingerprint": data.fingerprint(split),
        "split": split,
        "image_shape": list(data.image_shape),
        "feature_net": feature_net.name,
        "version": feature_net.version,
        "resize": feature_net.resize,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(cache_dir) / f"{data.name}-{split}-{feature_net.name}-{digest}.safetensors"
    if path.exists():
        try:
            return _read(path, feature_net.width)
        except Exception as error:  # a broken file raises many kinds of exception
            reason = str(error).split("\n")[0]
            log.warning("%s: not readable (%s); computing the reference statistics again", path, reason)
    moments = _compute(data.images(split), feature_net, batch_size, progress)
    _write(path, moments)
    return moments


def _compute(
    images: np.ndarray, feature_net: FeatureNet, batch_size: int, progress: Callable[[int], object] | None
) -> Moments:
    device = next(feature_net.parameters()).device
    width = feature_net.width
    origin = total = torch.zeros(width, dtype=torch.float64, device=device)
    outer = torch.zeros(width, width, dtype=torch.float64, device=device)
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
        features = feature_net(batch)[0].double()
        if start == 0:
            origin = features.mean(0)
        centred = features - origin
        total = total + centred.sum(0)
        outer += centred.T @ centred
        if progress is not None:
            progress(len(batch))
    return Moments.from_sums(len(images), total.cpu(), outer.cpu(), origin.cpu())


def _read(path: Path, width: int) -> Moments:
    if not path.is_file():
        raise ValueError("it is not a regular file")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        moments = Moments(int(metadata["n"]), file.get_tensor("mean"), file.get_tensor("cov"))
    if moments.mean.shape != (width,) or moments.cov.shape != (width, width):
        raise ValueError(f"mean and covariance have shapes {tuple(moments.mean.shape)} and {tuple(moments.cov.shape)}")
    if metadata != _metadata(moments) and set(metadata) != {"n"}:  # files of earlier versions have no checksum
        raise ValueError("its checksum is wrong")
    if moments.n < 2 or not (moments.mean.isfinite().all() and moments.cov.isfinite().all()):
        raise ValueError("its numbers are not valid statistics")
    return moments


def _metadata(moments: Moments) -> dict[str, str]:
    """Return the number of images, and a checksum of the number and the moments."""
    digest = hashlib.sha256(f"{moments.n} {moments.mean.dtype} {moments.cov.dtype}".encode())
    for array in (moments.mean, moments.cov):
        digest.update(array.contiguous().numpy().tobytes())
    return {"n": str(moments.n), "sha256": digest.hexdigest()}


def _write(path: Path, moments: Moments) -> None:
    tensors = {"mean": moments.mean, "cov": moments.cov}
    write_atomically(path, save(tensors, metadata=_metadata(moments)))
