"""The facts of a data set that its trained models need: a run records them, and can be sampled without the data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lit_gen.errors import UserError

if TYPE_CHECKING:
    from lit_gen.data.module import ImageDataModule


@dataclass(frozen=True)
class DataFacts:
    """The facts about the training images of a run that its run.json records under `data`.

    Attributes:
        name: Name of the data set.
        images_fingerprint: Fingerprint of the training images, also where pairs or codes stand in their place.
        image_shape: `(C, H, W)`.
        num_classes: Number of classes; 0 without labels.
        class_counts: Number of training images of each class; None without labels.
        class_names: Names of the classes, if the source knows them.
    """

    name: str
    images_fingerprint: str
    image_shape: tuple[int, int, int]
    num_classes: int
    class_counts: tuple[int, ...] | None
    class_names: tuple[str, ...] | None

    @classmethod
    def of(cls, data: "ImageDataModule") -> "DataFacts":
        """Return the facts of a data module; its training images are read."""
        return cls(
            name=data.name,
            images_fingerprint=data.fingerprint("train"),
            image_shape=data.image_shape,
            num_classes=data.num_classes,
            class_counts=data.class_counts("train"),
            class_names=data.class_names,
        )

    @classmethod
    def recorded(cls, metadata: Mapping[str, Any]) -> "DataFacts | None":
        """Return the facts in the content of a run.json; None for a run that an older version recorded without them.

        Raises:
            UserError: A fact has the wrong type, or the number of classes is not that of their names or counts.
        """
        data = metadata.get("data")
        if not isinstance(data, dict) or "image_shape" not in data:
            return None
        counts, names = data.get("class_counts"), data.get("class_names")
        shape, num_classes = data["image_shape"], data.get("num_classes")
        valid = {
            "name": isinstance(data.get("name"), str),
            "images_fingerprint": isinstance(data.get("images_fingerprint"), str),
            "image_shape": _are_integers(shape, least=1) and len(shape) == 3,
            "num_classes": _are_integers([num_classes]),
            "class_counts": counts is None or (_are_integers(counts) and len(counts) == num_classes and any(counts)),
            "class_names": names is None
            or (isinstance(names, list) and all(isinstance(n, str) for n in names) and len(names) == num_classes),
        }
        for key, is_valid in valid.items():
            if not is_valid:
                raise UserError(
                    f"run.json: data.{key}: {str(data.get(key))[:60]} is not what lit-gen records; restore the file"
                )
        return cls(
            name=data["name"],
            images_fingerprint=data["images_fingerprint"],
            image_shape=(shape[0], shape[1], shape[2]),
            num_classes=data["num_classes"],
            class_counts=None if counts is None else tuple(counts),
            class_names=None if names is None else tuple(names),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as run.json holds them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def _are_integers(values: Any, least: int = 0) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and value >= least for value in values
    )
