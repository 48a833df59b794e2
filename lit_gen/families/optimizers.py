"""Optimizer factories, checked before training starts."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from lit_gen.core.errors import UserError

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


def check_optimizer(key: str, factory: OptimizerFactory) -> None:
    """Raise a UserError, with the key of the factory, unless it makes an optimizer of a finite learning rate."""
    try:
        optimizer = factory([nn.Parameter(torch.zeros(1, 1))])
    except (ValueError, UserError) as error:  # with several optimizers of one class, its builder may name any of them
        reason = error.__cause__ or error
        if isinstance(reason, UserError):
            raise
        raise UserError(f"{key}: {' '.join(str(reason).split())}; choose another value") from None
    if not all(math.isfinite(group["lr"]) for group in optimizer.param_groups):
        raise UserError(f"{key}.lr: the learning rate is not finite; give a finite number")
