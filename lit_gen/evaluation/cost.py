"""The cost of a sample in floating-point operations, counted while one image is sampled."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_gen.core.operations import OperationCounter
from lit_gen.evaluation.sampling import Sampling


def flops_per_image(sampling: Sampling) -> int | None:
    """Return the floating-point operations of the first sample, which is sampled once more for the count.

    None if torch cannot count them, as those of its higher-order operators.
    """
    eager = torch.compiler.set_stance("force_eager")
    products = sdpa_kernel(SDPBackend.MATH)  # the formulas do not include the fused attention of the CPU
    try:
        with torch.no_grad(), eager, products, OperationCounter() as counter:
            sampling.batch(range(1))
    except (AttributeError, RuntimeError):
        return None
    return counter.total
