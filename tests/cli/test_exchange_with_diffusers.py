"""`lit-gen export --format diffusers`, and back: the same images, whatever made the run."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import diffusers as package
import pytest
import torch
from safetensors.torch import load_file

import lit_gen
from lit_gen.cli import commands, exchange
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.experiment import exporting_to_diffusers
from lit_gen.families.diffusion import DiscreteVP, Score, V
from lit_gen.runs.directory import Run
from tests.conftest import arguments
from tests.experiment import test_foreign as foreign
from tests.experiment import test_foreign_autoencoders as autoencoders

diffusers: Any = package  # its stubs of lazy imports have no attributes
pytestmark = pytest.mark.slow
AGREES = ["channels=128", "channel_mult=[1, 1]", "num_blocks=1", "resample_filter=[1, 1]"]


def trained(root: Path, *more: str, model: str = "DDPM") -> Run:
    words = [*(f"--model.network.{setting}" for setting in AGREES), *more]
    return commands.fit(arguments(model, root, 64, *words))


def exported(run: Run, folder: Path, weights: str = "ema") -> Path:
    options = {"run": run.directory, "to": folder, "weights": weights, "push": None, "format": "diffusers"}
    return exchange.export_model(Namespace(**options))


def imported(folder: Path, root: Path, *words: str) -> Run:
    return exchange.import_model([str(folder), "--data.source=Digits", f"--run.root={root}", *words])


def check_equal(one: Run, other: Run, weights: str = "ema") -> None:
    sampler = foreign.DDIM(steps=4)
    images = [
        lit_gen.load(run.directory, each).sample(5, seed=3, dtype="float", sampler=sampler)
        for run, each in ((one, weights), (other, "ema"))
    ]
    assert images[0].std() > 0.01
    torch.testing.assert_close(*images, rtol=0, atol=2e-4)  # the betas of diffusers are in float32


@pytest.mark.parametrize(
    "more, weights",
    [
        (["--model.betas=cosine", "--model.num_timesteps=60"], "ema"),
        (
            [
                "--model.num_timesteps=500",
                "--model.class_conditional=true",
                "--model.network.attention_resolutions=[4]",
            ],
            "raw",
        ),
    ],
)
def test_a_unet_leaves_and_returns(more: list[str], weights: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "runs", *more)
    folder = exported(run, tmp_path / "theirs", weights)
    back = imported(folder, tmp_path / "back")
    check_equal(run, back, weights)
    card = (folder / "README.md").read_text()
    assert "with any sampler" in card and "library_name: diffusers" in card and f"| weights | {weights} |" in card
    assert (
        ("DDIMPipeline" in card)
        == (folder / "model_index.json").is_file()
        == ("--model.class_conditional=true" not in more)
    )
    assert not list(folder.rglob("*.bin"))
    if (folder / "model_index.json").is_file():
        pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
        assert pipeline.scheduler.config.clip_sample and pipeline.scheduler.config.prediction_type == "epsilon"
        foreign.check_same_images(back, pipeline, "clipped")


@pytest.mark.parametrize("scheduler", ["squaredcos_cap_v2", "trained_betas", "zero_terminal_snr", "clipped"])
def test_an_imported_folder_leaves_as_it_came(scheduler: str, tmp_path: Path) -> None:
    folder, pipeline = foreign.folder_of(tmp_path / "first", scheduler)
    run = imported(folder, tmp_path / "runs")
    again = exported(run, tmp_path / "again")
    theirs, ours = (load_file(each / "unet" / "diffusion_pytorch_model.safetensors") for each in (folder, again))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)
    settings = json.loads((again / "scheduler" / "scheduler_config.json").read_text())
    expected = pipeline.scheduler.config
    named = ("num_train_timesteps", "prediction_type", "clip_sample", "timestep_spacing", "steps_offset")
    assert {name: settings[name] for name in named} == {name: expected[name] for name in named}
    torch.testing.assert_close(
        diffusers.DDIMScheduler.from_pretrained(again / "scheduler").alphas_cumprod, pipeline.scheduler.alphas_cumprod
    )
    check_equal(run, imported(again, tmp_path / "back"))


def test_a_network_of_diffusers_with_classes_is_trained_here_and_leaves(tmp_path: Path) -> None:
    settings = json.dumps(foreign.DIT | {"out_channels": 1})
    network = ["--model.network=DiffusersNetwork", "--model.network.kind=DiTTransformer2DModel"]
    words = [*network, f"--model.network.settings={settings}", "--model.class_conditional=true"]
    given = [word for word in arguments("DDPM", tmp_path / "runs", 64) if not word.startswith("--model.network")]
    run = commands.fit([*given, *words])
    folder = exported(run, tmp_path / "theirs")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "scheduler_config.json",
    ]
    check_equal(run, imported(folder, tmp_path / "back"))


@pytest.mark.parametrize(
    "kind, more", [("AutoencoderKL", {}), ("VQModel", {"num_vq_embeddings": 9, "vq_embed_dim": 2})]
)
def test_an_autoencoder_leaves_as_it_came(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = autoencoders.folder_of(tmp_path / "first", kind, latent_channels=3, **more)
    run = imported(folder, tmp_path / "runs")
    again = exported(run, tmp_path / "again")
    theirs, ours = (load_file(each / "diffusion_pytorch_model.safetensors") for each in (folder, again))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)
    back = imported(again, tmp_path / "back")
    images = autoencoders.images_of(4)
    with torch.inference_mode():
        one, other = (autoencoders.opened(each).reconstruct(images) for each in (run, back))
    assert torch.equal(one, other)
    assert ": a first stage, on whose latents" in (again / "README.md").read_text()


@pytest.mark.parametrize(
    "model, said",
    [
        ("EDM", "EDM is not trained on a chain of timesteps"),
        ("ImprovedDDPM", "ImprovedDDPM is not trained on a chain of timesteps with a fixed variance"),
        ("DDPM", "this UNet does not agree with UNet2DModel"),
        ("GAN", "GAN, class-conditional is not a diffusion model of pixels"),
    ],
)
def test_what_diffusers_does_not_have_is_one_line(
    model: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = commands.fit(arguments(model, tmp_path / "runs", 64))
    capsys.readouterr()
    assert main(["export", str(run.directory), "--format", "diffusers", "--to", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1 and printed[0].startswith(f"lit-gen: error: --format: {said}"), printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"num_codes": 20}, "this quantiser does not agree"),
        ({"similarity": "cosine"}, "this quantiser does not agree"),
        ({"code_dim": 1}, "this quantiser does not agree"),
        (None, "this quantiser does not agree"),
    ],
)
def test_another_quantiser_is_one_line(
    changes: dict[str, Any] | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"latent_channels": 3, "num_vq_embeddings": 9, "vq_embed_dim": 2}
    settings = json.dumps({**autoencoders.SETTINGS, **sizes})
    quantiser = {"class_path": "VectorQuantiser", "init_args": {"num_codes": 9, "ema": False} | (changes or {})}
    if changes is None:
        quantiser = {"class_path": "FSQ", "init_args": {"levels": [3, 3]}}
    words = [
        "--model=VQVAE",
        "--model.latent_dim=2",
        "--model.network=DiffusersAutoencoder",
        "--model.network.kind=VQModel",
    ]
    words += [f"--model.network.settings={settings}", f"--model.quantiser={json.dumps(quantiser)}"]
    given = [word for word in arguments("VQVAE", tmp_path / "runs", 64) if not word.startswith("--model")]
    run = commands.fit([*words, *given])
    capsys.readouterr()
    assert main(["export", str(run.directory), "--format", "diffusers", "--to", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_betas_of_any_chain_are_those_of_the_scheduler() -> None:
    """Check chains with clamped betas, too; refuse a prediction that diffusers does not have."""
    for num in (5, 20, 21, 300, 1000):
        schedule = DiscreteVP("linear", num)
        theirs = diffusers.DDIMScheduler(num_train_timesteps=num, **exporting_to_diffusers._betas(schedule))
        ours = torch.tensor([float(schedule(k / num)[0]) ** 2 for k in range(1, num + 1)])
        torch.testing.assert_close(theirs.alphas_cumprod, ours, rtol=2e-4, atol=1e-9)
    assert exporting_to_diffusers._prediction_type(V()) == "v_prediction"
    with pytest.raises(UserError, match="no prediction type for Score"):
        exporting_to_diffusers._prediction_type(Score())
