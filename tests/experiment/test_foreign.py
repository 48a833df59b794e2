"""Folders of diffusers and functions become runs; DDIM gives the images of diffusers' own pipeline."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import diffusers as package
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import lit_gen
from lit_gen.cli import commands, exchange
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import BetaChain, Epsilon, OnChain, Sample, Schedule, Timesteps, V
from lit_gen.families.diffusion.samplers import DDIM, Heun
from lit_gen.runs.directory import Run

diffusers: Any = package  # its stubs of lazy imports have no attributes
STEPS, NUM = 8, 3  # 8 divides 1000: with trailing, diffusers steps by T // steps whatever the next timestep is
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (4,),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "mid_block_type": None,
}
DIT = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 2,
    "num_layers": 1,
    "num_attention_heads": 1,
    "attention_head_dim": 8,
    "patch_size": 4,
    "num_embeds_ada_norm": 10,
    "norm_num_groups": 1,
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "steps_offset": 1},
    "squaredcos_cap_v2": {
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "sample",
        "num_train_timesteps": 100,
    },
    "trained_betas": {"trained_betas": [0.001 * k for k in range(1, 51)], "num_train_timesteps": 50},
    "zero_terminal_snr": {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "beta_schedule": "scaled_linear",
    },
    "clipped": {"clip_sample": True, "clip_sample_range": 0.5},
}


def folder_of(path: Path, scheduler: str = "linear", network: Any = None, **settings: Any) -> tuple[Path, Any]:
    """Save a small pipeline with random weights, and return it."""
    torch.manual_seed(0)
    unet = network or diffusers.UNet2DModel(**{**UNET, **settings})
    pipeline = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(**({"clip_sample": False} | SCHEDULERS[scheduler])))
    pipeline.save_pretrained(path)
    return path, pipeline


def imported(folder: Path, root: Path, *words: str) -> Run:
    return exchange.import_model([str(folder), "--data.source=Digits", f"--run.root={root}", *words])


def theirs(pipeline: Any, noise: Tensor, clipped: bool = False) -> np.ndarray:
    """Return the images of the pipeline in [0, 1], from given noise."""
    module = sys.modules[diffusers.DDIMPipeline.__module__]
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "randn_tensor", lambda *_, **__: noise)
    pipeline.set_progress_bar_config(disable=True)
    try:
        images: np.ndarray = pipeline(
            batch_size=NUM, num_inference_steps=STEPS, output_type="np", use_clipped_model_output=clipped
        ).images
    finally:
        patch.undo()
    return images.transpose(0, 3, 1, 2)


def check_same_images(run: Run, pipeline: Any, scheduler: str) -> None:
    model = lit_gen.load(run.directory)
    settings = {"spacing": "leading"} | (
        {"spacing": "trailing"}
        if scheduler == "zero_terminal_snr"
        else {"offset": pipeline.scheduler.config.steps_offset}
    )
    sampler = DDIM(steps=STEPS, grid=Timesteps(**settings))
    timesteps: list[float] = []
    network, schedule = model.module.generator, cast(Schedule, model.module.schedule)
    handle = network.register_forward_pre_hook(lambda _, given: timesteps.append(float(given[1][0])))
    ours = model.sample(NUM, seed=5, sampler=sampler, dtype="float")
    handle.remove()
    start = sampler.times(schedule)[0]
    noise = Noise(5, range(NUM)).normal((1, 8, 8)) * float(schedule(start)[1])
    expected = theirs(pipeline, noise.float(), scheduler == "clipped")
    assert timesteps == pipeline.scheduler.timesteps.tolist(), "exactly, and one evaluation each"
    assert model.nfe == STEPS
    assert np.abs((ours / 2 + 0.5).clamp(0, 1).numpy() - expected).max() < 1e-5
    assert expected.std() > 0.01, "not clamped to one value"


def test_a_folder_becomes_a_run_that_moves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, pipeline = folder_of(tmp_path / "tiny")
    run = imported(folder, tmp_path / "runs", "--trainer.accelerator=cpu")
    assert imported(folder, tmp_path / "runs").directory == run.directory
    shutil.rmtree(folder)
    moved = tmp_path / "moved" / "mine"
    shutil.copytree(run.directory, moved)
    check_same_images(Run(moved), pipeline, "linear")
    assert str(tmp_path) not in (moved / "run.json").read_text()
    assert run.metadata["title"] == "tiny" and run.metadata["imported"]["from"] == "diffusers UNet2DModel"


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "linear"])
def test_images_are_those_of_diffusers(scheduler: str, tmp_path: Path) -> None:
    folder, pipeline = folder_of(tmp_path / "tiny", scheduler)
    check_same_images(imported(folder, tmp_path / "runs"), pipeline, scheduler)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_levels_are_those_of_diffusers(name: str) -> None:
    settings = SCHEDULERS[name]
    expected = diffusers.DDIMScheduler(**settings)
    num = expected.config.num_train_timesteps
    chain = BetaChain(
        settings.get("trained_betas") or expected.config.beta_schedule,
        num,
        zero_terminal_snr=expected.config.rescale_betas_zero_snr,
    )
    times = torch.arange(1, num + 1, dtype=torch.float64) / num
    alpha, sigma = chain(times)
    assert torch.allclose(alpha**2, expected.alphas_cumprod.double(), rtol=1e-12, atol=0)
    assert torch.allclose(chain.time(sigma / alpha), times, rtol=0, atol=1e-9)
    of = {"epsilon": Epsilon(num), "v_prediction": V(), "sample": Sample()}[expected.config.prediction_type]
    timesteps = OnChain(of, num).c_noise(chain.time(sigma / alpha), alpha, sigma)
    assert timesteps.tolist() == list(range(num))
    between = torch.linspace(0.0101234, 0.9991234, 37, dtype=torch.float64)
    assert torch.allclose(chain.time(chain.ratio(between)), between, rtol=0, atol=1e-9)
    step = 1e-7
    slopes = [
        (late - early) / (2 * step) for late, early in zip(chain(between + step), chain(between - step), strict=True)
    ]
    assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(chain.derivatives(between), slopes, strict=True))
    for spacing in ("leading", "trailing", "linspace"):
        other = diffusers.DDIMScheduler(**settings | {"timestep_spacing": spacing})
        other.set_timesteps(STEPS)
        grid = Timesteps(spacing, other.config.steps_offset if spacing == "leading" else 0)  # type: ignore[arg-type]
        assert (grid(chain, STEPS)[:-1] * num - 1).round().tolist() == other.timesteps.tolist()


@pytest.mark.slow
def test_a_network_with_classes_gets_them(tmp_path: Path) -> None:
    """A transformer with a learned variance and a row for no class."""
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(**DIT)  # type: ignore[arg-type]
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    folder = tmp_path / "tiny"
    network.save_pretrained(folder)
    diffusers.DDPMScheduler().save_pretrained(folder)
    model = lit_gen.load(imported(folder, tmp_path / "runs").directory)
    module: Any = model.module
    assert module.num_classes == 10 and module.denoiser.clip == 1 and module.label_drop > 0
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 500.0, 999.0])
    network.eval()
    for labels, classes in ((torch.tensor([3, -1, 9]), torch.tensor([3, 10, 9])), (None, torch.tensor([10, 10, 10]))):
        with torch.no_grad():
            assert torch.equal(module.generator(x, t, labels), network(x, timestep=t, class_labels=classes).sample)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("scheduler/scheduler_config.json", "scheduler_config.json is missing"),
        ("unet/diffusion_pytorch_model.safetensors", "is missing; save the model again"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule sigmoid is not supported"),
        ({"prediction_type": "flow"}, "prediction_type flow is not supported"),
        ({"thresholding": True}, "thresholding is not supported"),
    ],
    ids=str,
)
def test_an_unsuitable_folder_is_one_line(change: Any, said: str, tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path / "tiny")
    if isinstance(change, str):
        (folder / change).unlink()
    else:
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        imported(folder, tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.slow
def test_other_images_pickles_and_classes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, pipeline = folder_of(tmp_path / "wide", sample_size=16)
    with pytest.raises(UserError, match="takes 1x16x16 images, but the data has 1x8x8"):
        imported(folder, tmp_path / "runs")
    folder, pipeline = folder_of(tmp_path / "classes", num_class_embeds=7)
    with pytest.raises(UserError, match="embeds 7 classes, but the data has 10"):
        imported(folder, tmp_path / "runs")
    pickled = folder / "unet" / "diffusion_pytorch_model.bin"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(pickled)
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_class_embeds": 10}))
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.bin is a pickle.*safe_serialization"):
        imported(folder, tmp_path / "runs")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'lit_gen\[diffusers\]'"):
        imported(folder, tmp_path / "runs")


@pytest.mark.slow
def test_a_sweep_evaluates_an_imported_run_and_never_trains_it(tmp_path: Path) -> None:
    run = imported(folder_of(tmp_path / "tiny")[0], tmp_path / "runs")
    before = run.checkpoint.read_bytes()
    parameters = {"config": str(run.config), "sampler.steps": 2, "trainer.accelerator": "cpu"}
    parameters |= {
        "evaluation.num_samples": 16,
        "evaluation.feature_net": "DigitsFeatures",
        "evaluation.batch_size": 16,
    }
    parameters |= {"evaluation.metrics": "[FrechetDistance]", "wandb.mode": "disabled"}
    sweep = {key: {"value": value} for key, value in parameters.items()} | {"sampler": {"values": ["DDIM", "Heun"]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"name": "s", "method": "grid", "parameters": sweep}))
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--root", str(tmp_path / "runs")]) == 0
    results = [json.loads(path.read_text()) for path in run.evaluations.glob("*/result.json")]
    assert sorted(result["sampler"]["name"] for result in results) == ["DDIM", "Heun"]
    assert len(list((tmp_path / "runs").glob("digits*"))) == 1 and run.checkpoint.read_bytes() == before
    with pytest.raises(UserError, match="model.warmup: cannot change, since .* was imported"):
        commands.fit(["--config", str(run.config), "--model.warmup=10"])
    assert main(["reproduce", str(run.directory), "--evaluation-only"]) == 0
    assert main(["export", str(run.directory), "--to", str(tmp_path / "exported")]) == 0
    ours, theirs = lit_gen.load(run.directory), lit_gen.load(tmp_path / "exported")
    assert torch.equal(*(model.sample(2, sampler=Heun(steps=2)) for model in (ours, theirs)))
    own = DDIM(steps=50, grid=Timesteps(spacing="leading"))
    assert torch.equal(ours.sample(2), ours.sample(2, sampler=own)) and torch.equal(ours.sample(2), theirs.sample(2))


FUNCTION = ["--model.schedule=Rectified", "--model.parameterization=Velocity"]


def denoiser(x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
    """The velocity of N(0, 1): at t = c_noise / 999, E[eps - x_0 | x]."""
    t = (c_noise / 999)[:, None, None, None]
    return (2 * t - 1) / (t**2 + (1 - t) ** 2) * x


def not_annotated(x, c_noise, labels):  # type: ignore[no-untyped-def]
    raise AssertionError("called")


@pytest.mark.slow
def test_a_function_becomes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow of N(0, 1) leaves it as it is: the images are the noise."""
    module = ModuleType("my_denoiser")
    monkeypatch.setitem(sys.modules, "my_denoiser", module)
    for function in (denoiser, not_annotated):
        monkeypatch.setattr(function, "__module__", "my_denoiser")
        setattr(module, function.__name__, function)
    words = ["--data.source=Digits", f"--run.root={tmp_path}"]
    run = exchange.import_model(["--denoiser=my_denoiser.denoiser", *FUNCTION, *words])
    model = lit_gen.load(run.directory)
    assert torch.allclose(
        model.sample(4, seed=2, sampler=Heun(steps=100), dtype="float"),
        Noise(2, range(4)).normal((1, 8, 8)).float(),
        atol=0.05,
    )
    quick = ["--evaluation.num_samples=16", "--evaluation.feature_net=DigitsFeatures", "--wandb.mode=disabled"]
    quick += ["--evaluation.metrics=[FrechetDistance]", "--sampler=Heun", "--sampler.steps=2"]
    assert json.loads(commands.evaluate([str(run.directory), *quick]).read_text())["nfe"] == 3
    for name, keys, said in (
        ("my_denoiser.not_annotated", FUNCTION, "not_annotated is not a Tensor"),
        ("os.system", FUNCTION, "os.system"),
        ("my_denoiser.denoiser", FUNCTION[:1], "model.parameterization: missing"),
        ("my_denoiser.nothing", FUNCTION, "nothing"),
    ):
        with pytest.raises(UserError, match=said):
            exchange.import_model([f"--denoiser={name}", *keys, *words])
