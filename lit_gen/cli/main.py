"""The `lit-gen` command: which verb was asked for, and how errors reach the user.

Imports of torch and Lightning take seconds, so each verb imports what it needs when it is called.
"""

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from lit_gen.cli import help, report, run_verbs, sweep
from lit_gen.core.errors import UserError
from lit_gen.core.files import explain
from lit_gen.core.text import closest, printable
from lit_gen.core.version import __version__

VERBS = {
    "fit": "train a model",
    "run": "fit, unless a finished run of the same training exists, then evaluate",
    "evaluate": "score a run",
    "sample": "sample images from a run",
    "score": "score images that other software made",
    "reflow": "train a rectified flow again on pairs sampled from a run",
    "ema": "make an average of the weights of a run, of any width",
    "sweep": "run every trial of W&B sweep files on this machine, with no account",
    "leaderboard": "rank the evaluations under a folder",
    "report": "write one HTML page of all evaluations under folders, with answers, charts and samples",
    "export": "write the model of a run as safetensors, settings and a model card",
    "import": "make a finished run of an exported model or of a foreign checkpoint",
    "compare": "show the settings, data and software in which two runs differ, and their scores",
    "reproduce": "run a run again and say what differs, bit by bit",
    "reference": "compute, list, verify, export and import the statistics of real images",
}
DESCRIPTION = f"""\
Train, sample, score and compare generative image models on the same data, budget and protocol.

  lit-gen run --config conf/experiment/digits_edm.yaml    train a model and score it
  lit-gen sweep sweeps/quickstart.yaml                    train and score many
  lit-gen leaderboard runs                                compare them

verbs:
{chr(10).join(f"  {verb:11}  {does}" for verb, does in VERBS.items())}
"""
VERBS_WITH_A_CONFIGURATION = ("fit", "run", "evaluate", "sample", "reflow")
FUNCTIONS = {verb: ("commands", verb) for verb in VERBS_WITH_A_CONFIGURATION} | {
    "score": ("score", "score"),
    "import": ("exchange", "import_model"),
    "reference": ("reference", "reference"),
}
"""Module and function of the verbs that parse their own words."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    0 done, 1 some trials failed, 2 bad input, 130 interrupted, 143 terminated.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if os.getcwd() not in sys.path:  # a class of the user's own is named by its import path; the last, to hide nothing
        sys.path.append(os.getcwd())
    # no place in the code, no source line
    warnings.formatwarning = lambda message, *_, **__: f"warning: {printable(message)}\n"
    try:
        with _terminable():
            code = _dispatch(words)
        sys.stdout.flush()  # else a full disk would be found behind the last line that can be reported
        return code
    except UserError as error:
        print(f"lit-gen: error: {printable(error)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        _give_up_output()
        where = printable(error.filename or "output")
        print(f"lit-gen: error: {where}: {printable(explain(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lit-gen: interrupted; run the same command to resume", file=sys.stderr)
        return 130
    except _Terminated:
        print("lit-gen: terminated; run the same command again", file=sys.stderr)
        return 143


class _Terminated(BaseException):
    """SIGTERM, where nothing saves a checkpoint first; not an Exception, so that nobody takes it for an error."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise `_Terminated` on SIGTERM in the block; training and sweeps replace the handler by their own."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: Any) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _give_up_output() -> None:
    """Discard output that cannot be printed: the interpreter would try again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(words: list[str]) -> int:
    verb, rest = (words[0], words[1:]) if words else ("", [])
    if verb in help.OF_A_RUN and {"-h", "--help"} & set(rest):
        print(help.OF_A_RUN[verb](), end="")
        return 0
    if verb in FUNCTIONS:
        module, function = FUNCTIONS[verb]
        getattr(import_module(f"lit_gen.cli.{module}"), function)(rest)
        return 0
    if verb and verb not in VERBS and not verb.startswith("-"):
        raise UserError(f"{verb}: no such verb; {closest(verb, VERBS, 'lit-gen --help lists them')}")
    parser, parsers = _parser()
    options, unknown = parser.parse_known_args(words)
    if unknown:
        of_verb = parsers.get(verb, parser)
        word = next((word for word in unknown if word.startswith("-")), unknown[0])
        advice = closest(word.partition("=")[0], of_verb.names, f"{of_verb.prog} --help lists the options")
        raise UserError(f"{word}: {of_verb.prog} has no such option; {advice}")
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _parser() -> tuple[help.Parser, dict[str, help.Parser]]:
    """Return the parser of the command, and those of its verbs."""
    parser = help.Parser(prog="lit-gen", description=DESCRIPTION, formatter_class=help.Formatter)
    parser.usage = "lit-gen VERB ...; lit-gen VERB --help lists its options"
    parser.add_argument("--version", action="version", version=f"lit-gen {__version__}")
    parser.set_defaults(command=lambda options: print(parser.format_help(), end="") or 0)
    verbs = parser.add_subparsers(help=argparse.SUPPRESS, prog="lit-gen")
    for verb in VERBS_WITH_A_CONFIGURATION:
        verbs.add_parser(verb, add_help=False)

    for add in (_add_ema, sweep.add, _add_leaderboard, report.add, *run_verbs.ADD):
        add(verbs)
    return parser, verbs.choices


def _add_ema(verbs: help.Verbs) -> None:
    parser = verbs.add_parser(
        "ema",
        usage="lit-gen ema RUN --std STD [--at IMAGES]",
        description="Make an average of the weights of a run, of any width, from its snapshots.\n\n"
        "  lit-gen ema runs/digits_edm-... --std 0.1",
        formatter_class=help.Formatter,
    )
    parser.add_argument("run", nargs="+", metavar="RUN", help="a run that was trained with --ema.stds")
    parser.add_argument(
        "--std", type=float, required=True, help="the relative standard deviation of the average, such as 0.1"
    )
    parser.add_argument("--at", type=int, default=None, metavar="IMAGES", help="images seen by then (default: all)")
    parser.set_defaults(command=_ema)


def _add_leaderboard(verbs: help.Verbs) -> None:
    parser = verbs.add_parser(
        "leaderboard",
        usage="lit-gen leaderboard [FOLDER] [OPTIONS]",
        description="Rank the evaluations under a folder, one table per protocol.\n\n"
        "  lit-gen leaderboard runs --where protocol.data=digits",
        formatter_class=help.Formatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="runs (default: runs)")
    parser.add_argument("--by", default=None, help="metric to rank by (default: the distance)")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="keep only these, such as model=EDM; may be repeated",
    )
    formats = parser.add_mutually_exclusive_group()
    for name, title in {"json": "JSON", "csv": "CSV", "markdown": "Markdown"}.items():
        formats.add_argument(
            f"--{name}", dest="format", action="store_const", const=name, default="table", help=f"print {title}"
        )
    parser.add_argument(
        "--columns",
        type=lambda text: [name.strip() for name in text.split(",")],
        metavar="model,sampler,NFE",
        help="columns of the Markdown table (default: all)",
    )
    formats.add_argument(
        "--budgets",
        type=_budgets,
        metavar="5,10,20",
        help="a Markdown table of model and sampler against budgets of network evaluations",
    )
    parser.add_argument("--figure", type=Path, metavar="PNG", help="also plot the metric against the cost")
    parser.add_argument("--samples", type=Path, metavar="PNG", help="also draw samples of the rows side by side")
    _add_comparisons(parser)
    parser.set_defaults(command=_leaderboard)


def _add_comparisons(parser: help.Parser) -> None:
    """Add the options that compare rows with each other, with published scores and with their cost."""
    parser.add_argument(
        "--paired",
        nargs=2,
        metavar=("A", "B"),
        help="say whether row A beats row B, each given as KEY=VALUE,...",
    )
    parser.add_argument(
        "--published",
        metavar="DATA",
        help="show published FIDs of a data set, such as cifar10, beside the rows",
    )
    parser.add_argument(
        "--pareto",
        action="store_true",
        help="keep only rows that no cheaper or equal row beats",
    )
    parser.add_argument(
        "--against",
        choices=("nfe", "flops", "seconds"),
        default="nfe",
        help="cost per image of --pareto and --figure (default: nfe)",
    )


def _budgets(text: str) -> list[int]:
    try:
        return [int(budget) for budget in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a list of whole numbers such as 5,10,20") from None


def _ema(options: argparse.Namespace) -> int:
    from lit_gen.cli import commands

    run, _ = commands.one_run(options.run, "ema")
    commands.ema(run.directory, options.std, options.at)
    return 0


def _leaderboard(options: argparse.Namespace) -> int:
    from lit_gen.report import leaderboard, plots, render
    from lit_gen.report.results import load_results

    _check_leaderboard(options)
    board = leaderboard.rank(load_results(options.folder), by=options.by, where=options.where)
    if options.pareto:
        board = leaderboard.pareto(board, options.against)
    shown = [result for row in board.rows for result in row.results]
    if options.figure is not None:
        plots.distance_vs_cost(shown, options.figure, board.by, options.against)
    if options.samples is not None:
        plots.side_by_side(shown, options.samples)
    if options.published is not None:
        board = leaderboard.with_published(board, options.published)
    if options.paired:
        print(printable(leaderboard.paired(board, *options.paired)))
    elif options.budgets:
        print(render.to_budget_table(board, options.budgets).rstrip())
    elif options.format == "table":
        render.print_table(board)
    elif options.format == "markdown":
        print(render.to_markdown(board, options.columns).rstrip())
    else:
        print({"json": render.to_json, "csv": render.to_csv}[options.format](board).rstrip())
    return 0


def _check_leaderboard(options: argparse.Namespace) -> None:
    """Raise a UserError if options of the leaderboard do not fit together, before results are read."""
    for name in ("figure", "samples"):
        path = getattr(options, name)
        if path is not None and path.suffix != ".png":
            raise UserError(f"--{name}: {path} does not end in .png; give a name that does")
    if options.columns and options.format != "markdown":
        raise UserError("--columns: only a Markdown table takes them; add --markdown, or remove --columns")
