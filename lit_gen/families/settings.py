"""How a trained model is asked: a sampler says how it draws, a likelihood method how it scores images.

Both are settings of an evaluation and change no weight. Each family states in its `Capabilities` which ones it accepts,
and has a default of its own.
"""

import inspect
import math
from abc import ABC
from typing import Any, ClassVar, Literal

from lit_gen.core.errors import UserError


def describe(configured: object) -> dict[str, Any]:
    """The class and the constructor's arguments of an object that keeps them as attributes, in plain JSON types.

    Options left at None are left out, and so is `nfe`, which a sampler turns into steps.
    """
    classes = [cls for cls in reversed(type(configured).__mro__) if "__init__" in vars(cls) and cls is not object]
    parameters = [p for cls in classes for p in list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]]
    description: dict[str, Any] = {"name": type(configured).__name__}
    for parameter in parameters:
        value = None if parameter.name == "nfe" else getattr(configured, parameter.name, None)
        if value is not None:
            description[parameter.name] = _plain(value)
    return description


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str)) else describe(value)


class Sampler(ABC):  # noqa: B024  (what it does is between it and the family that takes it)
    """How a model draws images.

    Attributes:
        learns_from_data: Whether `GenerativeModel.prepare_sampler` fits it to the training images.
    """

    learns_from_data: ClassVar[bool] = False

    def to_dict(self) -> dict[str, Any]:
        """The settings as {"name": "DDIM", "steps": 10, "grid": {"name": "Karras", ...}, ...}; a budget as steps."""
        return describe(self)


class Temperature(Sampler):
    """Draws from a distribution that is sharper than the model's, for T < 1, or broader, for T > 1.

    A normalizing flow multiplies the noise of its base by T, a VAE that of its prior, within each Gaussian if it is a
    mixture; an autoregressive model divides its logits by T.

    Args:
        temperature: T. 1 is the model itself.

    Raises:
        UserError: T is not positive.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if not 0 < temperature < math.inf:
            raise UserError(f"sampler.temperature: {temperature} is not a positive number; 1 is the model itself")
        self.temperature = temperature


class LikelihoodMethod(ABC):  # noqa: B024  (what it does is between it and the family that takes it)
    """How the likelihood of a model is computed.

    Attributes:
        kind: what its number is of the log-likelihood that the model defines: itself, an estimate, or a lower bound.
        dequantisation: how 8-bit values become points of a density; "none" where they are given masses, and None where
            that is up to the model.
    """

    kind: ClassVar[Literal["exact", "estimate", "bound"]]
    dequantisation: ClassVar[Literal["uniform", "variational", "none"] | None] = "none"

    def to_dict(self) -> dict[str, Any]:
        """The settings as {"name": "ProbabilityFlow", "steps": 32, "grid": {...}, ...}."""
        return describe(self)
