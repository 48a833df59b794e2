import math
import re

import pytest

from lit_gen.report.charts import BOTTOM, LEFT, RIGHT, TOP, Axis, Styles, cost_chart, curve_panels, thinned
from lit_gen.report.leaderboard import rank
from tests.report.test_leaderboard import DDIM, content, results


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(
    ("low", "high"), [(1, 1), (0.98, 1.02), (1, 10), (9, 50), (1, 1000), (2e9, 3.6e8), (1e-9, 1e9), (17.3, 146.4)]
)
def test_ticks_are_few_round_and_in_their_places(low: float, high: float, logarithmic: bool) -> None:
    axis = Axis.around([low, high], 50, 450, logarithmic)
    ticks = axis.ticks
    assert 1 <= len(ticks) <= 7 and len({tick.text for tick in ticks}) == len(ticks)
    places = [tick.place for tick in ticks]
    assert places == sorted(places) and places[0] >= 50 and places[-1] <= 450
    suffixes = {"": 1, " k": 1e3, " M": 1e6, " G": 1e9}
    for tick in ticks:
        found = re.fullmatch(r"([-+.e\d]+)( [kMG])?", tick.text)
        assert found is not None
        assert axis.place(float(found[1]) * suffixes[found[2] or ""]) == pytest.approx(tick.place, abs=0.3)


def test_equal_ratios_are_equally_far_apart_on_a_logarithmic_axis():
    axis = Axis(1, 100, 0, 200, True)
    assert [axis.place(value) for value in (1, 10, 100, 1000, 0)] == [0, 100, 200, 200, 0]
    assert [Axis(0, 10, 200, 0, False).place(value) for value in (0, 5, 10)] == [200, 100, 0]


def chart(*rows: tuple[str, float, float], error: float = 0.1):
    """The chart of rows (model, NFE, distance)."""
    errors = {"standard_errors": {"fd_digits": error}}
    sampler = DDIM | {"steps": 1}
    board = rank(results(*(content(model, y, sampler=sampler | {"steps": x}, nfe=x) | errors for model, x, y in rows)))
    styles = Styles([row.first.model for row in board.rows], ["DDIM"] * len(board.rows))
    return board, cost_chart(board, "nfe", styles)


def test_the_front_steps_down_to_the_best_score_at_or_below_each_cost():
    board, drawn = chart(("A", 10.0, 4.0), ("A", 20.0, 5.0), ("A", 40.0, 1.0), ("B", 40.0, 2.0))
    assert drawn is not None
    of = {(board.rows[mark.row].first.model, board.rows[mark.row].mean("nfe")): mark for mark in drawn.marks}
    first, last = of["A", 10.0], of["A", 40.0]
    assert drawn.front == (
        f"M{first.x:g} {first.y:g}L{last.x:g} {first.y:g}L{last.x:g} {last.y:g}L{RIGHT:g} {last.y:g}"
    )
    assert first.y < last.y, "y grows downwards, and lower is better"
    assert {key: mark.front for key, mark in of.items()} == {
        ("A", 10.0): True,
        ("A", 20.0): False,
        ("A", 40.0): True,
        ("B", 40.0): False,
    }
    assert all(LEFT <= mark.x <= RIGHT and TOP <= mark.y <= BOTTOM for mark in drawn.marks)


def test_rows_that_cannot_be_told_apart_are_all_on_the_front():
    _, drawn = chart(("A", 10.0, 4.0), ("A", 20.0, 4.1), error=1.0)
    assert drawn is not None and [mark.front for mark in drawn.marks] == [True, True]
    for mark in drawn.marks:
        assert mark.bar is not None and mark.bar[1] < mark.y < mark.bar[0]


def test_points_of_a_model_and_sampler_are_joined_in_the_order_of_their_cost():
    _, drawn = chart(("A", 40.0, 1.0), ("A", 10.0, 4.0), ("B", 5.0, 3.0), ("A", 20.0, 2.0))
    assert drawn is not None
    places = [(mark.x, mark.y) for mark in drawn.marks if mark.colour == 0]
    [line] = drawn.lines
    assert line.path == "M" + "L".join(f"{x:g} {y:g}" for x, y in places) and places == sorted(places)
    assert line.colour == 0


def test_unknown_costs_are_counted_and_without_any_there_is_no_chart():
    found = results(content("A", 1.0) | {"flops_per_image": 1000}, content("B", 2.0))
    board = rank(found)
    styles = Styles(["A", "B"], ["DDIM", "DDIM"])
    drawn = cost_chart(board, "flops", styles)
    assert drawn is not None and len(drawn.marks) == 1 and drawn.num_left_out == 1
    assert cost_chart(rank(found[1:]), "flops", styles) is None


def test_colours_and_markers_do_not_repeat():
    styles = Styles([f"M{number}" for number in range(20)], [f"S{number}" for number in range(20)])
    for kinds, most in ((styles.colours, 7), (styles.markers, 12)):
        assert list(kinds.values()) == list(range(most))


def test_curves_of_one_name_share_a_panel_and_losses_come_first():
    curves = {"train/lr": [(1.0, 0.1)], "train/loss": [(1.0, 2.0), (5.0, 1.0)], "val/loss": [(5.0, 1.5)]}
    panels = curve_panels(curves | {"monitor/fd": [(5.0, math.nan)]})
    assert [(panel.name, [where for where, _ in panel.lines]) for panel in panels] == [
        ("loss", ["train", "val"]),
        ("lr", ["train"]),
    ]
    assert panels[0].last == {"train": "1", "val": "1.5"}
    assert len({line.colour for _, line in panels[0].lines}) == 2


def test_a_thinned_curve_keeps_its_ends_and_extremes():
    points = [(float(x), math.sin(x / 50)) for x in range(5000)]
    points[1234], points[4321] = (1234.0, 100.0), (4321.0, -100.0)
    kept = thinned(points, 60)
    assert len(kept) <= 60 and list(kept) == sorted(kept) and set(kept) <= set(points)
    assert {points[0], points[-1], points[1234], points[4321]} <= set(kept)
    assert thinned(points[:50], 60) == points[:50]
