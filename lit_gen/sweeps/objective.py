"""The `metric` of a sweep file: which score, which direction, and the value that ends the sweep."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError

_KEYS = ("name", "goal", "target", "impute", "impute_while_running")


@dataclass(frozen=True)
class Objective:
    """A score to optimize.

    Args:
        name: Name of the score in a result.
        maximize: Whether larger values are better.
        target: Value at which the sweep ends; None if it has no target.
    """

    name: str
    maximize: bool = False
    target: float | None = None

    def loss(self, value: float) -> float:
        """Return a value with the sign that makes smaller ones better."""
        return -value if self.maximize else value

    def is_reached(self, value: float) -> bool:
        """Return whether a value is at least as good as the target."""
        return self.target is not None and self.loss(value) <= self.loss(self.target)


def parse_objective(config: dict[str, Any], path: Path) -> Objective | None:
    """Return the objective of a sweep file; None if it has no `metric`.

    Raises:
        UserError: If `metric` does not follow W&B's schema, or asks for what a local sweep does not do.
    """
    if "metric" not in config:
        return None
    metric = config["metric"]
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise UserError(f"{path}: metric: expected a mapping with a `name`, got {metric!r:.200}; name a score")
    if unknown := [str(key) for key in metric if key not in _KEYS]:
        raise UserError(f"{path}: metric: unknown key {unknown[0]!r:.99}; known: {', '.join(_KEYS)}")
    goal = metric.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise UserError(f"{path}: metric.goal: expected minimize or maximize, got {goal!r:.200}; choose one")
    target = metric.get("target")
    if target is not None and (isinstance(target, bool) or not isinstance(target, int | float)):
        raise UserError(f"{path}: metric.target: expected a number, got {target!r:.200}; give one, or remove the key")
    if target is not None and not abs(target) < math.inf:
        raise UserError(f"{path}: metric.target: {target} is not finite; give a finite number, or remove the key")
    if metric.get("impute", "worst") != "worst":
        raise UserError(
            f"{path}: metric.impute: local sweeps support only worst, not {metric['impute']!r:.200}; remove the key, "
            "or use `wandb sweep` and `wandb agent`"
        )
    if metric.get("impute_while_running", "false") not in ("false", False):
        raise UserError(
            f"{path}: metric.impute_while_running: local sweeps support only false, not "
            f"{metric['impute_while_running']!r:.200}; remove the key, or use `wandb sweep` and `wandb agent`"
        )
    return Objective(metric["name"], goal == "maximize", None if target is None else float(target))
