"""Record what jsonargparse says of bad input, and the messages that lit_gen makes of it.

`python -m tests.experiment.recorded` runs the parser with the words of each entry of recorded_messages.yaml, and writes
its answers there and the messages to messages.golden.txt. Do so after a new release of jsonargparse, or after a change
of a wording; the difference shows what has changed.
"""

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from lit_gen.core.errors import UserError
from lit_gen.experiment import key_help
from lit_gen.experiment import parser as experiment_parser
from lit_gen.experiment.messages import Refusal, reword

FOLDER = Path(__file__).parent
RECORDED = FOLDER / "recorded_messages.yaml"
GOLDEN = FOLDER / "messages.golden.txt"
THEIRS = """
class Thing: pass
def function(shape: int) -> int: return shape
"""


@contextmanager
def modules_of_a_user(folder: Path) -> Iterator[None]:
    """Enter a folder with the modules `theirs`, and `broken`, which raises an error when it is imported.

    Choices are the classes of lit_gen alone: other tests define more.
    """
    (folder / "theirs.py").write_text(THEIRS)
    (folder / "broken.py").write_text("raise RuntimeError('no licence')\n")
    before = Path.cwd()
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    others = {name: sys.modules.pop(name, None) for name in ("theirs", "broken")}  # of other tests
    try:
        with patch.object(key_help, "choices", _choices_of_lit_gen):
            yield
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        for name, module in others.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def _choices_of_lit_gen(kinds: Iterable[key_help.Kind]) -> dict[str, type]:
    return {name: cls for name, cls in _choices(kinds).items() if cls.__module__.startswith("lit_gen.")}


_choices = key_help.choices


def refuse(entry: dict[str, Any], folder: Path) -> tuple[Refusal, str]:
    """Return what the parser says of the words and the file of an entry, and the message."""
    seen: list[Refusal] = []
    one_line = experiment_parser.one_line

    def remember(error: Exception, *context: Any) -> str:
        seen.append(Refusal.of(error, *context))
        return one_line(error, *context)

    words = list(entry["words"])
    if "file" in entry:
        (folder / "experiment.yaml").write_text(entry["file"])
        words = ["--config=experiment.yaml", *words]
    with patch.object(experiment_parser, "one_line", remember):
        try:
            experiment_parser.ExperimentCLI(words)
        except UserError as error:
            return seen[-1], str(error)
    raise AssertionError(f"accepted: {words}")


def paragraph(entry: dict[str, Any], message: str) -> str:
    """Return an entry of the golden file."""
    given = [*(f"  {line}" for line in entry.get("file", "").splitlines()), *entry["words"]]
    return "\n".join([f"[{entry['row']}]", *given, f"> {message}"])


def record() -> None:
    """Write the answers of the parser and the messages."""
    paragraphs = []
    entries = yaml.safe_load(RECORDED.read_text())
    with tempfile.TemporaryDirectory() as folder, modules_of_a_user(Path(folder)):
        for entry in entries:
            refusal, message = refuse(entry, Path(folder))
            entry["row"] = reword(refusal)[0]
            entry["original"] = {name: getattr(refusal, name) for name in ("key", "reason", "text")}
            paragraphs.append(paragraph(entry, message))
    RECORDED.write_text(yaml.dump(entries, Dumper=_Dumper, sort_keys=False, width=1000))
    GOLDEN.write_text("\n\n".join(paragraphs) + "\n")


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as such."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)

if __name__ == "__main__":
    record()
