"""One HTML page of everything under a folder: leaderboards, pictures, and each training with its curves and settings.

The page holds its pictures in itself, so that it can be mailed or kept.
"""

import base64
import csv
import io
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader
from PIL import Image

from lit_gen import __version__
from lit_gen.core.files import write_atomically
from lit_gen.errors import UserError
from lit_gen.report import plots
from lit_gen.report.leaderboard import comparable, rank
from lit_gen.report.render import Cells, to_cells
from lit_gen.report.results import Result
from lit_gen.runs import Run

LARGEST_PICTURE = 2400
"""Pixels of the longer side of a picture; larger ones are made smaller."""


@dataclass(frozen=True)
class Comparison:
    """Evaluations of one protocol.

    Args:
        data: Name of the data set.
        protocol: The protocol in one line.
        table: The leaderboard.
        distances: Distance against network evaluations, a data URI.
        samples: Samples side by side, a data URI; None if some of them are gone.
    """

    data: str
    protocol: str
    table: Cells
    distances: str
    samples: str | None


@dataclass(frozen=True)
class Training:
    """One run.

    Args:
        name: Name of its directory.
        facts: What is said of it, by name.
        curves: Its curves, a data URI; None if it has none.
        pictures: The last of each kind of picture that it drew, by name, data URIs.
        config: Its config.yaml.
    """

    name: str
    facts: dict[str, str]
    curves: str | None
    pictures: dict[str, str]
    config: str


def write_page(results: Sequence[Result], out: Path, title: str) -> Path:
    """Writes the page.

    Args:
        results: Evaluations of any protocols; those of one protocol are compared.
        out: The HTML file.
        title: What the page is headed with.

    Raises:
        UserError: The file's name does not end in .html, or its folder cannot be written.
    """
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"--out: {out} must end in .html")
    runs = {result.path.parents[2] for result in results}
    with tempfile.TemporaryDirectory() as scratch:
        comparisons = [_comparison(group, Path(scratch)) for group in comparable(results)]
        trainings = []
        for directory in sorted(runs):
            try:
                trainings.append(_training(Run(directory), Path(scratch)))
            except UserError as error:  # of a file of the run that is damaged: its numbers stand without it
                warnings.warn(f"{error}; the page leaves this training out", stacklevel=2)
    environment = Environment(
        loader=PackageLoader("lit_gen.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.html.jinja").render(
        title=title,
        comparisons=comparisons,
        trainings=trainings,
        num_evaluations=len(results),
        version=__version__,
        created=datetime.now().astimezone().isoformat(" ", "minutes"),
    )
    write_atomically(out, text)
    return out


def _comparison(results: list[Result], scratch: Path) -> Comparison:
    board = rank(results)
    distances = plots.distance_vs_nfe(results, scratch / "distances.png")
    try:
        samples = _embedded(plots.side_by_side(results, scratch / "samples.png"))
    except UserError:  # samples.npz may have been deleted to save room: the numbers stand without it
        samples = None
    return Comparison(results[0].protocol["data"], board.protocol_line, to_cells(board), _embedded(distances), samples)


def _training(run: Run, scratch: Path) -> Training:
    metadata = run.metadata
    seconds = metadata.get("training_seconds")
    facts = {
        "model": metadata.get("title"),
        "data": metadata.get("data", {}).get("name"),
        "images seen": f"{metadata['images_seen']:,}" if "images_seen" in metadata else None,
        "training": None if seconds is None else f"{seconds:,.0f} s on {metadata.get('device', 'an unknown device')}",
        "seed": metadata.get("seed"),
        "status": metadata.get("status"),
        "commit": f"{(metadata.get('git_commit') or 'none')[:10]}{' (dirty)' if metadata.get('git_dirty') else ''}",
        "identity": metadata.get("identity", "")[:16],
        "packages": ", ".join(f"{name} {version}" for name, version in metadata.get("packages", {}).items()),
    }
    curves = read_curves(run.directory / "metrics.csv")
    drawn = None if not curves else _embedded(plots.training_curves(curves, scratch / "curves.png"))
    return Training(
        run.directory.name,
        {name: str(value) for name, value in facts.items() if value not in (None, "")},
        drawn,
        {name: _embedded(path) for name, path in _last_pictures(run.samples).items()},
        run.config.read_text() if run.config.is_file() else "",
    )


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The curves of a run's metrics.csv by name, points (images seen, value); none if there is no such file."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != "images" and value:
                        curves[name].append((float(row["images"]), float(value)))
    return dict(curves)


def _last_pictures(folder: Path) -> dict[str, Path]:
    """The latest of `images-000120064.png`, `reconstructions-...png` and so on."""
    last: dict[str, Path] = {}
    for path in sorted(folder.glob("*-*.png")):
        last[path.stem.rpartition("-")[0]] = path
    return last


def _embedded(path: Path) -> str:
    """A PNG as a data URI, made smaller where it is very large."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        if max(picture.size) > LARGEST_PICTURE:
            picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
            smaller = io.BytesIO()
            picture.save(smaller, "PNG")
            data = smaller.getvalue()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
