"""Two stages: the first is trained when needed, encodes once, and is kept with the second."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Digits, ImageDataModule
from lit_gen.data.class_order import classes_of
from lit_gen.data.encoded import load_values
from lit_gen.experiment.first_stage import STD, FirstStage, _moments
from lit_gen.experiment.loading import load_first_stage, load_model, open_first_stage
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.base import GenerativeModel
from lit_gen.families.vq import VQVAE
from lit_gen.runs.directory import Run
from tests.conftest import ROOT, arguments

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A prior that was trained together with its first stage, with a validation split."""
    root = tmp_path_factory.mktemp("runs")
    return commands.fit(arguments("TokenPrior", root, 256, "--data.num_val=100", "--model.class_conditional=true"))


@pytest.fixture(scope="module")
def latent(prior: Run) -> Run:
    """A diffusion model of the latents of the same first stage, named by its run."""
    run = first(prior)
    words = [f"--first_stage.run={run.directory}", "--data.num_val=100"]
    return commands.fit(arguments("LatentEDM", prior.directory.parent, 256, *words))


def first(prior: Run) -> Run:
    (directory,) = prior.directory.parent.glob("digits_vqvae-*")
    return Run.open(directory)


def opened(run: Run) -> tuple[torch.nn.Module, ImageDataModule]:
    objects = ExperimentCLI(["--config", str(run.config)]).objects()
    return load_model(run, objects.model, "ema"), objects.data


def encoder(run: Run) -> VQVAE:
    model = load_model(run, ExperimentCLI(["--config", str(run.config)]).objects().model, "ema")
    assert isinstance(model, VQVAE)
    return model


def test_the_first_stage_is_trained_and_its_codes_are_those_of_the_images(prior: Run) -> None:
    model, (_, data) = encoder(first(prior)), opened(prior)
    assert first(prior).finished and first(prior).metadata["images_seen"] == 640
    stage = open_first_stage(first(prior).directory)
    encoded = stage.encode(data, "codes")
    for split, num in {"train": 1342, "val": 100}.items():
        part = encoded[split]
        assert part.values.shape == (num, 4, 4) and part.values.dtype == np.int32
        assert np.array_equal(part.labels, data.labels(split))  # type: ignore[arg-type]
        images = torch.from_numpy(data.images(split)).float() / 127.5 - 1
        with torch.no_grad():
            expected = model.encode(images).numpy()
        assert (part.values == expected).mean() > 0.999  # rounding depends on the size of the batch
    assert len(np.unique(encoded["train"].values)) > 4


def test_batches_are_codes_in_the_order_of_the_images(prior: Run) -> None:
    stage = open_first_stage(first(prior).directory)
    data = ImageDataModule(Digits(), batch_size=64, num_val=100, seed=3)
    order = [batch.index for batch in data.train_dataloader()]
    data.train_on_encoded(encoded := stage.encode(data, "codes"))
    for index, batch in zip(order, data.train_dataloader(), strict=True):
        assert torch.equal(batch.index, index)
        served = data.on_after_batch_transfer(batch, 0)
        assert torch.equal(served.images, torch.from_numpy(encoded["train"].values[index.numpy()]))
        assert served.labels is not None and np.array_equal(served.labels, data.labels("train")[index.numpy()])  # type: ignore[index]
    assert data.images("train").shape == (1342, 1, 8, 8), "all splits are images as before"


def test_images_are_encoded_once(prior: Run) -> None:
    files = sorted((first(prior).directory / "encoded").glob("codes-*.npz"))
    assert len(files) == 2
    stamps = [file.stat().st_mtime_ns for file in (*files, first(prior).checkpoint)]
    words = arguments("TokenPrior", prior.directory.parent, 256, "--data.num_val=100", "--model.warmup=64")
    assert commands.fit(words).directory != prior.directory
    assert sorted((first(prior).directory / "encoded").glob("codes-*.npz")) == files
    assert [file.stat().st_mtime_ns for file in (*files, first(prior).checkpoint)] == stamps


