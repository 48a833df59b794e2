"""Read a sweep file and check its keys against W&B's schema: each is honoured, or refused by its name."""

import difflib
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.yaml import load_yaml

# W&B's top-level keys; those of the second set need W&B's own programs.
_KEYS = {
    *("method", "parameters", "name", "description", "program", "command", "metric", "run_cap"),
    *("project", "entity", "early_terminate", "apiVersion", "kind"),
}
_FOREIGN_KEYS = {"metrics", "scheduler", "controller", "job", "image_uri"}
METHODS = ("grid", "random", "bayes")


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a sweep file.

    Raises:
        UserError: If the file cannot be read, or a top-level key or its value does not follow the schema.
    """
    try:
        config = load_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such sweep file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: an impossible file name
        raise UserError(f"{path}: cannot read the sweep file: {error}; check it") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a mapping; give one with the keys `method` and `parameters`")
    _check_keys(config, path)
    _check_values(config, path)
    return config


def _check_keys(config: dict[str, Any], path: Path) -> None:
    for key in config:
        if key in _FOREIGN_KEYS:
            raise UserError(f"{path}: {key}: local sweeps do not support this key; use `wandb sweep` and `wandb agent`")
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            known = f"known: {', '.join(sorted(_KEYS))}"
            raise UserError(f"{path}: unknown key {key!r:.99}; " + (f"did you mean {close[0]}?" if close else known))


def _check_values(config: dict[str, Any], path: Path) -> None:
    if "method" not in config:
        raise UserError(f"{path}: method is missing; set it to {', '.join(METHODS[:-1])} or {METHODS[-1]}")
    if config["method"] == "custom":
        raise UserError(
            f"{path}: method: local sweeps do not support custom, which needs `scheduler`; set it to "
            f"{', '.join(METHODS[:-1])} or {METHODS[-1]}, or use `wandb sweep` and `wandb agent`"
        )
    if config["method"] not in METHODS:
        raise UserError(f"{path}: method: unknown method {config['method']!r:.200}; known: {', '.join(METHODS)}")
    cap = config.get("run_cap")
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        raise UserError(f"{path}: run_cap: expected a whole number of at least 1, got {cap!r:.40}")
    for key in ("name", "description", "project", "entity", "program"):
        if not isinstance(config.get(key), str | None):
            raise UserError(f"{path}: {key}: expected text, got {config[key]!r:.200}; put it into quotes")
    if config.get("kind", "sweep") != "sweep":
        raise UserError(f"{path}: kind: expected sweep, got {config['kind']!r:.200}; correct or remove the key")
