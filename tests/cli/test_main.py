"""The command, and where it finds the modules of a user."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_gen.cli import commands
from lit_gen.cli.main import main
from tests.conftest import ROOT


def test_python_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "lit_gen", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("lit-gen ")


def test_the_current_folder_is_searched_last(tmp_path: Path) -> None:
    """The command, unlike `python -m`, does not begin with it; a file there must hide no installed module."""
    (tmp_path / "theirs.py").write_text("")
    (tmp_path / "yaml.py").write_text("raise SystemExit('hidden')")
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if p]; from lit_gen.cli.main import main; main([]); "
        "import theirs, yaml; print(theirs.__file__, yaml.__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path / 'theirs.py'} {yaml.__version__}"


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGTERM, 143, "lit-gen: terminated; run the same command again\n"),
        (signal.SIGINT, 130, "lit-gen: interrupted; run the same command to resume\n"),
    ],
)
@pytest.mark.parametrize("verb", ["evaluate", "sample"])
def test_a_signal_ends_a_command_with_one_line(
    number: signal.Signals,
    code: int,
    line: str,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without it
    monkeypatch.setattr(commands, verb, lambda words: os.kill(os.getpid(), number))
    assert main([verb, "somewhere"]) == code
    assert capsys.readouterr().err == line
    assert signal.getsignal(signal.SIGTERM) == before
