import copy
import csv
import inspect
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lit_gen.core.errors import UserError
from lit_gen.evaluation.result_file import ResultRecord
from lit_gen.families.diffusion import samplers
from lit_gen.families.settings import Temperature, defaults
from lit_gen.families.vq.token_sampling import TokenSampling
from lit_gen.report.leaderboard import comparable, rank
from lit_gen.report.render import print_table, to_budget_table, to_csv, to_json, to_markdown, to_table
from lit_gen.report.results import Result, load_results, read_result
from lit_gen.sweeps.journal import Journal

PROTOCOL = {
    "data": "digits",
    "data_fingerprint": "ab" * 32,
    "split": "train",
    "image_shape": [1, 8, 8],
    "num_real": 1438,
    "num_samples": 2000,
    "feature_net": "digits",
    "feature_net_version": "cd" * 32,
    "feature_width": 128,
    "resize": "none",
    "quantisation": "uint8",
}
OF_GRIDS = [
    cls
    for cls in vars(samplers).values()
    if inspect.isclass(cls) and not inspect.isabstract(cls) and issubclass(cls, samplers.DiffusionSampler)
]
KARRAS = {"name": "Karras", "rho": 7.0, "sigma_min": 0.002, "sigma_max": 80.0}
DDIM = {"name": "DDIM", "steps": 10, "grid": KARRAS, "eta": 0.0}


def content(model: str = "DDPM", distance: float = 1.0, sampler: dict | None = DDIM, **changes: Any) -> dict:
    data = {
        "schema": 1,
        "run": {"name": f"digits_{model}-0", "identity": f"{model}-0", "directory": f"digits_{model}-0"},
        "model": model,
        "num_parameters": 1_100_000,
        "images_seen": 90_000,
        "training_seconds": 60.0,
        "training_seed": 0,
        "sampler": sampler,
        "nfe": 10.0 if sampler else 1.0,
        "weights": "ema",
        "seed": 0,
        "protocol": PROTOCOL,
        "metrics": {"fd_digits": distance, "inception_score": 9 - distance, "inception_score_std": 0.1},
        "timing": {"sampling_seconds": 2.0, "images_per_second": 1000.0, "device": "cpu"},
        "created": "2026-11-23T15:00:00",
    }
    data = copy.deepcopy(data)
    for key, value in changes.items():
        place: Any = data
        *parents, last = key.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    return data


def results(*contents: dict) -> list[Result]:
    return [result(f"runs/{c['run']['name']}/evaluations/e{i}/result.json", c) for i, c in enumerate(contents)]


def result(path: Path | str, data: dict) -> Result:
    return Result(Path(path), ResultRecord.from_dict(data))


def write(folder: Path, data: dict, name: str = "e") -> Path:
    path = folder / data["run"]["name"] / "evaluations" / name / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def test_best_comes_first_and_what_is_not_finite_last_without_a_rank():
    found = results(content("A", 2.0), content("B", math.nan), content("C", 0.5), content("D", 1.0, sampler=None))
    board = rank(found)
    assert [(row.rank, row.first.model) for row in board.rows] == [(1, "C"), (2, "D"), (3, "A"), (None, "B")]
    assert board.by == "fd_digits" and board.metrics == ["fd_digits", "inception_score"]
    higher = rank(found[:1] + found[2:], by="inception_score")
    assert [row.first.model for row in higher.rows] == ["C", "D", "A"]
    assert higher.metrics == ["inception_score", "fd_digits"]


def test_unlike_protocols_are_refused_with_field_rows_and_remedy():
    found = results(content("A"), content("B"), content("C", protocol__num_samples=500, protocol__split="test"))
    with pytest.raises(UserError) as error:
        rank(found)
    text = str(error.value)
    assert "protocol.num_samples is 2000 (2 rows: digits_A-0/e0, digits_B-0/e1) and 500 (1 row: digits_C-0/e2)" in text
    assert "protocol.split is train (2 rows" in text and "feature_net" not in text and "\n" not in text
    remedy = text.rpartition("--where ")[2]
    assert [row.first.model for row in rank(found, where=[remedy]).rows] == ["A", "B"]
    assert [row.first.model for row in rank(found, where=["protocol.num_samples=500"]).rows] == ["C"]
    extra = results(content("A"), content("B", protocol=PROTOCOL | {"inception_splits": 1}))
    assert rank(extra).metrics == ["fd_digits"] and rank(extra).left_out == ["inception_score"]
    assert "left out, since protocols differ: inception_score" in to_markdown(rank(extra))
    with pytest.raises(UserError, match=r"protocol.inception_splits is null .* and 1 "):
        rank(extra, by="inception_score")


