"""`lit-gen reproduce`: the same bits from the same configuration, and the name of each thing that differs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.evaluation.result_file import load_result
from lit_gen.experiment.reproduction import compare_numbers, compare_scores
from lit_gen.runs.directory import Run
from tests.conftest import TINY, arguments

pytestmark = pytest.mark.slow
QUICK = ["--evaluation.metrics=[FrechetDistance]", "--sampler=Heun", "--sampler.steps=2", "--sampler.S_churn=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = commands.fit(arguments("EDM", tmp_path_factory.mktemp("runs"), 128))
    commands.evaluate([str(run.directory), *QUICK])
    return run


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(run.directory, tmp_path / "runs" / run.directory.name)))


def test_a_run_is_reproduced_bit_by_bit(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", str(run.directory), "--keep", str(tmp_path / "again")]) == 0
    text = capsys.readouterr().out
    assert "code, packages, data and machine are those of the run" in text or "uncommitted changes" in text
    assert "raw weights" in text and "points of curves" in text and "scores of Heun-2" in text
    assert text.count("bit-identical") == 5 and text.endswith(f"{run.directory}: bit-identical\n")
    assert sorted(run.directory.parent.iterdir())[-1] == run.directory, "nothing is left beside it"
    again = Run(next(path for path in (tmp_path / "again").iterdir() if (path / "run.json").is_file()))
    assert again.metadata["identity"] == run.metadata["identity"]


def test_two_stages_are_reproduced_and_left_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = commands.fit(arguments("LatentEDM", tmp_path, 64))
    before = sorted(run.directory.rglob("*"))
    assert main(["reproduce", str(run.directory)]) == 0
    assert "averaged weights: 64 bit-identical" in capsys.readouterr().out
    assert sorted(run.directory.rglob("*")) == before


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", [*TINY, "Reflow"])
def test_a_run_of_every_family_is_reproduced(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = commands.fit(arguments(family.replace("Reflow", "RectifiedFlow"), tmp_path, 128))
    if family == "Reflow":
        few = [
            "--reflow.num_pairs=128",
            "--reflow.sampler=Euler",
            "--reflow.sampler.steps=2",
            "--budget.num_images=128",
        ]
        run = commands.reflow([str(run.directory), *few])
    commands.evaluate([str(run.directory)])
    capsys.readouterr()
    assert main(["reproduce", str(run.directory)]) == 0
    text = capsys.readouterr().out
    assert text.endswith(f"{run.directory}: bit-identical\n") and "scores of" in text and "raw weights" in text


def test_other_weights_are_not_reproduced(copy: Run, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(copy.checkpoint, weights_only=True)
    name, weight = max(checkpoint["state_dict"].items(), key=lambda each: each[1].numel())
    weight[(0,) * weight.ndim] += 1e-4 * weight.abs().max()
    torch.save(checkpoint, copy.checkpoint)
    (result,) = copy.evaluations.glob("*/result.json")
    content = json.loads(result.read_text())
    content["metrics"]["fd_digits"] *= 1.01
    result.write_text(json.dumps(content))
    assert main(["reproduce", str(copy.directory)]) == 1
    text = capsys.readouterr().out
    assert f"1 of {len(checkpoint['state_dict'])} differ, largest relative difference 0.0001 ({name})" in text
    assert "largest relative difference 0.0099 (fd_digits)" in text and "not reproduced" in text
    assert main(["reproduce", str(copy.directory), "--evaluation-only", "--tolerance", "0.02"]) == 0
    assert "within 0.02" in capsys.readouterr().out


def test_scores_that_were_not_repeated_do_not_count_as_equal(run: Run) -> None:
    (path,) = run.evaluations.glob("*/result.json")
    record = load_result(path)
    assert str(compare_scores("scores", record, record)).startswith(f"scores: {len(record.metrics)} bit-identical")
    fewer = replace(record, metrics={"fd_digits": record.metrics["fd_digits"]})
    more = replace(record, metrics=record.metrics | {"mine": 1.0})
    assert str(compare_scores("scores", more, fewer)).endswith("mine")
    assert compare_scores("scores", more, fewer).within(0)
    other = replace(record, protocol=replace(record.protocol, num_samples=7))
    assert not compare_scores("scores", record, other).within(1e9)
    unlike = replace(record, score_protocols={"fd_digits": {"metric": "another"}}, metrics=fewer.metrics)
    assert not compare_scores("scores", record, unlike).within(1e9)


def of_a_package(run: Run) -> None:
    run.update(packages=run.metadata["packages"] | {"torch": "2.11.0"})


def of_the_data(run: Run) -> None:
    run.update(data=run.metadata["data"] | {"images_fingerprint": "abc"})


def of_a_key(run: Run) -> None:
    config = yaml.safe_load(run.config.read_text())
    config["model"]["init_args"]["warmup"] = 1000
    run.config.write_text(yaml.safe_dump(config))


def of_threads(run: Run) -> None:
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    torch.save(checkpoint | {"num_threads": torch.get_num_threads() + 1}, run.checkpoint)


def of_the_code(run: Run) -> None:
    run.update(git_commit="0" * 40, git_dirty=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (of_a_package, "packages.torch"),
        (of_the_data, "data.fingerprint"),
        (of_a_key, "model.warmup"),
        (of_threads, "threads"),
        (of_the_code, "git_commit"),
    ],
)
def test_each_difference_has_a_name(
    change: Callable[[Run], None],
    said: str,
    copy: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With nothing trained or evaluated again, and only what was changed named."""
    monkeypatch.setattr(
        "lit_gen.cli.reproduce._evaluated_again", lambda *_: [compare_numbers("scores", {"a": 1}, {"a": 1})]
    )
    before = torch.get_num_threads()
    change(copy)
    assert main(["reproduce", str(copy.directory), "--evaluation-only"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0] for line in lines if line.startswith("  ") and "bit-identical" not in line}
    assert said in named and named - {said} <= {"code", "git_dirty"}
    assert ("config.yaml was edited" in lines[0]) == (change is of_a_key)
    assert torch.get_num_threads() == before


def test_what_cannot_be_repeated_is_one_line(copy: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = copy.evaluations.glob("*/result.json")
    content = json.loads(result.read_text())
    content["sampler"]["guidance"] = {"name": "Guidance", "weight": 2.0, "interval": [0, "inf"], "run": "weaker"}
    result.write_text(json.dumps(content))
    assert main(["reproduce", str(copy.directory), "--evaluation-only"]) == 2
    printed = capsys.readouterr()
    assert "not repeated: fd_digits" in printed.out and "no evaluations that can be repeated" in printed.err
    shutil.rmtree(copy.evaluations)
    copy.update(imported={"from": "elsewhere"})
    for words, said in (
        ([], "was imported and not trained here; add --evaluation-only"),
        (["--evaluation-only"], "has no evaluations that can"),
        (["--tolerance", "-1"], "--tolerance: -1.0 is not a relative difference"),
    ):
        assert main(["reproduce", str(copy.directory), *words]) == 2
        assert said in capsys.readouterr().err
    copy.update(status="training")
    assert main(["reproduce", str(copy.directory)]) == 2
    assert "is not finished" in capsys.readouterr().err
