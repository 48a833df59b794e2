"""Published scores stand beside results of the same data and score, in italics, and are never ranked."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from lit_gen.core.errors import UserError
from lit_gen.report.leaderboard import rank, with_published
from lit_gen.report.published import published
from lit_gen.report.render import print_table, to_csv, to_json, to_markdown
from tests.report.test_leaderboard import content, results


def board(*fids: float) -> Any:
    protocol: dict[str, Any] = {"protocol__data": "cifar10", "protocol__num_samples": 50_000}
    return rank(results(*(content(f"M{fid}", metrics={"fid": fid}, **protocol) for fid in fids)))


def test_they_stand_at_the_place_of_their_value_without_a_rank() -> None:
    shown = with_published(board(1.5, 2.3, 60.0), "cifar10")
    lines = [line for line in to_markdown(shown).splitlines() if line.startswith("| ")][2:]
    names = [line.split(" | ")[1] for line in lines]
    values = [float(line.split(" | ")[5].strip("*")) for line in lines]
    assert values == sorted(values) and len(lines) == 3 + len(published("cifar10")[1])
    for line, name in zip(lines, names, strict=True):
        assert name.startswith("M") or (name.startswith("*") and line.startswith("| - | *")), line
    assert [line.split(" | ")[0] for line in lines if "| M" in line] == ["| 1", "| 2", "| 3"]
    (edm,) = [line for line in lines if "*EDM (" in line]
    assert "| *35* | *1.97* |" in edm and "least of three seeds" in edm
    assert "in italics, not ranked" in to_markdown(shown)
    file = io.StringIO()
    print_table(shown, Console(file=file))
    assert "MeanFlow" in file.getvalue() and "MeanFlow" not in to_csv(shown)
    assert len(json.loads(to_json(shown))["rows"]) == 3


def test_they_are_refused_beside_other_data_or_scores() -> None:
    with pytest.raises(UserError, match="--published: there are no published scores of mnist; choose one of cifar10"):
        with_published(board(1.0), "mnist")
    for unlike in (rank(results(content())), rank(results(content(metrics={"fid": 1.0})))):
        with pytest.raises(UserError, match="--published: the published scores are FIDs of cifar10"):
            with_published(unlike, "cifar10")


def test_every_entry_has_a_source_and_a_value() -> None:
    protocol, scores = published("cifar10")
    assert "50,000" in protocol
    for score in scores:
        assert score.fid > 0 and score.source and (score.nfe is None or score.nfe >= 1)
