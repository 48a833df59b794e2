"""The least score of several sampling seeds beside their mean, as some papers print it."""

import csv
import io
import json

import pytest

from lit_gen.core.yaml import load_yaml
from lit_gen.report.leaderboard import rank
from lit_gen.report.render import to_csv, to_json, to_markdown
from tests.conftest import ROOT
from tests.report.test_leaderboard import content, results

SCORES = {"kd_digits": {"metric": "KernelDistance", "better": "lower"}}


def repeats(model: str, *values: float, **changes: object) -> list[dict]:
    """Results of seeds 0, 1, ...; the last seed comes first."""
    found: list[dict] = []
    for seed, value in enumerate(values):
        metrics = {"fd_digits": value, "inception_score": 9 - value, "kd_digits": value - 2, "bits_per_dim": value}
        more: dict = {"seed": seed, "metrics": metrics, "score_protocols": SCORES} | changes
        found.insert(0, content(model) | more)
    return found


def test_the_least_stands_beside_the_mean_and_does_not_rank() -> None:
    asked = repeats("A", 4.0, 3.0, 5.0, 1.0, least_of=3)
    board = rank(results(*asked, *repeats("B", 2.0, 2.25, 2.5)))
    a, b = board.rows[1], board.rows[0]
    assert (a.first.model, a.mean("metrics.fd_digits"), a.least("fd_digits")) == ("A", 3.25, 3.0), "of seeds 0 to 2"
    assert a.least("kd_digits") == 1.0
    assert a.least("inception_score") is None is a.least("bits_per_dim"), "higher is better, and a likelihood"
    assert b.least("fd_digits") is None, "not asked for"
    text = to_markdown(board)
    assert text.count("(least of 3: 3.000)") == text.count("(least of 3: 1.000)") == 1 and text.count("(least") == 2
    assert "least of n: the least over the n lowest sampling seeds, which ranks nothing" in text
    assert [row["fd_digits_least_of_3"] for row in csv.DictReader(io.StringIO(to_csv(board)))] == ["", "3.0"]
    assert json.loads(to_json(board))["rows"][1]["fd_digits_least_of_3"] == 3.0


@pytest.mark.parametrize(
    "found",
    [
        repeats("A", 4.0, 3.0, least_of=3),
        repeats("A", 4.0, 3.0, float("nan"), least_of=3),
        repeats("A", 4.0, 3.0, 5.0, least_of=3) + repeats("A", 2.0, seed=7),
        repeats("A", 4.0, 3.0, run={"name": "a", "identity": "a", "recipe": "r"}, least_of=2)
        + repeats("A", 4.0, 3.0, run={"name": "b", "identity": "b", "recipe": "r"}, least_of=2),
    ],
    ids=["too few", "not finite", "asked for by some", "several training runs"],
)
def test_there_is_no_least_of(found: list[dict]) -> None:
    board = rank(results(*found))
    assert len(board.rows) == 1 and board.rows[0].least("fd_digits") is None
    assert "least of" not in to_markdown(board)


def test_the_protocol_of_edm_asks_for_it() -> None:
    settings = load_yaml(ROOT / "conf" / "evaluation" / "edm.yaml")
    assert (settings["num_repeats"], settings["least_of"], settings["num_samples"]) == (3, 3, 50_000)
