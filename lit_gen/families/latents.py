"""What a model of codes or latents needs of the first stage that makes them: no paths, no settings."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Latents(Protocol):
    """A trained first stage, which decodes what the second stage draws."""

    @property
    def title(self) -> str:
        """Name of the first stage in results."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Content of the run.json of its training."""

    @property
    def num_parameters(self) -> int:
        """Number of parameters of encoder, codebook and decoder."""

    def decode(self, drawn: Tensor) -> Tensor:
        """Return the images (N, C, H, W) of codes (N, h, w) or latents (N, C, h, w)."""

    def describe(self) -> dict[str, Any]:
        """Return what a result records of the first stage."""
