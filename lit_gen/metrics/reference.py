"""Moments of the features of real images, computed once per data set, split and feature net, and then cached."""

import logging
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from lit_gen.core.errors import UserError
from lit_gen.data.module import ImageDataModule
from lit_gen.metrics.feature_nets import FeatureNet
from lit_gen.metrics.moments import Moments
from lit_gen.metrics.reference_files import ReferenceFacts, ReferenceFile, read_reference, write_reference

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
    file is replaced. Imported moments are used in place of computed ones, with a warning.

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
    if (found := find_reference(data, split, feature_net, cache_dir)) is not None:
        if found.facts is not None and found.facts.imported is not None:
            log.warning("%s: imported from a file with the SHA-256 %s", found.path, found.facts.imported)
        return found.moments
    moments = compute_moments(data.images(split), feature_net, batch_size, progress)
    facts = ReferenceFacts.of(data, split, feature_net)
    write_reference(facts.path(cache_dir), moments, facts)
    return moments


def find_reference(
    data: ImageDataModule, split: str, feature_net: FeatureNet, cache_dir: str | Path
) -> ReferenceFile | None:
    """Return the cached statistics, computed or imported; None if there are none, or with a warning if unreadable."""
    facts = ReferenceFacts.of(data, split, feature_net)
    path = facts.path(cache_dir)
    if not path.exists():
        return None
    try:
        found = read_reference(path)
        if len(found.moments.mean) != feature_net.width:
            raise UserError(f"{path}: holds {len(found.moments.mean)} features, not {feature_net.width}")
        if found.facts is not None and found.facts.path(cache_dir) != path:
            raise UserError(f"{path}: its name is not that of its content; delete it, or give it back its name")
    except UserError as error:
        log.warning("%s; computing the reference statistics again", str(error).partition("; compute")[0])
        return None
    return found


def compute_moments(
    images: np.ndarray,
    feature_net: FeatureNet,
    batch_size: int = 256,
    progress: Callable[[int], object] | None = None,
) -> Moments:
    """Return the moments of the features of images; raises as `reference_moments` does."""
    tensors = chain(feature_net.parameters(), feature_net.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
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
