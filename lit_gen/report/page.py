"""Write one HTML page for a folder: leaderboards, pictures, and each training run with its curves and settings.

The page embeds its pictures, so that it is one file to mail or keep.
"""

import base64
import io
import math
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader
from PIL import Image

from lit_gen.core.errors import UserError
from lit_gen.core.files import read_regular, read_text, write_atomically
from lit_gen.core.records import read_each
from lit_gen.core.text import printable
from lit_gen.core.version import __version__
from lit_gen.report import plots
from lit_gen.report.leaderboard import comparable, rank
from lit_gen.report.render import Cells, to_cells
from lit_gen.report.results import Result
from lit_gen.runs.directory import Run
from lit_gen.runs.metrics_file import read_metrics
from lit_gen.sweeps.labels import short_paths

Kept = TypeVar("Kept")
Curves = dict[str, list[tuple[float, float]]]

LARGEST_PICTURE = 2400
"""Pixels of the longer side of a picture; larger pictures are scaled down."""


@dataclass(frozen=True)
class Comparison:
    """Evaluations of one protocol.

    Args:
        data: Name of the data set.
        protocol: The protocol in one line.
        noise: What intervals and ranks mean.
        table: The leaderboard.
        distances: Distance against network evaluations, a data URI; None if those of all results are unknown.
        samples: Samples side by side, a data URI; None if some samples were deleted.
        neighbours: Samples beside their nearest training images, data URIs by model.
    """

    data: str
    protocol: str
    noise: str
    table: Cells
    distances: str | None
    samples: str | None
    neighbours: dict[str, str]


@dataclass(frozen=True)
class Training:
    """One run.

    Args:
        name: Name of its directory, with the folders above it if another run has the same name.
        facts: Facts of the run by name, such as its device.
        curves: Its curves, a data URI; None if it has none.
        pictures: The latest picture of each kind by name, data URIs.
        config: Its config.yaml.
    """

    name: str
    facts: dict[str, str]
    curves: str | None
    pictures: dict[str, str]
    config: str


def write_page(results: Sequence[Result], out: Path, title: str) -> Path:
    """Write the page.

    Args:
        results: Evaluations of any protocols; evaluations of one protocol are compared.
        out: The HTML file.
        title: Title of the page.

    Raises:
        UserError: If the name of the file does not end in .html, or its folder cannot be written.
    """
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"--out: {out} must end in .html; give such a name")
    runs = {result.path.parents[2] for result in results if not result.foreign}
    with tempfile.TemporaryDirectory() as scratch:
        comparisons = read_each(
            comparable(results),
            lambda group: _comparison(group, Path(scratch)),
            "the page leaves out the results of this protocol",
        )
        # a damaged file of a run does not hide the others, nor the numbers of its evaluations
        names = short_paths(map(str, runs))
        found = [
            _unless_damaged(_training, None, "this training", Run(run), names[str(run)], Path(scratch))
            for run in sorted(runs)
        ]
        trainings = [training for training in found if training is not None]
    environment = Environment(
        loader=PackageLoader("lit_gen.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.html.jinja").render(
        title=printable(title),
        comparisons=comparisons,
        trainings=trainings,
        num_evaluations=len(results),
        version=__version__,
        created=datetime.now().astimezone().isoformat(" ", "minutes"),
    )
    write_atomically(out, text)
    return out


def _unless_damaged(read: Callable[..., Kept], otherwise: Kept, what: str, *arguments: Any) -> Kept:
    """Return the result of a reader; if a file is damaged, warn and return the alternative."""
    try:
        return read(*arguments)
    except UserError as error:
        warnings.warn(f"{error}; the page leaves {what} out", stacklevel=2)
        return otherwise


def _comparison(results: list[Result], scratch: Path) -> Comparison:
    board = rank(results)
    known = any(math.isfinite(row.cost("nfe")) for row in board.rows)
    distances = _embedded(plots.distance_vs_cost(results, scratch / "distances.png")) if known else None
    samples = _unless_damaged(_side_by_side, None, "the samples side by side", results, scratch / "samples.png")
    data, protocol = printable(board.protocol["data"]), printable(board.protocol_line)
    noise = printable(board.noise_line)
    return Comparison(data, protocol, noise, to_cells(board), distances, samples, _neighbours(results))


def _neighbours(results: Sequence[Result]) -> dict[str, str]:
    """Return the pictures of samples beside their nearest training images, one per model."""
    found: dict[str, str] = {}
    for result in results:
        path = result.path.with_name("neighbours.png")
        if result.model not in found and path.is_file():
            picture = _unless_damaged(_embedded, "", "the nearest training images", path)
            found |= {printable(result.model): picture} if picture else {}
    return found


def _side_by_side(results: Sequence[Result], path: Path) -> str | None:
    """Draw samples of the results; None if some samples were deleted to save room."""
    if not all(result.path.with_name("samples.npz").exists() for result in results):
        return None
    return _embedded(plots.side_by_side(results, path))


def _training(run: Run, name: str, scratch: Path) -> Training:
    metadata = run.metadata
    seconds = metadata.get("training_seconds")
    facts = {
        "model": metadata.get("title"),
        "data": metadata.get("data", {}).get("name"),
        "images seen": f"{metadata['images_seen']:,}" if "images_seen" in metadata else None,
        "training": None if seconds is None else f"{seconds:,.0f} s on {metadata.get('device', 'an unknown device')}",
        "training FLOPs": f"{flops:.3g}" if (flops := metadata.get("training_flops")) is not None else None,
        "seed": metadata.get("seed"),
        "status": metadata.get("status"),
        "commit": f"{(metadata.get('git_commit') or 'none')[:10]}{' (dirty)' if metadata.get('git_dirty') else ''}",
        "identity": metadata.get("identity", "")[:16],
        "packages": ", ".join(f"{name} {version}" for name, version in metadata.get("packages", {}).items()),
    }
    curves: Curves = _unless_damaged(read_curves, {}, "its curves", run.directory / "metrics.csv")
    drawn = None if not curves else _embedded(plots.training_curves(curves, scratch / "curves.png"))
    pictures = {
        printable(name): _unless_damaged(_embedded, "", "this picture", path)
        for name, path in _last_pictures(run.samples).items()
    }
    return Training(
        printable(name),
        {name: printable(value) for name, value in facts.items() if value not in (None, "")},
        drawn,
        {name: picture for name, picture in pictures.items() if picture},
        printable(_unless_damaged(_text, "", "its configuration", run.config), lines=True),
    )


def _text(path: Path) -> str:
    return read_text(path) if path.exists() else ""


def read_curves(path: Path) -> Curves:
    """Read the curves of a metrics.csv by name, as points (images seen, value); empty if there is no such file."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in read_metrics(path) if path.exists() else []:
        for name, value in row.items():
            if name != "images":
                curves[name].append((float(row["images"]), float(value)))
    return dict(curves)


def _last_pictures(folder: Path) -> dict[str, Path]:
    """Return the latest picture of each kind, such as `images-000120064.png` and `reconstructions-...png`."""
    last: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*-*.png")):
        last[path.stem.rpartition("-")[0]] = path
    return last


@contextmanager
def _strict() -> Iterator[None]:
    """Turn the warning about a picture of too many pixels into an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _embedded(path: Path) -> str:
    """Return a PNG as a data URI, scaled down if it is very large."""
    try:
        data = read_regular(path)
        with _strict(), Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if max(picture.size) > LARGEST_PICTURE:
                picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
                smaller = io.BytesIO()
                picture.save(smaller, "PNG")
                data = smaller.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path}: not a readable picture ({error}); restore it, or delete it") from None
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