def test_what_is_encoded_by_what_is_in_the_key(prior: Run) -> None:
    _, data = opened(prior)
    trained, copy = first(prior).directory, prior.directory / "first_stage"

    def key(directory: Path = trained, weights: str = "ema", split: str = "train", form: str = "codes") -> str:
        stage = open_first_stage(directory, weights)
        return stage.key(data, split, form, "fingerprint")

    keys = [key(), key(weights="raw"), key(split="val"), key(form="latents")]
    assert len(set(keys)) == 4 and keys[0] == key(copy)
    assert prior.metadata["data"]["fingerprint"] == keys[0]


def test_other_weights_are_another_training_of_the_same_recipe(prior: Run, tmp_path: Path) -> None:
    """A first stage that is trained again in the same place has the same identity, and may have other weights."""
    _, data = opened(prior)
    copy = tmp_path / "copy"
    shutil.copytree(prior.directory / "first_stage", copy)
    stage = open_first_stage(copy)
    recipe, encoded = stage.key(data, "train", "codes", "recipe"), stage.encode(data, "codes")["train"]
    before = set((copy / "encoded").glob("*.npz"))
    with torch.no_grad():
        for weight in stage.model.generator.parameters():
            weight.mul_(1.5)
    other = stage.encode(data, "codes")["train"]
    assert len(set((copy / "encoded").glob("*.npz")) - before) == len(before) == 2
    images = torch.from_numpy(np.asarray(data.images("train"))[:50]).float() / 127.5 - 1
    assert np.array_equal(other.values[:50], stage.model.encode(images).numpy())
    assert other.fingerprint() != encoded.fingerprint(), "which is in the identity of what learns it"
    assert stage.key(data, "train", "codes", "recipe") == recipe


def test_a_first_stage_belongs_to_the_training(prior: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(prior.directory), "--first_stage.weights=raw"]) == 2
    assert "first_stage.weights: cannot change, since" in capsys.readouterr().err


