"""The interface of a first stage to the model of its codes or latents: no paths, no settings."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Latents(Protocol):
    """A trained first stage, which decodes the samples of the second stage."""

    @property
    def title(self) -> str:
        """Name of the first stage in results."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Content of run.json of its training run."""

    @property
    def num_parameters(self) -> int:
        """Number of parameters of encoder, codebook and decoder."""

    def decode(self, drawn: Tensor) -> Tensor:
        """Return the images (N, C, H, W) of codes (N, h, w) or latents (N, C, h, w)."""

    def describe(self) -> dict[str, Any]:
        """Return what a result records of the first stage."""
