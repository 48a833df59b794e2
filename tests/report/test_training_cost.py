"""The cost of training in tables: seconds, images and floating-point operations."""

import csv
import io
from typing import Any

from lit_gen.report.leaderboard import rank
from lit_gen.report.render import to_cells, to_csv
from tests.report.test_leaderboard import content, results


def column(board: Any, name: str) -> list[str] | None:
    cells = to_cells(board)
    names = [header.name for header in cells.headers]
    return [row[names.index(name)].text for row in cells.rows] if name in names else None


def test_operations_are_shown_with_those_of_earlier_stages_if_a_row_has_them() -> None:
    old = content("A", 1.0)
    counted = content("B", 2.0) | {"training_flops": 2.5e15, "earlier_flops": 5e14}
    of_old_stage = content("C", 3.0) | {"training_flops": 2.5e15}
    board = rank(results(old, counted, of_old_stage))
    assert column(board, "training FLOPs") == ["-", "3 P", "-"]
    assert column(rank(results(old)), "training FLOPs") is None
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert [(row["training_flops"], row["earlier_flops"]) for row in rows] == [
        ("nan", "nan"),
        ("2500000000000000.0", "500000000000000.0"),
        ("2500000000000000.0", "nan"),
    ]
