"""The curves of a training run in `metrics.csv` of the run directory, whatever else tracks it."""

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_gen.core.files import append, write_atomically
from lit_gen.runs.metrics_file import read_metrics


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
