"""The table of budgets of network evaluations."""

import math

import pytest

from lit_gen.core.errors import UserError
from lit_gen.report.leaderboard import rank
from lit_gen.report.render import to_budget_table
from tests.report.test_leaderboard import DDIM, content, results


def test_a_budget_holds_the_evaluations_that_spent_most_of_it_and_the_best_of_each_is_bold():
    found = [
        *(
            content("A", distance, sampler=DDIM | {"steps": nfe}, nfe=nfe)
            for nfe, distance in ((5, 4.0), (10, 3.0), (20, 2.0))
        ),
        *(
            content("B", distance, sampler=DDIM | {"name": "Heun", "steps": nfe}, nfe=nfe, seed=seed)
            for nfe, distances in ((7, (9.0,)), (9, (2.5, 3.1)), (19, (2.2,)), (40, (0.1,)))
            for seed, distance in enumerate(distances)
        ),
        content("C", 2.6, sampler=None),
        content("A", 7.0, sampler={"name": "RK45", "rtol": 1e-5}, nfe=4.5),
        content("D", math.nan),
    ]
    board = rank(results(*found))
    lines = to_budget_table(board, [5, 10, 20]).splitlines()
    assert lines[0] == board.protocol_line
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:8]] == [
        ["model", "sampler", "5", "10", "20"],
        [":---", ":---", "---:", "---:", "---:"],
        ["A", "DDIM", "4.000", "**3.000**", "**2.000**"],
        ["A", "RK45", "7.000", "-", "-"],
        ["B", "Heun(eta=0)", "-", "**2.8 ± 3.8**", "2.200"],
        ["C", "-", "**2.600**", "-", "-"],
    ]
    for budgets, message in (([], "rising"), ([5, 5], "rising"), ([0, 5], "rising")):
        with pytest.raises(UserError, match=message):
            to_budget_table(board, budgets)
    with pytest.raises(UserError, match="no evaluation took 5"):
        to_budget_table(rank(results(content("A", nfe=6))), [5])


def test_cells_of_copies_are_marked():
    board = rank(results(content("A", 2.0) | {"copies": True}, content("B", 3.0) | {"copies": False}))
    lines = to_budget_table(board, [10]).splitlines()
    assert lines[4:6] == ["| A | DDIM | **2.000** (copies) |", "| B | DDIM | 3.000 |"]
