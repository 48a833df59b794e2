"""Write what a browser without a window shows of an HTML file as a PNG.

    python docs/page_picture.py --out docs/images/monitoring_report.png report.html

Needs Chromium or Google Chrome.
"""

import argparse
import io
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from lit_gen.core.files import write_atomically

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    parser.add_argument("--size", default="1000,1500", help="width and height of the window (default: %(default)s)")
    parser.add_argument("page", type=Path)
    given = parser.parse_args(arguments)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        parser.error(f"none of {', '.join(BROWSERS)} is installed")
    with TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        words = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
        ]
        words += [f"--screenshot={shot}", f"--window-size={given.size}", given.page.resolve().as_uri()]
        subprocess.run([browser, *words], check=True, capture_output=True, timeout=120)
        picture = io.BytesIO()
        with Image.open(shot) as image:  # few colours: a fraction of the size
            image.convert("RGB").quantize(64).save(picture, format="png", optimize=True)
    write_atomically(given.out, picture.getvalue())


if __name__ == "__main__":
    main()
