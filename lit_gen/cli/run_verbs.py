"""Parsers of the verbs that take whole runs: export, compare and reproduce. Nothing here takes time to import."""

import argparse
from pathlib import Path

from lit_gen.cli import help
from lit_gen.core.errors import UserError
from lit_gen.core.text import printable


def _add_export(verbs: help.Verbs) -> None:
    parser = verbs.add_parser(
        "export",
        usage="lit-gen export RUN --to FOLDER [OPTIONS]",
        description="Write the model of a finished run as safetensors, settings and a model card.\n\n"
        "  lit-gen export runs/digits_edm-... --to exported/digits_edm",
        formatter_class=help.Formatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run, such as runs/digits_edm-...")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the folder, new or empty")
    parser.add_argument("--weights", default="ema", help="ema, raw, best, or any width: ema:0.1 (default: ema)")
    parser.add_argument(
        "--format", choices=("lit_gen", "diffusers"), default="lit_gen", help="whose files to write (default: lit_gen)"
    )
    parser.add_argument("--push", metavar="NAME", help="also upload it to the Hugging Face hub, as USER/NAME")
    parser.add_argument("--private", action="store_true", help="make the repository of --push private")
    parser.set_defaults(command=_export)


def _add_compare(verbs: help.Verbs) -> None:
    parser = verbs.add_parser(
        "compare",
        usage="lit-gen compare RUN RUN [--json]",
        description="Show the settings, data and software in which two runs differ, and their scores side by side.\n\n"
        "  lit-gen compare runs/digits_edm-... runs/digits_ddpm-...",
        formatter_class=help.Formatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="two runs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> int:
    from lit_gen.report.run_comparison import compare_runs
    from lit_gen.runs.directory import Run

    if len(options.runs) != 2:
        raise UserError(f"RUN: lit-gen compare takes two runs, not {len(options.runs)}; give two")
    found = compare_runs(*map(Run.open, options.runs))
    if options.json:
        print(found.to_json())
        return 0
    for title, run in zip(("first ", "second"), options.runs, strict=True):
        print(printable(f"{title}  {run}"))
    print()
    for line in found.to_text().splitlines():
        print(printable(line))
    return 0


def _add_reproduce(verbs: help.Verbs) -> None:
    parser = verbs.add_parser(
        "reproduce",
        usage="lit-gen reproduce RUN [OPTIONS]",
        description="Train and evaluate a run again from its saved configuration, and say what differs.\n\n"
        "  lit-gen reproduce runs/digits_edm-... --evaluation-only",
        formatter_class=help.Formatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run, such as runs/digits_edm-...")
    parser.add_argument("--evaluation-only", action="store_true", help="keep the weights and repeat the evaluations")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative difference to accept (default: 0)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the second run there (default: removed)")
    parser.set_defaults(command=_reproduce)


def _reproduce(options: argparse.Namespace) -> int:
    from lit_gen.cli.reproduce import reproduce

    return reproduce(options.run, options.evaluation_only, options.tolerance, options.keep)


def _export(options: argparse.Namespace) -> int:
    from lit_gen.cli.exchange import export_model

    export_model(options)
    return 0


ADD = (_add_export, _add_compare, _add_reproduce)
"""Functions that add the verbs to the parser of the command."""
