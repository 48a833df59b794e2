"""Log to MLflow: each training run as one run, and each evaluation as a run below it.

The server is that of MLFLOW_TRACKING_URI; without one, the files are in `mlruns` beside the runs. The experiment is
that of MLFLOW_EXPERIMENT_NAME, or `lit_gen`.
"""

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image

from lit_gen.core.errors import UserError
from lit_gen.runs.directory import Run, environment
from lit_gen.runs.tracking.evaluations import LoggedEvaluation
from lit_gen.runs.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "lit_gen"
KEY = "lit_gen.run"
"""Tag by which a run is found again: the folder of an evaluation, or the id that run.json holds of a training run."""


class MLflow(MLFlowLogger, Tracker):
    """Curves and pictures of one training run."""

    def __init__(self, run: Run, config: dict[str, Any]) -> None:
        experiment, metadata = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT), run.metadata
        tags = {KEY: metadata["wandb_id"], "job_type": "train", **_code(), **_sweep()}
        with _explained():
            super().__init__(experiment, run.directory.name, _address(run), tags)
            self._begin(metadata["wandb_id"], config)

    @rank_zero_only
    def _begin(self, key: str, config: dict[str, Any]) -> None:
        """Continue the run of a key, or start one and log its configuration."""
        _experiment(self._mlflow_client, self._experiment_name)
        found = _runs(self._mlflow_client, self._experiment_name, key)
        self._run_id = found[0] if found else None
        with _own_address():
            client, run_id = self.experiment, str(self.run_id)
        if found:
            client.update_run(run_id, "RUNNING")
        else:
            super().log_hyperparams(config)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log nothing: the configuration holds the hyperparameters."""

    @rank_zero_only
    def log_picture(self, name: str, picture: Path, images: int) -> None:
        _log_picture(self.experiment, str(self.run_id), name, picture, images)

    def alert(self, title: str, text: str) -> None:
        self.experiment.set_tag(self.run_id, title, text)

    def finish(self, failed: bool) -> None:
        self.finalize("failed" if failed else "success")


def log_evaluation(evaluation: LoggedEvaluation) -> None:
    """Log the scores and pictures of an evaluation at its NFE, in a run below that of its training run."""
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    run, result = evaluation.run, evaluation.result
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    with _explained():
        client = MlflowClient(_address(run))
        key = "/".join(folder.name for folder in evaluation.folders)
        parents = _runs(client, name, run.metadata["wandb_id"])
        for before in _runs(client, name, key, parents):
            client.delete_run(before)
        tags = {KEY: key, "job_type": "evaluate", "training": run.directory.name, **_code(), **_sweep()}
        tags |= {MLFLOW_PARENT_RUN_ID: parents[0]} if parents else {}
        logged = client.create_run(_experiment(client, name), tags=tags, run_name=evaluation.name).info
        nfe = round(result["nfe"])
        metrics = [Metric(each, value, logged.start_time, nfe) for each, value in evaluation.numbers.items()]
        about = {key: result[key] for key in ("model", "nfe", "seed", "weights")} | _flat("sampler", result["sampler"])
        client.log_batch(logged.run_id, metrics, [Param(each, str(value)[:250]) for each, value in about.items()])
        client.log_dict(logged.run_id, evaluation.settings, "configuration.yaml")
        for each, picture in evaluation.pictures.items():
            _log_picture(client, logged.run_id, each, picture, nfe)
        client.set_terminated(logged.run_id)


def _log_picture(client: "MlflowClient", run_id: str, name: str, picture: Path, step: int) -> None:
    with Image.open(picture) as image:
        client.log_image(run_id, image.convert("RGB"), key=name, step=step)


def _address(run: Run) -> str:
    """Return the address of the server, or of a folder of files."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks for a database otherwise
    return given or (run.directory.parent / "mlruns").resolve().as_uri()


def _experiment(client: "MlflowClient", name: str) -> str:
    """Return the id of an experiment, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another process may have made it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _runs(client: "MlflowClient", experiment: str, key: str, below: list[str] | None = None) -> list[str]:
    """Return the ids of the runs of a key, or of those of them below one of some runs."""
    found = client.get_experiment_by_name(experiment)
    runs = [] if found is None else client.search_runs([found.experiment_id], f"tags.`{KEY}` = '{key}'")
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in runs}
    return [run_id for run_id, parent in parents.items() if below is None or parent in below]


def _flat(key: str, value: Any) -> dict[str, Any]:
    """Return nested settings by dotted key."""
    if not isinstance(value, dict):
        return {key: value}
    return {name: each for part, inner in value.items() for name, each in _flat(f"{key}.{part}", inner).items()}


def _code() -> dict[str, str]:
    """Return the code state as tags."""
    code = environment()
    return {"git_commit": str(code["git_commit"]), "git_dirty": str(code["git_dirty"])}


def _sweep() -> dict[str, str]:
    """Return the sweep as a tag."""
    sweep = os.environ.get("LIT_GEN_SWEEP")
    return {"sweep": sweep} if sweep else {}


@contextmanager
def _own_address() -> Iterator[None]:
    """Restore the address in the environment, which Lightning replaces by that of its logger."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        yield
    finally:
        if given is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)


@contextmanager
def _explained() -> Iterator[None]:
    """Raise a UserError for an error of MLflow in the block."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"tracker: mlflow: {reason}; correct MLFLOW_TRACKING_URI, or choose another tracker") from None
