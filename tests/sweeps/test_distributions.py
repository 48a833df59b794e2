import random
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lit_gen.core.errors import UserError
from lit_gen.sweeps.distributions import FIELDS, parse_distribution

E, LOG = np.exp, np.log
# W&B's definitions in SciPy: entry -> frozen distribution whose ppf ours must be.
CONTINUOUS: list[tuple[dict[str, Any], Any]] = [
    ({"min": 1.0, "max": 5}, stats.uniform(1, 4)),
    ({"min": -2, "max": 3, "distribution": "uniform"}, stats.uniform(-2, 5)),
    ({"min": -3, "max": 2, "distribution": "log_uniform"}, stats.loguniform(E(-3), E(2))),
    ({"min": -3, "max": 2, "distribution": "inv_log_uniform"}, stats.loguniform(E(-2), E(3))),
    ({"min": 0.01, "max": 2, "distribution": "log_uniform_values"}, stats.loguniform(0.01, 2)),
    ({"min": 0.01, "max": 2, "distribution": "inv_log_uniform_values"}, stats.loguniform(0.01, 2)),
    ({"distribution": "normal"}, stats.norm(0, 1)),
    ({"distribution": "normal", "mu": 2, "sigma": 0.3}, stats.norm(2, 0.3)),
    ({"distribution": "log_normal", "mu": 0.5, "sigma": 0.2}, stats.lognorm(s=0.2, scale=E(0.5))),
]
QUANTISED = [
    (entry | {"distribution": f"q_{entry['distribution']}"}, reference)
    for entry, reference in CONTINUOUS
    if f"q_{entry.get('distribution')}" in FIELDS
]
UNIFORM = np.random.default_rng(0).uniform(size=200)


@pytest.mark.parametrize(("entry", "reference"), CONTINUOUS)
def test_quantile_functions_equal_scipys(entry, reference):
    distribution = parse_distribution(entry, "f")
    ours = [distribution.quantile(float(u)) for u in UNIFORM]
    np.testing.assert_allclose(ours, reference.ppf(UNIFORM), rtol=1e-9)


@pytest.mark.parametrize(("entry", "reference"), QUANTISED)
@pytest.mark.parametrize("q", [0.25, 2, None])
def test_quantised_draws_are_rounded_to_multiples(entry, reference, q):
    distribution = parse_distribution(entry | ({"q": q} if q else {}), "f")
    ours = [distribution.quantile(float(u)) for u in UNIFORM]
    step = q or 1.0
    np.testing.assert_allclose(ours, np.round(reference.ppf(UNIFORM) / step) * step, rtol=1e-9)
    assert all(isinstance(value, int) == (q == 2) for value in ours)


def test_discrete_quantiles():
    values = ["a", None, 3]
    categorical = parse_distribution({"values": values}, "f")
    assert [categorical.quantile(u) for u in (0.0, 0.33, 0.34, 0.66, 0.67, 0.999)] == ["a", "a", None, None, 3, 3]
    weighted = parse_distribution({"values": values, "probabilities": [0.5, 0, 0.5]}, "f")
    assert [weighted.quantile(u) for u in (0.0, 0.49, 0.5, 1 - 2**-53)] == ["a", "a", 3, 3]
    whole = parse_distribution({"min": -1, "max": 1}, "f")
    assert [whole.quantile(u) for u in (0.0, 0.33, 0.34, 0.66, 0.67, 0.999)] == [-1, -1, 0, 0, 1, 1]
    assert parse_distribution({"value": None}, "f").quantile(0.3) is None


def test_beta_draws_have_the_moments_of_the_distribution():
    rng = random.Random(0)
    for entry in ({"distribution": "beta", "a": 2, "b": 5}, {"distribution": "q_beta", "a": 2, "b": 5, "q": 0.001}):
        draws = [parse_distribution(entry, "f").sample(rng) for _ in range(4000)]
        assert np.mean(draws) == pytest.approx(2 / 7, abs=4 * np.sqrt(2 * 5 / (49 * 8) / 4000))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, ["value"]),
        ({"min": 1}, ["value"]),
        ({"value": 1, "values": [2]}, ["constant", "values"]),
        ({"values": 3}, [".values", "list"]),
        ({"min": 2, "max": 2}, ["min 2", "max 2"]),
        ({"min": 0, "max": 1, "q": 2}, ["int_uniform", "not q"]),
        ({"min": True, "max": 3}, [".min", "number"]),
        ({"min": "1e-3", "max": 1}, [".min", "text", "write 0.001"]),
        ({"min": 0, "max": "1e-7"}, [".max", "write 1.0e-07"]),
        ({"min": 1.5, "max": 3, "distribution": "int_uniform"}, ["whole"]),
        ({"min": 0, "max": 1, "distribution": "log_uniform_values"}, [".min", "positive"]),
        ({"min": 0, "max": 1, "distribution": "q_uniform", "q": 0}, [".q", "positive"]),
        ({"min": 0.0, "max": float("inf")}, [".max", "finite"]),
        ({"max": 1, "distribution": "uniform"}, ["needs min"]),
        ({"distribution": "gauss"}, ["gauss", "normal"]),
        ({"distribution": "normal", "sigma": -1}, [".sigma"]),
        ({"values": [1, 2], "probabilities": [0.5]}, [".probabilities", "1 of them for 2"]),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, [".probabilities", "sum to 1"]),
        ({"values": [1, 2], "probabilities": ["a", 0.6]}, [".probabilities", "number"]),
    ],
)
def test_bad_entries_name_key_and_remedy(entry, words):
    with pytest.raises(UserError) as error:
        parse_distribution(entry, "s.yaml: parameters.x")
    for word in ["s.yaml: parameters.x", *words]:
        assert word in str(error.value)
