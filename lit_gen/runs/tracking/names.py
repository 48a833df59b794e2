"""The names of the trackers, as the key `tracker` takes them, and what each needs to be installed."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from lit_gen.core.errors import UserError

TrackerName = Literal["wandb", "tensorboard", "mlflow"]
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}
"""Package of each tracker of the extra `trackers`."""


def check_installed(names: Sequence[str]) -> None:
    """Raise a UserError if the package of a tracker is not installed."""
    for name in names:
        if name in PACKAGES and find_spec(PACKAGES[name]) is None:
            raise UserError(f"tracker: {name} is not installed; pip install 'lit_gen[trackers]'")