def test_a_damaged_copy_is_one_line_before_anything_is_drawn(
    prior: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GenerativeModel, "sample", lambda *_, **__: pytest.fail("it drew"))
    run = tmp_path / "run"
    shutil.copytree(prior.directory, run)
    copy = run / "first_stage"
    whole, bits = load_file(copy / "weights.safetensors"), (copy / "weights.safetensors").read_bytes()
    broadcast, moment = whole["quantiser.codes"][:1].contiguous(), torch.zeros(3, 1, 1)
    without = {name: weight for name, weight in whole.items() if name != "latents.std"}
    again = "; restore it, or train again under another --run.name"
    copied = "; copy it again from the run of the first stage, or train again under another --run.name"
    fits_not = f"does not fit the model of {copy}/config.yaml "
    weights = {
        "not a readable safetensors file": bits[:1000],
        f"{fits_not}(latents.mean){again}": save({"weight": moment}),
        f"{fits_not}(latents.std){again}": save(without),
        f"{fits_not}(weights differ in [('more', (3, 1, 1))]){again}": save(whole | {"more": moment}),
        f"{fits_not}(weights differ in [('quantiser.codes', (1, 4)), ('quantiser.codes', (32, 4))]){again}": save(
            whole | {"quantiser.codes": broadcast}
        ),
        f"{fits_not}(latents.mean and latents.std are [3, 1, 1] and []){again}": save(whole | {"latents.mean": moment}),
    }
    facts = {
        "not UTF-8 text": b"\xff",
        "identity: missing": b"{}",
        "not valid JSON (Expecting property name": b"{",
    }
    stage = open_first_stage(copy)
    for name, damages, verb in (("weights.safetensors", weights, "sample"), ("run.json", facts, "evaluate")):
        good = (copy / name).read_bytes()
        for message, content in damages.items():
            (copy / name).write_bytes(content)
            with pytest.raises(UserError) as error:
                load_first_stage(stage, copy)
            assert str(error.value).startswith(f"{copy / name}: {message}") and "\n" not in str(error.value)
            assert str(error.value).endswith(again if name == "weights.safetensors" else copied)
        assert main([verb, str(run)]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert str(error.value) in line
        (copy / name).write_bytes(good)
    load_first_stage(stage, copy)


def test_another_seed_of_both_stages_is_the_same_recipe(prior: Run, tmp_path: Path) -> None:
    words = ["--data.num_val=100", "--model.class_conditional=true", "--seed_everything=1"]
    seeded = commands.fit(arguments("TokenPrior", tmp_path, 256, *words))
    assert seeded.metadata["recipe"] == prior.metadata["recipe"]
    assert seeded.metadata["identity"] != prior.metadata["identity"]
    assert seeded.metadata["data"]["fingerprint"] != prior.metadata["data"]["fingerprint"]


def test_a_checkpoint_holds_the_second_stage_alone(prior: Run, latent: Run) -> None:
    for run in (prior, latent):
        checkpoint = torch.load(run.checkpoint, weights_only=True)
        assert all(name.startswith(("network.", "denoiser.")) for name in checkpoint["state_dict"])
        assert not any("quantiser" in name or "decoder" in name for name in checkpoint["state_dict"])


def test_images_of_both_stages_are_drawn_without_the_data(
    prior: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which knows what the codes were made of, and how frequent its classes are."""
    metadata = prior.metadata["data"]
    assert metadata["images_fingerprint"] == first(prior).metadata["data"]["fingerprint"] != metadata["fingerprint"]

    def gone(source: Digits, part: str) -> None:
        raise UserError("the data is gone")

    monkeypatch.setattr(Digits, "load", gone)
    assert main(["sample", str(prior.directory), "-n", "40", "--out", str(tmp_path / "all.npz")]) == 0
    with np.load(tmp_path / "all.npz") as file:
        np.testing.assert_array_equal(file["labels"], classes_of(np.arange(40), metadata["class_counts"]))
        assert file["images"].std() > 0
    assert main(["evaluate", str(prior.directory), "--evaluation.seed=77"]) == 2


@pytest.mark.parametrize("kind", ["prior", "latent"])
def test_a_run_needs_no_other(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: Run = request.getfixturevalue(kind)
    assert yaml.safe_load(run.config.read_text())["first_stage"]["run"] == "first_stage"
    before, _ = opened(run)
    images = before.sample(Noise(0, range(8)))  # type: ignore[operator]
    alone = Run(tmp_path / "alone")
    shutil.copytree(run.directory, alone.directory)
    hidden = first(run).directory.rename(tmp_path / "hidden")
    try:
        after, _ = opened(alone)
        assert torch.equal(after.sample(Noise(0, range(8))), images)  # type: ignore[operator]
        result = json.loads(commands.evaluate([str(alone.directory), "--evaluation.num_samples=8"]).read_text())
        assert main(["sample", str(alone.directory), "-n", "4", "--out", str(tmp_path / "four.png")]) == 0
        found = commands.fit(["--config", str(run.config)])
    finally:
        hidden.rename(first_place(run, hidden))
    assert result["model"] == {"prior": "VQVAE + TokenPrior, class-conditional", "latent": "VQVAE + EDM"}[kind]
    assert result["protocol"]["num_real"] == 1342 and result["protocol"]["image_shape"] == [1, 8, 8]
    assert result["first_stage"]["identity"] == first(run).metadata["identity"]
    own = sum(parameter.numel() for parameter in before.parameters())
    assert result["num_parameters"] == own + result["first_stage"]["num_parameters"]
    assert found.directory == run.directory, "its own configuration is the same training"


def first_place(run: Run, hidden: Path) -> Path:
    identity = json.loads((hidden / "run.json").read_text())["identity"]
    return run.directory.parent / f"digits_vqvae-{identity[:10]}"


def test_samples_are_decoded_by_the_first_stage(prior: Run, latent: Run) -> None:
    model = encoder(first(prior))
    with torch.no_grad():
        second, _ = opened(prior)
        codes = second.draw(Noise(1, range(6)), torch.arange(6) % 10, second.default_sampler())  # type: ignore[operator]
        torch.testing.assert_close(second.sample(Noise(1, range(6))), model.decode(codes))  # type: ignore[operator]
        assert second.nfe == 16
        second, _ = opened(latent)
        z = second.draw(Noise(1, range(6)), None, second.default_sampler())  # type: ignore[operator]
        stage = second.first_stage
        assert isinstance(stage, FirstStage)
        decoded = model.decode_latents(z.float() * 2 * stage.std + stage.mean)
        torch.testing.assert_close(second.sample(Noise(1, range(6))), decoded)  # type: ignore[operator]


def test_latents_are_standardised_and_decoded_to_the_reconstructions(latent: Run) -> None:
    second, data = opened(latent)
    stage = open_first_stage(first(latent).directory)
    encoded = stage.encode(data, "latents")
    z = torch.from_numpy(encoded["train"].values)
    assert z.shape == (1342, 4, 4, 4) and z.dtype == torch.float32
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.full((4,), 0.5), rtol=1e-4, atol=0)
    assert abs(float(encoded["val"].values.mean())) > 1e-5, "by the moments of the training images"
    raw = load_values(next((first(latent).directory / "encoded").glob("latents-*.npz")))
    assert raw.shape[1:] == (4, 4, 4)
    model = encoder(first(latent))
    images = data.examples("train", 20).images
    index = data.examples("train", 20).index
    with torch.no_grad():
        decoded = second.first_stage.decode(z[index])  # type: ignore[union-attr, operator]
        torch.testing.assert_close(decoded, model.decode(model.encode(images)), rtol=1e-4, atol=1e-4)


def test_a_dead_channel_of_latents_stays_finite() -> None:
    """It is divided by at least 1e-6; the others by their own standard deviation."""
    latents = np.random.default_rng(0).normal(2, 3, (50, 3, 4, 4)).astype(np.float32)
    latents[:, 1] = 0.7
    latents[:, 2] = 1e-9 * latents[:, 0]
    stage = FirstStage.__new__(FirstStage)
    stage.mean, stage.std = _moments(latents)
    assert stage.std.flatten().tolist() == pytest.approx([latents[:, 0].std(dtype=np.float64), 1e-6, 1e-6], rel=1e-6)
    given = stage._standardised(latents)
    assert given[:, 0].std() == pytest.approx(STD, rel=1e-5)
    assert (given[:, 1] == 0).all()
    assert np.abs(given[:, 2]).max() < 0.01


def test_the_settings_of_a_first_stage_have_keys_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second stage knows of them before the first is trained; its own budget is another."""
    words = arguments("TokenPrior", tmp_path, 192)
    overrides = ["--first_stage.run.budget.num_images=128", "--first_stage.run.model.quantiser.num_codes=16"]
    run = commands.fit([*words, *overrides])
    images = (run.metadata["images_seen"], first(run).metadata["images_seen"])
    stage = opened(run)[0].first_stage
    assert images == (192, 128) and stage.num_codes == encoder(first(run)).num_codes == 16  # type: ignore[union-attr]
    assert (
        "tiny_vqvae.yaml: 128 images (--first_stage.run.budget.num_images), "
        "then what follows it: 192 images (--budget.num_images)\n"
    ) in capsys.readouterr().out
    assert commands.fit([f"--config={run.config}"]) == run
    for wrong, says in {
        "--first_stage.run.budget.nothing=1": "first_stage.run: --budget.nothing=1: no such key",
        "--first_stage.run.data.num_val=50": "has other training images",
    }.items():
        assert main(["run", *words, wrong]) == 2
        assert says in capsys.readouterr().err
    again = [*words, f"--first_stage.run={first(run).directory}", *overrides]
    assert main(["fit", *again]) == 2
    assert "first_stage.run.budget.num_images: " in (error := capsys.readouterr().err) and "is trained already" in error


def test_a_first_stage_keeps_the_averages_that_are_asked_for(tmp_path: Path) -> None:
    """The remedy of the error is one; and a grid of the size of training is scored."""
    words = arguments("TokenPrior", tmp_path, 64, "--first_stage.weights=ema:0.1")
    given = ["--first_stage.run.ema.stds", "[0.05, 0.1]", "--sampler=TokenSampling", "--sampler.size=[4,4]"]
    result = json.loads(commands.run([*words, *given]).read_text())
    assert result["first_stage"]["weights"] == "ema:0.1" and result["sampler"]["size"] == [4, 4]


def test_no_latent_is_clamped(prior: Run) -> None:
    stage = f"--first_stage.run={first(prior).directory}"
    words = arguments("DDPM", prior.directory.parent, 64, "--data.num_val=100")
    assert ExperimentCLI(words).objects().model.denoiser.clip == 1
    latents = ExperimentCLI([*words, stage]).objects().model
    assert latents.denoiser.clip is None and latents.image_shape == (4, 4, 4)


def test_validation_logs_nats_per_token(prior: Run) -> None:
    with (prior.directory / "metrics.csv").open() as file:
        logged = [float(row["val/nats_per_token"]) for row in csv.DictReader(file) if row.get("val/nats_per_token")]
    assert logged and 0 < logged[-1] < math.log(32) + 1


def test_images_larger_than_the_data_are_drawn_but_not_scored(
    prior: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = ["--sampler=TokenSampling", "--sampler.size=[5,8]"]
    out = tmp_path / "larger.npz"
    assert main(["sample", str(prior.directory), "-n", "3", "--out", str(out), *larger]) == 0
    assert np.load(out)["images"].shape == (3, 1, 10, 16)
    assert main(["evaluate", str(prior.directory), *larger]) == 2
    assert "sampler.size: images of 1x10x16 are not those of digits" in capsys.readouterr().err


def test_what_is_wrong_is_one_line(prior: Run, latent: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage, root = f"--first_stage.run={first(prior).directory}", tmp_path / "none"
    unfinished = tmp_path / "unfinished"
    shutil.copytree(first(prior).directory, unfinished)
    metadata = json.loads((unfinished / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps(metadata | {"status": "training"}))
    images = np.random.default_rng(0).integers(0, 256, (400, 8, 8), np.uint8)
    np.savez(tmp_path / "noise.npz", images=images, labels=np.arange(400) % 10)
    val = "--data.num_val=100"
    token, edm = arguments("TokenPrior", root, 64, val), arguments("LatentEDM", root, 64, val, stage)
    cases = {
        "first_stage.run: TokenPrior learns the codes": [*token, "--first_stage.run=null"],
        "neither a run directory nor the file": [*token, "--first_stage.run=nowhere"],
        "holds the model EDM, which has no codes or latents": [
            *token,
            f"--first_stage.run={ROOT}/conf/experiment/digits_edm.yaml",
        ],
        "does not support a first stage": arguments("VAE", root, 64, val, stage),
        "ImprovedDDPM trains on images": arguments("ImprovedDDPM", root, 64, val, stage),
        "has other training images": [*token, stage, "--data.num_val=50"],
        f"{first(prior).directory} has other training images": [
            *(word for word in token if "data.source" not in word),
            *(stage, "--data.source=Npz", f"--data.source.path={tmp_path}/noise.npz"),
        ],
        "data.flip": [*token, stage, "--data.flip=true"],
        "model.augment": [*edm, "--model.augment=EDMAugmentation"],
        "is not finished": [*token, f"--first_stage.run={unfinished}"],
        "first_stage.weights: 'last' names no weights": [*token, stage, "--first_stage.weights=last"],
        "the run has no best checkpoint": [*token, stage, "--first_stage.weights=best"],
        "reflow.teacher": arguments("RectifiedFlow", root, 64, val, stage, f"--reflow.teacher={latent.directory}"),
        "VQVAE + EDM has no likelihood": [*edm, "--evaluation.likelihood=all"],
        # these of a first stage that is yet to be trained
        "sampler.size: images of 1x16x16 are not those of digits, 1x8x8": [
            *(*token, "--sampler=TokenSampling", "--sampler.size=[8,8]")
        ],
        "first_stage.weights: ema:0.1 is a power-function average; add --first_stage.run.ema.stds": [
            *(*token, "--first_stage.weights=ema:0.1")
        ],
        "data.batch_size: 2000 exceeds the 1342 ": [*token, "--data.batch_size=2000"],
    }
    for message, words in cases.items():
        assert main(["run", *words]) == 2, message
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert message in line
    assert not list(root.glob("*/run.json"))
    trajectory = [
        "sample",
        str(latent.directory),
        "--trajectory",
        str(tmp_path / "t.png"),
        "--out",
        str(tmp_path / "s.png"),
    ]
    assert main(trajectory) == 2
    assert "--trajectory" in capsys.readouterr().err


def test_a_weaker_model_has_the_same_first_stage(
    latent: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.num_val=100", "--seed_everything=1"]
    other = commands.fit(arguments("LatentEDM", tmp_path, 64, *words))
    guided = ["--sampler=Heun", "--sampler.steps=2", "--sampler.guidance.weight=1.5"]
    assert main(["evaluate", str(latent.directory), *guided, f"--sampler.guidance.run={other.directory}"]) == 2
    assert "name a run with the same first stage" in capsys.readouterr().err
    same = commands.evaluate([str(latent.directory), *guided, f"--sampler.guidance.run={latent.directory}"])
    assert same.is_file()
