"""The search spaces of a W&B sweep: read the entries under `parameters:` and draw values from them.

A value is the quantile function of its distribution at a uniform random number u, x = F^-1(u), for example

    uniform                 x = min + u (max - min)
    log_uniform_values      log x uniform between log(min) and log(max)
    log_uniform             log x uniform between min and max (base-e exponents; the older form)
    inv_log_uniform         -log x uniform between min and max
    normal, log_normal      x = mu + sigma Phi^-1(u), and its exponential
    q_...                   round(x / q) q, an integer when q is one

The names, the fields, their defaults and the inference of a missing `distribution` are those of W&B's own schema.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from lit_gen.core.errors import UserError

REQUIRED = object()
_BOUNDS = {"min": REQUIRED, "max": REQUIRED}
_NORMAL = {"mu": 0.0, "sigma": 1.0}
_BETA = {"a": 1.0, "b": 1.0}
_STEP = {"q": 1.0}

FIELDS: dict[str, dict[str, Any]] = {
    "constant": {"value": REQUIRED},
    "categorical": {"values": REQUIRED},
    "categorical_w_probabilities": {"values": REQUIRED, "probabilities": REQUIRED},
    "int_uniform": _BOUNDS,
    "uniform": _BOUNDS,
    "q_uniform": _BOUNDS | _STEP,
    "log_uniform": _BOUNDS,
    "q_log_uniform": _BOUNDS | _STEP,
    "inv_log_uniform": _BOUNDS,
    "log_uniform_values": _BOUNDS,
    "q_log_uniform_values": _BOUNDS | _STEP,
    "inv_log_uniform_values": _BOUNDS,
    "normal": _NORMAL,
    "q_normal": _NORMAL | _STEP,
    "log_normal": _NORMAL,
    "q_log_normal": _NORMAL | _STEP,
    "beta": _BETA,
    "q_beta": _BETA | _STEP,
}
_POSITIVE = {"q", "a", "b"}
_OF_ANYTHING = {"constant", "categorical", "categorical_w_probabilities"}
SMALLEST = 2.0**-53
"""Smallest uniform random number; the largest is 1 - SMALLEST."""
LARGEST = 10**100
"""Largest magnitude of a number of a distribution."""


@dataclass(frozen=True)
class Distribution:
    """One parameter's search space.

    Args:
        name: One of the names in `FIELDS`.
        fields: Its fields, defaults filled in.
        where: File and key, for error messages.
    """

    name: str
    fields: dict[str, Any]
    where: str

    @property
    def num_values(self) -> int:
        """The number of values of a grid search; they may be too many for memory.

        Raises:
            UserError: If the distribution is continuous or has probabilities.
        """
        f = self.fields
        match self.name:
            case "constant":
                return 1
            case "categorical":
                return len(f["values"])
            case "int_uniform":
                return int(f["max"] - f["min"] + 1)
            case "q_uniform":
                steps = (f["max"] - f["min"]) / f["q"]
                if not math.isfinite(steps):
                    raise UserError(
                        f"{self.where}.q: {f['q']} is too small a step from {f['min']} to {f['max']}; give more"
                    )
                return max(1, math.ceil(steps))
        raise UserError(
            f"{self.where}: method grid cannot enumerate {self.name}; give `values`, or set `method: random`"
        )

    @property
    def num_draws(self) -> float:
        """The number of distinct values that a random search draws; infinite if it is continuous or has no bounds."""
        f = self.fields
        match self.name:
            case "constant":
                return 1
            case "categorical" | "categorical_w_probabilities":
                weights = f.get("probabilities") or [1.0] * len(f["values"])
                return len({repr(value) for value, weight in zip(f["values"], weights, strict=True) if weight > 0})
            case "int_uniform":
                return float(f["max"] - f["min"] + 1)
            case "q_uniform":
                first, last = f["min"] / f["q"], f["max"] / f["q"]
                return float(round(last) - round(first) + 1) if math.isfinite(last - first) else math.inf
        return math.inf

    def value(self, index: int) -> Any:
        """Return value number `index`, from 0, of a grid search.

        As in W&B, `q_uniform` goes from min in steps of q and stops before max; `int_uniform` includes max.
        """
        f = self.fields
        match self.name:
            case "constant":
                return f["value"]
            case "categorical":
                return f["values"][index]
            case "int_uniform":
                return f["min"] + index
        return f["min"] + index * f["q"]

    def sample(self, rng: random.Random) -> Any:
        """Draw one value with the first numbers of `rng`.

        Raises:
            UserError: If the value is too large for a floating-point number.
        """
        if self.name in ("beta", "q_beta"):
            return self._finite(lambda: self._quantised(rng.betavariate(self.fields["a"], self.fields["b"])))
        return self.at(max(rng.random(), SMALLEST))

    def at(self, u: float) -> Any:
        """Return F^-1(u) for 0 < u < 1.

        Raises:
            UserError: If the value is too large for a floating-point number.
        """
        return self._finite(lambda: self.quantile(u))

    def _finite(self, draw: Callable[[], Any]) -> Any:
        try:
            value = draw()
        except OverflowError:
            value = math.inf
        if self.name not in _OF_ANYTHING and not math.isfinite(value):
            raise UserError(f"{self.where}: {self.name} draws numbers beyond 1e308; narrow the range or enlarge q")
        return value

    def quantile(self, u: float) -> Any:
        """Return F^-1(u) for 0 < u < 1; raise an OverflowError if it is too large."""
        f = self.fields
        match self.name.removeprefix("q_"):
            case "constant":
                return f["value"]
            case "categorical":
                return f["values"][int(u * len(f["values"]))]
            case "categorical_w_probabilities":
                return f["values"][_first_above(u, f["probabilities"])]
            case "int_uniform":
                return f["min"] + int(u * (f["max"] - f["min"] + 1))
            case "uniform":
                x = f["min"] + u * (f["max"] - f["min"])
            case "log_uniform":
                x = math.exp(f["min"] + u * (f["max"] - f["min"]))
            case "inv_log_uniform":
                x = math.exp(-f["max"] + u * (f["max"] - f["min"]))
            case "log_uniform_values" | "inv_log_uniform_values":
                low, high = math.log(f["min"]), math.log(f["max"])
                x = math.exp(low + u * (high - low))
            case "normal":
                x = f["mu"] + f["sigma"] * NormalDist().inv_cdf(u)
            case "log_normal":
                x = math.exp(f["mu"] + f["sigma"] * NormalDist().inv_cdf(u))
            case "beta":
                from scipy import special  # takes time to import

                x = float(special.betaincinv(f["a"], f["b"], u))
            case other:
                raise ValueError(f"no quantile function for {other}")
        return self._quantised(x)

    def _quantised(self, x: float) -> float | int:
        return round(x / self.fields["q"]) * self.fields["q"] if "q" in self.fields else x


def _first_above(u: float, probabilities: list[float]) -> int:
    total = 0.0
    for index, probability in enumerate(probabilities):
        total += probability
        if u < total:
            return index
    return max(index for index, probability in enumerate(probabilities) if probability > 0)


def parse_distribution(entry: dict[str, Any], where: str) -> Distribution:
    """Read one entry such as `{values: [1, 2]}` or `{distribution: normal, mu: 0, sigma: 2}`.

    Args:
        entry: The mapping under the parameter's name.
        where: File and key, for error messages.

    Raises:
        UserError: If the entry does not follow W&B's schema.
    """
    name = entry.get("distribution", _inferred(entry))
    if name is None:
        raise UserError(f"{where}: no values; give `value`, `values`, `min` and `max`, `distribution`, or `parameters`")
    if not isinstance(name, str) or name not in FIELDS:
        raise UserError(f"{where}.distribution: unknown distribution {name!r:.200}; known: {', '.join(FIELDS)}")
    given = {key: value for key, value in entry.items() if key != "distribution"}
    allowed = FIELDS[name]
    if unknown := [str(key) for key in given if key not in allowed]:
        raise UserError(f"{where}: {name} takes {', '.join(allowed)}, not {', '.join(unknown)}")
    fields = allowed | given
    if missing := [key for key, value in fields.items() if value is REQUIRED]:
        raise UserError(f"{where}: {name} needs {' and '.join(missing)}")
    for problem in _problems(name, fields):
        raise UserError(f"{where}{problem}")
    return Distribution(name, fields, where)


def _inferred(entry: dict[str, Any]) -> str | None:
    if "value" in entry:
        return "constant"
    if "values" in entry:
        return "categorical_w_probabilities" if "probabilities" in entry else "categorical"
    if "min" in entry and "max" in entry:
        return "int_uniform" if all(_is_int(entry[key]) for key in _BOUNDS) else "uniform"
    return None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _problems(name: str, fields: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the values of the fields; each text follows the parameter's key."""
    for key, value in fields.items():
        if key in ("values", "probabilities"):
            if not isinstance(value, list) or not value:
                yield f".{key}: expected a list of at least one value, got {value!r:.200}"
        elif key != "value":
            yield from _number_problems(key, value)
    if name == "int_uniform" and not all(_is_int(fields[key]) for key in _BOUNDS):
        yield f": int_uniform needs whole numbers, got min {fields['min']!r} and max {fields['max']!r}"
    if "min" in fields:
        if fields["min"] >= fields["max"]:
            yield f": min {fields['min']} is not less than max {fields['max']}"
        if name.endswith("log_uniform_values") and fields["min"] <= 0:
            yield f".min: {name} needs a positive min, got {fields['min']}"
    if "sigma" in fields and fields["sigma"] < 0:
        yield f".sigma: must not be negative, got {fields['sigma']}"
    if "probabilities" in fields:
        yield from _probability_problems(fields["probabilities"], len(fields["values"]))


def _probability_problems(weights: list[Any], num_values: int) -> Iterator[str]:
    for weight in weights:
        yield from _number_problems("probabilities", weight)
    if len(weights) != num_values:
        yield f".probabilities: {len(weights)} of them for {num_values} values"
    if min(weights) < 0 or not math.isclose(sum(weights), 1.0, rel_tol=1e-5, abs_tol=1e-8):
        yield f".probabilities: must not be negative and must sum to 1, got {weights!r:.200}"


def _number_problems(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = ""
        if isinstance(value, str) and _reads_as_number(value):
            number = repr(float(value))
            number = number if "." in number else number.replace("e", ".0e")  # YAML 1.1 wants the point
            hint = f" (YAML reads {value} as text; write {number})"
        yield f".{key}: expected a number, got {value!r:.200}{hint}"
    elif not abs(value) <= LARGEST:  # of a whole number, isfinite may overflow
        yield f".{key}: expected a finite number of magnitude at most 1e100, got {value!r:.40}"
    elif key in _POSITIVE and value <= 0:
        yield f".{key}: must be positive, got {value}"


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
