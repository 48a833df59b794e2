"""Autoencoders of diffusers become first stages: the same latents, codes and images."""

import json
from pathlib import Path
from typing import Any

import diffusers as package
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lit_gen
from lit_gen.cli import commands, exchange
from lit_gen.core.errors import UserError
from lit_gen.data import Digits
from lit_gen.experiment.loading import open_first_stage
from lit_gen.families.autoencoder import ImageAutoencoder
from lit_gen.families.vae.foreign import check_autoencoder
from lit_gen.runs.directory import Run
from tests.conftest import arguments

diffusers: Any = package
SETTINGS = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
}


QUICK = ["--evaluation.feature_net=DigitsFeatures", "--evaluation.num_samples=16", "--evaluation.inception_splits=1"]
SPATIAL = {"norm_type": "spatial", "block_out_channels": (32, 32), "norm_num_groups": 32}


def folder_of(path: Path, kind: str, **settings: Any) -> tuple[Path, Any]:
    """Save a small autoencoder with random weights, and return it."""
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(**{**SETTINGS, **settings})
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(path)
    return path, model.eval()


def imported(folder: Path, root: Path, *words: str) -> Run:
    return exchange.import_model([str(folder), "--data.source=Digits", f"--run.root={root}", *words])


def images_of(num: int) -> Tensor:
    return torch.from_numpy(np.array(Digits().load("test").images[:num])).float() / 127.5 - 1


def opened(run: Run) -> ImageAutoencoder:
    model = lit_gen.load(run.directory).module
    assert isinstance(model, ImageAutoencoder)
    return model


@pytest.mark.parametrize("settings", [{"latent_channels": 3}, {"use_quant_conv": False, "use_post_quant_conv": False}])
@torch.inference_mode()
def test_latents_of_a_kl_autoencoder(settings: dict[str, Any], tmp_path: Path) -> None:
    folder, theirs = folder_of(tmp_path / "kl", "AutoencoderKL", **settings)
    run = imported(folder, tmp_path / "runs")
    ours, images = opened(run), images_of(5)
    latents = theirs.encode(images).latent_dist.mean
    assert ours.latent_shape == latents.shape[1:] and ours.num_codes == 0
    torch.testing.assert_close(ours.latents(images), latents, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.decode_latents(latents), theirs.decode(latents).sample, rtol=1e-5, atol=1e-6)
    assert ours.reconstruct(images).std() > 0.01
    assert run.metadata["title"] == "kl" and run.metadata["imported"]["from"] == "diffusers AutoencoderKL"


@torch.inference_mode()
def test_codes_of_a_vq_model(tmp_path: Path) -> None:
    folder, theirs = folder_of(tmp_path / "vq", "VQModel", latent_channels=3, num_vq_embeddings=16, vq_embed_dim=2)
    ours, images = opened(imported(folder, tmp_path / "runs")), images_of(5)
    latents = theirs.encode(images).latents
    codes, _, (_, _, indices) = theirs.quantize(latents)
    assert (ours.num_codes, ours.latent_shape) == (16, (2, 4, 4))
    assert torch.equal(ours.encode(images).flatten(), indices.flatten()) and len(indices.unique()) > 1
    expected = theirs.decode(latents).sample
    torch.testing.assert_close(ours.reconstruct(images), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.decode_latents(latents), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_second_stage_is_trained_on_an_imported_one(tmp_path: Path) -> None:
    folder, theirs = folder_of(tmp_path / "kl", "AutoencoderKL", latent_channels=3)
    first = imported(folder, tmp_path / "runs")
    second = commands.fit(arguments("LatentEDM", tmp_path / "runs", 128, f"--first_stage.run={first.directory}"))
    copy, images = open_first_stage(second.directory / "first_stage"), images_of(4)
    latents = theirs.encode(images).latent_dist.mean
    decoded = copy.decode((latents - copy.mean) / copy.std * 0.5)
    torch.testing.assert_close(decoded, theirs.decode(latents).sample, rtol=1e-4, atol=1e-4)
    scores = json.loads(commands.evaluate([str(first.directory), *QUICK]).read_text())["metrics"]
    assert {"rfd_digits", "psnr", "ssim"} <= scores.keys()


CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "colour": (
        "AutoencoderKL",
        {"in_channels": 3, "out_channels": 3},
        "the autoencoder takes 3 channels",
    ),
    "too deep": (
        "AutoencoderKL",
        {
            "block_out_channels": (4,) * 5,
            "down_block_types": ("DownEncoderBlock2D",) * 5,
            "up_block_types": ("UpDecoderBlock2D",) * 5,
        },
        "images of 8x8 are not a multiple of 16",
    ),
    "spatial": (
        "VQModel",
        SPATIAL,
        "norm_type spatial is not supported",
    ),
}


@pytest.mark.parametrize(("key", "value"), [("block_out_channels", 5), ("latent_channels", "x"), ("vq_embed_dim", 1.5)])
def test_a_damaged_configuration_is_one_line(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"config: {key}: expected a"):
        check_autoencoder({**SETTINGS, key: value}, (1, 8, 8), "config")


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_supported_is_one_line(case: str, tmp_path: Path) -> None:
    kind, settings, message = CASES[case]
    folder, _ = folder_of(tmp_path / "foreign", kind, **settings)
    with pytest.raises(UserError, match=message):
        imported(folder, tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*/run.json"))


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path / "vq", "VQModel", num_vq_embeddings=16)
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for name, change in {
        "quantize.embedding.weight": lambda weight: weight[:5],
        "quant_conv.bias": lambda weight: weight[:0],
    }.items():
        save_file(weights | {name: change(weights[name]).clone()}, path)
        with pytest.raises(UserError, match=r"does not fit config\.json"):
            imported(folder, tmp_path / "runs")
    save_file({name: weight for name, weight in weights.items() if "quantize" not in name}, path)
    with pytest.raises(UserError, match=r"does not fit config\.json \('quantize.embedding.weight'\)"):
        imported(folder, tmp_path / "runs")