def test_the_same_data_under_two_names_are_the_same_data():
    run: dict[str, Any] = {"run__recipe": "r", "run__name": "x"}
    renamed = content("EDM", 3.0, **run, run__identity="2", training_seed=1, protocol__data="copy")
    found = results(content("EDM", 1.0, **run, run__identity="1"), renamed, content("VAE", 4.0))
    assert [(row.first.model, len(row.results)) for row in rank(found).rows] == [("EDM", 2), ("VAE", 1)]
    assert rank(found).rows[0].mean("metrics.fd_digits") == 2.0 and rank(found).protocol_line.startswith("digits abab")
    assert comparable(found) == [found]


def test_unlike_data_are_refused_whatever_their_names():
    other: dict[str, Any] = {"protocol__data_fingerprint": "ef" * 32}
    same_name = results(content("A"), content("B"), content("C", **other))
    two_names = results(content("A"), content("B", protocol__data="copy"), content("C", **other))
    unnamed = results(content("A", protocol__data_fingerprint=None), content("B"))
    by_name = results(
        *(content(name, protocol__data=name, protocol__data_fingerprint=None) for name in ("mnist", "digits"))
    )
    for found, field, left in (
        (same_name, "data_fingerprint", "AB"),
        (two_names, "data_fingerprint", "AB"),
        (results(content("A"), content("B"), content("C", protocol__data="mnist", **other)), "data", "AB"),
        (unnamed, "data_fingerprint", "A"),
        (by_name, "data", ["mnist"]),
    ):
        with pytest.raises(UserError, match=rf"ranked: protocol\.{field} is ") as error:
            rank(found)
        remedy = str(error.value).rpartition("--where ")[2]
        assert [row.first.model for row in rank(found, where=[remedy]).rows] == list(left)
        assert len(comparable(found)) == 2


def test_older_classes_are_no_remedy():
    classes: list[dict[str, Any]] = [{"protocol__drawn_classes": rule} for rule in ("uniform", "uniform", "reference")]
    found = results(*(content(name, **rule) for name, rule in zip("ABC", classes, strict=True)))
    for chosen in (found, found[1:]):
        with pytest.raises(UserError) as error:
            rank(chosen)
        remedy = "Select some, e.g. --where protocol.drawn_classes=reference, or evaluate the older runs again"
        assert str(error.value).endswith(remedy)


def test_a_model_of_other_data_is_marked_and_no_seed_of_others():
    run: dict[str, Any] = {"run__recipe": "r", "run__identity": "i"}
    other = {"trained_on": "63bac8b2" + "0" * 56, "given": "ab" * 32}
    found = results(content("EDM", 2.0, **run), content("EDM", 1.0, **run, seed=1, other_data=other))
    found += results(content("EDM", 3.0, **run, seed=2, other_data=None))
    board = rank(found)
    name = "EDM (trained on 63bac8b2)"
    assert [(row.rank, row.first.model, len(row.results)) for row in board.rows] == [(1, name, 1), (1, "EDM", 2)]
    file = io.StringIO()
    print_table(board, Console(file=file, width=300))
    for text in (file.getvalue(), to_markdown(board), to_csv(board), to_json(board), to_budget_table(board, [20])):
        assert text.count(name) == 1, text
    rows = json.loads(to_json(board))["rows"]
    assert rows[0]["other_data"] == other and "other_data" not in rows[1]


def test_equals_are_in_one_order(tmp_path):
    names = ["DDIM", "Euler", "Heun"]
    found = results(*(content("EDM", 1.0, sampler=DDIM | {"name": name}) for name in names), content("DDPM", 1.0))
    for order in itertools.permutations(found):
        ranked = [(row.first.model, row.first.sampler.partition("(")[0]) for row in rank(list(order)).rows]
        assert ranked == [("DDPM", "DDIM"), *(("EDM", name) for name in names)]


