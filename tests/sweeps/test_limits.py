"""Sweep files without end, or that name files without end: refused within a moment, or read lazily."""

import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_gen.core.errors import UserError
from lit_gen.sweeps.distributions import FIELDS
from lit_gen.sweeps.named_files import MAX_FILES
from lit_gen.sweeps.spec import MAX_TRIALS, load_sweep


def write(folder: Path, **config: Any) -> Path:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


AXES = {f"k{n}": {"values": [*range(1000)]} for n in range(3)}
ENDLESS: list[tuple[dict[str, Any], str]] = [
    (AXES, "1,000,000,000 trials"),
    ({"a": {"min": 0, "max": 10**9}}, "1,000,000,001 trials"),
    ({"a": {"min": 0, "max": 10**60}}, "about 10\\^60 trials"),
    ({"a": {"min": 0.0, "max": 1e9, "q": 0.5, "distribution": "q_uniform"}}, "2,000,000,000 trials"),
    ({"a": {"min": 0, "max": 1, "q": 5e-324, "distribution": "q_uniform"}}, r"a\.q: .* too small"),
    ({"outer": {"parameters": AXES}}, "1,000,000,000 trials"),
    ({"a": {"min": 1, "max": MAX_TRIALS + 1}}, "100,001 trials, and the limit is 100,000"),
]


@pytest.mark.parametrize(("parameters", "words"), ENDLESS)
def test_a_grid_is_counted_before_it_is_listed(tmp_path: Path, parameters: dict[str, Any], words: str) -> None:
    begin = time.process_time()
    with pytest.raises(UserError, match=words):
        load_sweep([write(tmp_path, method="grid", parameters=parameters)])
    assert time.process_time() - begin < 2


def test_the_beginning_of_a_grid_without_end_is_a_sweep(tmp_path: Path) -> None:
    begin = time.process_time()
    parameters = {"a": {"values": ["x", "y"]}, "b": {"min": 5, "max": 10**9}, "c": {"value": 1}}
    for settings_of, count in (({"run_cap": 3}, None), ({}, 3)):
        trials = load_sweep([write(tmp_path, method="grid", parameters=parameters, **settings_of)], count=count).trials
        assert [trial.parameters for trial in trials] == [{"a": "x", "b": b, "c": 1} for b in (5, 6, 7)]
    steps = {"a": {"min": 0.5, "max": 1e9, "q": 0.25, "distribution": "q_uniform"}}
    trials = load_sweep([write(tmp_path, method="grid", parameters=steps, run_cap=4)]).trials
    assert [trial.parameters["a"] for trial in trials] == [0.5, 0.75, 1, 1.25]
    with pytest.raises(UserError, match="200,000 trials"):
        load_sweep([write(tmp_path, method="random", parameters={"a": {"min": 0.0, "max": 1.0}}, run_cap=200_000)])
    assert time.process_time() - begin < 2


Q = {"distribution": "q_uniform"}


def test_points_drawn_twice_are_said(tmp_path: Path) -> None:
    coins = {"a": {"values": [1, 2]}}
    sweep = load_sweep([write(tmp_path, method="random", parameters=coins, run_cap=7)])
    assert len(sweep.trials) == 2
    (note,) = sweep.notes
    found = f"{sweep.files[0]}: 7 settings give 2 distinct trials; "
    assert note.startswith(found) and "add values" in note and "run_cap" not in note, "there are no more"
    (note,) = load_sweep([write(tmp_path, method="grid", parameters={"a": {"values": [1, 2, 1.0, 3]}})]).notes
    assert "4 settings give 3 distinct trials" in note
    many = {"a": {"min": 1, "max": 30}, "b": {"parameters": {"c": {"min": 0, "max": 1, "q": 0.5, **Q}}}}
    (note,) = load_sweep([write(tmp_path, method="random", parameters=many, run_cap=60)]).notes
    assert "raise run_cap or --count" in note and "add values" not in note
    (note,) = load_sweep([write(tmp_path, method="random", parameters=many, run_cap=1500)]).notes
    assert "1500 settings give 90 distinct trials; " in note and "add values" in note
    certain = {"a": {"values": [1, 2], "probabilities": [1.0, 0.0]}, "n": {"value": 3}}
    (note,) = load_sweep([write(tmp_path, method="random", parameters=certain, run_cap=2)]).notes
    assert "add values" in note
    continuous = {"a": {"min": 0.0, "max": 1.0}}
    assert load_sweep([write(tmp_path, method="random", parameters=continuous, run_cap=7)]).notes == []


