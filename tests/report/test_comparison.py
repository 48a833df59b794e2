"""Intervals and comparisons of rows, against simulated truth."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.evaluation.file_objects import ABSENT
from lit_gen.evaluation.result_file import save_deviations
from lit_gen.metrics.halves import mean_deviations
from lit_gen.report.comparison import compare, describe
from lit_gen.report.leaderboard import paired, pareto, rank
from lit_gen.report.results import Result, split_conditions
from lit_gen.report.rows import Row, quantile, tail
from tests.report.test_leaderboard import content, result


def evaluation(folder: Path, model: str, values: torch.Tensor, seed: int = 0, training_seed: int = 0) -> Result:
    """Return a result whose score is the mean of values (n,), one per sample."""
    changes: dict[str, Any] = {"run__identity": f"{model}-{training_seed}", "run__recipe": model}
    data = content(model, float(values.mean()), seed=seed, training_seed=training_seed, **changes)
    deviations = mean_deviations(values)
    data["standard_errors"] = {"fd_digits": float(deviations.std())}
    path = folder / f"{model}-{training_seed}" / "evaluations" / f"e{seed}" / "result.json"
    path.parent.mkdir(parents=True)
    save_deviations(path, {"fd_digits": deviations.numpy()})
    return result(path, data)


def with_values(own: Result, **values: Any) -> Result:
    """Return a result with other values of some keys."""
    return replace(own, record=replace(own.record, **values))


def samples(generator: torch.Generator, mean: float, common: torch.Tensor | float = 0.0, n: int = 120) -> torch.Tensor:
    return mean + torch.randn(n, generator=generator, dtype=torch.float64) + common


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["common", pytest.param("of each", marks=pytest.mark.exhaustive)])
def test_differences_lie_in_their_intervals_and_common_noise_cancels(tmp_path: Path, noise: str) -> None:
    generator = torch.Generator().manual_seed(5)
    held, widths, repeats = 0, [], 400
    for index in range(repeats):
        common = 3 * torch.randn(120, generator=generator, dtype=torch.float64) if noise == "common" else 0.0
        one, other = samples(generator, 10.2, common), samples(generator, 10.0, common)
        a, b = (Row(None, [evaluation(tmp_path / str(index), name, each)]) for name, each in (("A", one), ("B", other)))
        found = compare(a, b, "fd_digits")
        assert found.paired and found.spread is not None
        assert found.difference == pytest.approx(float(one.mean() - other.mean()))
        held += abs(found.difference - 0.2) <= found.spread.half_width
        widths.append(found.spread.half_width)
    assert 0.93 <= held / repeats <= 0.97
    assert np.mean(widths) == pytest.approx(
        1.96 * math.sqrt(2 / 120), rel=0.05
    )  # as wide with and without common noise


@pytest.mark.slow
@pytest.mark.exhaustive
def test_several_training_seeds_have_the_interval_of_student(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(6)
    held, repeats = 0, 400
    for index in range(repeats):
        rows = []
        for name, truth in (("A", 10.5), ("B", 10.0)):
            results = []
            for seed in range(4):
                trained = truth + float(torch.randn((), generator=generator))  # another network for each seed
                each = samples(generator, trained)
                results.append(evaluation(tmp_path / str(index), name, each, training_seed=seed))
            rows.append(Row(None, results))
        found = compare(rows[0], rows[1], "fd_digits")
        assert found.spread is not None and found.spread.freedom == 3
        held += abs(found.difference - 0.5) <= found.spread.half_width
        held += abs(rows[0].mean("metrics.fd_digits") - 10.5) <= rows[0].spread("fd_digits").half_width  # type: ignore[union-attr]
    assert 0.93 <= held / (2 * repeats) <= 0.97


def test_samplers_of_the_same_networks_are_paired_by_training_seed(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(7)
    rows: list[list[Result]] = [[], []]
    for seed, trained in enumerate((0.0, 5.0, -3.0, 8.0)):
        for row, gain in zip(rows, (0.0, 0.5), strict=True):
            values = samples(generator, 20 + trained + gain, n=4000)
            name = f"S{gain}"
            row.append(evaluation(tmp_path, name, values, training_seed=seed))
    a, b = Row(None, rows[0]), Row(None, rows[1])
    found = compare(a, b, "fd_digits")
    assert found.distinct and found.paired and found.difference == pytest.approx(-0.5, abs=0.1)
    spread = a.spread("fd_digits")
    assert spread is not None and spread.half_width > 5, "each row alone is far more uncertain than their difference"
    unpaired = compare(a, Row(None, rows[1][:3]), "fd_digits")
    assert not unpaired.paired and not unpaired.distinct


def test_several_sampling_seeds_shrink_the_interval(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(8)
    results = [evaluation(tmp_path, "A", samples(generator, 3.0, n=1000), seed=seed) for seed in range(4)]
    one, four = Row(None, results[:1]).spread("fd_digits"), Row(None, results).spread("fd_digits")
    assert one is not None and four is not None
    assert four.error == pytest.approx(one.error / 2, rel=0.1) and math.isinf(four.freedom)
    assert Row(None, results).seeds == "1 (4 evaluations)" and Row(None, results[:1]).seeds == "1"


def test_rows_that_do_not_beat_each_other_share_a_rank(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(400, generator=generator, dtype=torch.float64)
    results = [evaluation(tmp_path, name, noise * 2 + mean) for name, mean in (("A", 5.0), ("D", 5.0 + 1e-9))]
    for name, mean in (("B", 5.05), ("C", 6.5)):
        results.append(evaluation(tmp_path, name, samples(generator, mean, n=400) * 2 - mean))
    ranks = {row.first.model: row.rank for row in rank(results).rows}
    assert ranks["B"] == 1 and ranks["C"] == 4
    # the same noise: the smallest difference is told apart
    assert (ranks["A"], ranks["D"]) == (1, 2)


def test_what_is_not_known_is_taken_from_the_other_row_or_said(tmp_path: Path) -> None:
    known = evaluation(tmp_path, "A", samples(torch.Generator().manual_seed(1), 4.0))
    bare = result(tmp_path / "none" / "result.json", content("B", 4.1))
    assert not compare(Row(None, [known]), Row(None, [bare]), "fd_digits").distinct
    blind = compare(Row(None, [bare]), Row(None, [result(tmp_path / "x", content("C", 4.2))]), "fd_digits")
    assert blind.distinct and blind.spread is None and blind.p_value is None
    assert describe(blind, "B", "C", "fd_digits", "lower") == "fd_digits: B is ahead of C by 0.1; the noise is unknown"


def test_the_sentence_names_the_winner_its_lead_and_how_sure_it_is(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = [
        Row(None, [evaluation(tmp_path, name, samples(generator, mean, n=900))])
        for name, mean in (("A", 3.0), ("B", 4.0), ("C", 4.01))
    ]
    a_b = compare(rows[0], rows[1], "fd_digits")
    text = describe(a_b, "A", "B", "fd_digits", "lower")
    assert text.startswith("fd_digits: A beats B by ") and "(paired, 95% interval, p < 1e-12)" in text
    assert describe(a_b, "A", "B", "fd_digits", "higher").startswith("fd_digits: B beats A by ")
    b_c = compare(rows[1], rows[2], "fd_digits")
    assert "B and C cannot be told apart" in describe(b_c, "B", "C", "fd_digits", "lower")
    z = b_c.difference / b_c.spread.error  # type: ignore[union-attr]
    assert b_c.p_value == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=1e-9)


def test_damaged_deviations_are_as_none(tmp_path: Path) -> None:
    one = evaluation(tmp_path, "A", samples(torch.Generator().manual_seed(1), 4.0))
    one.path.with_name("deviations.npz").write_bytes(b"PK not an archive")
    row = Row(None, [one])
    assert row.deviations("fd_digits") is None and row.spread("fd_digits") is not None


def test_a_row_survives_unless_a_row_of_no_more_cost_beats_it(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(11)
    results = []
    facts = (
        ("cheap", 9.0, 5, 7),
        ("level", 9.02, 6, 5),
        ("worse", 12.0, 6, 6),
        ("best", 3.0, 20, 9),
        ("slow", 3.9, 40, 2),
    )
    for name, mean, nfe, flops in facts:
        own = evaluation(tmp_path, name, samples(generator, mean, n=400))
        results.append(with_values(own, nfe=float(nfe), flops_per_image=flops))
    kept = {against: {row.first.model for row in pareto(rank(results), against).rows} for against in ("nfe", "flops")}
    assert kept["nfe"] == {"cheap", "level", "best"}, "what is level within the noise is not beaten"
    assert kept["flops"] == {"best", "slow"}
    results[0] = with_values(results[0], flops_per_image=ABSENT)
    assert "cheap" not in {row.first.model for row in pareto(rank(results), "flops").rows}
    results = [with_values(own, flops_per_image=ABSENT) for own in results]
    with pytest.raises(UserError, match="--against: no result has the flops of an image"):
        pareto(rank(results), "flops")


def test_rows_are_chosen_for_a_comparison_by_conditions(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    results = [evaluation(tmp_path, name, samples(generator, mean, n=400)) for name, mean in (("A", 3.0), ("B", 5.0))]
    board = rank(results)
    assert paired(board, "model=B", "model=A").startswith("fd_digits: A DDIM nfe 10 beats B DDIM nfe 10 by ")
    refused = {
        ("model=A", "model=A,nfe=10"): "--paired: model=A and model=A,nfe=10 select the same row",
        ("nfe=10", "model=A"): "--paired: nfe=10 selects 2 rows",
        ("model=X", "model=A"): "--paired model=X: no result fits; choose one of the values of model: A, B",
        ("model", "model=A"): "--paired model: expected KEY=VALUE",
        ("model=A,colour=red", "model=B"): "--paired colour=red: no result has the key colour",
    }
    for (one, other), message in refused.items():
        with pytest.raises(UserError) as error:
            paired(board, one, other)
        assert str(error.value).startswith(message)


def test_commas_in_the_values_of_conditions(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    names = ("EDM, class-conditional", "EDM(a=1,b=2)", "[1, 2]")
    results = [evaluation(tmp_path, name, samples(generator, 3.0 + n, n=400)) for n, name in enumerate(names)]
    board = rank(results)
    for one, other in itertools.permutations(names, 2):
        assert one in paired(board, f"model={one},nfe=10", f"seed=0,model={other}")
    assert split_conditions("a=[0.1,x=2],b.c=3, 4,d=") == ["a=[0.1,x=2]", "b.c=3, 4", "d="]


@pytest.mark.parametrize("freedom", [1, 4, 30])
def test_quantiles_and_tails_are_those_of_student(freedom: int) -> None:
    assert tail(quantile(freedom), freedom) == pytest.approx(0.05, rel=1e-9)
    assert quantile(1) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-9)
    assert quantile(math.inf) == pytest.approx(1.959964, rel=1e-6) and tail(quantile(math.inf), math.inf) < 0.0500001


def test_training_runs_weigh_the_same_however_often_each_is_evaluated(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(12)
    rows: list[list[Result]] = [[], []]
    for training_seed, (one, other) in enumerate(((10.0, 15.0), (20.0, 15.5), (30.0, 15.2))):
        for seed in range(8 if training_seed == 0 else 1):
            rows[0].append(evaluation(tmp_path, "A", samples(generator, one, n=900), seed, training_seed))
        rows[1].append(evaluation(tmp_path, "B", samples(generator, other, n=900), 0, training_seed))
    a, b = Row(None, rows[0]), Row(None, rows[1])
    assert a.mean("metrics.fd_digits") == pytest.approx(20, abs=0.1)
    assert compare(a, b, "fd_digits").difference == pytest.approx(4.8, abs=0.2)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_single_training_run_is_as_uncertain_as_those_of_the_other_row(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(13)
    false, repeats = 0, 200
    for index in range(repeats):
        trained = (10 + torch.randn(6, generator=generator, dtype=torch.float64)).tolist()
        alone = evaluation(tmp_path / str(index), "A", samples(generator, trained[0], n=100))
        several = [
            evaluation(tmp_path / str(index), "B", samples(generator, mean, n=100), training_seed=seed)
            for seed, mean in enumerate(trained[1:], 1)
        ]
        false += compare(Row(None, [alone]), Row(None, several), "fd_digits").distinct
    assert false / repeats < 0.1, "without the spread of training it is a third"


def test_unlike_sampling_seeds_are_not_called_paired_and_equal_rows_not_ahead(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(14)
    a, b = (
        Row(None, [evaluation(tmp_path, name, samples(generator, 3.0), seed)]) for name, seed in (("A", 0), ("B", 7))
    )
    assert not compare(a, b, "fd_digits").paired and compare(a, a, "fd_digits").paired
    assert describe(compare(a, a, "fd_digits"), "A", "A2", "fd_digits", "lower") == "fd_digits: A and A2 are equal"
    b.first.metrics["fd_digits"] = math.nan
    b = Row(None, b.results)
    text = describe(compare(a, b, "fd_digits"), "A", "B", "fd_digits", "lower")
    assert text == "fd_digits: A and B cannot be compared; a score is not finite"


def test_only_a_distance_ranks_by_default(tmp_path: Path) -> None:
    data = content("A", metrics={"fd_digits_infinity": 0.5, "fd_digits_per_class": 4.0, "fd_digits": 1.0})
    data["score_protocols"] = {
        name: {"metric": metric, "better": "lower"}
        for name, metric in {
            "fd_digits_infinity": "FrechetInfinity",
            "fd_digits_per_class": "PerClassFrechet",
            "fd_digits": "FrechetDistance",
        }.items()
    }
    assert rank([result(tmp_path / "r", data)]).by == "fd_digits"


def test_splits_of_the_inception_score_do_not_make_two_rows_of_one_evaluation(tmp_path: Path) -> None:
    results = []
    for splits in (1, 10):
        data = content("A", created=f"2026-11-28T10:{splits:02}:00")
        data["protocol"]["inception_splits"] = splits
        results.append(result(tmp_path / str(splits), data))
    assert len(rank(results).rows) == 1
    with pytest.raises(UserError, match="inception_splits"):
        rank(results, by="inception_score")
