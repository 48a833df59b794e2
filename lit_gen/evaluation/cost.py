"""The cost of a sample in floating-point operations.

They are counted by torch's formulas (`torch.utils.flop_counter`) while one image is sampled: two operations for each
multiplication and addition of matrix products, convolutions and attention. Elementwise operations are not counted.
Counting reads shapes alone, so the number does not depend on the device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lit_gen.evaluation.sampling import Sampling


class _Counter(TorchDispatchMode):
    """Sum of the operations that are run inside.

    torch's FlopCounterMode counts them by module, with hooks on each, and tries to decompose each call: a sampler of
    1000 steps then takes half a minute for one image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.elementary: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self.elementary:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            self.elementary.add(func)
        out = func(*args, **kwargs)
        formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=out))
        return out


def flops_per_image(sampling: Sampling) -> int | None:
    """Return the floating-point operations of the first sample, which is sampled once more for the count.

    None if torch cannot count them, as those of its higher-order operators.
    """
    eager = torch.compiler.set_stance("force_eager")
    products = sdpa_kernel(SDPBackend.MATH)  # the formulas do not include the fused attention of the CPU
    try:
        with torch.no_grad(), eager, products, _Counter() as counter:
            sampling.batch(range(1))
    except (AttributeError, RuntimeError):
        return None
    return counter.total
