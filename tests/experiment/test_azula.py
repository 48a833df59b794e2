"""A denoiser of azula becomes a run, by the script of the docs: the images are those of azula's own sampler."""

from pathlib import Path
from typing import cast

import pytest
import torch

import lit_gen
from lit_gen.cli import exchange
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import Karras, Schedule
from lit_gen.families.diffusion.samplers import DDIM

azula_sample = pytest.importorskip("azula.sample")
DOCS = Path(__file__).parents[2] / "docs"


def test_images_are_those_of_azula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS)
    monkeypatch.syspath_prepend(DOCS)
    import azula_denoiser  # type: ignore[import-not-found]

    words = ["--model.schedule=EDMSchedule", "--model.parameterization=Sample", "--data.source=Digits"]
    run = exchange.import_model(["--denoiser=azula_denoiser.denoiser", *words, f"--run.root={tmp_path}"])
    sampler = DDIM(steps=20, grid=Karras(sigma_min=0.01, sigma_max=50))
    model = lit_gen.load(run.directory)
    ours = model.sample(3, seed=4, sampler=sampler, dtype="float")
    assert model.nfe == 20

    azula, schedule = azula_denoiser.model, azula_denoiser.model.schedule
    times = torch.tensor(sampler.times(cast(Schedule, model.module.schedule)))
    ratios = times * azula_denoiser.SIGMA_MAX  # sigma / alpha
    low, high = torch.zeros(20, dtype=torch.float64), torch.ones(20, dtype=torch.float64)
    for _ in range(60):  # bisection, where the script interpolates
        middle = (low + high) / 2
        above = schedule.sigma(middle) / schedule.alpha(middle) > ratios[:-1]
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    theirs = azula_sample.DDIMSampler(azula, eta=0.0)
    noise = Noise(4, range(3)).normal((1, 8, 8)).double()
    for index in range(3):
        x = noise[index] * schedule.sigma(low[0])
        for t, s in zip(low[:-1], low[1:], strict=True):
            x = theirs.step(x, t, s)
        expected = azula(x, low[-1]).mean  # the last step ends without noise
        torch.testing.assert_close(ours[index].double(), expected, rtol=0, atol=2e-5)
    assert ours.std() > 0.2
