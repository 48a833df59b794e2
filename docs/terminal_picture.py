"""Run a command in a terminal of its own, and write what stands there after some seconds as an SVG.

    python docs/terminal_picture.py --out docs/images/monitoring_sweep.svg --seconds 60 -- lit-gen sweep FILE --jobs 2

The command is then interrupted, as by Ctrl-C. Needs a Unix system and `pip install pyte`, the emulator of the terminal.
"""

import argparse
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from lit_gen.core.files import write_atomically


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="SVG")
    parser.add_argument("--seconds", type=float, default=30, help="time after which the picture is taken (%(default)s)")
    parser.add_argument("--columns", type=int, default=110)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    screen = run(given.command, given.seconds, given.columns, given.rows)
    write_atomically(given.out, svg(screen, " ".join(given.command)))


def run(command: Sequence[str], seconds: float, columns: int, rows: int) -> Any:
    """Return the screen of a terminal in which a command has run for some seconds, or has ended."""
    import pyte

    screen = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([ours], [], [], left)[0]:
                try:
                    shown = os.read(ours, 1 << 16)
                except OSError:  # the command has ended
                    break
                stream.feed(shown)
                answer(ours, shown)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        while process.poll() is None:  # it waits for a terminal that reads
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    os.read(ours, 1 << 16)
                except OSError:
                    break
    os.close(ours)
    return screen


def answer(terminal: int, shown: bytes) -> None:
    """Answer what a program asks of its terminal: where the cursor is, and its background colour."""
    if b"\x1b[6n" in shown:
        os.write(terminal, b"\x1b[1;1R")
    if b"\x1b]11;?" in shown:
        os.write(terminal, b"\x1b]11;rgb:1000/1000/1000\x1b\\")


def svg(screen: Any, title: str) -> str:
    """Return a screen as an SVG that needs no font of another server."""
    console = Console(
        record=True, width=screen.columns, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    rows = [screen.buffer[row] for row in range(screen.lines)]
    last = max(
        (number for number, row in enumerate(rows) if any(cell.data.strip() for cell in row.values())), default=0
    )
    for row in rows[: last + 1]:
        line = Text()
        for column in range(screen.columns):
            cell = row[column]
            line.append(cell.data, style=style(cell))
        start = line.plain.find(here := f"{Path.cwd()}/")
        if start >= 0:  # a picture names no folder of this machine
            line = (
                line[:start]
                + line[start + len(here) :]
                + Text(" " * len(here), line.get_style_at_offset(console, start))
            )
        console.print(line, no_wrap=True, overflow="crop", soft_wrap=True)
    text = console.export_svg(title=title, theme=MONOKAI, unique_id="terminal")
    return re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.DOTALL)


def style(cell: Any) -> str:
    """Return the style of a cell of the screen in rich's notation."""
    names = {"brown": "yellow", "default": "default"}

    def color(name: str) -> str:
        name = names.get(name, name)
        if re.fullmatch(r"[0-9a-f]{6}", name):
            return f"#{name}"
        return name.replace("bright", "bright_") if name.startswith("bright") else name

    words = [word for word in ("bold", "italics", "underscore", "reverse") if getattr(cell, word)]
    rich_names = {"italics": "italic", "underscore": "underline"}
    return " ".join([*(rich_names.get(word, word) for word in words), color(cell.fg), "on", color(cell.bg)])


if __name__ == "__main__":
    main()
