"""Conditions that select results."""

import pytest

from lit_gen.core.errors import UserError
from lit_gen.report.leaderboard import rank
from lit_gen.report.results import select
from tests.report.test_leaderboard import content, results


def test_conditions_compare_values_of_every_type():
    found = results(content("A"), content("B", sampler=None), content("C", nfe=20, run__recipe="1e3"))
    assert [r.model for r in select(found, ["nfe=20"])] == ["C"]
    assert [r.model for r in select(found, ["nfe=10.0"])] == ["A"]
    assert [r.model for r in select(found, ["sampler=null"])] == ["B"]
    assert [r.model for r in select(found, ["sampler.name=DDIM", "sampler.grid.rho=7"])] == ["A", "C"]
    assert [r.model for r in select(found, ["protocol.image_shape=[1, 8, 8]", "run.recipe=1e3"])] == ["C"]
    assert [r.model for r in select(found, ["model=C", "model=A"])] == ["A", "C"]
    with pytest.raises(UserError, match="^--where model=D: no result fits; "):
        select(found, ["model=C", "model=D"])
    for condition, words in {
        "model": "KEY=VALUE",
        "modle=A": "no result has the key modle",
        "model=Z": "values of model: A, B, C",
    }.items():
        with pytest.raises(UserError, match=words):
            rank(found, where=[condition])


def test_a_sampler_is_selected_by_the_name_that_tables_show():
    solver = {"name": "DPMSolver", "steps": 9, "order": 2, "eta": 1.0, "grid": {"name": "Karras", "rho": 5.0}}
    found = results(content("A"), content("B", sampler=solver), content("C", sampler=solver | {"eta": 0.0}))
    shown = found[1].sampler
    assert "eta=1" in shown
    assert [r.model for r in select(found, [f"sampler={shown}"])] == ["B"]
    assert [r.model for r in select(found, [f"sampler={found[0].sampler}"])] == ["A"]
    assert [r.model for r in select(found, [f"sampler.grid={found[2].grid}"])] == ["B", "C"]
    with pytest.raises(UserError, match="^--paired sampler=Heun: no result fits; .* sampler: ") as error:
        select(found, ["sampler=Heun"], "--paired")
    assert str(error.value).endswith(", ".join(sorted(result.sampler for result in found)))


def test_a_refusal_names_a_few_values_of_many():
    with pytest.raises(UserError, match=r"choose one of the values of model: A00, A01, .*A11 and 8 more$"):
        select(results(*(content(f"A{index:02}") for index in range(20))), ["model=B"])