def test_a_sweep_over_two_data_sets_ends_with_two_leaderboards(tmp_path, capsys):
    from lit_gen.cli.sweep import _report

    paths = []
    for name, data, letters in (("A", "digits", "ab"), ("B", "digits", "ab"), ("C", "digits_binary", "ef")):
        changes: dict[str, Any] = {"protocol__data": data, "protocol__data_fingerprint": letters * 32}
        path = write(tmp_path / "runs", content(name, **changes))
        np.savez(path.with_name("samples.npz"), images=np.zeros((4, 1, 8, 8), np.uint8))
        paths.append(path)
    found = [read_result(path) for path in paths]
    assert [[each.model for each in group] for group in comparable(found)] == [["A", "B"], ["C"]]
    folder = tmp_path / "sweep"
    folder.mkdir()
    _report(paths, folder)
    text = (folder / "leaderboard.md").read_text()
    assert text.count("| # | model |") == 2 and text.index("| B |") < text.index("digits_binary") < text.index("| C |")
    drawn = {
        f"{kind}_{data}.png" for kind in ("distance_vs_nfe", "samples") for data in ("1_digits", "2_digits_binary")
    }
    assert {path.name for path in folder.iterdir()} == {"leaderboard.md", *drawn}
    _report(paths[:2], folder)
    assert {"distance_vs_nfe.png", "samples.png"} <= {path.name for path in folder.iterdir()}


def test_seeds_are_one_row_of_mean_and_deviation():
    found = results(
        content("A", 1.0),
        content("A", 2.0, seed=1),
        content("A", 6.0, seed=1, created="2026-11-23T16:00:00"),  # repeats the one before
        content("A", 5.0, run__identity="A-1", run__name="other", training_seed=1),  # may differ in more: no recipe
        content("B", 3.0, run__recipe="r", run__identity="B-0"),
        content("B", 5.0, run__recipe="r", run__identity="B-1", run__name="B-1", training_seed=1),
        content("B", 4.0, run__recipe="q", run__identity="B-2"),
        content("B", 4.5, run__recipe="r", weights="raw"),
        content("B", 4.7, run__recipe="r", sampler=DDIM | {"eta": 1.0}),
    )
    board = rank(found)
    groups = [(row.first.model, row.mean("metrics.fd_digits"), len(row.results)) for row in board.rows]
    assert groups == [("A", 3.5, 2), ("B", 4.0, 1), ("B", 4.0, 2), ("B", 4.5, 1), ("B", 4.7, 1), ("A", 5.0, 1)]
    assert board.rows[0].std("metrics.fd_digits") == pytest.approx(5 / math.sqrt(2))
    assert board.rows[2].run == "digits_B-0 (+1)"
    markdown = to_markdown(board)
    # Student's t with one degree of freedom: 12.7 standard errors
    assert "| 3.5 ± 31.8 | 9" not in markdown and "| 4 ± 13 |" in markdown
    assert "| 1 (2 evaluations) |" in markdown and "| 2 |" in markdown
    assert "weights" in markdown.splitlines()[2] and "DDIM(eta=1)" in markdown


def test_what_cannot_be_ranked_is_said():
    with pytest.raises(UserError, match="no results"):
        rank([])
    with pytest.raises(
        UserError, match=r"--by: kid is not a metric of these results; choose one of fd_digits, inception_score$"
    ):
        rank(results(content()), by="kid")
    with pytest.raises(UserError, match="no distance; rank --by one of kid"):
        rank(results(content(metrics={"kid": 1.0})))
    with pytest.raises(UserError, match=r"e1/result.json: no metric fd_digits"):
        rank(results(content(), content("B", metrics={"kid": 1.0})))


