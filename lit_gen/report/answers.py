"""Answer from the rows of a leaderboard which one is best, over all and within a budget of network evaluations.

A row that is ahead is not yet better: an answer counts the rows that it beats outside the noise, names those that
cannot be told apart from it, and counts those whose noise is unknown (`report.comparison`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lit_gen.report.comparison import compare
from lit_gen.report.labels import names
from lit_gen.report.leaderboard import Leaderboard
from lit_gen.report.numbers import with_interval
from lit_gen.report.rows import LEVEL, Row, Spread

BUDGETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Budgets of network evaluations per image that are looked at."""

MOST_NAMED = 4
"""Largest number of rows that one answer names."""


@dataclass(frozen=True)
class Best:
    """The best of some rows, and what can be said of the others.

    Attributes:
        row: The row with the best mean; of equal ones the first.
        score: Its score with its interval.
        beaten: Number of rows that it beats outside the noise.
        tied: Rows that cannot be told apart from it, best first.
        unknown: Number of rows that are behind it, but neither noise is known.
    """

    row: Row
    score: str
    beaten: int
    tied: list[Row]
    unknown: int


@dataclass(frozen=True)
class Answer:
    """A question that the rows answer, and the answer in words."""

    question: str
    answer: str


@dataclass(frozen=True)
class Budget:
    """The best row within a budget of network evaluations per image.

    Attributes:
        num_evaluations: The budget.
        num_rows: Number of rows within it.
        best: The best of them.
    """

    num_evaluations: int
    num_rows: int
    best: Best


def best_of(rows: Sequence[Row], board: Leaderboard) -> Best:
    """Return the best of ranked rows, of which there is at least one."""
    key, sign = f"metrics.{board.by}", -1.0 if board.better[board.by] == "higher" else 1.0
    first = min(rows, key=lambda row: sign * row.mean(key))
    others = sorted((row for row in rows if row is not first), key=lambda row: sign * row.mean(key))
    found = [(row, compare(first, row, board.by)) for row in others]
    return Best(
        first,
        with_interval(first.mean(key), first.spread(board.by)),
        sum(each.distinct and each.spread is not None for _, each in found),
        [row for row, each in found if not each.distinct],
        sum(each.distinct and each.spread is None for _, each in found),
    )


def find_budgets(board: Leaderboard) -> list[Budget]:
    """Return the best row within each budget that more rows keep to than to the budget before it, of two or more."""
    found: list[Budget] = []
    ranked = [row for row in board.rows if row.rank is not None and math.isfinite(row.mean("nfe"))]
    before = 1
    for number in BUDGETS:
        within = [row for row in ranked if row.mean("nfe") <= number]
        if len(within) > before:
            found.append(Budget(number, len(within), best_of(within, board)))
            before = len(within)
    return found


def find_answers(board: Leaderboard) -> list[Answer]:
    """Return the questions that the rows of a leaderboard answer, the most specific one first; none for one row."""
    ranked = [row for row in board.rows if row.rank is not None]
    if len(ranked) < 2:
        return []
    found = []
    several_models = len({row.first.model for row in ranked}) > 1
    several_samplers = len({row.first.sampler for row in ranked if row.first.sampler}) > 1
    if several_samplers and (chosen := _telling(find_budgets(board))) is not None:
        what = "model and sampler are" if several_models else "sampler is"
        question = f"Which {what} best within {chosen.num_evaluations} network evaluations per image?"
        found.append(Answer(question, _sentence(chosen.best, board, ranked)))
    what = "model" if several_models else "setting"
    found.append(Answer(f"Which {what} is best at any cost?", _sentence(best_of(ranked, board), board, ranked)))
    return found


def _telling(found: Sequence[Budget]) -> Budget | None:
    """Return the budget to ask about: 10 evaluations if it has an answer, else the one closest to it."""
    return min(found, key=lambda budget: abs(math.log(budget.num_evaluations / 10)), default=None)


def _sentence(best: Best, board: Leaderboard, ranked: Sequence[Row]) -> str:
    named = dict(zip(map(id, ranked), names(ranked), strict=True))
    text = f"{named[id(best.row)]} has the best {board.by}: {best.score}."
    if best.row.spread(board.by) is None:
        text += " Its interval is unknown."
    if best.beaten:
        text += f" It beats {_rows(best.beaten)} outside the noise."
    if best.tied:
        listed = "; ".join(named[id(row)] for row in best.tied[:MOST_NAMED])
        more = f"; and {len(best.tied) - MOST_NAMED} more" if len(best.tied) > MOST_NAMED else ""
        text += f" It cannot be told apart from {_rows(len(best.tied))}: {listed}{more}."
    if best.unknown:
        text += f" It is ahead of {_rows(best.unknown)}, but the noise is unknown: evaluate with more seeds to tell."
    if best.row.copies:
        text += " Its samples copy training images, so its score does not show that it generalises."
    return text + _floor(board)


def _rows(num: int) -> str:
    return f"{num} other row{'s' if num > 1 else ''}"


def _floor(board: Leaderboard) -> str:
    """Return what real images score, the best of them; empty if it is unknown."""
    known = [floor for floor in board.floors if board.by in floor.scores]
    if not known:
        return ""
    sign = -1.0 if board.better[board.by] == "higher" else 1.0
    floor = min(known, key=lambda floor: sign * floor.scores[board.by])
    error = floor.errors.get(board.by)
    score = with_interval(floor.scores[board.by], None if error is None else Spread(error))
    return f" {floor.num_images} real images score {score} ({floor.title})."


CAUTION = (
    f"Each comparison has a confidence of {LEVEL:.0%} on its own. Among many rows some are told apart by chance, and "
    "the score of the best of many is a little too good."
)
"""Limits of answers from many comparisons."""
