"""Write curves and pictures for TensorBoard into the run directory: `tensorboard --logdir runs` shows all runs.

RUN/tensorboard/            curves of the training against images seen, and its pictures
RUN/tensorboard/SAMPLER/    scores of the evaluations with one sampler against NFE, and their samples
"""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image

from lit_gen.runs.directory import Run, environment
from lit_gen.runs.tracking.evaluations import LoggedEvaluation, series_name
from lit_gen.runs.tracking.tracker import Tracker

FOLDER = "tensorboard"


class TensorBoard(TensorBoardLogger, Tracker):
    """Curves, pictures and the configuration of one training run in event files."""

    def __init__(self, run: Run, config: dict[str, Any], resumed_at: int | None) -> None:
        hidden: dict[str, Any] = {} if resumed_at is None else {"purge_step": resumed_at + 1}  # what is trained again
        super().__init__(str(run.directory), name=FOLDER, version="", default_hp_metric=False, **hidden)
        self._begin(config)

    @rank_zero_only
    def _begin(self, config: dict[str, Any]) -> None:
        self.experiment.add_text("configuration", _as_block(config | {"code": environment()}))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log nothing: the configuration holds the hyperparameters."""

    @rank_zero_only
    def log_picture(self, name: str, picture: Path, images: int) -> None:
        self.experiment.add_image(name, _pixels(picture), images, dataformats="HWC")

    def alert(self, title: str, text: str) -> None:
        self.experiment.add_text(title, text)

    def finish(self, failed: bool) -> None:
        self.experiment.close()


def log_evaluation(evaluation: LoggedEvaluation) -> None:
    """Write the scores and pictures of an evaluation at its NFE; those that it wrote before are replaced."""
    from torch.utils.tensorboard import SummaryWriter

    series = re.sub(r"[^\w.=-]+", "_", series_name(evaluation.result))
    folder = evaluation.run.directory / FOLDER / series
    suffix = f".{evaluation.folders[0].name}"
    for before in folder.glob(f"events.*{suffix}"):
        before.unlink()
    nfe = round(evaluation.result["nfe"])
    with SummaryWriter(str(folder), filename_suffix=suffix) as writer:
        for name, value in evaluation.numbers.items():
            writer.add_scalar(f"evaluation/{name}", value, nfe)
        for name, picture in evaluation.pictures.items():
            writer.add_image(f"evaluation/{name}", _pixels(picture), nfe, dataformats="HWC")
        writer.add_text("configuration", f"{evaluation.name}\n\n{_as_block(evaluation.settings)}", nfe)


def _pixels(picture: Path) -> np.ndarray:
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def _as_block(settings: dict[str, Any]) -> str:
    """Return settings as YAML that the page shows as it is."""
    return "".join(f"    {line}\n" for line in yaml.safe_dump(settings, sort_keys=False).splitlines())
