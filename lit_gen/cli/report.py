"""The verb `report`: one HTML page of all evaluations under folders. Nothing here takes time to import."""

import argparse
from pathlib import Path

from lit_gen.cli import help
from lit_gen.core.errors import UserError
from lit_gen.core.text import printable

MEGABYTE = 1_000_000


def add(verbs: help.Verbs) -> None:
    """Add the verb to the parser of the command."""
    parser = verbs.add_parser(
        "report",
        usage="lit-gen report [FOLDER ...] [OPTIONS]",
        description="Write one HTML page of all evaluations under folders, with answers, charts and samples.\n\n"
        "  lit-gen report runs --out report.html",
        formatter_class=help.Formatter,
    )
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="folders of runs (default: runs)")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="keep only these, as in the leaderboard"
    )
    parser.add_argument(
        "--max-mb", type=float, default=3.0, metavar="MB", help="leave out pictures beyond this size (default: 3)"
    )
    parser.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> int:
    from lit_gen.report.page import write_page
    from lit_gen.report.results import load_results, select

    if not options.max_mb > 0:
        raise UserError(f"--max-mb: {options.max_mb:g} is not a size in megabytes; give a positive number")
    folders = options.folders or [Path("runs")]
    found = {result.path.resolve(): result for folder in folders for result in load_results(folder)}
    results = select(list(found.values()), options.where)
    title = ", ".join(map(str, folders))
    print(printable(write_page(results, options.out, title, round(options.max_mb * MEGABYTE))))
    return 0
