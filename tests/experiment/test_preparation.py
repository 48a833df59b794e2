"""A searched grid is searched once per run and kept; each number of steps and each rule takes its times from it."""

import json

import pytest

from lit_gen.cli import commands
from lit_gen.families.diffusion import NetworkDenoiser
from lit_gen.runs.directory import Run
from tests.conftest import ROOT

GRID = ["--sampler.grid=Searched", "--sampler.grid.fine=7", "--sampler.grid.num_images=10"]
FEW = ["--evaluation.num_samples=20", "--evaluation.batch_size=20", "--evaluation.likelihood=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    small = ["--model.network.width=8", "--model.network.depth=1", "--budget.num_images=64", "--data.batch_size=64"]
    words = [
        f"--config={ROOT}/conf/experiment/points_edm.yaml",
        *small,
        "--grid.num_samples=0",
        "--wandb.mode=disabled",
    ]
    return commands.fit([*words, f"--run.root={tmp_path_factory.mktemp('runs')}"])


def evaluate(run: Run, *words: str) -> dict:
    result: dict = json.loads(commands.evaluate([str(run.directory), *GRID, *FEW, *words]).read_text())
    return result


@pytest.mark.slow
def test_a_grid_is_searched_once_and_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    denoise = NetworkDenoiser.denoise

    def counted(self: NetworkDenoiser, x, *more):  # type: ignore[no-untyped-def]
        sizes.append(len(x))
        return denoise(self, x, *more)

    monkeypatch.setattr(NetworkDenoiser, "denoise", counted)
    first = evaluate(run, "--sampler=Euler", "--sampler.steps=3")
    assert sizes.count(10) == 7, "one evaluation of the ten images at each time of the fine grid"
    assert first["nfe"] == 3 and first["sampler"]["grid"]["name"] == "Searched"
    (path,) = (run.directory / "grids").iterdir()
    kept = path.read_text()
    evaluate(run, "--sampler=UniPC", "--sampler.steps=5")
    assert sizes.count(10) == 7 and path.read_text() == kept, "another rule and budget take the same search"

    again = evaluate(run, "--sampler=Euler", "--sampler.steps=3", "--evaluation.seed=1")
    path.unlink()
    evaluate(run, "--sampler=Euler", "--sampler.steps=3", "--evaluation.seed=2")
    assert sizes.count(10) == 14 and path.read_text() == kept
    assert again["metrics"] != first["metrics"]

    for damage in (
        "",
        "{}",
        kept[:-40],
        kept.replace('"costs": [[', '"costs": [["x", ', 1),
        kept.replace("[[", "[[-", 1),
    ):
        path.write_text(damage)
        count = sizes.count(10)
        evaluate(run, "--sampler=Euler", "--sampler.steps=3", f"--evaluation.seed={3 + len(damage)}")
        assert sizes.count(10) == count + 7 and path.read_text() == kept, damage

    evaluate(run, "--sampler=Euler", "--sampler.steps=3", "--sampler.grid.seed=5")
    assert len(list((run.directory / "grids").iterdir())) == 2, "other settings are another search"
