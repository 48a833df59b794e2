"""Networks of other software: those of diffusers, built from the settings of their config.json, and plain functions."""

import inspect
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError

Kind = Literal["UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"]
KINDS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")


def import_diffusers() -> ModuleType:
    """Return the package diffusers.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import diffusers
    except ImportError:
        raise UserError(
            "model.network: the network needs diffusers, which is not installed; pip install 'lit_gen[diffusers]'"
        ) from None
    return diffusers


class DiffusersNetwork(nn.Module):
    """Network of diffusers: x (N, C, H, W), c_noise (N,) timesteps, labels (N,) or None -> F (N, C_out, H, W).

    Its settings are those of its config.json, so a run is complete without the folder that it was imported from. If it
    has more classes than the data, or is a DiTTransformer2DModel, labels below 0 and None are the class after the last.

    Args:
        image_shape: (C, H, W) of the images.
        num_classes: Number of classes; 0 for an unconditional network.
        kind: Class of diffusers.
        settings: Arguments of the class, as in config.json; keys that begin with _ are left out.

    Raises:
        UserError: If diffusers is not installed, or the settings do not fit the class or the images.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, kind: Kind, settings: dict[str, Any]
    ) -> None:
        super().__init__()
        cls, settings = class_and_settings(kind, KINDS, settings)
        check_images(kind, settings, image_shape, "model.network.settings")
        self.kind = kind
        self.null_class = null_class(kind, settings, num_classes)
        self.whole_timesteps = settings.get("time_embedding_type") == "learned"
        self.model: nn.Module = cls(**settings)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        timesteps = c_noise.round().long() if self.whole_timesteps else c_noise
        if labels is None and self.null_class is not None:
            labels = torch.full((len(x),), -1, device=x.device)
        if labels is not None and self.null_class is not None:
            labels = torch.where(labels < 0, self.null_class, labels)
        given = {"encoder_hidden_states": None} if self.kind == "UNet2DConditionModel" else {}
        output: Tensor = self.model(x, timestep=timesteps, class_labels=labels, return_dict=False, **given)[0]
        return output


def class_and_settings(
    kind: str, kinds: Sequence[str], settings: dict[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return a class of diffusers, and those of its settings that are arguments.

    Args:
        kind: Name of the class.
        kinds: Names of the classes that are supported.
        settings: Content of its config.json.

    Raises:
        UserError: If diffusers is not installed, or the class or a setting is not supported.
    """
    if kind not in kinds:
        raise UserError(f"model.network.kind: {kind!r} is not supported; choose one of {', '.join(kinds)}")
    cls = getattr(import_diffusers(), kind)
    settings = {key: value for key, value in settings.items() if not key.startswith("_")}
    known = inspect.signature(cls.__init__).parameters
    if unknown := [key for key in settings if key not in known]:
        raise UserError(f"model.network.settings: {kind} has no setting {unknown[0]}; remove it")
    return cls, settings


def null_class(kind: str, settings: dict[str, Any], num_classes: int) -> int | None:
    """Return the row of the class embedding that stands for "no class"; None if the network has none."""
    embedded = num_embedded(kind, settings)
    if kind == "DiTTransformer2DModel":
        return embedded
    return num_classes if num_classes and embedded > num_classes else None


def num_embedded(kind: str, settings: dict[str, Any]) -> int:
    """Return the number of classes that a network embeds; 0 for an unconditional network."""
    if kind == "DiTTransformer2DModel":
        return int(settings.get("num_embeds_ada_norm") or 1000)
    return int(settings.get("num_class_embeds") or 0)


def check_images(kind: str, settings: dict[str, Any], image_shape: tuple[int, int, int], key: str) -> None:
    """Raise a UserError unless a network of diffusers is one for images of a shape, and needs no text."""
    channels = settings.get("in_channels", 3 if kind == "UNet2DModel" else 4)
    size = settings.get("sample_size", 32 if kind == "DiTTransformer2DModel" else None)
    height, width = (size, size) if size is None or isinstance(size, int) else size
    theirs, ours = (channels, height or image_shape[1], width or image_shape[2]), tuple(image_shape)
    if theirs != ours:
        shapes = ("x".join(map(str, shape)) for shape in (theirs, ours))
        raise UserError("{}: the network takes {} images, but the data has {}; choose other data".format(key, *shapes))
    blocks = [*settings.get("down_block_types", ()), *settings.get("up_block_types", ())]
    blocks.append(settings.get("mid_block_type", "UNetMidBlock2DCrossAttn") or "")
    if kind == "UNet2DConditionModel" and any("CrossAttn" in str(block) for block in blocks):
        raise UserError(f"{key}: this UNet2DConditionModel needs embeddings of a text; choose one without CrossAttn")


class FunctionNetwork(nn.Module):
    """A function of your own as a network: function(x (N, C, H, W), c_noise (N,), labels) -> F (N, C, H, W), float32.

    Args:
        image_shape: (C, H, W) of the images.
        num_classes: Number of classes.
        function: The function, by its import path; it must be annotated to return a torch.Tensor.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.function(x.float(), c_noise.float(), labels)
