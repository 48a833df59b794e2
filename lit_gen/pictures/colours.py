"""Colours that people with any colour vision can tell apart: those of Okabe and Ito, then darker shades of them.

Okabe & Ito, "Color Universal Design", 2008, https://jfly.uni-koeln.de/color/
"""

import colorsys

OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""The colours without yellow, which is too faint for lines on white."""

_DARKER = 0.55


def palette(num: int) -> list[str]:
    """Return different colours as `#rrggbb`, the most distinct ones first.

    Seven are those of Okabe and Ito, six more are darker shades of them. Beyond 13, colours differ but are hard to tell
    apart: markers or labels must name the curves as well.
    """
    shades = [_rgb(*(_DARKER * channel for channel in _channels(colour))) for colour in OKABE_ITO[:-1]]
    chosen = [*OKABE_ITO, *shades]
    more = max(0, num - len(chosen))
    for index in range(more):
        lightness = (0.35, 0.5, 0.65)[index % 3]
        chosen.append(_rgb(*colorsys.hls_to_rgb(index / more, lightness, 0.9)))
    return chosen[:num]


def _channels(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))


def _rgb(*channels: float) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)
