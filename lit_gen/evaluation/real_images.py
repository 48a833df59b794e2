"""The real images of an evaluation: splits of a data module, with features and moments that are cached in files."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_gen.core.errors import NoTestImagesError, UserError
from lit_gen.core.files import MEBIBYTE, replacing
from lit_gen.core.processes import ranks
from lit_gen.core.progress import image_progress
from lit_gen.data.module import ImageDataModule
from lit_gen.metrics.feature_nets import FeatureNet
from lit_gen.metrics.moments import Moments
from lit_gen.metrics.real import Part, RealImages
from lit_gen.metrics.reference import find_reference, reference_moments

BATCH_SIZE = 256


def held_out_split(data: ImageDataModule) -> str | None:
    """Return the split of images that no model is trained on: test, or else val, or None."""
    try:
        if len(data.images("test")):
            return "test"
    except NoTestImagesError:
        pass
    return "val" if data.num_val else None


class DataImages(RealImages):
    """Real images of a data module.

    Args:
        data: The data.
        split: The split that is the reference.
        net: The feature net, on the device of the samples.
        cache: Folder of cached features and moments.
    """

    def __init__(self, data: ImageDataModule, split: str, net: FeatureNet, cache: Path) -> None:
        self.data = data
        self.net = net
        self.cache = cache
        self.net_name = net.name
        self.distance_name = net.distance_name
        self.num_classes = net.num_classes
        self._mapped: dict[str, np.ndarray] = {}
        self._on_device: dict[str, Tensor] = {}
        self.splits: dict[Part, str | None] = {"reference": split, "train": "train", "held out": held_out_split(data)}
        self._moments: dict[str, Moments] = {}

    @property
    def trains_on_reference(self) -> bool:
        return self.splits["reference"] == "train"

    def has(self, part: Part) -> bool:
        return self.splits[part] is not None

    def split(self, part: Part) -> str:
        """Return the split of a part.

        Raises:
            UserError: If there are no such images.
        """
        split = self.splits[part]
        if split is None:
            raise UserError(
                f"evaluation.metrics: {self.data.name} has no {part} images; keep some with --data.num_val, or choose "
                "metrics that need none"
            )
        return split

    def features(self, part: Part) -> Tensor:
        """Return the features of all images of a part, float32 (n, d), on the device of the feature net."""
        if self.device.type == "cpu":
            return torch.from_numpy(self.outputs(part)[:, : self.net.width])
        split = self.split(part)
        if split not in self._on_device:
            features = torch.from_numpy(self.outputs(part)[:, : self.net.width])
            self._on_device[split] = features.contiguous().to(self.device)
        return self._on_device[split]

    def evenly(self, part: Part, most: int) -> Tensor:
        outputs = self.outputs(part)
        n = len(outputs)
        if n <= most:
            return self.features(part)
        return torch.from_numpy(outputs[np.arange(most) * n // most, : self.net.width]).to(self.device)

    def logits(self, part: Part) -> Tensor:
        """Return the logits of all images of a part, float32 (n, K), on the device of the feature net."""
        return torch.from_numpy(np.array(self.outputs(part)[:, self.net.width :])).to(self.device)

    def images(self, part: Part) -> Tensor:
        return torch.from_numpy(np.array(self.data.images(self.split(part)))).to(self.device)

    def labels(self, part: Part) -> Tensor | None:
        labels = self.data.labels(self.split(part))
        return None if labels is None else torch.from_numpy(np.array(labels)).to(self.device)

    def moments(self, part: Part) -> Moments:
        split = self.split(part)
        if split not in self._moments:
            self._moments[split] = self._load_moments(split)
        return self._moments[split]

    def _load_moments(self, split: str) -> Moments:
        what, num_images = f"reference statistics of {self.data.name}", len(self.data.images(split))
        with image_progress(what, num_images, show=ranks()[0] == 0, at_once=False) as progress:
            add = progress.add if progress else None
            return reference_moments(self.data, split, self.net, self.cache, progress=add)

    def imported(self, part: Part) -> str | None:
        """Return the hash of the file that the moments of a part were imported from; None if they are computed."""
        found = find_reference(self.data, self.split(part), self.net, self.cache)
        return None if found is None or found.facts is None else found.facts.imported

    def outputs(self, part: Part) -> np.ndarray:
        """Return features and logits of all images of a part, float32 (n, d + K), mapped from a file of the cache."""
        split = self.split(part)
        if split not in self._mapped:
            self._mapped[split] = self._map(split)
        return self._mapped[split]

    def _map(self, split: str) -> np.ndarray:
        shape = (len(self.data.images(split)), self.net.width + self.net.num_classes)
        path = self.cache / f"{self.data.name}-{split}-{self.net.name}-{self._digest(split)}.npy"
        if (found := _read(path, shape)) is not None:
            return found
        digest = hashlib.sha256()
        with replacing(path) as temporary, temporary.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
            for outputs in self._extract(split):
                digest.update(outputs.tobytes())
                file.write(outputs.tobytes())
            file.write(digest.digest())
        mapped: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
        return mapped

    def _extract(self, split: str) -> Iterator[np.ndarray]:
        """Yield features and logits of the images of a split, float32 (N, d + K), batch by batch."""
        images = self.data.images(split)
        what = f"features of {self.data.name}"
        with image_progress(what, len(images), show=ranks()[0] == 0, at_once=False) as progress:
            for start in range(0, len(images), BATCH_SIZE):
                batch = torch.from_numpy(np.array(images[start : start + BATCH_SIZE])).to(self.device)
                yield torch.cat(self.net(batch), 1).float().cpu().numpy()
                if progress is not None:
                    progress.add(len(batch))

    def _digest(self, split: str) -> str:
        key = [self.data.fingerprint(split), split, list(self.data.image_shape), self.net.name, self.net.version]
        return hashlib.sha256(json.dumps([*key, self.net.resize]).encode()).hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """Device of the feature net."""
        return next((each.device for each in self.net.parameters()), torch.device("cpu"))


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Map the array of a file that ends in the checksum of its numbers; return None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        found: np.memmap = np.load(path, mmap_mode="c", allow_pickle=False)
        with path.open("rb") as file:
            file.seek(-32, os.SEEK_END)
            checksum = file.read()
    except Exception:  # a damaged file raises any of several
        return None
    if found.shape != shape or found.dtype != np.float32 or _checksum(path, found) != checksum:
        return None
    return found


def _checksum(path: Path, mapped: np.memmap) -> bytes:
    """Return the SHA-256 of the numbers that are mapped from a file, which is read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(mapped.offset)
        left = mapped.nbytes
        while left and (block := file.read(min(left, MEBIBYTE))):
            digest.update(block)
            left -= len(block)
    return digest.digest()
