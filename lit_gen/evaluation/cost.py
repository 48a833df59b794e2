"""The cost of a sample in floating-point operations.

They are counted with torch's FlopCounterMode while one image is sampled: two operations for each multiplication and
addition of matrix products, convolutions and attention. Elementwise operations are not counted. Counting reads shapes
alone, so the number does not depend on the device.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lit_gen.evaluation.sampling import Sampling


def flops_per_image(sampling: Sampling) -> int | None:
    """Return the floating-point operations of the first sample, which is sampled once more for the count.

    None if torch cannot count them: its counter fails for networks whose modules are called with gradients disabled in
    some places and enabled in others.
    """
    eager = torch.compiler.set_stance("force_eager")
    products = sdpa_kernel(SDPBackend.MATH)  # the counter does not know the fused attention of the CPU
    try:
        with torch.no_grad(), eager, products, FlopCounterMode(display=False) as counter:
            sampling.batch(range(1))
    except (AttributeError, RuntimeError):
        return None
    return int(counter.get_total_flops())
