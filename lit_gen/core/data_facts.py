"""Facts about a data set. A run records them, so its model can be sampled without the data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.records import COUNT, TEXT, check_fields, list_of, optional, up_to

MAX_CLASSES = 1_000_000
MAX_PIXELS = 4096
"""Maximum height, width and number of channels of a recorded image."""
REMEDY = "restore the file"
_FILE = Path("run.json")
FIELDS = {
    "data.name": TEXT,
    "data.images_fingerprint": TEXT,
    "data.image_shape": list_of(up_to(MAX_PIXELS, least=1), 3, 3),
    "data.num_classes": up_to(MAX_CLASSES),
    "data.class_counts": optional(list_of(COUNT, 1, MAX_CLASSES)),
    "data.class_names": optional(list_of(TEXT, 1, MAX_CLASSES)),
}
"""Kind of each fact in run.json."""


@dataclass(frozen=True)
class DataFacts:
    """Facts about the training images of a run, recorded in run.json under `data`.

    Attributes:
        name: Name of the data set.
        images_fingerprint: Fingerprint of the training images, even if the model trains on pairs or codes.
        image_shape: `(C, H, W)`.
        num_classes: Number of classes; 0 for data without labels.
        class_counts: Number of training images per class; None for data without labels.
        class_names: Names of the classes; None if unknown.
    """

    name: str
    images_fingerprint: str
    image_shape: tuple[int, int, int]
    num_classes: int
    class_counts: tuple[int, ...] | None
    class_names: tuple[str, ...] | None

    @classmethod
    def recorded(cls, metadata: Mapping[str, Any]) -> "DataFacts | None":
        """Return the facts in the content of a run.json; None if an older version wrote it without them.

        Raises:
            UserError: If a fact has the wrong type, or the number of classes differs from that of the names or counts.
        """
        data = metadata.get("data")
        if not isinstance(data, dict) or "image_shape" not in data:
            return None
        check_fields(metadata, FIELDS, frozenset(FIELDS), _FILE, REMEDY)
        shape, counts, names = data["image_shape"], data["class_counts"], data["class_names"]
        for key, values in (("class_counts", counts), ("class_names", names)):
            if values is not None and len(values) != data["num_classes"]:
                raise UserError(
                    f"{_FILE}: data.{key}: {len(values)} values for {data['num_classes']} classes; {REMEDY}"
                )
        if counts is not None and not any(counts):
            raise UserError(f"{_FILE}: data.class_counts: all are 0; {REMEDY}")
        return cls(
            name=data["name"],
            images_fingerprint=data["images_fingerprint"],
            image_shape=(shape[0], shape[1], shape[2]),
            num_classes=data["num_classes"],
            class_counts=None if counts is None else tuple(counts),
            class_names=None if names is None else tuple(names),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the facts in the form of run.json."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
