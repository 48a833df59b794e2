"""Results of someone else, or damaged ones: named and left out, and their names are shown letter by letter."""

import copy
import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.pictures.figures import numbers_of
from lit_gen.report import plots
from lit_gen.report.leaderboard import rank
from lit_gen.report.page import write_page
from lit_gen.report.render import print_table, to_budget_table, to_csv, to_json, to_markdown
from lit_gen.report.results import load_results, read_result
from lit_gen.report.trainings import read_curves
from lit_gen.sweeps.results import current_results
from tests.behaviour.hostile import NAMES, edit_tree
from tests.report.test_leaderboard import DDIM, content, results, with_likelihood, write

SHOWN = [name for name in NAMES if name.isprintable() and 0 < len(name) < 100]
"""Names that a result.json may hold; the others are refused."""


def full(name: str = "A", **changes: Any) -> dict:
    guidance = {"weight": 1.5, "interval": [0.0, "inf"]}
    sampler = DDIM | {"guidance": guidance, "schedule": {"name": "VE", "sigma_max": 20.0}}
    data = with_likelihood(content(name, sampler=sampler, run__recipe="r" + name, run__finished=True), 3.0)
    return data | {"earlier_seconds": 1.0, "reconstruction": {"protocol": {"split": "test"}}} | changes


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_result_is_named_and_left_out(tmp_path: Path, seed: int) -> None:
    """Whatever 25 results have in some place, the good one is ranked among those that are left, in every form."""
    rng = random.Random(seed)
    good = write(tmp_path, full("good"))
    for number in range(25):
        data = full(f"B{number}", nfe=10.0 + number)
        edit_tree(data, rng)
        path = tmp_path / f"b{number}" / "evaluations" / "e" / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(data))
    with pytest.warns(UserWarning, match="left out") as said:
        found = load_results(tmp_path)
    assert good in [result.path for result in found]
    for warning in said:
        assert "result.json" in str(warning.message) and str(warning.message).isprintable()
    protocol = read_result(good).protocol
    alike = [result for result in found if result.protocol == protocol and "fd_digits" in result.metrics]
    board = rank(alike)
    forms = [to_markdown(board), to_csv(board), to_json(board), to_budget_table(board, [10, 50])]
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    print_table(board, console)
    for form in forms:
        assert "good" in form
        form.encode()
    if seed == 0:
        plots.distance_vs_cost(alike, tmp_path / "p.png")


WRONG: dict[str, list[Any]] = {
    "run": [None, [], "text", {}],
    "model": [None, 3, [], "\x1b[31m", "\ud800", "y" * 2000, "a\nb", "\u202ex"],
    "nfe": [0, -1, "10", None, True, 1e999, 10**400, float("nan")],
    "num_parameters": [2**63, -1, 1.5, "1 M"],
    "metrics": [[], {"fd_digits": "1.0"}, {"fd_digits": None}, {"fd_digits": 1e200}],
    "sampler": [
        *([], "DDIM", {}, {"name": 3}, {"name": "D", "grid": []}, {"name": "D", "grid": {}}),
        *({"name": "D", "guidance": value} for value in ({}, {"weight": 1, "interval": [1]}, 3)),
    ],
    "protocol": [[], {}, {"data": 3}, {"data": "d", "image_shape": "8x8"}, {"data": "d", "data_fingerprint": []}],
    "other_data": [[], {}, "ab", {"trained_on": "ab"}, {"trained_on": 3, "given": "ab"}, {"given": "ab"}],
    "likelihood": [[], {}, {"protocol": {"method": "Euler"}}, {"protocol": {"kind": {}}}],
    "timing": [{}, {"images_per_second": 0}, []],
    "created": [3, {}],
    "training_seconds": ["60", -1.0, float("nan")],
    "training_flops": ["60", -1.0, float("nan")],
    "least_of": ["3", -1],
    "seed": [-1, 1.5, 2**63],
    "schema": [2, True, "1", None, []],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [pytest.param(key, value, id=f"{key}{place}") for key in WRONG for place, value in enumerate(WRONG[key])],
)
def test_a_wrong_field_is_named(tmp_path: Path, key: str, value: Any) -> None:
    path = write(tmp_path, content())
    assert read_result(path).model == "DDPM"
    path.write_text(json.dumps(content() | {key: value}))
    with pytest.raises(UserError, match="not valid JSON" if value == 10**400 else key) as error:
        read_result(path)
    assert str(error.value).startswith(str(path)) and str(error.value).isprintable() and len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training_seconds", None),
        ("training_seconds", 0.0),
        ("first_stage", None),
        ("other_data", None),
        ("metrics", {"fd_digits": float("nan"), "bits_per_dim_stderr": float("inf")}),
        ("training_seed", True),
        ("created", "2026-11-23T15:00:00"),
    ],
)
def test_what_older_versions_wrote_is_read(tmp_path: Path, key: str, value: Any) -> None:
    data = content() | {key: value}
    path = write(tmp_path, data)
    read = read_result(path).record.to_dict()
    read["protocol"].pop("drawn_classes")  # which older results do not name
    assert json.dumps(read) == json.dumps(data)
    print_table(rank(load_results(tmp_path)), Console(file=io.StringIO(), width=300))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(*[st.sampled_from(SHOWN)] * 4)
