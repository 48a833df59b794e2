"""Write the reference pages of commands, configuration keys and classes from the code.

python docs/generate_reference.py            write docs/reference/*.md
python docs/generate_reference.py --check    exit with status 1 if a page is out of date
"""

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lit_gen.cli import main as cli
from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically
from lit_gen.experiment import key_help
from lit_gen.experiment.parser import ExperimentCLI

FOLDER = Path(__file__).parent / "reference"
ANY_EXPERIMENT = Path(__file__).parent.parent / "conf" / "experiment" / "digits_edm.yaml"
ONE_LINE = "100000"
"""Width of a terminal in which no help text wraps."""

PAGES_OF_CLASSES: dict[str, tuple[str, list[str]]] = {
    "models": ("Models", ["model"]),
    "networks": ("Networks", ["model.network"]),
    "samplers": ("Samplers, grids, guidance", ["sampler", "sampler.grid", "sampler.guidance"]),
    "parts": (
        "Parts of models",
        [
            *("model.schedule", "model.parameterization", "model.density", "model.weight"),
            *("model.likelihood", "model.prior", "model.quantiser", "model.augment"),
            *("model.bijection", "model.coupling", "model.bijection.partition"),
        ],
    ),
    "metrics": ("Metrics", ["evaluation.metrics"]),
    "data": (
        "Data, feature nets, likelihood methods",
        ["data.source", "evaluation.feature_net", "evaluation.likelihood_method"],
    ),
}
"""Title and keys of each page of classes. Keys that take the same classes are listed once."""

CONFIGURATION = """\
# Configuration keys

Every key can stand in a YAML file (`--config FILE`) or on the command line (`--KEY VALUE`), in any order; the command
line wins. `lit-gen fit --help` prints this list. A key whose value is a class takes a class name and then the arguments
of that class: `--sampler Heun --sampler.steps 18`. The pages [models](models.md), [networks](networks.md),
[samplers](samplers.md), [parts of models](parts.md) and [data and features](data.md) list the classes.
"""
TRAINER = """
## `trainer`

Every argument of [Lightning's Trainer](https://lightning.ai/docs/pytorch/stable/common/trainer.html) is a key, such as
`trainer.accelerator`, `trainer.devices`, `trainer.strategy`, `trainer.precision` and
`trainer.accumulate_grad_batches`. `lit-gen fit --help` lists them with the defaults of your version of Lightning.
"""


class Entry(NamedTuple):
    """One line of a help text: an option with its value, what it does, its default."""

    name: str
    value: str
    text: str
    default: str


def entries(lines: Iterable[str]) -> Iterator[Entry]:
    """Yield the options of a help text whose lines do not wrap."""
    found: list[list[str]] = []
    for line in lines:
        if re.match(r"  \S", line):
            found.append(re.split(r" {2,}", line.strip(), maxsplit=1))
        elif line.startswith("   ") and found:
            found[-1].append(line.strip())
    for first, *rest in found:
        name, _, value = first.partition(" ")
        text, _, default = " ".join(rest).partition(" (default: ")
        text = re.sub(r" --[\w.]+\.help lists the classes\.", "", text)  # the pages list them
        yield Entry(name.removeprefix("--"), value, text, default.removesuffix(")"))


def escape(text: str) -> str:
    """Return text for a cell of a Markdown table; code in backticks stays code."""
    parts = re.split(r"(`+[^`]*`+|https?://[^\s,)]+)", text.replace("|", "\\|"))
    for place, part in enumerate(parts):
        if place % 2 == 0:
            parts[place] = re.sub(r"([*\[\]_])", r"\\\1", part.replace("<", "&lt;"))
        elif not part.startswith("`"):
            parts[place] = f"<{part}>"
    return "".join(parts)


def code(text: str) -> str:
    """Return text as code in a cell of a Markdown table, nothing for no text."""
    return "" if not text else f"`{text}`".replace("|", "\\|")


