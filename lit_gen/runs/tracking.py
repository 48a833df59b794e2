"""Log to Weights & Biases, and the same metrics to a CSV file in the run directory."""

import configparser
import csv
import io
import math
import os
import statistics
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_gen.core.errors import UserError
from lit_gen.core.files import append, read_text, write_atomically
from lit_gen.runs.directory import Run
from lit_gen.runs.metrics_file import read_metrics

if TYPE_CHECKING:
    import wandb  # slow to import, and not needed to load a run

PICTURES = ("samples", "neighbours")
"""Pictures of an evaluation that W&B shows, by the names of their files."""
# Under `wandb agent` these name the trial's run and its sweep. They belong to the evaluation, never to a training run
# that the trial starts. WANDB_PROJECT and WANDB_ENTITY name the place of both.
AGENT_VARIABLES = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RESUME")


@dataclass
class WandbSettings:
    """Settings of Weights & Biases.

    Args:
        mode: auto is online with an account (a key in the environment or in netrc) and offline without.
        project: The W&B project; under `wandb agent`, the project of the sweep is used instead.
        entity: The W&B user or team; the account's default if None. Under `wandb agent`, the entity of the sweep.
        group: Group of the runs in W&B; the sweep's name inside a sweep.
        tags: Tags of the runs.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "lit_gen"
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None

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


def training_loggers(settings: WandbSettings, run: Run, config: dict[str, Any]) -> list[Logger]:
    """Return the loggers of a training run: a CSV file, and a W&B run that a resume continues."""
    loggers: list[Logger] = [MetricsFile(run.directory / "metrics.csv")]
    mode = settings.resolved_mode()
    if mode == "disabled":
        return loggers
    return [*loggers, Curves(settings, run, config)]


class Curves(WandbLogger):
    """The W&B run of one training run, with its curves against `images`, the images seen.

    A resume continues the same W&B run.
    """

    def __init__(self, settings: WandbSettings, run: Run, config: dict[str, Any]) -> None:
        experiment = None
        if not getattr(rank_zero_only, "rank", 0):
            experiment = _init(
                of_agent=False,
                name=run.directory.name,
                id=run.metadata["wandb_id"],
                dir=str(run.directory),
                mode=settings.resolved_mode(),
                resume="allow",
                job_type="train",
                config={key: value for key, value in config.items() if key != "sampler"},  # of evaluations alone
                **settings.arguments(),
            )
            experiment.define_metric("images")
            experiment.define_metric("*", step_metric="images")
        super().__init__(experiment=experiment, save_dir=str(run.directory))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log({**metrics, "images": step})

    @rank_zero_only
    def log_picture(self, name: str, picture: Path, images: int) -> None:
        """Log a picture, such as samples of the model after so many images."""
        from wandb import Image

        self.experiment.log({name: Image(str(picture)), "images": images})


def under_an_agent() -> bool:
    """Return whether an agent of W&B started a run for this process, which is that of the evaluation."""
    return "WANDB_RUN_ID" in os.environ


def log_evaluation(
    settings: WandbSettings, run: Run, result: dict[str, Any], folder: Path, config: dict[str, Any]
) -> None:
    """Log one evaluation as one W&B run (job type `evaluate`) that names the run it scored.

    The file `wandb_runs` next to the result lists the W&B runs that hold it. A result in this list is not logged again,
    unless an agent started a W&B run for it. If the process is killed before it writes the list, the next call logs the
    result.
    """
    _log(settings, run, result, [folder], config, _facts(result))


def log_repeats(
    settings: WandbSettings, run: Run, evaluated: Sequence[tuple[dict[str, Any], Path]], config: dict[str, Any]
) -> None:
    """Log evaluations with several sampling seeds as one W&B run, that of an agent's trial.

    It has the mean of each number under its name. Of each score it also has the standard deviation over the seeds,
    `NAME_std_over_seeds`, and the value of each seed, such as `NAME_seed_0`. Pictures are those of the first seed.
    """
    results = [result for result, _ in evaluated]
    facts = _facts(results[0]) | {name: mean for name, (mean, _) in over_repeats(list(map(_facts, results))).items()}
    for name, (_, deviation) in over_repeats([result["metrics"] for result in results]).items():
        facts |= {f"{name}_std_over_seeds": deviation}
        facts |= {f"{name}_seed_{result['seed']}": result["metrics"][name] for result in results}
        errors = [result.get("standard_errors", {}).get(name) for result in results]
        if None not in errors:  # that of the mean, since the seeds are independent
            facts[f"{name}_standard_error"] = math.hypot(*errors) / len(errors)
    _log(settings, run, results[0], [folder for _, folder in evaluated], config, facts)


def over_repeats(numbers: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return the mean and the standard deviation of each number that all of several evaluations have, by its name."""
    shared = [name for name in numbers[0] if all(isinstance(each.get(name), int | float) for each in numbers)]
    values = {name: [float(each[name]) for each in numbers] for name in shared}
    return {
        name: (statistics.fmean(found), statistics.stdev(found) if all(map(math.isfinite, found)) else math.nan)
        for name, found in values.items()
    }


