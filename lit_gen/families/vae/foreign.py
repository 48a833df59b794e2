"""Autoencoders of diffusers, built from the settings of their config.json."""

from typing import Any, Literal

from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.networks.foreign import class_and_settings
from lit_gen.families.vq.networks.autoencoder import AutoencoderNetwork

AUTOENCODERS = ("AutoencoderKL", "VQModel")


class DiffusersAutoencoder(AutoencoderNetwork):
    """Encoder and decoder of diffusers, without the codebook of a VQModel.

    Args:
        image_shape: (C, H, W) of the images.
        dim: Number c of channels of the latents. The encoder of an AutoencoderKL returns means and log-variances,
            (N, 2 c, h, w); that of a VQModel returns the vectors (N, c, h, w) that are compared with codes.
        kind: Class of diffusers.
        settings: Arguments of the class, as in config.json; keys that begin with _ are left out.

    Raises:
        UserError: If diffusers is not installed, or the settings do not fit the class or the images.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        dim: int,
        kind: Literal["AutoencoderKL", "VQModel"],
        settings: dict[str, Any],
    ) -> None:
        super().__init__()
        cls, settings = class_and_settings(kind, AUTOENCODERS, settings)
        check_autoencoder(settings, image_shape, "model.network.settings")
        self.model: Any = cls(**settings)
        if kind == "VQModel":
            del self.model.quantize
        factor = 2 ** (len(settings.get("block_out_channels", (64,))) - 1)
        self.size = (image_shape[1] // factor, image_shape[2] // factor)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The last layer of the decoder."""
        layer: nn.Conv2d = self.model.decoder.conv_out
        return layer

    def encoder(self, images: Tensor) -> Tensor:
        """Return what the latents are made of."""
        encoded: Tensor = _maybe(self.model.quant_conv, self.model.encoder(images))
        return encoded

    def decoder(self, latents: Tensor) -> Tensor:
        """Return the images of latents (N, c, h, w)."""
        images: Tensor = self.model.decoder(_maybe(self.model.post_quant_conv, latents))
        return images


def _maybe(convolution: Any, x: Tensor) -> Any:
    return x if convolution is None else convolution(x)


def num_latent_channels(kind: str, settings: dict[str, Any]) -> int:
    """Return the number of channels of the latents."""
    latent = settings.get("latent_channels", 4 if kind == "AutoencoderKL" else 3)
    return int(settings.get("vq_embed_dim") or latent) if kind == "VQModel" else int(latent)


def check_autoencoder(settings: dict[str, Any], image_shape: tuple[int, int, int], key: str) -> None:
    """Raise a UserError unless an autoencoder of diffusers is one for images of a shape."""
    blocks = settings.get("block_out_channels", (64,))
    if not isinstance(blocks, list | tuple):
        raise UserError(f"{key}: block_out_channels: expected a list, got {blocks!r:.99}; correct it")
    for name in ("latent_channels", "vq_embed_dim"):
        value = settings.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"{key}: {name}: expected a whole number, got {value!r:.99}; correct it")
    channels, height, width = image_shape
    own = settings.get("in_channels", 3), settings.get("out_channels", 3)
    if own != (channels, channels):
        raise UserError(
            f"{key}: the autoencoder takes {own[0]} channels and returns {own[1]}, but the data has {channels}; choose "
            "other data"
        )
    factor = 2 ** max(len(blocks) - 1, 0)
    if height % factor or width % factor:
        raise UserError(f"{key}: images of {height}x{width} are not a multiple of {factor}; choose other data")
    if settings.get("norm_type") == "spatial":
        raise UserError(f"{key}: norm_type spatial is not supported; choose an autoencoder with norm_type group")
    if settings.get("lookup_from_codebook"):
        raise UserError(f"{key}: lookup_from_codebook is not supported; choose an autoencoder without it")
