"""Training in one data type throughout (bf16-true, 64-true): the networks have it, their surroundings do not.

The weights, the optimizer and the inside of each network have the chosen type. Images, noise, times and losses stay
float32: in bfloat16 neighbouring times, and the likelihoods of neighbouring values of an 8-bit image, would be one.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, Precision
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.base import GenerativeModel
from lit_gen.families.two_networks import TwoNetworks


class NetworkPrecision(Precision):
    """Converts the weights, and at the door of each network what comes in and goes out.

    Args:
        precision: Lightning's name of the precision.
        dtype: The type of the weights.
    """

    def __init__(self, precision: str, dtype: torch.dtype) -> None:
        self.precision = precision  # type: ignore[assignment]
        self.dtype = dtype

    def convert_module(self, module: nn.Module) -> nn.Module:
        outside = torch.promote_types(self.dtype, torch.float32)

        def enter(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            # images or latents come first; noise levels and labels, which follow, the network converts as it needs
            return (_converted(inputs[0], self.dtype), *inputs[1:]) if inputs else inputs

        def leave(network: nn.Module, inputs: Any, outputs: Any) -> Any:
            if isinstance(outputs, tuple):
                return tuple(_converted(output, outside) for output in outputs)
            return _converted(outputs, outside)

        for network in _networks(module):
            network.register_forward_pre_hook(enter)
            network.register_forward_hook(leave)
        return module.to(self.dtype)

    def convert_input(self, data: Any) -> Any:
        return data

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        yield


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """The networks of a model; of a part that computes likelihoods around its networks, those."""
    for child in module.children():
        inside: Callable[[], Iterable[nn.Module]] | None = getattr(child, "networks", None)
        yield from [child] if inside is None else inside()


def _converted(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def check_precision(precision: Any) -> None:
    """Raise a UserError for float16 throughout: small gradients, and the epsilon of Adam, are zero in it."""
    if precision == "16-true":
        raise UserError(
            "trainer.precision: 16-true cannot hold small gradients, and its trainings end in weights that are not "
            "finite; use bf16-true, or 16-mixed"
        )


def use_network_precision(trainer: Trainer, model: GenerativeModel) -> None:
    """Puts `NetworkPrecision` in the place of Lightning's plugins, which leave the images of a data module float32.

    Raises:
        UserError: the family does not train with weights of another type than float32, or not with scaled losses.
    """
    plugin = trainer.precision_plugin
    if isinstance(model, TwoNetworks) and getattr(plugin, "scaler", None) is not None:
        raise UserError(
            f"trainer.plugins: {type(plugin).__name__} cannot scale the losses of two networks; leave it out and use "
            "trainer.precision bf16-mixed"
        )
    dtypes = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    if type(plugin) in (HalfPrecision, DoublePrecision):
        if model.capabilities.float32_only:
            raise UserError(
                f"trainer.precision: {type(model).__name__} keeps float32 weights, which its likelihood needs, and "
                f"does not train with {plugin.precision}; use 32-true or bf16-mixed"
            )
        trainer.strategy.precision_plugin = NetworkPrecision(plugin.precision, dtypes[plugin.precision])
