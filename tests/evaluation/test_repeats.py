"""Evaluations with several sampling seeds in one command."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core import progress
from lit_gen.evaluation.evaluate import Sampling
from lit_gen.report.leaderboard import rank
from lit_gen.report.results import load_results
from tests.conftest import arguments

LIKELIHOOD = "--evaluation.likelihood=2"
FILES = ("samples.npz", "deviations.npz", "features.npz")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commands.fit(arguments("VAE", tmp_path_factory.mktemp("trained"), 64)).directory


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(trained, tmp_path / trained.name)
    yield tmp_path / trained.name


def content(result: Path) -> dict[str, Any]:
    """A result without what the clock says."""
    data = json.loads(result.read_text())
    del data["created"], data["timing"], data["likelihood"]["seconds"]
    return data


def test_each_repeat_is_the_evaluation_of_its_seed_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {}
    for seed in (1, 2):
        result = commands.evaluate([str(run), LIKELIHOOD, f"--evaluation.seed={seed}"])
        alone[result.parent.name] = content(result), [(result.parent / name).read_bytes() for name in FILES]
    shutil.rmtree(run / "evaluations")
    capsys.readouterr()
    seen: list[progress.Step] = []
    monkeypatch.setattr(progress, "listeners", [seen.append])
    words = [LIKELIHOOD, "--evaluation.seed=1", "--evaluation.num_repeats=2"]
    results = commands.run_repeats(arguments("VAE", tmp_path, 64, *words))
    found = {path.parent.name: path.parent for path in results}
    assert list(found) == list(alone) and {folder.parents[1] for folder in found.values()} == {run}, "of the same run"
    for name, (data, files) in alone.items():
        assert content(found[name] / "result.json") == data
        assert [(found[name] / file).read_bytes() for file in FILES] == files
    steps = [step for step in seen if step.description.startswith("evaluating")]
    assert [step.description.partition(") ")[0] for step in steps] == ["evaluating (1 of 2"] * 4 + [
        "evaluating (2 of 2"
    ] * 4
    assert [step.completed for step in steps] == [0, 8, 16, 24, 24, 32, 40, 48] and steps[0].total == 48
    scores = [data["metrics"]["fd_digits"] for data, _ in alone.values()]
    assert f"seeds 1 to 2, mean ± standard deviation over 2 seeds: fd_digits {sum(scores) / 2:.4g} ± " in (
        capsys.readouterr().out
    )
    commands.evaluate([str(run), *words, "--evaluation.least_of=2"])
    for name, (data, _) in alone.items():
        assert content(found[name] / "result.json") == data | {"least_of": 2}, "added to results that exist"
    (row,) = rank(load_results(tmp_path)).rows
    assert row.least("fd_digits") == min(scores)
    assert row.seeds == "1 (2 evaluations)" and row.mean("metrics.fd_digits") == pytest.approx(sum(scores) / 2)


def test_an_interrupted_command_resumes_with_the_missing_repeats(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", str(run), "--evaluation.num_repeats=3"]
    score = Sampling.score

    def interrupted(self: Sampling, *args: Any) -> Any:
        if self.seed == 1:
            raise KeyboardInterrupt
        return score(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Sampling, "score", interrupted)
        assert main(words) == 130
    assert len(list(run.glob("evaluations/*/result.json"))) == 1
    capsys.readouterr()
    assert main(words) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "/result.json" in line]
    assert [line.endswith("(computed before)") for line in lines] == [True, False, False]