def test_names_are_shown_letter_by_letter(model: str, run: str, sampler: str, metric: str) -> None:
    data = content(model, run__name=run, sampler=DDIM | {"name": sampler, "note": model})
    data["metrics"] = {"fd_digits": 1.0, metric: 2.0}
    board = rank(results(data, content("B", 2.0, metrics={"fd_digits": 2.0, metric: 1.0})))
    file = io.StringIO()
    print_table(board, Console(file=file, width=1000))
    for name in (model, run, sampler, metric):
        assert name.strip() in file.getvalue()
    lines = [line for line in to_markdown(board).splitlines() if line.startswith("| ")]
    assert len({len(line.replace("\\\\", "").replace("\\|", "").split("|")) for line in lines}) == 1 and len(lines) == 4
    rows = list(csv.reader(io.StringIO(to_csv(board))))
    assert all(cell[:1] not in ("=", "@", "+") for row in rows for cell in row)
    assert [len(row) for row in rows] == [len(rows[0])] * 3 and rows[1][1].lstrip("'") == model.lstrip("'")


def test_hostile_names_reach_neither_the_terminal_nor_the_page_raw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("[/red]", "$x^{$", "</script><script>x", "<b>", "_hidden")
    for number, name in enumerate(names):
        path = tmp_path / f"r\x1b[31m\udcff{number}" / "evaluations" / "e" / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content(name, 1.0 + number, run__name=name)))
        np.savez(path.with_name("samples.npz"), images=np.zeros((2, 1, 8, 8), np.uint8))
        path.parents[2].joinpath("metrics.csv").write_text("images,train/$x^{$,[/red]\n1,2.0,3\n2,nan,1e99\n")
    bad = write(tmp_path / "bad\x1b]0;t\x07", content("C") | {"nfe": "many"})
    for words in (["leaderboard", "."], ["leaderboard", ".", "--csv"], ["report", ".", "--out", "page.html"]):
        with pytest.warns(UserWarning):
            assert main(words) == 0
        out = "".join(capsys.readouterr())
        assert "\x1b" not in out and "\x07" not in out
    with pytest.raises(UserError):
        read_result(bad)
    page = Path("page.html").read_text()
    assert "\x1b" not in page and "<b>" not in page and "<script>x" not in page and "&lt;script&gt;x" in page
    assert page.count(" against images seen; last: ") == 2 * len(names)
    assert main(["leaderboard", "nowhere\x1b[31m"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_samples_that_cannot_be_shown_are_left_out(tmp_path: Path) -> None:
    images = np.zeros((4, 1, 8, 8), np.uint8)
    wrong: dict[str, Any] = {
        "two_channels": images.repeat(2, 1),
        "none": images[:0],
        "one_image": images[0],
        "floats": images / 2.0,
        "texts": np.array([["a"]]),
        "objects": np.array([{}], dtype=object),
        "wide": np.zeros((1, 1, 1, 5000), np.uint8),
    }
    for name, array in ({"good": images} | wrong).items():
        path = write(tmp_path, content(name))
        np.savez(path.with_name("samples.npz"), images=array)
    write(tmp_path, content("torn")).with_name("samples.npz").write_bytes(b"PK\x03\x04rest")
    with pytest.warns(UserWarning, match=r"samples\.npz: cannot read .*leave it out") as said:
        drawn = plots.side_by_side(load_results(tmp_path), tmp_path / "s.png")
    assert [row["model"] for row in numbers_of(drawn)] == ["good"] and len(said) == len(wrong) + 1
    with pytest.raises(UserError, match="cannot read the samples"):
        plots.side_by_side(load_results(tmp_path / "digits_torn-0"), tmp_path / "s.png")


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n",
        "images,a\nx,2\n",
        "images,a\n1,b\n",
        "images,a\n1,2,3\n",
        "images,a\n1\n",
        "images,a\n-1,2\n",
        "images,a\n1.5,2\n",
        "images,a\n1,1e300\n",
        "images,a,a\n1,2,3\n",
        "images,\x1b\n1,2\n",
        f"images,a\n1,{'9' * 200_000}\n",
        f"images,{','.join(map(str, range(300)))}\n",
        'images,a\n"1,2\n',
    ],
)
def test_damaged_curves_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"metrics\.csv: ") as error:
        read_curves(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_a_torn_last_line_of_curves_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("images,a\n1,2.5\n2,nan\n3,4.")
    assert str(read_curves(path)) == str({"a": [(1.0, 2.5), (2.0, float("nan"))]})
    path.write_text("\r\n")
    assert read_curves(path) == {}


def test_a_page_stands_without_what_is_damaged(tmp_path: Path) -> None:
    for name in ("A", "B"):
        path = write(tmp_path, content(name))
        np.savez(path.with_name("samples.npz"), images=np.zeros((2, 1, 8, 8), np.uint8))
        write(tmp_path, content(f"{name}2", metrics={"kid": 1.0}, protocol__split="test"), "other")
    run = path.parents[2]
    (run / "metrics.csv").write_text("no numbers\n")
    (run / "samples").mkdir()
    (run / "samples" / "images-1.png").write_text("no picture")
    (run / "config.yaml").mkdir()
    with pytest.warns(UserWarning) as said:
        write_page(load_results(tmp_path), tmp_path / "page.html", "title")
    left_out = ("its curves", "this picture", "its configuration", "results of this protocol")
    messages = [str(warning.message) for warning in said]
    for what in left_out:
        assert sum(what in message and "the page leaves" in message for message in messages) == 1
    text = (tmp_path / "page.html").read_text()
    assert f'id="{run.name}"' in text and text.count('alt="samples of ') == 2


def test_results_of_older_versions_are_on_the_page(tmp_path: Path) -> None:
    """They lack parts of the protocol, so the page has no real images, and commands that repeat the whole run."""
    for name in ("A", "B"):
        data = content(name)
        data["protocol"] = {"data": "digits"}
        path = write(tmp_path, data)
        np.savez(path.with_name("samples.npz"), images=np.zeros((2, 1, 8, 8), np.uint8))
        (path.parents[2] / "config.yaml").write_text("model: VAE\n")
    text = write_page(load_results(tmp_path), tmp_path / "page.html", "title").read_text()
    assert text.count("--evaluation-only") == 2 and "Real images are not shown." in text
    plots.side_by_side(load_results(tmp_path), tmp_path / "samples.png")


def test_a_damaged_list_of_trials_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps" / "s"
    folder.mkdir(parents=True)
    write(tmp_path, content())
    event = {"event": "finished", "result": "digits_DDPM-0/evaluations/e/result.json"}
    lines: list[dict[str, Any]] = [event | {"trial": trial} for trial in ("a", "b")]
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "trials.json").write_text('["b"]')
    assert [*current_results(folder)] == ["b"]
    for text in ('{"b": 1}', "[[]]", "[", "[3]"):
        (folder / "trials.json").write_text(text)
        with pytest.warns(UserWarning, match=r"trials\.json: "):
            assert [*current_results(folder)] == ["a", "b"]
    damages: list[dict[str, Any]] = [{"trial": []}, {"event": 3, "trial": "a"}, lines[0] | {"result": {}}]
    for line in damages:
        (folder / "journal.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(lines[0]) + "\n")
        with pytest.raises(UserError, match="line 1 is damaged"):
            current_results(folder)


def test_equal_results_share_a_rank() -> None:
    """1, 2, 2, 4; what is nearly equal does not; a row of two seeds is too uncertain to be beaten."""
    third = 1.0 / 3.0
    found = results(
        content("A", third),
        content("B", 0.25),
        content("C", third),
        content("D", third + 1e-16),
        content("E", 2.0, run__recipe="e"),
        content("E", 4.0, run__recipe="e", seed=1),
        content("F", 3.0),
        content("G", float("nan")),
    )
    board = rank(found)
    ranks = [1, 2, 2, 4, 1, 5, None]
    assert third != third + 1e-16
    assert [(row.rank, row.first.model) for row in board.rows] == list(zip(ranks, "BACDEFG", strict=True))
    shown = [str(number or "-") for number in ranks]
    assert [line.split(" | ")[0].strip("| ") for line in to_markdown(board).splitlines()[4:11]] == shown
    assert [row["rank"] for row in json.loads(to_json(board))["rows"]] == ranks
    assert [row["rank"] or "-" for row in csv.DictReader(io.StringIO(to_csv(board)))] == shown
    file = io.StringIO()
    print_table(board, Console(file=file))
    lines = [
        line for line in file.getvalue().splitlines() if line.split()[0] in (*shown, "-") and "interval" not in line
    ]
    assert [line.split()[0] for line in lines] == shown
    higher = rank(copy.deepcopy(found[:3]), by="inception_score")
    assert [(row.rank, row.first.model) for row in higher.rows] == [(1, "B"), (2, "A"), (2, "C")]
    table = to_budget_table(rank(results(content("A", 1.0), content("B", 1.0), content("C", 2.0))), [10])
    assert table.count("**1.000**") == 2 and "**2.000**" not in table
