"""Messages of the parser: what jsonargparse says, as it was recorded, and what lit_gen makes of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_gen.experiment.messages import ROWS, Refusal, reword
from lit_gen.experiment.parser import ExperimentCLI
from tests.experiment.recorded import GOLDEN, RECORDED, modules_of_a_user, paragraph, refuse

ENTRIES: list[dict[str, Any]] = yaml.safe_load(RECORDED.read_text())
PARAGRAPHS = GOLDEN.read_text().rstrip("\n").split("\n\n")
CASES = [
    pytest.param(entry, golden, id=f"{entry['row']}: {' '.join(entry['words'])}"[:80])
    for entry, golden in zip(ENTRIES, PARAGRAPHS, strict=True)
]


@pytest.fixture(scope="module")
def parser() -> Any:
    return ExperimentCLI(["--model=EDM", "--data.source=Digits"]).parser


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with modules_of_a_user(tmp_path):
        yield tmp_path


@pytest.mark.parametrize(("entry", "golden"), CASES)
def test_a_recorded_original_gives_the_golden_message(
    entry: dict[str, Any], golden: str, parser: Any, folder: Path
) -> None:
    row, message = reword(Refusal(**entry["original"], parser=parser))
    assert row == entry["row"]
    assert paragraph(entry, message) == golden


@pytest.mark.parametrize(("entry", "golden"), CASES)
def test_the_parser_still_says_what_was_recorded(entry: dict[str, Any], golden: str, folder: Path) -> None:
    """If a release of jsonargparse says it otherwise, adapt the row and run `python -m tests.experiment.recorded`."""
    refusal, message = refuse(entry, folder)
    assert refusal == Refusal(**entry["original"])
    assert paragraph(entry, message) == golden


def test_each_row_has_an_original() -> None:
    assert {row.name for row in ROWS} <= {entry["row"] for entry in ENTRIES}
    assert len({row.name for row in ROWS}) == len(ROWS)
