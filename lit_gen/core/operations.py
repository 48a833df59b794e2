"""Count floating-point operations by torch's formulas (`torch.utils.flop_counter`).

Two operations are counted for each multiplication and addition of matrix products, convolutions and attention, forward
and backward. Elementwise operations are not counted. Counting reads shapes alone, so the number does not depend on the
device.
"""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class OperationCounter(TorchDispatchMode):
    """Sum of the operations that are run inside.

    torch's FlopCounterMode counts them by module, with hooks on each, and tries to decompose each call: a sampler of
    1000 steps then takes half a minute for one image.

    Attributes:
        total: Number of operations.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self._elementary: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self._elementary:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            self._elementary.add(func)
        out = func(*args, **kwargs)
        formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=out))
        return out
