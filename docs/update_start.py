"""Write the leaderboard of docs/index.md and its two pictures, all from the results of one quickstart sweep.

lit-gen sweep sweeps/quickstart.yaml sweeps/quickstart_one_pass.yaml --jobs 2
python docs/update_start.py runs/sweeps/quickstart
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from lit_gen.core.files import write_atomically
from lit_gen.core.text import for_markdown
from lit_gen.report import plots
from lit_gen.report.leaderboard import rank
from lit_gen.report.render import to_cells
from lit_gen.report.results import load_results

ROOT = Path(__file__).parent.parent
COLUMNS = (
    "#",
    "model",
    "sampler",
    "NFE",
    "fd_digits_held_out ↓",
    "fd_digits ↓",
    "recall ↑",
    "copy_rate ↓",
    "parameters",
)
MARKED = re.compile(r"(?<=<!-- leaderboard -->\n).*?(?=<!-- end -->)", re.DOTALL)
PICTURES = ("quickstart_samples.png", "quickstart_distance_vs_nfe.png")


def update(folder: Path, page: Path, pictures: Path) -> None:
    """Write the leaderboard between the marks of a page, and the pictures into a folder.

    Args:
        folder: The folder of a sweep.
        page: The Markdown file with the marks.
        pictures: The folder of the pictures.
    """
    results = load_results(folder)
    text = page.read_text()
    assert MARKED.search(text), f"{page}: no <!-- leaderboard --> and <!-- end -->"
    samples, distances = (pictures / name for name in PICTURES)
    plots.side_by_side(results, samples)
    plots.distance_vs_cost(results, distances)
    board = rank(results)
    headers, rows = to_cells(board)
    places = [index for index, header in enumerate(headers) if header.name in COLUMNS]
    lines = [
        [headers[place].name for place in places],
        ["---:" if headers[place].align == "right" else ":---" for place in places],
        *([for_markdown(row[place].text) for place in places] for row in rows),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    shared = {
        "sampling seed": {str(result.get("seed")) for result in results},
        "weights": {result.get("weights") for result in results},
        "grid": {result.grid for result in results if result.grid},
    }
    what = ", ".join(f"{name} {' and '.join(sorted(values))}" for name, values in shared.items() if values)
    block = (
        f"{for_markdown(board.protocol_line)}; {for_markdown(what)}.\n\n{table}\n\n{for_markdown(board.noise_line)}\n"
    )
    write_atomically(page, MARKED.sub(lambda _: block, text))


def main(arguments: Sequence[str] | None = None) -> None:
    """Update the start page of this checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of the sweep, runs/sweeps/quickstart")
    update(parser.parse_args(arguments).folder, ROOT / "docs" / "index.md", ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
