"""Write the tables of the docs and their figures anew from results.

A table stands between the command that prints it and an end mark, both of which are comments of the page:

    <!-- lit-gen leaderboard runs/sweeps/points --markdown --columns model,NFE,w2_points --figure docs/images/a.png -->
    ...
    <!-- end -->

    lit-gen sweep sweeps/points.yaml --jobs 2
    python docs/update_tables.py

Every command whose folder exists is run; names of pages, such as docs/index.md, choose pages.
"""

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from lit_gen.cli.main import main as lit_gen
from lit_gen.core.files import write_atomically

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLE = re.compile(r"<!-- lit-gen (?P<command>leaderboard .*?) -->\n(?P<block>.*?)<!-- end -->", re.DOTALL)


def commands_of(page: Path) -> list[list[str]]:
    """Return the words after `lit-gen` of the commands that print the tables of a page."""
    return [shlex.split(match["command"]) for match in TABLE.finditer(page.read_text())]


def update(page: Path) -> list[str]:
    """Write the tables of a page whose results exist, and return a line for each table."""
    done = []

    def again(match: re.Match[str]) -> str:
        words = shlex.split(match["command"])
        if not Path(words[1]).is_dir():
            done.append(f"{page.name}: {words[1]} does not exist; the table stays")
            return match[0]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = lit_gen(words)
        if status:
            raise SystemExit(status)
        done.append(f"{page.name}: {shlex.join(words)}")
        return f"<!-- lit-gen {match['command']} -->\n{printed.getvalue()}<!-- end -->"

    write_atomically(page, TABLE.sub(again, page.read_text()))
    return done


def main(arguments: Sequence[str] | None = None) -> None:
    """Update the pages of this checkout, with the results of the current folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="*", help="pages (default: README.md and all of docs)")
    for page in parser.parse_args(arguments).pages or PAGES:
        for line in update(page):
            print(line)


if __name__ == "__main__":
    main()
