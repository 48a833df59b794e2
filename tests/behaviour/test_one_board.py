"""A run, a checkpoint of diffusers and pictures of another program stand on one board, by the commands of the docs."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from lit_gen.cli.main import main
from lit_gen.data import Digits, ImageDataModule
from lit_gen.report.leaderboard import rank
from lit_gen.report.results import load_results
from tests.conftest import ROOT
from tests.experiment.test_foreign import folder_of

TINY = [
    *("--budget.num_images=128", "--data.batch_size=64", "--grid.num_samples=0", "--wandb.mode=disabled"),
    *("--model.network.channels=8", "--model.network.channel_mult=[1]", "--model.network.num_blocks=1"),
]


def commands() -> list[list[str]]:
    """Return the words of the five commands of the page."""
    page = (ROOT / "docs" / "sharing.md").read_text().partition("## Three of a kind on one board")[2]
    block = re.search(r"```sh\n(.*?)```", page, re.DOTALL)
    assert block is not None
    return [shlex.split(line)[1:] for line in block[1].splitlines()]


@pytest.mark.slow
def test_three_of_a_kind_stand_on_one_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    folder_of(tmp_path / "ddpm-digits")
    (tmp_path / "their-pictures").mkdir()
    for number, image in enumerate(ImageDataModule(Digits()).images("train")[:100]):
        Image.fromarray(image[0]).save(tmp_path / "their-pictures" / f"{number:03d}.png")
    given = commands()
    assert len(given) == 5
    for words in given:
        words = ["100" if word == "1000" else str(next(tmp_path.glob(word))) if "*" in word else word for word in words]
        more = {"run": [*TINY, "--evaluation.num_samples=100"], "evaluate": ["--sampler.steps=3"]}
        capsys.readouterr()
        assert main([*words, *more.get(words[0], [])]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "another program (foreign) (copies)" in printed
    board = rank(load_results(tmp_path / "runs" / "board"))
    assert len(board.rows) == 3 and {row.copies for row in board.rows} == {False, True}
    assert board.rows[0].first.model == "another program (foreign)", "training images have the least distance"
