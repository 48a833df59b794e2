"""Files of reference statistics: `DATA-SPLIT-NET-KEY.safetensors`, with the tensors `mean` and `cov`.

Its metadata hold the number of images `n`, a checksum `sha256`, and as JSON the `facts`: of what images and features
the moments are, and whether they were imported. Files of earlier versions have no facts, or no checksum either.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically
from lit_gen.core.records import COUNT, TEXT, list_of, optional
from lit_gen.core.text import printable
from lit_gen.data.module import ImageDataModule
from lit_gen.metrics.feature_nets import FeatureNet
from lit_gen.metrics.moments import Moments

ENDING = ".safetensors"
FIELDS = dict.fromkeys(("data", "fingerprint", "split", "feature_net", "version", "resize"), TEXT) | {
    "image_shape": list_of(COUNT, 3, 3),
    "imported": optional(TEXT),
}


@dataclass(frozen=True)
class ReferenceFacts:
    """The images and features of reference statistics.

    Attributes:
        data: Name of the data set.
        fingerprint: Fingerprint of the split.
        split: "train", "val" or "test".
        image_shape: [C, H, W].
        feature_net: Name of the feature net.
        version: Version of the feature net.
        resize: How the feature net resizes images.
        imported: SHA-256 of the .npz file that the moments come from; None if they were computed here.
    """

    data: str
    fingerprint: str
    split: str
    image_shape: list[int]
    feature_net: str
    version: str
    resize: str
    imported: str | None = None

    @classmethod
    def of(
        cls, data: ImageDataModule, split: str, feature_net: FeatureNet, imported: str | None = None
    ) -> "ReferenceFacts":
        """Return the facts of a split and a feature net; reads the images."""
        return cls(
            data.name,
            data.fingerprint(split),
            split,
            list(data.image_shape),
            feature_net.name,
            feature_net.version,
            feature_net.resize,
            imported,
        )

    def path(self, folder: str | Path) -> Path:
        """Return the path of the file in a folder; imported moments take the place of computed ones."""
        key = {name: value for name, value in asdict(self).items() if name not in ("data", "imported")}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return Path(folder) / f"{self.data}-{self.split}-{self.feature_net}-{digest}{ENDING}"


@dataclass(frozen=True)
class ReferenceFile:
    """The content of a file of reference statistics.

    Attributes:
        path: The file.
        moments: Mean and covariance of the features.
        facts: What they are of; None in files of earlier versions.
        has_checksum: Whether the file has a checksum, which is then correct.
    """

    path: Path
    moments: Moments
    facts: ReferenceFacts | None
    has_checksum: bool

    @property
    def named(self) -> tuple[str, str, str]:
        """Data, split and feature net; from the name of the file if it has no facts."""
        if self.facts is not None:
            return self.facts.data, self.facts.split, self.facts.feature_net
        found = re.fullmatch(r"(.+)-(train|val|test)-(.+)-[0-9a-f]{16}", self.path.stem)
        return (found[1], found[2], found[3]) if found else (self.path.stem, "unknown", "unknown")


def read_reference(path: str | Path) -> ReferenceFile:
    """Return the content of a file.

    Raises:
        UserError: If it does not exist or is damaged, or its numbers are not the moments of features.
    """
    path = Path(path)
    try:
        return _read(path)
    except Exception as error:  # a broken file raises many kinds of exception
        reason = printable(str(error).split("\n")[0])
        raise UserError(
            f"{printable(path)}: not readable reference statistics ({reason}); compute them again with lit-gen "
            "reference compute"
        ) from error


def _read(path: Path) -> ReferenceFile:
    if not path.is_file():
        raise ValueError("it is not a regular file")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        moments = Moments(int(metadata["n"]), file.get_tensor("mean"), file.get_tensor("cov"))
    width = len(moments.mean)
    if moments.mean.shape != (width,) or moments.cov.shape != (width, width):
        raise ValueError(f"mean and covariance have shapes {tuple(moments.mean.shape)} and {tuple(moments.cov.shape)}")
    facts = metadata.get("facts")
    if metadata != _metadata(moments, facts) and set(metadata) != {"n"}:  # files of earlier versions have no checksum
        raise ValueError("its checksum is wrong")
    if moments.n < 2 or not (moments.mean.isfinite().all() and moments.cov.isfinite().all()):
        raise ValueError("its numbers are not valid statistics")
    return ReferenceFile(path, moments, None if facts is None else _parse(facts), "sha256" in metadata)


def write_reference(path: Path, moments: Moments, facts: ReferenceFacts) -> None:
    """Write a file whole or not at all."""
    text = json.dumps(asdict(facts), sort_keys=True)
    write_atomically(path, save({"mean": moments.mean, "cov": moments.cov}, metadata=_metadata(moments, text)))


def _metadata(moments: Moments, facts: str | None) -> dict[str, str]:
    """Return the number of images, the facts, and a checksum of number, facts and moments."""
    digest = hashlib.sha256(f"{moments.n} {moments.mean.dtype} {moments.cov.dtype}".encode())
    for array in (moments.mean, moments.cov):
        digest.update(array.contiguous().numpy().tobytes())
    if facts is None:
        return {"n": str(moments.n), "sha256": digest.hexdigest()}
    digest.update(facts.encode())
    return {"n": str(moments.n), "sha256": digest.hexdigest(), "facts": facts}


def _parse(text: str) -> ReferenceFacts:
    content: Any = json.loads(text)
    if not isinstance(content, dict) or content.keys() != FIELDS.keys():
        raise ValueError("its facts are incomplete")
    for name, kind in FIELDS.items():
        if not kind.fits(content[name]):
            raise ValueError(f"its {name} is not {kind.description}")
    return ReferenceFacts(**content)
