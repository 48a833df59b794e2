"""The page's section of each training run: its facts, environment, curves, pictures and configuration."""

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from lit_gen.core.errors import UserError
from lit_gen.core.files import read_text
from lit_gen.core.text import printable
from lit_gen.core.yaml import load_yaml
from lit_gen.report.charts import MOST_POINTS, Panel, curve_panels
from lit_gen.report.embedding import Room, embedded
from lit_gen.report.row_facts import environment_of, facts_of_run
from lit_gen.runs.directory import Run
from lit_gen.runs.metrics_file import read_metrics

Kept = TypeVar("Kept")
Curves = dict[str, list[tuple[float, float]]]
Draw = Callable[[Panel], str]

_PLAIN = re.compile(r"[\w./=-]+", re.ASCII)
"""Names that are anchors as they are."""

POINTS_OF_ALL = 60_000
"""Number of points of the curves of all runs together; more curves have fewer points each."""
LEAST_POINTS = 16


@dataclass
class Training:
    """One run.

    Args:
        id: Its anchor on the page.
        name: Name of its directory, with the folders above it if another run has the same name.
        command: The command that trains and evaluates it again.
        facts: Facts of the training by name, such as its seed.
        environment: Device, code and packages by name.
        settings: Its configuration; empty if it is damaged.
        texts: Settings, data and environment as texts by dotted key.
        curves: Its curves by name.
        text: Its config.yaml.
        directory: Its directory.
        panels: Its curves as drawn, if there is room.
        pictures: The latest picture of each kind by name, data URIs, if there is room.
        config: Its config.yaml, if there is room.
    """

    id: str
    name: str
    command: str
    facts: dict[str, str]
    environment: dict[str, str]
    settings: Mapping[str, Any]
    texts: dict[str, str]
    curves: Curves
    text: str
    directory: Path
    panels: Markup = Markup()
    pictures: dict[str, str] = field(default_factory=dict)
    config: str = ""


def unless_damaged(read: Callable[..., Kept], otherwise: Kept, what: str, *arguments: Any) -> Kept:
    """Return the result of a reader; if a file is damaged, warn and return the alternative."""
    try:
        return read(*arguments)
    except UserError as error:
        warnings.warn(f"{error}; the page leaves {what} out", stacklevel=2)
        return otherwise


def read_training(run: Run, name: str, number: int) -> Training:
    """Read what the page shows of a run.

    Raises:
        UserError: If its run.json is damaged. Other damaged files are left out with a warning.
    """
    metadata = run.metadata
    seconds = metadata.get("training_seconds")
    facts = {
        "model": metadata.get("title"),
        "data": metadata.get("data", {}).get("name"),
        "images seen": f"{metadata['images_seen']:,}" if "images_seen" in metadata else None,
        "training": None if seconds is None else f"{seconds:,.0f} s",
        "training FLOPs": f"{flops:.3g}" if (flops := metadata.get("training_flops")) is not None else None,
        "seed": metadata.get("seed"),
        "status": metadata.get("status"),
        "identity": metadata.get("identity", "")[:16],
    }
    text = unless_damaged(_text, "", "its configuration", run.config)
    settings: dict[str, Any] = unless_damaged(_settings, {}, "its settings", run.config) if text else {}
    return Training(
        id=name if _PLAIN.fullmatch(name) else f"run-{number}",
        name=printable(name),
        command=printable(f"lit-gen reproduce {run.directory}"),
        facts={name: printable(value) for name, value in facts.items() if value not in (None, "")},
        environment=environment_of(metadata),
        settings=settings,
        texts=facts_of_run(settings, metadata),
        curves=unless_damaged(read_curves, {}, "its curves", run.directory / "metrics.csv"),
        text=printable(text, lines=True),
        directory=run.directory,
    )


def fill(trainings: list[Training], room: Room, draw: Draw) -> None:
    """Add curves, pictures and configurations to the runs, in this order, as far as there is room.

    Args:
        trainings: The runs, whose curves are drawn with fewer points if there are many.
        room: The room that is left on the page.
        draw: Draws a panel as SVG.
    """
    num_curves = max(1, sum(len(training.curves) for training in trainings))
    most = min(MOST_POINTS, max(LEAST_POINTS, POINTS_OF_ALL // num_curves))
    reserve = 0.3 * room.num_bytes
    for training in trainings:
        drawn = "\n".join(map(draw, curve_panels(training.curves, most)))
        training.panels = Markup(room.take(drawn, "runs without their curves", reserve))
    reserve = 0.2 * room.num_bytes
    for training in trainings:
        for name, path in last_pictures(training.directory / "samples").items():
            picture = unless_damaged(embedded, "", "this picture", path)
            if picture and (picture := room.take(picture, "pictures of runs", reserve)):
                training.pictures[printable(name)] = picture
    for training in trainings:
        training.config = room.take(training.text, "configurations")


def _settings(path: Path) -> dict[str, Any]:
    settings = load_yaml(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not a mapping of settings; restore it")
    return settings


def _text(path: Path) -> str:
    return read_text(path) if path.exists() else ""


def read_curves(path: Path) -> Curves:
    """Read the curves of a metrics.csv by name, as points (images seen, value); empty for a missing file."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in read_metrics(path) if path.exists() else []:
        for name, value in row.items():
            if name != "images":
                curves[name].append((float(row["images"]), float(value)))
    return dict(curves)


def last_pictures(folder: Path) -> dict[str, Path]:
    """Return the latest picture of each kind, such as `images-000120064.png` and `reconstructions-...png`."""
    last: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*-*.png")):
        last[path.stem.rpartition("-")[0]] = path
    return last
