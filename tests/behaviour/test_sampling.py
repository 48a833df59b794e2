"""Image i of seed s is one image, whatever is drawn beside it and whoever draws it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion import Karras
from lit_gen.families.diffusion.samplers import (
    DDIM,
    DDPM,
    RK45,
    DiffusionSampler,
    DPMSolver,
    Euler,
    Heun,
    PredictorCorrector,
    UniPC,
)
from tests.conftest import arguments

SAMPLERS = [
    DDPM(steps=6, variance="small"),
    DDPM(steps=6, variance="large"),
    DDIM(steps=6, eta=0.7),
    Euler(steps=6),
    PredictorCorrector(nfe=9),
    DPMSolver(steps=6, eta=1.0),
    UniPC(steps=6, order=3),
    RK45(rtol=1e-4, atol=1e-4),
    Heun(nfe=9, S_churn=4),
]
FAMILIES: list[Any] = [
    *[("EDM", sampler) for sampler in SAMPLERS],
    *[
        pytest.param(model, sampler, marks=pytest.mark.exhaustive)
        for model in ("DDPM", "RectifiedFlow")
        for sampler in SAMPLERS
    ],
    ("VAE", None),
    ("WGAN", None),
]


def build(name: str, tmp_path: Path, *more: str) -> GenerativeModel:
    """A model whose parameters are all random: the output layer of a fresh UNet is zero."""
    model: GenerativeModel = ExperimentCLI(arguments(name, tmp_path, 64, *more)).objects().model
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def draw(model: GenerativeModel, sampler: DiffusionSampler | None, indices: list[int], seed: int = 5) -> Tensor:
    return model.sample(Noise(seed, indices), sampler=sampler)


@pytest.mark.parametrize(("name", "sampler"), FAMILIES, ids=lambda value: getattr(type(value), "__name__", value))
@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch(name: str, sampler: DiffusionSampler | None, tmp_path: Path) -> None:
    model = build(name, tmp_path)
    together = draw(model, sampler, list(range(64)))
    assert together.std(0).mean() > 1e-3, "the images are all the same: the test would see nothing"
    alone = torch.cat([draw(model, sampler, [i]) for i in (0, 6, 7, 63)])
    in_sevens = torch.cat([draw(model, sampler, list(range(i, i + 7))) for i in (0, 7)])
    others = draw(model, sampler, [63, 1000, 7, 0])
    torch.testing.assert_close(alone, together[[0, 6, 7, 63]], rtol=0, atol=1e-5)
    torch.testing.assert_close(in_sevens, together[:14], rtol=0, atol=1e-5)
    torch.testing.assert_close(others[[0, 2, 3]], together[[63, 7, 0]], rtol=0, atol=1e-5)
    assert (draw(model, sampler, [0], seed=6) - together[:1]).abs().max() > 1e-3


def test_sampling_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    for name, sampler in (("EDM", SAMPLERS[-1]), ("VAE", None)):
        model = build(name, tmp_path)
        before = torch.get_rng_state()
        draw(model, sampler, [0, 1])
        assert torch.equal(before, torch.get_rng_state())


def test_evaluations_are_counted(tmp_path: Path) -> None:
    model = build("EDM", tmp_path)
    calls = []
    model.generator.register_forward_pre_hook(lambda *_: calls.append(1))
    for sampler, nfe in (
        (DDPM(steps=4), 4),
        (DDIM(nfe=9), 9),
        (Euler(steps=3), 3),
        (Heun(steps=18), 35),
        (Heun(nfe=10), 9),
        (PredictorCorrector(nfe=10), 9),
        (UniPC(nfe=10), 10),
    ):
        calls.clear()
        draw(model, sampler, [0])
        assert model.nfe == nfe == len(calls)
    calls.clear()
    draw(model, RK45(rtol=1e-2, atol=1e-2), [0])
    assert model.nfe == len(calls) >= 8
    for name in ("VAE", "WGAN"):
        model = build(name, tmp_path)
        draw(model, None, [0])
        assert model.nfe == 1


def test_one_grid_one_model_ddim_is_euler(tmp_path: Path) -> None:
    for name in ("DDPM", "EDM", "RectifiedFlow"):
        model = build(name, tmp_path)
        ddim = draw(model, DDIM(steps=9, grid=Karras()), [0, 1, 2])
        for coordinates in ("sigma", "rectified"):
            euler = draw(model, Euler(steps=9, grid=Karras(), coordinates=coordinates), [0, 1, 2])
            torch.testing.assert_close(euler, ddim, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", ["Rectified", "VE"])
def test_a_model_may_be_sampled_on_another_schedule(schedule: str, tmp_path: Path) -> None:
    """The schedule of the sampler, from the command line: the same images, and levels of the model's training."""
    words = ["--sampler=DDIM", "--sampler.steps=7", "--sampler.grid=Karras", "--sampler.grid.sigma_max=40"]
    model = build("DDPM", tmp_path, *words)
    words.append(f"--sampler.schedule={schedule}")
    other: Any = ExperimentCLI(arguments("DDPM", tmp_path, 64, *words)).objects().sampler
    assert type(other.schedule).__name__ == other.to_dict()["schedule"]["name"] == schedule
    own = draw(model, DDIM(steps=7, grid=Karras(sigma_max=40)), [0, 1, 2])
    assert own.std() > 1e-3
    torch.testing.assert_close(draw(model, other, [0, 1, 2]), own, rtol=0, atol=1e-5)
    assert model.nfe == 7


def test_classes(tmp_path: Path) -> None:
    model = build("DDPM", tmp_path, "--model.class_conditional=true")
    own = draw(model, DDIM(steps=3), list(range(12)))
    given = model.sample(Noise(5, range(12)), torch.arange(12) % 10, DDIM(steps=3))
    assert torch.equal(own, given)
    swapped = model.sample(Noise(5, range(12)), (torch.arange(12) + 1) % 10, DDIM(steps=3))
    assert (own - swapped).abs().max() > 1e-3
    with pytest.raises(UserError, match="class_conditional"):
        build("DDPM", tmp_path).sample(Noise(5, range(2)), torch.zeros(2, dtype=torch.long))


def test_a_sampler_for_a_family_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="WGAN does not support DDIM; choose one of Truncation"):
        draw(build("WGAN", tmp_path), DDIM(steps=2), [0])
    with pytest.raises(UserError, match="VAE does not support DDIM; choose one of GaussianMixturePrior, Temperature"):
        draw(build("VAE", tmp_path), DDIM(steps=2), [0])