def table(rows: Iterable[Entry], names: Sequence[str] = ("key", "value", "meaning", "default")) -> str:
    """Return a Markdown table of options."""
    lines = [f"| {' | '.join(names)} |", "| --- | --- | --- | --- |"]
    for row in rows:
        cells = [code(row.name), code(row.value), escape(row.text), code(row.default)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def help_of(verb: str) -> str:
    """Return what `lit-gen VERB --help` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        cli.main([verb, "--help"])
    return printed.getvalue().rstrip()


def commands() -> str:
    """Return the page of the commands."""
    os.environ["COLUMNS"] = "110"
    lines = ["# Commands\n", "| command | purpose |", "| --- | --- |"]
    lines += [f"| [`lit-gen {verb}`](#lit-gen-{verb}) | {escape(does)} |" for verb, does in cli.VERBS.items()]
    lines.append(
        "\nBad input ends with one line that names the key or the file, and exit code 2. Exit code 1: some trials of a "
        "sweep failed. Exit code 130: interrupted; the same command resumes.\n"
    )
    for verb, does in cli.VERBS.items():
        lines.append(f"## lit-gen {verb}\n")
        if verb in ("fit", "run"):
            text = f"{does[0].upper()}{does[1:]}. The options are the [configuration keys](configuration.md).\n"
            lines.append(f"{text}\n```text\nlit-gen {verb} --config FILE [--KEY VALUE ...]\n```\n")
        else:
            lines.append(f"```text\n{help_of(verb)}\n```\n")
    return "\n".join(lines)


def configuration(cli_of_keys: ExperimentCLI) -> str:
    """Return the page of the configuration keys, group by group."""
    groups = key_help.of_all(cli_of_keys.parser, "fit").split("\n\n")
    parts = [CONFIGURATION]
    for group in groups:
        title, *lines = group.splitlines()
        name, _, text = title.partition(": ")
        rows = list(entries(lines))
        if not rows or not re.fullmatch(r"\w+", name) or name in ("trainer", "config", "usage"):
            continue
        parts.append(
            f"## `{name}`\n\n{escape(text) + '.' if text else ''}\n\n{table(rows)}".replace("\n\n\n\n", "\n\n")
        )
    return "\n".join(parts) + TRAINER


def classes(cli_of_keys: ExperimentCLI, title: str, keys: Sequence[str]) -> str:
    """Return a page of the classes that some keys take, each with its own keys."""
    parts = [f"# {title}\n"]
    for key in keys:
        found = key_help.choices(key_help.kinds_at(cli_of_keys.parser, key))
        parts.append(f"## `{key}`\n\n`lit-gen fit --{key}.help CLASS` prints the keys of one class.\n")
        for name in sorted(found):
            first, *lines = key_help.of_class(cli_of_keys.parser, "fit", key, name).splitlines()
            rows = [row for row in entries(lines) if row.name != "no"]
            summary = escape(first.partition(": ")[2])
            parts.append(f"### {name}\n\n{summary}\n\n{table(rows) if rows else 'No keys.'}\n")
    return "\n".join(parts)


def unlisted(cli_of_keys: ExperimentCLI) -> list[str]:
    """Return the keys that take classes of lit_gen which no page lists."""
    parser = cli_of_keys.parser
    listed = {
        cls
        for _, keys in PAGES_OF_CLASSES.values()
        for key in keys
        for cls in key_help.choices(key_help.kinds_at(parser, key)).values()
    }
    roots = [a.dest for a in parser._actions if not a.dest.startswith("trainer") and not a.dest.endswith(".help")]
    missing, seen = [], set()
    while roots:
        key = roots.pop()
        try:
            found = key_help.choices(key_help.kinds_at(parser, key))
        except UserError:
            continue
        kind = frozenset(found.values())
        if kind in seen:
            continue
        seen.add(kind)
        missing += [f"{key}: {cls.__name__}" for cls in kind - listed if "optimizer" not in key]
        roots += [f"{key}.{name}" for name in key_help.names_at(parser, key)]
    return missing


def pages() -> dict[Path, str]:
    """Return the text of every generated page by its file.

    Raises:
        ValueError: If a key takes a class that no page lists.
    """
    made = {FOLDER / "commands.md": commands()}
    os.environ["COLUMNS"] = ONE_LINE
    cli_of_keys = ExperimentCLI(["--config", str(ANY_EXPERIMENT)])
    if missing := unlisted(cli_of_keys):
        raise ValueError(f"PAGES_OF_CLASSES: no page lists {', '.join(missing)}; add the keys")
    made[FOLDER / "configuration.md"] = configuration(cli_of_keys)
    for name, (title, keys) in PAGES_OF_CLASSES.items():
        made[FOLDER / f"{name}.md"] = classes(cli_of_keys, title, keys)
    return {path: re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n" for path, text in made.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or report those that are out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; report pages that are out of date")
    options = parser.parse_args(arguments)
    old = [path for path, text in pages().items() if not path.is_file() or path.read_text() != text]
    if options.check:
        for path in old:
            print(f"docs/reference/{path.name}: out of date; run python docs/generate_reference.py")
        return 1 if old else 0
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for path in old:
        write_atomically(path, made[path])
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
