"""Escape untrusted text, so that no terminal, matplotlib, Markdown or spreadsheet interprets it."""

import difflib
import hashlib
import re
from collections.abc import Iterable

# Control characters (including ANSI escapes), lone surrogates, and marks that reorder text or break lines.
_UNPRINTABLE = "\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069\ufeff"
_ANY = re.compile(f"[{_UNPRINTABLE}]")
_BUT_LINES = re.compile(f"(?![\n\t])[{_UNPRINTABLE}]")
_OF_MARKDOWN = re.compile(r"[\\`*<\[|$]")


def is_printable(text: str) -> bool:
    """Return whether the text is free of control characters, lone surrogates and direction marks."""
    return _ANY.search(text) is None


def printable(text: object, lines: bool = False) -> str:
    r"""Return the text with unprintable characters escaped, such as `\x1b` or `\n`.

    Args:
        text: The text, or an object whose text is escaped.
        lines: Keep line breaks and tabs.
    """
    return (_BUT_LINES if lines else _ANY).sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def shorten(text: str, length: int) -> str:
    """Return the text; if it is longer than `length`, its beginning and a hash that distinguishes it."""
    if len(text) <= length:
        return text
    return f"{text[: length - 8]}… {hashlib.sha256(text.encode()).hexdigest()[:6]}"


def for_figure(text: str, length: int = 160) -> str:
    """Escape a name for matplotlib, which would parse mathematics and leave some labels out of a legend."""
    plain = shorten(printable(text), length).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def for_markdown(text: str) -> str:
    """Escape a text for Markdown, inside or outside a table."""
    return _OF_MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text))


def for_csv(text: str) -> str:
    """Escape a cell for a spreadsheet: one that would be a formula gets an apostrophe in front."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def closest(word: str, known: Iterable[str], otherwise: str) -> str:
    """Return `did you mean X?` for the known word closest to a misspelt one, or `otherwise` if none is close.

    An option that is close to none may be short for `-n`, or for all keys with a part of that beginning: `--num` for
    `--budget.num_images` and others.
    """
    known, stem = list(known), word.lstrip("-").lower()
    near = sorted((name for name in known if word and name.lower().startswith(word.lower())), key=len)
    bare = {name.lstrip("-").lower(): name for name in known}
    near = near or [bare[name] for name in difflib.get_close_matches(stem, bare, n=1)]
    if not near and word.startswith("--"):
        near = [name for name in known if len(name) == 2 and name == f"-{stem[:1]}"]
        if not near and len(stem) > 2:
            near = sorted(name for name in known if any(part.startswith(stem) for part in name.split(".")[1:]))
            if len(near) > 1:
                return f"did you mean one of {', '.join(near)}?"
    return f"did you mean {near[0]}?" if near else otherwise