def test_labels_tell_what_is_not_the_default():
    heun = {"name": "Heun", "steps": 5, "grid": KARRAS | {"rho": 3.0}, "S_churn": 0.0, "S_min": 0.05, "S_max": "inf"}
    (plain, churned, unknown, none) = results(
        content(sampler=heun | {"S_noise": 1.003, "coordinates": "sigma"}),
        content(sampler=heun | {"S_churn": 40.0, "grid": {"name": "Uniform"}}),
        content(sampler={"name": "New", "order": 2, "lower": True, "grid": None}),
        content(sampler=None),
    )
    assert (plain.sampler, plain.grid) == ("Heun", "Karras(rho=3)")
    assert (churned.sampler, churned.grid) == ("Heun(S_churn=40, S_min=0.05)", "Uniform")
    assert (unknown.sampler, unknown.grid) == ("New(order=2, lower=True)", "")
    assert (none.sampler, none.grid) == ("", "")
    schedule = {"name": "VE", "sigma_min": 0.01, "sigma_max": 20.0}
    (moved,) = results(content(sampler=DDIM | {"schedule": schedule}))
    assert moved.sampler == "DDIM(schedule=VE(sigma_max=20))"


def test_settings_that_equal_the_defaults_of_their_version_are_left_out():
    heun = {"name": "Heun", "steps": 5, "grid": KARRAS, "S_churn": 0.0, "S_noise": 1.003, "order": 3}
    older = result("r", content(sampler=heun))
    assert (older.sampler, older.grid) == ("Heun(order=3)", "Karras"), "the table of the version before 0.2"
    own = {"Heun": {"S_churn": 0.0, "S_noise": 1.0, "order": 3}, "Karras": {"rho": 5.0, "sigma_min": 0.002}}
    newer = result("r", content(sampler=heun) | {"defaults": own})
    assert (newer.sampler, newer.grid) == ("Heun", "Karras(rho=7, sigma_max=80)")


@pytest.mark.parametrize("cls", [*OF_GRIDS, Temperature, TokenSampling], ids=lambda cls: cls.__name__)
def test_a_sampler_with_its_defaults_has_its_name_alone(cls):
    sampler = cls(steps=4) if issubclass(cls, samplers.GridSampler) else cls()
    own = result("r", content(sampler=sampler.to_dict()) | {"defaults": defaults(sampler)})
    assert own.sampler == cls.__name__ and "(" not in own.grid


def with_likelihood(data: dict, bits: float, **changes: Any) -> dict:
    protocol = {"kind": "estimate", "split": "test", "data_fingerprint": "ef" * 32, "num_images": 359}
    protocol |= {"conditional": False, "dequantisation": "uniform", "method": {"name": "ProbabilityFlow", "steps": 32}}
    metrics = data["metrics"] | {"bits_per_dim": bits, "bits_per_dim_stderr": 0.01}
    return data | {"metrics": metrics, "likelihood": {"protocol": protocol | changes, "nfe": 128.0}}


def test_likelihoods_of_one_protocol_are_a_column_and_rank():
    found = results(with_likelihood(content("A"), 3.5), with_likelihood(content("B", 2.0), 3.25), content("C", 3.0))
    board = rank(found)
    assert board.metrics == ["fd_digits", "inception_score", "bits_per_dim"]
    how = "bits_per_dim of 359 test images: estimate by ProbabilityFlow, dequantisation uniform"
    assert board.protocol_line.endswith(how)
    lines = to_markdown(board).splitlines()
    assert [line.split(" | ")[7] for line in lines[2:7]] == [
        "bits_per_dim ↓",
        "---:",
        "3.500 ± 0.020",
        "3.250 ± 0.020",
        "-",
    ]
    records = json.loads(to_json(board))["rows"]
    assert records[0]["likelihood"]["num_images"] == 359 and "likelihood" not in records[2]
    ranked = rank(found[:2], by="bits_per_dim")
    assert [row.first.model for row in ranked.rows] == ["B", "A"]
    with pytest.raises(UserError, match="no metric bits_per_dim"):
        rank(found, by="bits_per_dim")


def test_a_floor_is_a_line_of_tables_with_a_score_of_it():
    rows = {
        "equal_values": {"num_images": 50, "scores": {"bits_per_dim": 8.0}},
        "train": {"num_images": 300, "scores": {"fd_digits": 0.25}},
    }
    board = rank(results(with_likelihood(content("A", floors=rows), 3.5)))
    known = {"bits_per_dim": "50 test images, all values alike", "fd_digits": "300 training images, drawn again"}
    for shown in (["bits_per_dim"], ["fd_digits"], ["inception_score"], ["fd_digits", "bits_per_dim"]):
        lines = to_markdown(board, ["model", *shown]).splitlines()[4:]
        titles = [line.split(" | ")[0].strip("| ") for line in lines if "images, " in line.split(" | ")[0]]
        assert titles == [known[name] for name in shown if name in known]
    output = io.StringIO()
    Console(file=output, width=300).print(to_table(board, 300))
    assert all(title in output.getvalue() for title in known.values())


