"""Settings of Weights & Biases: place, mode and account."""

import configparser
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lit_gen.core.errors import UserError


@dataclass
class WandbSettings:
    """Settings of Weights & Biases.

    Args:
        mode: auto is online with an account (a key in the environment or in netrc) and offline without.
        project: The W&B project; under `wandb agent`, the project of the sweep is used instead.
        entity: The W&B user or team; the account's default if None. Under `wandb agent`, the entity of the sweep.
        group: Group of the runs in W&B; the sweep's name inside a sweep.
        tags: Tags of the runs.
        artifacts: Files to upload as artifacts: the checkpoints of a finished training run, the reference statistics of
            an evaluation, or both; None for neither.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "lit_gen"
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None
    artifacts: list[Literal["checkpoint", "reference"]] | None = None

    def resolved_mode(self) -> Literal["online", "offline", "disabled"]:
        """Return the mode, with `auto` resolved from WANDB_MODE in the environment or else the account."""
        if self.mode != "auto":
            return self.mode
        chosen = os.environ.get("WANDB_MODE", "")
        if chosen in ("online", "offline", "disabled"):
            return chosen  # type: ignore[return-value]
        return "online" if _has_account() else "offline"

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of wandb.init that training and evaluation share.

        W&B always puts the run of an agent into the project of its sweep. Under an agent, neither run names a project,
        so that both are logged to the project in the agent's environment.
        """
        agents_sweep = os.environ.get("WANDB_SWEEP_ID")
        sweep = os.environ.get("LIT_GEN_SWEEP") or agents_sweep
        tags = [*(self.tags or []), *(["sweep"] if sweep else [])]
        place = {} if agents_sweep else {"project": self.project, "entity": self.entity}
        return {**place, "group": self.group or sweep, "tags": tags or None}


def check_account(settings: WandbSettings) -> None:
    """Raise a UserError if the mode is online and W&B has no key."""
    if settings.resolved_mode() == "online" and not _has_account():
        raise UserError(f"wandb.mode: online needs a key for {_server()}; run wandb login, or set --wandb.mode offline")


def _has_account() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import requests.utils

    return requests.utils.get_netrc_auth(_server()) is not None


def _server() -> str:
    """Return the address of W&B from the environment or from the settings that `wandb login --host` writes."""
    settings = configparser.ConfigParser(interpolation=None)
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    with suppress(OSError, ValueError, configparser.Error):
        settings.read(folder / "settings")
    saved = settings.get("default", "base_url", fallback="https://api.wandb.ai")
    return os.environ.get("WANDB_BASE_URL") or saved


def announce(settings: WandbSettings) -> None:
    """Print in one line where W&B logs."""
    mode = settings.resolved_mode()
    if mode == "offline":
        print(
            "W&B: offline, files stay in the run directory (wandb login, or --wandb.mode online, to upload)", flush=True
        )
    elif mode == "online":
        project = os.environ.get("WANDB_PROJECT") if os.environ.get("WANDB_SWEEP_ID") else settings.project
        print(f"W&B: online, project {project or 'of the sweep'}", flush=True)


def under_an_agent() -> bool:
    """Return whether an agent of W&B started a run for this process, which is that of the evaluation."""
    return "WANDB_RUN_ID" in os.environ
