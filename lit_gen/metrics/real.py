"""Real images as metrics see them: features, moments, labels and pixels of the reference and of other parts.

| part | images |
| --- | --- |
| reference | the split that an evaluation names |
| train | the images that the model was trained on |
| held out | images of the data that are neither: the test split, or else the validation split |

A part may be the same images as another: the reference of most evaluations is the training split.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics.moments import Moments

Part = Literal["reference", "train", "held out"]


class RealImages(ABC):
    """Real images of one evaluation; everything is computed when it is first needed.

    Attributes:
        net_name: Name of the feature net, such as digits.
        distance_name: Name of the Frechet distance between its features: fid, or fd_ with the name of the net.
        num_classes: Number of logits of the feature net; 0 if it has none.
    """

    net_name: str
    distance_name: str
    num_classes: int

    def name(self, prefix: str) -> str:
        """Return the name of a distance: `kd` gives kid for Inception's features, and kd_digits for those of digits."""
        return f"{prefix[0]}id" if self.distance_name == "fid" else f"{prefix}_{self.net_name}"

    @property
    @abstractmethod
    def trains_on_reference(self) -> bool:
        """Whether the reference is the training split."""

    @abstractmethod
    def has(self, part: Part) -> bool:
        """Return whether there are images of a part."""

    @abstractmethod
    def features(self, part: Part) -> Tensor:
        """Return the features of all images of a part, float32 (n, d), on the device of the samples.

        Do not change them in place: they may be mapped from a file, or shared by metrics.
        """

    def evenly(self, part: Part, most: int) -> Tensor:
        """Return the features of at most so many evenly spaced images of a part."""
        features = self.features(part)
        n = len(features)
        return features if n <= most else features[torch.arange(most, device=features.device) * n // most]

    @abstractmethod
    def images(self, part: Part) -> Tensor:
        """Return the images of a part as they are stored, (n, C, H, W)."""

    @abstractmethod
    def labels(self, part: Part) -> Tensor | None:
        """Return the classes of a part, int64 (n,), or None."""

    def moments(self, part: Part) -> Moments:
        """Return the moments of the features of a part.

        Raises:
            UserError: If there are fewer than two images, or a feature is not finite.
        """
        return Moments.of(self.features(part))


class RealFeatures(RealImages):
    """Real images given by tensors, for the use of a metric without a data module.

    Args:
        reference: Features (n, d).
        train: Features of training images; those of the reference by default.
        held_out: Features of held-out images, if there are some.
        labels: Classes of the reference, (n,).
        images: Images of the reference, (n, C, H, W).
        net_name: Name of the features.
        num_classes: Number of logits that samples have.
        distance_name: Name of the Frechet distance between them, as a feature net gives it; `fd_` with the name of the
            features by default.
    """

    def __init__(
        self,
        reference: Tensor,
        train: Tensor | None = None,
        held_out: Tensor | None = None,
        labels: Tensor | None = None,
        images: Tensor | None = None,
        net_name: str = "features",
        num_classes: int = 0,
        distance_name: str | None = None,
    ) -> None:
        self.net_name = net_name
        self.distance_name = distance_name or f"fd_{net_name}"
        self.num_classes = num_classes
        train = reference if train is None else train
        self._features = {"reference": reference, "train": train, "held out": held_out}
        self._labels, self._images = labels, images

    @property
    def trains_on_reference(self) -> bool:
        return self._features["train"] is self._features["reference"]

    def has(self, part: Part) -> bool:
        return self._features[part] is not None

    def features(self, part: Part) -> Tensor:
        return _given(self._features[part], f"features of {part} images")

    def images(self, part: Part) -> Tensor:
        return _given(self._images if part == "reference" else None, f"{part} images")

    def labels(self, part: Part) -> Tensor | None:
        return self._labels if part == "reference" else None


def _given(value: Tensor | None, what: str) -> Tensor:
    if value is None:
        raise UserError(f"there are no {what}; choose metrics that do not need them")
    return value
