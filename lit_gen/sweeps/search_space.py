"""The search space of a sweep file: the tree under `parameters`, its grid, and random settings from it."""

import math
import random
import re
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.sweeps.distributions import Distribution, parse_distribution

_PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")

# A tree of distributions: nested `parameters` are nested dictionaries.
Space = dict[str, "Distribution | Space"]


def parse_space(entries: Any, where: str) -> Space:
    """Read the mapping under `parameters`; `where` names file and key in messages.

    Raises:
        UserError: If an entry does not follow W&B's schema.
    """
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{where}: expected a mapping of at least one parameter, got {entries!r:.200}")
    space: Space = {}
    for key, entry in entries.items():
        if not isinstance(key, str) or not _PARAMETER_NAME.fullmatch(key):
            raise UserError(f"{where}: {key!r:.200} cannot name a parameter; use letters, digits, `_`, `.` and `-`")
        here = f"{where}.{key}"
        if not isinstance(entry, dict):
            raise UserError(f"{here}: expected a mapping such as `values: [...]` or `value: ...`, got {entry!r:.200}")
        if "parameters" in entry:
            if len(entry) > 1:
                raise UserError(f"{here}: nested `parameters` stand alone; remove the other keys")
            space[key] = parse_space(entry["parameters"], f"{here}.parameters")
        else:
            space[key] = parse_distribution(entry, here)
    return space


def grid_size(space: Space) -> int:
    """Return the number of settings of a grid, without listing them."""
    return math.prod(grid_size(child) if isinstance(child, dict) else child.num_values for child in space.values())


def num_draws(space: Space) -> float:
    """Return the number of distinct settings that a random search can draw; infinite if one parameter is continuous."""
    return math.prod(num_draws(child) if isinstance(child, dict) else child.num_draws for child in space.values())


def grid_setting(space: Space, index: int) -> dict[str, Any]:
    """Return setting number `index` of a grid, the last key fastest."""
    setting = dict.fromkeys(space)
    for name, child in reversed(space.items()):
        index, place = divmod(index, grid_size({name: child}))
        setting[name] = grid_setting(child, place) if isinstance(child, dict) else child.value(place)
    return setting


def draw(space: Space, key: str) -> dict[str, Any]:
    """Return a random setting; each value depends only on the key and the name of its parameter."""
    return {
        name: draw(child, f"{key}/{name}") if isinstance(child, dict) else child.sample(random.Random(f"{key}/{name}"))
        for name, child in space.items()
    }


def through_json(value: Any) -> Any:
    """Return a value as W&B's server returns it: its JSON writes a whole float below 1e21 as an integer."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    if isinstance(value, list):
        return [through_json(item) for item in value]
    if isinstance(value, dict):
        return {key: through_json(item) for key, item in value.items()}
    return value
