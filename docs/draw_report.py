"""Draw the top of the page of `lit-gen report` as a PNG, with the browser chromium.

python docs/draw_report.py runs/sweeps/quickstart --out docs/images/report.png
"""

import argparse
import contextlib
import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lit_gen.cli.main import main as lit_gen

WIDTH, HEIGHT = 1100, 1500


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw the top of a report as a PNG.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    parser.add_argument("--height", type=int, default=HEIGHT, help=f"height in pixels (default: {HEIGHT})")
    options = parser.parse_args(arguments)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        parser.error("the browser chromium is missing; install it")
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        with contextlib.redirect_stdout(io.StringIO()):
            if code := lit_gen(["report", *options.folders, "--out", str(page)]):
                return code
        # a few rows of the table, so that the chart is on the picture
        page.write_text(page.read_text().replace("</style>", ".tall { max-height: 15rem; overflow: hidden; }</style>"))
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += [f"--user-data-dir={scratch}/profile", f"--window-size={WIDTH},{options.height}"]
        words += [f"--screenshot={options.out.resolve()}", f"file://{page}"]
        subprocess.run(words, check=True, capture_output=True)
    print(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
