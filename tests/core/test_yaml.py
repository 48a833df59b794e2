"""YAML is read as plain types, within limits that are said, and no key twice."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gen.core.errors import UserError
from lit_gen.core.yaml import MAX_BYTES, MAX_DEPTH, MAX_NODES, load_yaml, parse_yaml
from tests.conftest import ROOT

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
PLAIN = st.recursive(SCALARS, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=20)


def bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels + 1)]
    return "\n".join(lines)


def refused(text: str) -> str:
    with pytest.raises(UserError) as error:
        parse_yaml(text, "some.yaml")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("some.yaml: ")
    return str(error.value)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(PLAIN)
def test_what_is_dumped_is_read(value: Any) -> None:
    assert parse_yaml(yaml.safe_dump(value), "some.yaml") == value
    assert parse_yaml(yaml.safe_dump(value, default_flow_style=True), "some.yaml") == value


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.text(alphabet="ab:-[]{},&*!|>#%@`'\"? \n\t\\", max_size=40) | st.text(max_size=20))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        parse_yaml(text, "some.yaml")
    except UserError as error:
        assert len(str(error).splitlines()) == 1


def test_every_file_of_ours_reads_as_before() -> None:
    files = [*ROOT.glob("conf/**/*.yaml"), *ROOT.glob("sweeps/**/*.yaml")]
    assert len(files) > 100
    for file in files:
        assert load_yaml(file) == yaml.safe_load(file.read_text())


def test_aliases_and_merges_within_the_limits_are_read() -> None:
    text = "base: &base {lr: 1, steps: [1, 2]}\nother: {<<: *base, lr: 2}\nboth: [*base, *base]\n"
    assert parse_yaml(text, "some.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize(("levels", "width"), [(9, 9), (40, 2), (200, 2), (2, 1000)])
def test_an_expansion_beyond_the_limit_is_refused_with_the_limit(levels: int, width: int) -> None:
    limit = "100,000 keys and values" if levels < 40 else "100,000 keys and values|50 nested lists"
    assert any(said in refused(bomb(levels, width)) for said in limit.split("|"))


def test_the_limit_of_nodes_counts_what_aliases_repeat() -> None:
    fits = MAX_NODES // 100 - 2
    text = "a: &a [" + ", ".join("x" * 99) + "]\nb: [" + ", ".join(["*a"] * fits) + "]"
    assert len(parse_yaml(text, "some.yaml")["b"]) == fits
    refused(text.replace("b: [", "b: [*a, "))


@pytest.mark.parametrize("pair", ["[]", "{}"])
@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 5000, 200_000])
def test_depth_has_a_limit(pair: str, depth: int) -> None:
    text = "[" * depth + "]" * depth if pair == "[]" else "{a: " * depth + "}" * depth
    if depth <= MAX_DEPTH:
        assert parse_yaml(text, "some.yaml") is not None
    else:
        assert f"more than {MAX_DEPTH} nested lists" in refused(text)


def test_depth_counts_through_aliases() -> None:
    chain = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, MAX_DEPTH))])
    assert "nested lists" in refused(chain)
    assert parse_yaml("\n".join(chain.splitlines()[: MAX_DEPTH - 1]), "some.yaml")


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: [1, {c: *a}]}", "x: &x\n  - y: &y\n    - *x"])
def test_what_contains_itself_is_refused(text: str) -> None:
    assert "contains itself" in refused(text)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("lr: 1\nsteps: 2\nlr: 3\n", 3, "lr"),
        ("model:\n  init_args:\n    lr: 1\n    'lr': 1\n", 4, "lr"),
        ("- {a: [1, 2], b: {c: 1}, a: 2}\n", 1, "a"),
        ("a: {b: 1}\nc:\n- d: &x {e: 1}\n  f: *x\n  d: 2\n", 5, "d"),
    ],
)
def test_a_key_that_is_given_twice_is_refused_with_its_line(text: str, line: int, key: str) -> None:
    assert refused(text) == f"some.yaml: line {line}: {key} is given twice; remove one of the two"


@pytest.mark.parametrize("text", ["a: {x: 1}\nb: {x: 1}", "[a, a, a]", "a: [b, b]", "a: a", "{x: {y: {x: 1}}}"])
def test_the_same_key_elsewhere_is_no_repetition(text: str) -> None:
    assert parse_yaml(text, "some.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.getcwd []",
        "a: !!python/name:os.system ''",
        "a: !mine {b: 1}",
        "a: [1, 2",
        "a: *nothing",
        "a: 2020-99-99",
        "a: " + "9" * 5000,
        "{[a]: 1}",
        "a: 1\n---\nb: 2\n",
        "a: \x01",
    ],
)
def test_what_is_no_plain_yaml_is_one_line(text: str) -> None:
    assert "not valid YAML" in refused(text)


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_text("# " + "x" * MAX_BYTES)
    (tmp_path / "latin.yaml").write_bytes("é: 1".encode("latin1"))
    for path in (tmp_path / "pipe.yaml", tmp_path / "large.yaml", tmp_path / "latin.yaml", Path("/dev/zero")):
        with pytest.raises(UserError, match=f"^{path}: ") as error:
            load_yaml(path)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(FileNotFoundError):
        load_yaml(tmp_path / "missing.yaml")
