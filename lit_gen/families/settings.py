"""Settings of an evaluation: a sampler, and a likelihood method.

Neither changes a weight. Each family states in its `Capabilities` which ones it accepts,
and has a default of its own.
"""

import inspect
import math
from abc import ABC
from typing import Any, ClassVar, Literal

from lit_gen.core.errors import UserError


def describe(configured: object) -> dict[str, Any]:
    """Return the class and constructor arguments of an object that keeps them as attributes, in plain JSON types.

    Arguments that are None are omitted, and so is `nfe`, which a sampler turns into steps.
    """
    return {"name": type(configured).__name__} | {name: _plain(value) for name, value in _values(configured).items()}


def defaults(configured: object) -> dict[str, dict[str, Any]]:
    """Return the default arguments of each class that `describe` names, in plain JSON types.

    A result holds them, so that a table can leave out what does not differ, whatever the defaults of later versions.
    """
    own = {
        parameter.name: _plain(parameter.default)
        for parameter in _parameters(configured)
        if parameter.default not in (None, inspect.Parameter.empty)
    }
    found = {type(configured).__name__: own}
    for value in _values(configured).values():
        if not isinstance(value, (bool, int, float, str, list, tuple)):
            found |= defaults(value)
    return found


def _values(configured: object) -> dict[str, Any]:
    """Return the arguments that an object keeps, without `nfe` and those that are None."""
    values = {each.name: getattr(configured, each.name, None) for each in _parameters(configured) if each.name != "nfe"}
    return {name: value for name, value in values.items() if value is not None}


def _parameters(configured: object) -> list[inspect.Parameter]:
    """Return the arguments of the constructors of an object's class and its bases."""
    classes = [cls for cls in reversed(type(configured).__mro__) if "__init__" in vars(cls) and cls is not object]
    return [p for cls in classes for p in list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str)) else describe(value)


class Sampler(ABC):  # noqa: B024  (its interface is that of the family that supports it)
    """A way to sample from a model.

    Attributes:
        learns_from_data: Whether `GenerativeModel.prepare_sampler` fits the sampler to the training images.
    """

    learns_from_data: ClassVar[bool] = False

    def to_dict(self) -> dict[str, Any]:
        """Return the settings: {"name": "DDIM", "steps": 10, "grid": {"name": "Karras", ...}, ...}; `nfe` as steps."""
        return describe(self)


class Temperature(Sampler):
    """Sampling from a sharper distribution than the model's (T < 1) or a broader one (T > 1).

    A normalizing flow multiplies the noise of its base by T. A VAE multiplies the noise of its prior, within each
    Gaussian if the prior is a mixture. An autoregressive model divides its logits by T.

    Args:
        temperature: T; 1 samples from the model itself.

    Raises:
        UserError: If T is not positive or not finite.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if not 0 < temperature < math.inf:
            raise UserError(f"sampler.temperature: {temperature} is not a positive number; give one, or remove it")
        self.temperature = temperature


class LikelihoodMethod(ABC):  # noqa: B024  (its interface is that of the family that supports it)
    """A way to compute the likelihood of a model.

    Attributes:
        kind: Relation of the result to the log-likelihood that the model defines: its exact value, an estimate, or a
            lower bound.
        dequantisation: How 8-bit values become points of a density; "none" if they are given masses, and None if the
            model decides.
    """

    kind: ClassVar[Literal["exact", "estimate", "bound"]]
    dequantisation: ClassVar[Literal["uniform", "variational", "none"] | None] = "none"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings: {"name": "ProbabilityFlow", "steps": 32, "grid": {...}, ...}."""
        return describe(self)