def test_nats_of_binary_images_are_ranked_as_bits_are():
    found = results(*(with_likelihood(content(name), bits) for name, bits in (("A", 0.5), ("B", 0.25))))
    for each, nats in zip(found, (22.2, 11.1), strict=True):
        each.metrics.update(nll_nats=nats, nll_nats_stderr=0.3)
    board = rank(found, by="nll_nats")
    assert board.metrics == ["nll_nats", "fd_digits", "inception_score", "bits_per_dim"]
    assert [row.first.model for row in board.rows] == ["B", "A"]
    assert " nll_nats ↓ " in to_markdown(board) and "11.10" in to_markdown(board)
    unlike = results(with_likelihood(content("A"), 0.5), with_likelihood(content("B"), 0.25, kind="bound"))
    for each in unlike:
        each.metrics.update(nll_nats=22.2)
    assert "22.20 bound" in to_markdown(rank(unlike))
    with pytest.raises(UserError, match="likelihood.protocol.kind is"):
        rank(unlike, by="nll_nats")


def test_unlike_likelihoods_are_shown_but_not_ranked():
    bound = {"kind": "bound", "dequantisation": "none", "method": None}
    found = results(
        with_likelihood(content("A", 1.0), 3.5),
        with_likelihood(content("B", 2.0), 3.25, **bound),
        content("C", 3.0),
    )
    board = rank(found)
    assert board.likelihood is None and "bits_per_dim" not in board.protocol_line
    cells = [line.split(" | ")[7] for line in to_markdown(board).splitlines()[4:7]]
    assert cells == ["3.500 ± 0.020 estimate", "3.250 ± 0.020 bound", "-"]
    with pytest.raises(UserError) as error:
        rank(found[:2], by="bits_per_dim")
    text = str(error.value)
    assert "likelihood.protocol.kind is estimate (1 row: digits_A-0/e0) and bound (1 row: digits_B-0/e1)" in text
    assert [row.first.model for row in rank(found, "bits_per_dim", [text.rpartition("--where ")[2]]).rows] == ["A"]
    fewer = results(with_likelihood(content("A"), 3.5), with_likelihood(content("B", 2.0), 3.25, num_images=64))
    cells = [line.split(" | ")[7] for line in to_markdown(rank(fewer)).splitlines()[4:6]]
    assert cells == ["3.500 ± 0.020 estimate of 359 images", "3.250 ± 0.020 estimate of 64 images"]
    with pytest.raises(UserError, match=r"likelihood.protocol.num_images is 359 .* and 64 "):
        rank(fewer, by="bits_per_dim")


def test_every_form_carries_the_protocol_and_the_numbers():
    board = rank(results(content("A|B", 1.23456), content("C", 0.5, sampler=None)))
    line = board.protocol_line
    assert line.startswith(
        "digits abababab, train split, 1x8x8: 2000 generated against 1438 real images; features digits"
    )
    markdown = to_markdown(board).splitlines()
    assert markdown[0] == line
    best = "| 1 | C | - | - | 1 | 0.5000 | 8.500 | 1 | - | 1000 | 1.1 M | 90 k | 60.0 | 1500 | digits_C-0 |"
    assert markdown[4] == best
    assert markdown[5].startswith("| 2 | A\\|B | DDIM | Karras | 10 | 1.235 | 7.765 |")
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert [row["fd_digits"] for row in rows] == ["0.5", "1.23456"]
    assert rows[0]["protocol.num_samples"] == "2000" and rows[0]["rank"] == "1" and rows[0]["sampler"] == ""
    loaded = json.loads(to_json(board))
    assert loaded["protocol"] == PROTOCOL and (loaded["by"], loaded["better"]) == ("fd_digits", "lower")
    assert loaded["rows"][1]["fd_digits"] == 1.23456 and loaded["rows"][1]["sampler_settings"] == DDIM
    unfinished = json.loads(to_json(rank(results(content(distance=math.nan)))))
    assert unfinished["rows"][0]["fd_digits"] is None and unfinished["rows"][0]["rank"] is None


