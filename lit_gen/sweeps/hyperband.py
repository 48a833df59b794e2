"""Stop trials early: the `early_terminate` of a sweep file, Hyperband as W&B does it.

A trial is compared at brackets b_1 < b_2 < ..., numbers of evaluations during training:

    min_iter    b_k = min_iter eta^(k - 1)
    max_iter    b_k = max_iter / eta^k for k = 1 ... s

Let v be the n values that all trials of the sweep file have had at the last bracket that a trial has reached. The
trial is stopped if its own value there is worse than number floor(n / eta) of v (from 0, best first), so that about the
best 1 / eta of them continue. With `strict: false` its best value so far counts in place of the value at the bracket. A
trial looks after each of its evaluations, so one that was alone at a bracket is compared with those that follow.

Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization", https://arxiv.org/abs/1603.06560
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from lit_gen.core.errors import UserError

_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")
_MOST_EVALUATIONS = 10**6


@dataclass(frozen=True)
class Hyperband:
    """The rule that stops trials.

    Args:
        brackets: Increasing numbers of evaluations.
        eta: One in `eta` trials passes a bracket.
        strict: Whether the value at the bracket counts, and not the best one so far.
        file: The sweep file, whose trials are compared with each other.
    """

    brackets: tuple[int, ...]
    eta: float
    strict: bool
    file: Path

    def verdict(self, own: Sequence[float], others: Iterable[Sequence[float]]) -> str | None:
        """Return why a trial is to be stopped; None if it continues.

        Args:
            own: The losses of the trial so far, one per evaluation.
            others: The losses of the other trials, also of those that ended.
        """
        reached = [bracket for bracket in self.brackets if bracket <= len(own)]
        if not reached:
            return None
        bracket = reached[-1]
        losses = sorted([own[bracket - 1], *(each[bracket - 1] for each in others if len(each) >= bracket)])
        threshold = losses[min(int(len(losses) / self.eta), len(losses) - 1)]
        value = own[bracket - 1] if self.strict else min(own)
        if not value > threshold:
            return None
        rank = sum(loss < value for loss in losses) + 1
        return f"number {rank} of {len(losses)} at evaluation {bracket}, not among the best 1/{self.eta:g}"


def parse_early_terminate(config: dict[str, Any], path: Path) -> Hyperband | None:
    """Return the rule of a sweep file; None if it has no `early_terminate`.

    Raises:
        UserError: If the key does not follow W&B's schema, or the file has no metric.
    """
    if "early_terminate" not in config:
        return None
    rule, where = config["early_terminate"], f"{path}: early_terminate"
    if not isinstance(rule, dict) or rule.get("type") != "hyperband":
        raise UserError(f"{where}: expected a mapping with `type: hyperband`, got {rule!r:.200}; correct or remove it")
    if unknown := [str(key) for key in rule if key not in _KEYS]:
        raise UserError(f"{where}: unknown key {unknown[0]!r:.99}; known: {', '.join(_KEYS)}")
    if "metric" not in config:
        raise UserError(f"{where}: needs a metric to compare trials by; set metric.name to a score that monitor logs")
    eta = rule.get("eta", 3)
    if not _is_number(eta) or eta <= 1:
        raise UserError(f"{where}.eta: expected a number above 1, got {eta!r:.99}; give one such as 3")
    strict = rule.get("strict", True)
    if not isinstance(strict, bool):
        raise UserError(f"{where}.strict: expected true or false, got {strict!r:.99}; choose one")
    brackets = sorted(set(_brackets(rule, float(eta), where)))
    if not brackets:
        raise UserError(f"{where}: no bracket within max_iter; raise max_iter, or lower eta")
    return Hyperband(tuple(brackets), float(eta), strict, path)


def _brackets(rule: dict[str, Any], eta: float, where: str) -> list[int]:
    for key in ("min_iter", "max_iter"):
        value = rule.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{where}.{key}: expected a whole number of at least 1, got {value!r:.99}; give one")
    if "max_iter" in rule:
        s = rule.get("s", 0)
        if not _is_number(s) or s < 1:
            raise UserError(
                f"{where}.s: expected a number of brackets for max_iter, got {rule.get('s')!r:.99}; give 1 or more"
            )
        numbers = [rule["max_iter"] / eta**k for k in range(1, min(int(s), 100) + 1)]
    elif "min_iter" in rule:
        last = int(math.log(max(_MOST_EVALUATIONS / rule["min_iter"], 1), eta))
        numbers = [rule["min_iter"] * eta**k for k in range(min(last, 100) + 1)]
    else:
        raise UserError(f"{where}: neither min_iter nor max_iter is given; give min_iter, or max_iter and s")
    return [int(number + 1e-9) for number in numbers if number + 1e-9 >= 1]


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
