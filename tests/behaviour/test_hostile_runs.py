"""Run directories that are damaged, or come from someone else: one line, no traceback, no code, the others unharmed."""

import os
import re
import shutil
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lit_gen.cli import commands
from lit_gen.cli.main import main
from tests.behaviour.hostile import CANARY, damage
from tests.conftest import arguments

SECONDS = 120


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with one run, which was trained for a moment, and its evaluation, with a likelihood."""
    root = tmp_path_factory.mktemp("hostile") / "runs"
    commands.run(arguments("VAE", root, 128, "--evaluation.likelihood=4", "--ema.stds=[0.1]", "--grid.num_samples=4"))
    return root


@contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    """Raise a TimeoutError in a block that waits, as one that opens a FIFO does."""

    def expire(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def words_of(verb: str, root: Path, run: Path) -> list[str]:
    match verb:
        case "leaderboard":
            return [verb, str(root), "--markdown"]
        case "report":
            return [verb, str(root), "--out=report.html"]
        case "evaluate":
            return [verb, str(run), "--evaluation.num_samples=16", "--evaluation.likelihood=4"]
    return [verb, str(run), "-n=2", "--out=samples.png", "--batch-size=2"]


def call(words: list[str], what: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the command; return its exit code and output. One line tells what is wrong, and no foreign code runs."""
    capfd.readouterr()
    with warnings.catch_warnings(), no_longer_than(SECONDS):
        warnings.simplefilter("always")
        try:
            code = main(words)
        except SystemExit as error:
            code = int(str(error.code))
        except BaseException as error:
            raise AssertionError(f"{what}: {words}") from error
    out, err = capfd.readouterr()
    said = f"{what}: {words}: {code}\n{out}\n{err}"
    assert not Path(CANARY).exists(), said
    assert "Traceback" not in out + err and not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", out + err), said
    assert code in (0, 2), said
    if code == 2:
        assert len(re.findall("^lit-gen: error: .", err, re.M)) == 1, said
    return code, out


def check(verbs: Sequence[str], numbers: Sequence[int], runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Damage copies of a run, one for each number. The run itself stays on the board and the page."""
    shutil.copytree(runs, "runs")
    (good,) = Path("runs").glob("digits_vae-*")
    done = []
    for number in numbers:
        bad = good.with_name(f"damaged{number}")
        shutil.copytree(good, bad)
        done.append(f"{number}: {damage(bad, number)}")
    for verb in verbs:
        code, out = call(words_of(verb, Path("runs"), bad), "\n".join(done), capfd)
        if code == 0 and verb == "leaderboard":
            assert "| VAE |" in out and f"| {good.name}" in out, done
        if verb == "report":
            assert code == 0 and f'id="{good.name}"' in Path("report.html").read_text(), done
    os.chdir("..")
    shutil.rmtree(Path(str(numbers[0])))


@pytest.mark.parametrize(
    ("verbs", "numbers"),
    [
        (["leaderboard"], [[number] for number in range(25)]),
        (["report"], [range(25, 33)]),
        (["evaluate"], [[number] for number in range(33, 37)]),
        (["sample"], [[number] for number in range(37, 40)]),
    ],
)
@pytest.mark.slow
def test_a_damaged_run_is_one_line(
    verbs: list[str],
    numbers: list[Sequence[int]],
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for some in numbers:
        (tmp_path / str(some[0])).mkdir()
        monkeypatch.chdir(tmp_path / str(some[0]))
        check(verbs, some, runs, capfd)


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", [1000, *(pytest.param(first, marks=pytest.mark.exhaustive) for first in range(1010, 1300, 10))]
)
def test_many_damaged_runs(
    first: int, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every verb on each of ten damaged runs, and a page of all ten."""
    jobs = [(["leaderboard", "evaluate", "sample"], [number]) for number in range(first, first + 10)]
    for verbs, numbers in [*jobs, (["report"], [*range(first, first + 10)])]:
        (tmp_path / str(numbers[0])).mkdir()
        monkeypatch.chdir(tmp_path / str(numbers[0]))
        check(verbs, numbers, runs, capfd)