@pytest.mark.parametrize(("width", "shown", "hidden"), [(60, "fd_digits", "images/s"), (200, "run", "left out")])
def test_a_narrow_terminal_gets_fewer_columns_and_no_cut_cells(width, shown, hidden):
    board = rank(results(content("RectifiedFlow", 1.5), content("A", 2.0)))
    output = io.StringIO()
    Console(file=output, width=width).print(to_table(board, width))
    text = output.getvalue()
    lines = text.splitlines()
    header = next(line for line in lines if "model" in line)
    assert shown in header and hidden not in header and "…" not in text and "RectifiedFlow" in text
    assert ("left out of this width" in text) == (width == 60)
    assert all(len(line) <= width for line in lines)


def test_a_pipe_gets_every_column():
    output = io.StringIO()
    print_table(rank(results(content())), Console(file=output, width=60))
    assert "digits_DDPM-0" in output.getvalue() and "images seen" in output.getvalue()


def test_results_are_found_below_a_folder_a_run_and_a_sweep(tmp_path):
    first, second = write(tmp_path / "runs", content("A")), write(tmp_path / "runs" / "deep", content("B"), "f")
    (tmp_path / "runs" / "result.json").write_text("{}")  # not an evaluation
    assert [each.path for each in load_results(tmp_path / "runs")] == sorted([first, second])
    assert [each.path for each in load_results(first.parents[2])] == [first]
    assert [each.path for each in load_results(first.parents[1])] == [first]
    sweep = tmp_path / "runs" / "sweeps" / "demo"
    sweep.mkdir(parents=True)
    journal = Journal(sweep / "journal.jsonl", "one")
    journal.append("finished", "t", result="deep/digits_B-0/evaluations/f/result.json", seconds=1.0)
    journal.append("finished", "u", result="gone/evaluations/f/result.json", seconds=1.0)
    journal.append("finished", "v", result=str(first.relative_to(tmp_path / "runs")), seconds=1.0)
    assert {each.model for each in load_results(sweep)} == {"A", "B"}
    (sweep / "trials.json").write_text('["t", "u", "w"]')  # the file was edited: v is no longer a trial of the sweep
    assert [each.model for each in load_results(sweep)] == ["B"]


def test_broken_results_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_results(tmp_path / "none")
    with pytest.raises(UserError, match="lit-gen evaluate"):
        load_results(tmp_path)
    path = write(tmp_path, content())
    assert read_result(path).record.to_dict() == content(protocol__drawn_classes="reference")
    for text, words in {
        "{": "not valid JSON",
        "[]": "expected an object, got",
        json.dumps(content() | {"schema": 2}): "schema: expected 1, got 2",
        json.dumps({k: v for k, v in content().items() if k != "nfe"}): "nfe: missing or of a wrong type",
        json.dumps(content(run__name=None)): "run.name: missing or of a wrong type",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=words) as error:
            load_results(tmp_path)
        assert str(path) in str(error.value)


def test_unlike_reconstructions_are_shown_but_not_ranked():
    def reconstructed(name: str, psnr: float, split: str | None) -> dict:
        data = content(name, metrics={"fd_digits": psnr, "psnr": psnr})
        record = {"protocol": {"split": split, "data_fingerprint": "ab", "num_images": 355}}
        return data | ({} if split is None else {"reconstruction": record})

    alike = results(*(reconstructed(name, psnr, "test") for name, psnr in (("A", 20.0), ("B", 25.0))))
    assert [row.first.model for row in rank(alike, by="psnr").rows] == ["B", "A"]
    older = results(reconstructed("A", 20.0, None), reconstructed("B", 25.0, "test"))
    assert [row.first.model for row in rank(older, by="psnr").rows] == ["B", "A"]
    unlike = results(reconstructed("A", 20.0, "test"), reconstructed("B", 25.0, "train"))
    assert [row.first.model for row in rank(unlike).rows] == ["A", "B"]
    with pytest.raises(UserError, match="reconstruction.protocol.split is test .* and train "):
        rank(unlike, by="psnr")
