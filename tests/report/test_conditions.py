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
