"""Bars on a terminal, a line now and then elsewhere, and what a listener is told."""

import os
import pty
import re
import sys
import threading
import time
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from lit_gen.cli import commands
from lit_gen.core.progress import ImageProgress, Step, image_progress, listeners
from tests.conftest import arguments


def shown(terminal: bool, seconds: float = 60.0, monkeypatch: pytest.MonkeyPatch | None = None) -> str:
    """What 400 of 1000 images leave on a console, at 100 images for each second of a clock of its own."""
    output = StringIO()
    console = Console(file=output, force_terminal=terminal, width=120, color_system=None)
    progress = ImageProgress("drawing", 1000, seconds=seconds, console=console)
    for _ in range(4):
        if monkeypatch is not None:
            now = time.monotonic()
            monkeypatch.setattr(time, "monotonic", lambda now=now: now + 1)
        progress.add(100)
    progress.close()
    return output.getvalue()


def test_a_bar_on_a_terminal() -> None:
    text = shown(terminal=True)
    assert "drawing" in text and "400/1,000 images" in text and "images/s" in text and "━" in text


@pytest.mark.parametrize("width", [80, 120, 200])
def test_bar_total_speed_and_time_left_are_seen_at_every_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the description: it is cut off, not the numbers."""
    now = time.monotonic()
    output = StringIO()
    console = Console(file=output, force_terminal=True, width=width, color_system="standard")
    progress = ImageProgress(
        "reference statistics of " + "a data set with a long name " * 9, 1_000_000, console=console
    )
    monkeypatch.setattr(time, "monotonic", lambda: now + 100)
    progress.update(123_400)
    (line,) = Text.from_ansi(drawn_by(progress, width)).plain.splitlines()
    progress.close()
    assert len(line) <= width and line.startswith("reference statis") and "…" in line
    assert re.search(r"… [━╸╺]{10,24} 123,400/1,000,000 images 1,234 images/s 11:50 left$", line)


def drawn_by(progress: ImageProgress, width: int) -> str:
    output = StringIO()
    assert progress._bar is not None
    Console(file=output, width=width, force_terminal=True, color_system="standard").print(progress._bar)
    return output.getvalue()


def test_nothing_is_drawn_elsewhere() -> None:
    assert shown(terminal=False) == ""


def test_a_line_now_and_then_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(terminal=False, seconds=1.5, monkeypatch=monkeypatch).splitlines()
    assert lines == [
        "drawing: 200/1,000 images, 100 images/s, 0:08 left",
        "drawing: 400/1,000 images, 100 images/s, 0:06 left",
    ]


def test_no_time_is_left_once_the_last_batch_has_gone_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of 1,000 images in batches of 300."""
    output = StringIO()
    progress = ImageProgress("training", 1000, seconds=1.5, console=Console(file=output, force_terminal=False))
    now = time.monotonic()
    for seconds in range(1, 5):
        monkeypatch.setattr(time, "monotonic", lambda now=now + seconds: now)
        progress.add(300)
    lines = output.getvalue().splitlines()
    assert lines[-1].startswith("training: 1,200/1,000 images, ") and lines[-1].endswith(" images/s, 0:00 left")
    assert Step("training", 1200, 1000, 300).seconds_left == 0


def test_nothing_before_the_first_update() -> None:
    output = StringIO()
    progress = ImageProgress("drawing", 10, console=Console(file=output, force_terminal=True))
    progress.close()
    assert output.getvalue() == ""
    with image_progress("drawing", 10, show=False) as none:
        assert none is None


def test_listeners_hear_of_every_update() -> None:
    heard: list[Step] = []
    listeners.append(heard.append)
    try:
        shown(terminal=False)
    finally:
        listeners.pop()
    assert [reached.completed for reached in heard] == [100, 200, 300, 400]
    assert heard[-1].total == 1000 and heard[-1].images_per_second > 0
    assert heard[-1].seconds_left == pytest.approx(600 / heard[-1].images_per_second)


def test_what_a_command_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Training, reference statistics and samples each have a bar with images/s; in a pipe there are none."""
    commands.run(arguments("VAE", tmp_path / "pipe", 128))
    piped = "".join(capfd.readouterr())
    assert "━" not in piped and "\x1b" not in piped
    ours, theirs = pty.openpty()
    drawn: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the other end is closed
            while block := os.read(ours, 65536):
                drawn.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        commands.run(arguments("VAE", tmp_path / "terminal", 128))
    reader.join(10)
    lines = b"".join(drawn).decode().splitlines()
    for what, number in (("training", 128), ("reference statistics of digits", 1442), ("evaluating one_pass", 24)):
        assert any(what in line and "━" in line and f"{number:,}/{number:,} images" in line for line in lines), what
        assert any(what in line and "images/s" in line for line in lines), what
