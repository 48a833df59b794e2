"""The form of the code: lengths of functions and files, and the texts of errors."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

MAX_LINES_OF_FUNCTION, MAX_LINES_OF_FILE = 50, 450
CODE = sorted((ROOT / "lit_gen").rglob("*.py"))
ERRORS = ("UserError", "NoTestImagesError")


def nodes(file: Path) -> Iterator[ast.AST]:
    yield from ast.walk(ast.parse(file.read_text()))


def lines_of(function: ast.FunctionDef) -> int:
    """Return the number of lines of a function, its docstring not counted."""
    text = ast.get_docstring(function, clean=False)
    docstring = function.body[0]
    lines = 0 if text is None else (docstring.end_lineno or 0) - docstring.lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - lines


def text_of(message: ast.expr) -> str | None:
    """Return a text with {} in place of its values; None if it is a variable."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in message.values)
    return None


def errors(file: Path) -> Iterator[str]:
    """Yield the texts of the errors that a file raises, but those that are variables alone."""
    for node in nodes(file):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS and node.args:
            text = text_of(node.args[0])
            if text is not None and text.replace("{}", ""):
                yield text


def test_functions_are_short() -> None:
    functions = ((file, node) for file in CODE for node in nodes(file) if isinstance(node, ast.FunctionDef))
    long = [f"{file}: {f.name}" for file, f in functions if lines_of(f) > MAX_LINES_OF_FUNCTION]
    assert not long


def test_files_are_short() -> None:
    files = [*CODE, *(file for file in (ROOT / "tests").rglob("*.py"))]
    assert not [file for file in files if len(file.read_text().splitlines()) > MAX_LINES_OF_FILE]


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_errors_say_what_to_do(file: Path) -> None:
    """The form `what is wrong; what to do`; a caller may prefix the key."""
    assert not [text for text in errors(file) if not re.search(r".; ?.|{}$", text, re.DOTALL)]