def _facts(result: dict[str, Any]) -> dict[str, Any]:
    """Return the scores of a result, their standard errors, those of real images, and its cost."""
    errors = {f"{name}_standard_error": error for name, error in result.get("standard_errors", {}).items()}
    floors = {
        f"{name}_of_{row}_images": score
        for row, floor in result.get("floors", {}).items()
        for name, score in floor["scores"].items()
    }
    return {**result["metrics"], **errors, **floors, "nfe": result["nfe"], **result["timing"]}


def _log(
    settings: WandbSettings,
    run: Run,
    result: dict[str, Any],
    folders: Sequence[Path],
    config: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Log facts of the evaluations in some folders as one W&B run, unless it was logged before."""
    mode = settings.resolved_mode()
    markers = [folder / "wandb_runs" for folder in folders]
    logged = [read_text(marker).split() if marker.exists() else [] for marker in markers]
    agents_run = os.environ.get("WANDB_RUN_ID")
    if mode == "disabled" or all(each and agents_run in (None, *each) for each in logged):
        return
    ours = {**config, "sampler": result["sampler"], "run": result["run"], "protocol": result["protocol"]}
    experiment = _init(
        of_agent=True,
        name=evaluation_name(run.directory.name, result, len(folders)),
        dir=str(run.directory),
        mode=mode,
        job_type="evaluate",
        config=ours,
        id=agents_run,
        **settings.arguments(),
    )
    # a parameter of an agent's sweep has its value under its own name, which may be that of a block such as `sampler`
    if hidden := {key: value for key, value in ours.items() if experiment.config.get(key) != value}:
        experiment.config.update({"settings": hidden})
    numbers = {name: value for name, value in facts.items() if not isinstance(value, str)}
    from wandb import Image

    pictures = {name: Image(str(path)) for name in PICTURES if (path := folders[0] / f"{name}.png").is_file()}
    experiment.log({**numbers, **pictures})  # the charts and the search of a sweep read the history
    experiment.summary.update(facts)
    experiment.finish()
    _end_session()
    for marker, before in zip(markers, logged, strict=True):
        write_atomically(marker, "".join(f"{name}\n" for name in dict.fromkeys([*before, experiment.id])))


def evaluation_name(run: str, result: dict[str, Any], num_repeats: int = 1) -> str:
    """Return the name of an evaluation in W&B, such as `digits_edm-1234 Heun nfe 35 seed 0`, or `seeds 0 to 2`."""
    sampler = result["sampler"]
    how = "one pass" if sampler is None else sampler["name"]
    weights = "" if result["weights"] == "ema" else f" {result['weights']} weights"
    seed = result["seed"]
    seeds = f"seed {seed}" if num_repeats == 1 else f"seeds {seed} to {seed + num_repeats - 1}"
    return f"{run} {how} nfe {result['nfe']:g}{weights} {seeds}"


def finish(failed: bool = False) -> None:
    """End the W&B run of a training run, marked as failed if it failed, so that an evaluation can start its own."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))


def _init(of_agent: bool, **arguments: Any) -> "wandb.Run":
    """Start a W&B run: the run of the agent's trial, or one that is independent of the agent."""
    import wandb

    _end_session()
    try:
        with nullcontext() if of_agent else _without_agent():
            settings = wandb.Settings(silent=True, console="off")
            return wandb.init(settings=settings, reinit="finish_previous", **arguments)
    except wandb.errors.Error as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"wandb: {reason}; run wandb login, or set --wandb.mode offline") from None
    except ValueError as error:  # of W&B's settings, which it also reads from the environment
        raise UserError(
            f"wandb: {' '.join(str(error).split())[:200]}; correct them, also WANDB_... in the environment"
        ) from None


def _end_session() -> None:
    """End W&B's session under an agent, so that the next run reads the environment again.

    W&B reads the environment once per session, and the training and the evaluation of a trial need different ones.
    The agents of W&B also end the session between two trials.
    """
    if "WANDB_SWEEP_ID" in os.environ:
        import wandb

        wandb.teardown()


@contextmanager
def _without_agent() -> Iterator[None]:
    held = {name: os.environ.pop(name) for name in AGENT_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


class MetricsFile(Logger):
    """A CSV file with one row per logging step and `images`, the images seen, as its x axis.

    A resume continues the file without the rows after its checkpoint, which are trained again.

    Args:
        path: The CSV file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: list[dict[str, Any]] = []
        self._fields: dict[str, None] = {}

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def resume(self, images: int) -> None:
        """Read back the rows up to a number of images, and drop the others."""
        if self.path.exists():
            self._rows = [row for row in read_metrics(self.path) if int(row["images"]) <= images]
            self._fields = dict.fromkeys(key for row in self._rows for key in row)
            self._rewrite()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        row = {"images": step, **{key: value for key, value in metrics.items() if key != "epoch"}}
        self._rows.append(row)
        if row.keys() <= self._fields.keys():
            append(self.path, self._as_text([row]))
        else:
            self._fields |= dict.fromkeys(row)
            self._rewrite()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log nothing: config.yaml holds the hyperparameters."""

    def _rewrite(self) -> None:
        header = {name: name for name in self._fields}
        write_atomically(self.path, self._as_text([header, *self._rows]))

    def _as_text(self, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._fields).writerows(rows)
        return text.getvalue()
