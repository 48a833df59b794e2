"""The interface of a feature net: stored images -> (features, logits)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError

REQUIRED = {
    "name": "the name of the features in results",
    "version": "a text that changes with the weights",
    "width": "the number of features",
    "num_classes": "the number of logits, or 0",
    "resize": 'how images are resized, or "none"',
}
"""Attributes that a feature net must have, and their meanings."""


class FeatureNet(nn.Module, ABC):
    """Network from stored images to (features, logits), in evaluation mode, in float32 and without gradients.

    Do not make it a submodule of a LightningModule: checkpoints, optimizers and averages must not hold its weights.

    Attributes:
        name: Name in results.
        version: Hash of the weights file, so that features of different weights are never compared.
        width: Number of features.
        num_classes: Number of logits; 0 if the features do not come from a classifier.
        dtype: Data type of the images: uint8, or float32 for points.
        resize: Method that resizes images for the network; "none" if it takes only one size.
    """

    name: str
    version: str
    width: int
    num_classes: int
    resize: str
    dtype: torch.dtype = torch.uint8

    @property
    def distance_name(self) -> str:
        """Name of the distance between these features; "fid" is reserved for Inception features."""
        return f"fd_{self.name}"

    def train(self, mode: bool = True) -> "FeatureNet":
        """Keep the network in evaluation mode, even if a module that contains it is set to training."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features and logits.

        Args:
            images: (N, C, H, W), uint8, or float32 for `Points`.

        Returns:
            Features (N, width) and logits (N, num_classes), float32.

        Raises:
            TypeError: If the images have another data type; see `quantise`.
            UserError: If the network does not support the shape of the images, or its outputs do not have the shapes
                that its attributes state.
        """
        if images.dtype != self.dtype:
            raise TypeError(f"{self.name} features need {self.dtype} images, not {images.dtype}; quantise them first")
        with torch.autocast(images.device.type, enabled=False):
            features, logits = self.extract(images)
        for what, output, attribute in (("features", features, "width"), ("logits", logits, "num_classes")):
            expected = (len(images), getattr(self, attribute))
            if output.shape != expected:
                raise UserError(
                    f"evaluation.feature_net: {type(self).__name__} computes {what} {tuple(output.shape)}, not "
                    f"{expected}; correct its attribute {attribute}, or what extract returns"
                )
        return features, logits

    @abstractmethod
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features and logits without the checks of `forward`."""

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """Return a parameter, buffer or submodule.

        Raises:
            UserError: If a subclass lacks an attribute that every feature net must have.
        """
        if name in REQUIRED:
            raise UserError(
                f"evaluation.feature_net: {type(self).__name__} has no attribute {name}; set it to {REQUIRED[name]}"
            )
        return super().__getattr__(name)


def check_channels(images: Tensor, cls: type[FeatureNet]) -> None:
    """Raise a UserError unless images are grey or colour images (N, 1 or 3, H, W)."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(
            f"evaluation.feature_net: {cls.__name__} takes images (N, 1 or 3, H, W), not {tuple(images.shape)}; "
            "convert the images"
        )
