"""Show text that may come from someone else, so that no terminal, matplotlib, Markdown or spreadsheet obeys it."""

import difflib
import hashlib
import re
from collections.abc import Iterable

# Control characters (with them ANSI escapes), lone surrogates, and marks that reorder or break lines.
_UNPRINTABLE = "\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069\ufeff"
_ANY = re.compile(f"[{_UNPRINTABLE}]")
_BUT_LINES = re.compile(f"(?![\n\t])[{_UNPRINTABLE}]")
_OF_MARKDOWN = re.compile(r"[\\`*<\[|$]")


def is_printable(text: str) -> bool:
    """Return whether the text holds no control character, lone surrogate or mark of direction."""
    return _ANY.search(text) is None


def printable(text: object, lines: bool = False) -> str:
    r"""Return the text with what is not printable written as `\x1b` or `\n`.

    Args:
        text: What to show.
        lines: Keep line breaks and tabs.
    """
    return (_BUT_LINES if lines else _ANY).sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def shorten(text: str, length: int) -> str:
    """Return the text, or, if it is longer than `length`, its beginning and a few letters that no other text gets."""
    if len(text) <= length:
        return text
    return f"{text[: length - 8]}… {hashlib.sha256(text.encode()).hexdigest()[:6]}"


def for_figure(text: str, length: int = 160) -> str:
    """Return a name as matplotlib draws it letter by letter: no mathematics, no label left out of a legend."""
    plain = shorten(printable(text), length).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def for_markdown(text: str) -> str:
    """Return the text as Markdown shows it letter by letter, in a cell of a table or outside."""
    return _OF_MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text))


def for_csv(text: str) -> str:
    """Return the text as a spreadsheet shows it: a cell that begins as a formula does gets an apostrophe before it."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def closest(word: str, known: Iterable[str], otherwise: str) -> str:
    """Return `did you mean X?` for the known word nearest to one that is misspelt, or else what else to do."""
    known = list(known)
    near = sorted((name for name in known if word and name.lower().startswith(word.lower())), key=len)
    near = near or difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else otherwise
