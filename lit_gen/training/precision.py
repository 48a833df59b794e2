"""Training with weights of another data type than float32 (bf16-true, 64-true).

The weights, the optimizer state and the activations have the chosen type. Images, noise, times and losses stay in
float32: bfloat16 cannot distinguish neighbouring times, nor the likelihoods of neighbouring values of an 8-bit image.
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
    """Plugin that converts the weights, and the inputs and outputs of each network.

    Args:
        precision: Name of the precision in Lightning.
        dtype: Data type of the weights.
    """

    def __init__(self, precision: str, dtype: torch.dtype) -> None:
        self.precision = precision  # type: ignore[assignment]
        self.dtype = dtype

    def convert_module(self, module: nn.Module) -> nn.Module:
        outside = torch.promote_types(self.dtype, torch.float32)

        def enter(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            # only images or latents, the first input: the network itself converts noise levels and labels
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
    """Yield the networks of a model, including those inside a module that has `networks()`."""
    for child in module.children():
        inside: Callable[[], Iterable[nn.Module]] | None = getattr(child, "networks", None)
        yield from [child] if inside is None else inside()


def _converted(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def check_precision(precision: Any) -> None:
    """Raise a UserError for float16 weights: small gradients, and the epsilon of Adam, would be zero."""
    if precision == "16-true":
        raise UserError(
            "trainer.precision: 16-true cannot represent small gradients, and its weights become infinite or NaN; use "
            "bf16-true or 16-mixed"
        )


def use_network_precision(trainer: Trainer, model: GenerativeModel) -> None:
    """Replace Lightning's plugins for bf16-true and 64-true by `NetworkPrecision`.

    Raises:
        UserError: If the family does not support weights of another type than float32, or scaled losses.
    """
    plugin = trainer.precision_plugin
    if isinstance(model, TwoNetworks) and getattr(plugin, "scaler", None) is not None:
        raise UserError(
            f"trainer.plugins: {type(plugin).__name__} cannot scale the losses of two networks; remove the plugin and "
            "use trainer.precision bf16-mixed"
        )
    dtypes = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    if type(plugin) in (HalfPrecision, DoublePrecision):
        if model.capabilities.float32_only:
            raise UserError(
                f"trainer.precision: {type(model).__name__} keeps float32 weights, which its likelihood needs, and "
                f"does not support {plugin.precision}; use 32-true or bf16-mixed"
            )
        trainer.strategy.precision_plugin = NetworkPrecision(plugin.precision, dtypes[plugin.precision])