def test_a_sweep_file_is_a_regular_file_within_limits(tmp_path: Path) -> None:
    bomb = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))])
    contents: dict[str, str | bytes] = {
        "bomb": f"method: grid\n{bomb}",
        "cycle": "method: grid\nparameters: &p {a: {value: *p}}",
        "deep": f"method: grid\nparameters: {{a: {{value: {'[' * 200}{']' * 200}}}}}",
        "twice": "method: grid\nparameters: {a: {value: 1}, a: {value: 2}}",
        "bytes": b"\xff\xfe\x00",
        "digits": f"method: grid\nparameters: {{a: {{min: 0, max: {'9' * 5000}}}}}",
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "self.yaml").symlink_to(tmp_path / "self.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError) as error:
            load_sweep([path])
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError):
        load_sweep(["nul\x00.yaml"])


def test_files_that_trials_name_may_be_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no configuration is the trial's to complain of; it does not hang the sweep."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.yaml")
    Path("self.yaml").write_text("a: self.yaml\nb: [fifo.yaml, other.yaml]")
    Path("other.yaml").write_text("a: self.yaml")
    Path("bomb.yaml").write_text(
        "\n".join(["a: &a [x, x]", *(f"b{n}: &a [{', '.join(['*a'] * 9)}]" for n in range(9))])
    )
    names = ["fifo.yaml", "self.yaml", "bomb.yaml", "gone.yaml", "/dev/null/x.yaml", "a\x00.yaml"]
    path = Path("sweep.yaml")
    path.write_text(yaml.safe_dump({"method": "grid", "parameters": {"config": {"values": names}}}))
    assert len(load_sweep([path]).trials) == len(names)
    for name in ("l1", "l2"):
        Path(name).symlink_to(".")
    Path("c.yaml").write_text("[l1/c.yaml, l2/c.yaml]")
    path.write_text(yaml.safe_dump({"method": "grid", "parameters": {"config": {"value": "c.yaml"}}}))
    with pytest.raises(UserError, match=f"more than {MAX_FILES} configuration files"):
        load_sweep([path])


NUMBERS = st.sampled_from(
    [0, 1, -1, 3, 10**9, 10**400, -(10**400), 0.5, 1e-320, 1e308, -1e308, math.inf, math.nan, 1e17]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.dates() | st.binary(max_size=3),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), part, max_size=3),
    max_leaves=5,
)
FIELD = st.sampled_from(sorted({key for fields in FIELDS.values() for key in fields}))
ENTRY = st.fixed_dictionaries(
    {}, optional={"distribution": st.sampled_from([*FIELDS, "", 3]), "parameters": st.just({"x": {"value": 1}})}
).flatmap(lambda entry: st.dictionaries(FIELD, NUMBERS | ANYTHING, max_size=4).map(lambda fields: entry | fields))
WELL_MADE = st.one_of(
    [
        st.fixed_dictionaries(
            {"distribution": st.just(name)}
            | {
                key: st.lists(ANYTHING, min_size=1, max_size=3)
                if key == "values"
                else st.just([1.0])
                if key == "probabilities"
                else NUMBERS
                for key in fields
            }
        )
        for name, fields in FIELDS.items()
    ]
)
SWEEPS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["grid", "random"]) | ANYTHING,
        "parameters": st.dictionaries(st.sampled_from("abc") | st.text(max_size=3), ENTRY | WELL_MADE, max_size=3)
        | ANYTHING,
    },
    optional={
        "run_cap": st.just(4) | NUMBERS,
        "name": st.text(max_size=10) | ANYTHING,
        "command": st.lists(st.sampled_from(["run", "${args}", "${args_no_boolean_flags}", "${x}"]) | ANYTHING)
        | ANYTHING,
        "metric": ANYTHING,
    },
)


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(SWEEPS)
def test_any_sweep_is_read_or_refused_in_one_line(config: dict[str, Any]) -> None:
    try:
        text = yaml.safe_dump(config, allow_unicode=False)
    except (yaml.YAMLError, TypeError, ValueError):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.yaml"
        path.write_text(text)
        try:
            sweep = load_sweep([path], count=5)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500
        else:
            assert 1 <= len(sweep.trials) <= 5
            assert all(isinstance(word, str) for trial in sweep.trials for word in trial.arguments)
