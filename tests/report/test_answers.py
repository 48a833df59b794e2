import math
import re

import pytest

from lit_gen.report.answers import find_answers, find_budgets
from lit_gen.report.leaderboard import Leaderboard, rank
from tests.report.test_leaderboard import content, results


def board(*rows: tuple[str, str, float, float], error: float | None = 0.1) -> Leaderboard:
    """Rows (model, sampler, NFE, distance) with a standard error, or without any."""
    errors = {} if error is None else {"standard_errors": {"fd_digits": error}}
    contents = []
    for model, name, nfe, distance in rows:
        sampler = {"name": name, "steps": nfe} if name else None
        contents.append(content(model, distance, sampler=sampler, nfe=nfe) | errors)
    return rank(results(*contents))


ROWS = [("EDM", "DDIM", 10.0, 3.0), ("EDM", "Heun", 9.0, 2.0), ("EDM", "Heun", 20.0, 1.0), ("VAE", "", 1.0, 1.9)]


def test_the_best_within_a_budget_is_named_with_those_it_cannot_be_told_apart_from():
    first, second = find_answers(board(*ROWS))
    assert first.question == "Which model and sampler are best within 10 network evaluations per image?"
    assert first.answer == (
        "VAE, NFE 1 has the best fd_digits: 1.90 ± 0.20. It beats 1 other row outside the noise. "
        "It cannot be told apart from 1 other row: EDM, Heun, NFE 9."
    )
    assert second.question == "Which model is best at any cost?"
    assert second.answer.startswith("EDM, Heun, NFE 20 has the best fd_digits: 1.00 ± 0.20. It beats 3 other rows")


def test_a_smaller_noise_tells_them_apart():
    first, _ = find_answers(board(*ROWS, error=0.01))
    assert "It beats 2 other rows outside the noise." in first.answer and "told apart" not in first.answer


def test_a_row_that_is_ahead_by_unknown_noise_is_not_said_to_beat():
    for answer in find_answers(board(*ROWS, error=None)):
        assert "Its interval is unknown." in answer.answer and "beats" not in answer.answer
        assert re.search(r"ahead of \d other rows, but the noise is unknown: evaluate with more seeds", answer.answer)


def test_questions_are_only_of_what_differs():
    one_model = find_answers(board(*ROWS[:3]))
    assert [answer.question for answer in one_model] == [
        "Which sampler is best within 10 network evaluations per image?",
        "Which setting is best at any cost?",
    ]
    two_models = find_answers(board(("A", "", 1.0, 1.0), ("B", "", 1.0, 2.0)))
    assert [answer.question for answer in two_models] == ["Which model is best at any cost?"]
    assert find_answers(board(ROWS[0])) == []
    assert find_answers(board(("A", "", 1.0, math.nan), ("B", "", 1.0, 2.0))) == []


def test_budgets_are_those_that_more_rows_keep_to():
    found = find_budgets(board(*ROWS, ("EDM", "DDIM", 700.0, 0.5)))
    assert [(each.num_evaluations, each.num_rows, each.best.row.mean("nfe")) for each in found] == [
        (10, 3, 1.0),
        (20, 4, 20.0),
        (1000, 5, 700.0),
    ]
    assert find_budgets(board(("A", "", math.nan, 1.0), ("B", "", math.nan, 2.0))) == []


def test_copies_and_real_images_are_named():
    floors = {"train": {"num_images": 2000, "scores": {"fd_digits": 0.25}, "standard_errors": {"fd_digits": 0.05}}}
    found = results(content("A", 0.1) | {"copies": True, "floors": floors}, content("B", 2.0) | {"floors": floors})
    [answer] = find_answers(rank(found))
    assert "Its samples copy training images, so its score does not show that it generalises." in answer.answer
    assert answer.answer.endswith("2000 real images score 0.250 ± 0.098 (training images, drawn again).")


def test_higher_is_better_for_scores_that_say_so():
    found = results(content("A", 1.0), content("B", 2.0))
    [answer] = find_answers(rank(found, by="inception_score"))
    assert answer.answer.startswith("A, DDIM, NFE 10 has the best inception_score: 8.000.")


@pytest.mark.parametrize("num", [3, 9])
def test_only_some_of_many_equal_rows_are_named(num: int):
    rows = [(f"M{number}", "DDIM", 10.0, 1.0 + number / 1000) for number in range(num)]
    [answer] = find_answers(board(*rows))
    assert answer.answer.count("DDIM, NFE 10") == 1 + min(num - 1, 4)
    assert (f"and {num - 5} more" in answer.answer) == (num > 5)
