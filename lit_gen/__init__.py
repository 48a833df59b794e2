"""lit_gen: one data module, one protocol and one leaderboard for every family of generative image model.

import lit_gen

model = lit_gen.load("runs/digits_edm-1a2b3c4d5e")
images = model.sample(64, seed=0)

The names are imported when they are first used, since PyTorch and Lightning take seconds.
"""

from typing import TYPE_CHECKING, Any

from lit_gen.core.version import __version__

if TYPE_CHECKING:
    from lit_gen.library import Result, Table, TrainedModel, evaluate, leaderboard, load, score

__all__ = ["Result", "Table", "TrainedModel", "__version__", "evaluate", "leaderboard", "load", "score"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lit_gen import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
