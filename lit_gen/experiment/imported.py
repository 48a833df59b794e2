"""Find the imported run that a configuration belongs to: it is evaluated, and never trained."""

from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.experiment import names
from lit_gen.experiment.arguments import is_config
from lit_gen.experiment.identity import training_config
from lit_gen.runs.differences import ABSENT, Difference, differences
from lit_gen.runs.directory import Run


def imported_run(words: list[str], config: dict[str, Any]) -> Run | None:
    """Return the imported run whose config.yaml the arguments name; None if they name none.

    Args:
        words: Arguments in the order that the parser needs.
        config: The resolved configuration.

    Raises:
        UserError: If another argument would change what the run was imported as, or the run is not complete.
    """
    for path in (Path(word.partition("=")[2]) for word in words if is_config(word)):
        run = Run(path.parent)
        if path.name != "config.yaml" or "imported" not in run.metadata:
            continue
        if not run.finished:
            raise UserError(f"--config: {run.directory} is not completely imported; run lit-gen import again")
        changed = changed_settings(run, config)
        if changed:
            raise UserError(
                f"{changed[0].key}: cannot change, since {run.directory} was imported and not trained; remove the key"
            )
        return run
    return None


def changed_settings(run: Run, config: dict[str, Any]) -> list[Difference]:
    """Return the settings of an imported model that differ from those that its run recorded.

    Settings of the trainer do not count, nor those that a later version has added.
    """
    recorded, now = (names.first(training) for training in (run.metadata["training"], training_config(config)))
    found = differences(recorded, now)
    return [each for each in found if each.first != ABSENT and not each.key.startswith("trainer.")]
