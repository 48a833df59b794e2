"""Numbers as text: with their interval, with some significant digits, or with a suffix."""

import math
from typing import Any

from lit_gen.report.rows import Spread


def with_interval(value: float, spread: Spread | None) -> str:
    """Return a number with half of its interval, if the interval is known."""
    if spread is None or not math.isfinite(value):
        return significant(value)
    width = spread.half_width
    decimals = min(6, max(0, 1 - math.floor(math.log10(width)))) if width else 3
    return f"{value:.{decimals}f} ± {width:.{decimals}f}"


def significant(value: float, digits: int = 4) -> str:
    """Return a number with some significant digits; trailing zeros stay and whole numbers keep all digits."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, decimals)}f}" if -5 <= decimals <= 7 else f"{value:.{digits - 1}e}"


def known(value: float) -> str:
    """Return a number with three significant digits; a dash if it is not finite."""
    return significant(value, 3) if math.isfinite(value) else "-"


def known_count(value: float) -> str:
    """Return a large number with a suffix; a dash if it is unknown or 0."""
    return count(value) if math.isfinite(value) and value > 0 else "-"


def count(value: float) -> str:
    """Return a number with three significant digits and a suffix such as M."""
    for size, suffix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {suffix}"
    return f"{value:g}"


def finite(value: Any) -> Any:
    """Return a value for JSON, which has neither NaN nor infinity: None for NaN, text for infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value
