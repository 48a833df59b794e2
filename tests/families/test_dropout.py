"""Every network with dropout checks its probability."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from lit_gen.core.errors import UserError
from lit_gen.experiment.key_help import Kind, choices

DROPPING = [
    network for network in choices([Kind(nn.Module)]).values() if "dropout" in inspect.signature(network).parameters
]
REQUIRED: dict[str, Any] = {"image_shape": (1, 16, 16), "shape": (1, 8, 8), "grid": (2, 2)}


def test_as_many_networks_as_there_are() -> None:
    assert len(DROPPING) == 10


@pytest.mark.parametrize("build", DROPPING)
def test_dropout_is_a_probability_below_one(build: Callable[..., nn.Module]) -> None:
    parameters = inspect.signature(build).parameters.values()
    required = {p.name: REQUIRED.get(p.name, 2) for p in parameters if p.default is p.empty}
    for wrong in (-0.1, 1.0, 2.0, float("nan")):
        with pytest.raises(UserError, match=rf"^model\.network\.dropout: {wrong} is not a probability below 1"):
            build(**required, dropout=wrong)
    build(**required, dropout=0.0)
    build(**required, dropout=0.9)
