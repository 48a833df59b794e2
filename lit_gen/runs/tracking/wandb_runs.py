"""Log to Weights & Biases: each training is one run, and each evaluation another that names the training it scored."""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_gen.core.errors import UserError
from lit_gen.core.files import read_text, write_atomically
from lit_gen.runs.directory import Run, environment
from lit_gen.runs.tracking.evaluations import AXIS, LoggedEvaluation, sampler_name
from lit_gen.runs.tracking.tracker import Tracker
from lit_gen.runs.tracking.wandb_settings import WandbSettings

if TYPE_CHECKING:
    import wandb  # slow to import, and not needed to load a run

# Under `wandb agent` these name the trial's run and its sweep. They belong to the evaluation, never to a training run
# that the trial starts. WANDB_PROJECT and WANDB_ENTITY name the place of both.
AGENT_VARIABLES = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RESUME")
SAMPLES_TABLE = "samples_by_sampler"
"""Key of the table of samples: one row of each evaluation; the workspace of a project joins the rows of all runs."""
CHART = "distance_vs_nfe"
"""Key of the chart of the distance against the number of network evaluations."""


class Curves(WandbLogger, Tracker):
    """The W&B run of one training run, with its curves against `images`, the images seen.

    A resume continues the same W&B run.
    """

    def __init__(self, settings: WandbSettings, run: Run, config: dict[str, Any]) -> None:
        experiment = None
        self._settings, self._run = settings, run
        if not getattr(rank_zero_only, "rank", 0):
            metadata = run.metadata
            trained = {key: value for key, value in config.items() if key != "sampler"}  # of evaluations alone
            experiment = _init(
                of_agent=False,
                name=" ".join(filter(None, [metadata.get("title"), f"seed {metadata['seed']}, {run.directory.name}"])),
                id=metadata["wandb_id"],
                dir=str(run.directory),
                mode=settings.resolved_mode(),
                resume="allow",
                job_type="train",
                config=trained | {"code": environment()},
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
        from wandb import Image

        self.experiment.log({name: Image(str(picture)), "images": images})

    def alert(self, title: str, text: str) -> None:
        self.experiment.alert(title, text, "ERROR")

    def finish(self, failed: bool) -> None:
        """End the W&B run, marked as failed if the training failed, so that an evaluation can start its own."""
        if not failed and "checkpoint" in (self._settings.artifacts or ()):
            run = self._run
            files = [run.checkpoint, run.best_checkpoint, run.config, run.metadata_path]
            with _staged_in(run):
                _log_artifact(self.experiment, "model", run.directory.name, files)
        finish(failed)


def finish(failed: bool = False) -> None:
    """End the current W&B run, if there is one."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))


def log_evaluation(settings: WandbSettings, evaluation: LoggedEvaluation, reference: Sequence[Path] = ()) -> None:
    """Log an evaluation as one W&B run (job type `evaluate`) that names the run it scored, unless it was logged before.

    The file `wandb_runs` next to a result lists the W&B runs that hold it. A result in this list is not logged again,
    unless an agent started a W&B run for it. If the process is killed before it writes the list, the next call logs the
    result.

    Args:
        settings: Settings of W&B.
        evaluation: The evaluation.
        reference: Files of the reference statistics.
    """
    mode = settings.resolved_mode()
    markers = [folder / "wandb_runs" for folder in evaluation.folders]
    logged = [read_text(marker).split() if marker.exists() else [] for marker in markers]
    agents_run = os.environ.get("WANDB_RUN_ID")
    if mode == "disabled" or all(each and agents_run in (None, *each) for each in logged):
        return
    ours = evaluation.settings
    experiment = _init(
        of_agent=True,
        name=evaluation.name,
        dir=str(evaluation.run.directory),
        mode=mode,
        job_type="evaluate",
        config=ours,
        id=agents_run,
        **settings.arguments(),
    )
    # a parameter of an agent's sweep has its value under its own name, which may be that of a block such as `sampler`
    if hidden := {key: value for key, value in ours.items() if experiment.config.get(key) != value}:
        experiment.config.update({"settings": hidden})
    experiment.define_metric(AXIS)
    experiment.define_metric("*", step_metric=AXIS)  # the charts of a project then show scores against NFE
    from wandb import Image

    pictures = {name: Image(str(path)) for name, path in evaluation.pictures.items()}
    with _staged_in(evaluation.run):
        # the charts and the search of a sweep read the history
        experiment.log({**evaluation.numbers, **pictures, **_tables(evaluation)})
        experiment.summary.update(evaluation.facts)
        if "reference" in (settings.artifacts or ()):
            for path in reference:
                _log_artifact(experiment, "reference", path.stem, [path])
        experiment.finish()
    _end_session()
    for marker, before in zip(markers, logged, strict=True):
        write_atomically(marker, "".join(f"{name}\n" for name in dict.fromkeys([*before, experiment.id])))


def _tables(evaluation: LoggedEvaluation) -> dict[str, Any]:
    """Return the table of samples, and the chart of distance against NFE of all evaluations of the run, by key."""
    from wandb import Image, Table, plot_table

    scores = list(evaluation.result["metrics"])
    samples = Table(columns=["samples", "model", "sampler", "nfe", "seed", "weights", "run", *scores])
    for result, folder in zip(evaluation.results, evaluation.folders, strict=True):
        path = folder / "samples.png"
        how = [result["model"], sampler_name(result), result["nfe"], result["seed"], result["weights"]]
        values = [result["metrics"].get(name) for name in scores]
        samples.add_data(Image(str(path)) if path.is_file() else None, *how, evaluation.run.directory.name, *values)
    if (distance := evaluation.distance) is None:
        return {SAMPLES_TABLE: samples}
    points = Table(columns=["sampler", AXIS, distance], data=[list(point) for point in evaluation.curve()])
    fields = {"step": AXIS, "lineKey": "sampler", "lineVal": distance}
    texts = {"title": f"{distance} against NFE", "xname": "network evaluations (NFE)"}
    return {SAMPLES_TABLE: samples, CHART: plot_table("wandb/lineseries/v0", points, fields, texts)}


def _log_artifact(experiment: "wandb.Run", kind: str, name: str, files: Sequence[Path]) -> None:
    """Upload those of some files that exist as one version of an artifact; W&B stores equal content once."""
    from wandb import Artifact

    artifact = Artifact(re.sub(r"[^\w.-]+", "_", name)[:128], kind)
    found = [path for path in files if path.is_file()]
    for path in found:
        artifact.add_file(str(path))
    if found:
        experiment.log_artifact(artifact)


@contextmanager
def _staged_in(run: Run) -> Iterator[None]:
    """Let W&B keep the files of artifacts in the run directory until they are uploaded, and not in the home folder."""
    given = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = given or str((run.directory / "wandb").resolve())
    try:
        yield
    finally:
        if given is None:
            del os.environ["WANDB_DATA_DIR"]


def _init(of_agent: bool, **arguments: Any) -> "wandb.Run":
    """Start a W&B run: the run of the agent's trial, or one that is independent of the agent."""
    import wandb

    _end_session()
    try:
        with nullcontext() if of_agent else _without_agent():
            # the list of all installed packages takes 0.1 s; that of the training run is enough
            settings = wandb.Settings(silent=True, console="off", x_save_requirements=not of_agent)
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
