"""A step that is computed in parts is the step that is computed at once, and nothing happens within it."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lit_gen.cli import commands
from lit_gen.core.errors import UserError
from lit_gen.data import Binarised, Digits, ImageDataModule
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.experiment.trainer import make_trainer
from lit_gen.families import clock
from lit_gen.families.autoregressive import FVSBN
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion import DDPM
from lit_gen.families.vq import VQGAN, ConvAutoencoder, PatchDiscriminator
from lit_gen.families.vq.networks.quantisers import VectorQuantiser
from lit_gen.runs.directory import Run
from lit_gen.training.callbacks import EMA, Budget, BudgetSettings, Checkpoint, EMASettings
from tests.behaviour.test_resume import assert_equal_bits, contents
from tests.conftest import arguments
from tests.interrupt import KILL_AT, CrashError
from tests.processes import in_two_processes
from tests.training.test_validation import trainer, two_processes

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

STEPS = 25  # of 64 images: digits have 22 in an epoch
IN_TWO = "--trainer.accumulate_grad_batches=2"
IN_FOUR = "--trainer.accumulate_grad_batches=4"


def weights(run: Run) -> dict[str, Tensor]:
    """The raw weights, and their average."""
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    averages = {f"average.{name}": weight for name, weight in checkpoint["ema"]["weights"].items()}
    both: dict[str, Tensor] = checkpoint["state_dict"] | averages
    return {name: weight for name, weight in both.items() if weight.is_floating_point()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest over all weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def curves(run: Run) -> list[dict[str, float]]:
    with (run.directory / "metrics.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [{key: value for key, value in row.items() if key != "train/images_per_second"} for row in rows]


# Losses without random numbers, and plain gradient descent: Adam would not notice gradients of another length.
@pytest.mark.parametrize(
    ("model", "rate", "more"),
    [
        ("FVSBN", 1.0, []),
        pytest.param("PixelCNN", 0.1, [], marks=pytest.mark.exhaustive),
        ("VQVAE", 0.1, ["--model.quantiser.revive_below=0"]),
    ],
)
def test_a_step_in_parts_is_the_step_at_once(model: str, rate: float, more: list[str], tmp_path: Path) -> None:
    def train(name: str, rate: float, *also: str) -> Run:
        words = ["--model.optimizer=SGD", f"--model.optimizer.lr={rate}", "--model.warmup=640", "--ema.stds=[0.1]"]
        words += ["--trainer.log_every_n_steps=4", "--data.num_val=34", "--trainer.gradient_clip_val=0.5"]
        return commands.fit(arguments(model, tmp_path / name, 64 * STEPS, *words, "--data.flip=true", *more, *also))

    whole, parts, faster = train("whole", rate), train("parts", rate, IN_FOUR), train("faster", 2 * rate)
    assert distance(weights(whole), weights(parts)) < 2e-5
    assert distance(weights(whole), weights(faster)) > 2e-2, "another rate would have been noticed"
    one, other = (torch.load(run.checkpoint, weights_only=True) for run in (whole, parts))
    assert one["images_seen"] == other["images_seen"] == 64 * STEPS
    assert one["global_step"] == other["global_step"] == STEPS
    assert one["ema"]["num_updates"] == other["ema"]["num_updates"] == STEPS
    assert one["lr_schedulers"] == other["lr_schedulers"]
    assert (one["batches_seen"], other["batches_seen"]) == (STEPS, 4 * STEPS)
    for row, same in zip(curves(whole), curves(parts), strict=True):
        of_batches = {"train/perplexity", "train/usage", "train/psnr"}  # other means over parts
        assert {key: row[key] for key in row.keys() - of_batches} == pytest.approx(
            {key: same[key] for key in same.keys() - of_batches}, rel=1e-4
        )
    snapshots = [sorted(path.name for path in run.snapshots.iterdir()) for run in (whole, parts)]
    assert snapshots[0] == snapshots[1]


# no batch normalisation, which is of a part, and no penalty, which draws random numbers for each
SGD_OF = "--model.{}optimizer=SGD", "--model.{}optimizer.lr={}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "other", "rate", "more"),
    [
        ("WGAN", "critic_", 0.05, ["--model.constraint=clipping", "--model.clip=0.1"]),
        (
            "VQGAN",
            "discriminator_",
            0.05,
            ["--model.discriminator_start=64", "--model.discriminator_warmup=128", "--model.quantiser.revive_below=0"],
        ),
    ],
)
def test_two_networks_step_in_parts_as_at_once(
    model: str, other: str, rate: float, more: list[str], tmp_path: Path
) -> None:
    def train(name: str, rate: float, *also: str) -> Run:
        words = [word.format(key, rate) for key in ("", other) for word in SGD_OF]
        words += ["--trainer.log_every_n_steps=1", "--model.gradient_clip=0.5"]
        return commands.fit(arguments(model, tmp_path / name, 64 * 6, *words, *more, *also))

    whole, parts, faster = train("whole", rate), train("parts", rate, IN_FOUR), train("faster", 2 * rate)
    assert distance(weights(whole), weights(parts)) < 1e-5
    assert distance(weights(whole), weights(faster)) > 1e-3, "another rate would have been noticed"
    one, same = (torch.load(run.checkpoint, weights_only=True) for run in (whole, parts))
    for key in ("images_seen", "batches_seen", "global_step"):
        assert one[key] == same[key], key
    assert one["images_seen"] == 64 * 6
    for row, again in zip(curves(whole), curves(parts), strict=True):
        of_batches = {"train/perplexity", "train/usage", "train/psnr", "train/codebook_usage"}  # other means over parts
        assert {key: row[key] for key in row.keys() - of_batches} == pytest.approx(
            {key: again[key] for key in again.keys() - of_batches}, rel=1e-3, abs=1e-5
        )


def test_the_clock_stands_still_within_a_step(tmp_path: Path) -> None:
    """So a warm-up of the divergence is that of the steps."""
    words = ["--model.kl_warmup=1024", "--trainer.log_every_n_steps=1", "--model.beta=3"]
    runs = [commands.fit(arguments("VAE", tmp_path, 640, *words, *more)) for more in ([], [IN_TWO])]
    whole, parts = ([row for row in curves(run) if "train/beta" in row] for run in runs)
    assert [row["images"] for row in whole] == [row["images"] for row in parts] == [64 * step for step in range(1, 11)]
    assert [row["train/beta"] for row in whole] == [row["train/beta"] for row in parts]
    assert [row["train/beta"] for row in parts] == pytest.approx([3 * step / 16 for step in range(1, 11)])


def test_every_part_draws_random_numbers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[tuple[Any, ...]] = []
    drawn: list[Tensor] = []
    times = DDPM.training_times

    def step_seed(*of: Any) -> int:
        streams.append(of)
        return original(*of)

    def training_times(self: DDPM, num: int) -> Tensor:
        found = times(self, num)
        if isinstance(self.trainer, Trainer):  # not the copy that counts operations
            drawn.append(found)
        return found

    original = clock.step_seed
    monkeypatch.setattr(clock, "step_seed", step_seed)
    monkeypatch.setattr(DDPM, "training_times", training_times)
    commands.fit(arguments("DDPM", tmp_path, 64 * 3, IN_FOUR, "--model.stratified=true"))
    assert [of for of in streams if of[1] != "times"] == [(0, 0, part) for part in range(12)]
    assert [len(t) for t in drawn] == [16] * 12
    assert len({t.sum().item() for t in drawn}) == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("FlowMatching", ["--model.coupling=ot", "--model.stratified=true"]),
        ("ImprovedDDPM", ["--model.importance_sampling=true"]),
        ("EDM", ["--model.augment=EDMAugmentation", "--model.uncertainty=true"]),
        ("RealNVP", []),
        ("TokenPrior", []),
        ("GAN", []),
    ],
)
def test_families_train_in_parts(model: str, more: list[str], tmp_path: Path) -> None:
    run = commands.fit(arguments(model, tmp_path, 64 * 3, IN_TWO, *more))
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    done = (checkpoint["images_seen"], checkpoint["global_step"], checkpoint["batches_seen"])
    assert done == ((64 * 3, 3 + 1, 3) if model == "GAN" else (64 * 3, 3, 6))  # a GAN counts steps of both networks


class Saved:
    """Notes how many parts are done at each checkpoint."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.after: list[int] = []
        save = Checkpoint._write

        def noting(checkpoint: Checkpoint, trainer: Trainer, model: GenerativeModel) -> None:
            self.after.append(model.clock.batches_seen)
            save(checkpoint, trainer, model)

        monkeypatch.setattr(Checkpoint, "_write", noting)


def training(model: str, root: Path, *more: str) -> list[str]:
    """30 steps of two parts, with a checkpoint every 11th."""
    words = ["--data.flip=true", "--model.warmup=640", "--trainer.callbacks=tests.interrupt.Interrupt"]
    return arguments(model, root, 64 * 30, IN_TWO, *words, f"--checkpoint.every={64 * 11}", *more)


@pytest.mark.slow
def test_resumed_training_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Saved(monkeypatch)
    grids = ["--grid.every=640", "--grid.num_samples=2"]
    commands.fit(training("DDPM", tmp_path / "whole", *grids))
    assert saved.after == [22, 44, 60]
    # before the first checkpoint, in an epoch, just after its end (44 parts), and in the next one; all within steps
    for part in (7, 23, 45, 59):
        monkeypatch.setenv(KILL_AT, f"raise:{part}")
        with pytest.raises(CrashError):
            commands.fit(training("DDPM", tmp_path / "parts", *grids))
    monkeypatch.delenv(KILL_AT)
    run = commands.fit(training("DDPM", tmp_path / "parts", *grids))
    assert set(saved.after) == {22, 44, 60}
    assert_equal_bits(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    assert {path.name for path in run.samples.iterdir()} == {f"images-{images:09d}.png" for images in (640, 1280, 1920)}


@pytest.mark.slow
@pytest.mark.parametrize("part", [20, pytest.param(21, marks=pytest.mark.exhaustive)])
def test_ctrl_c_is_heard_at_the_end_of_a_step(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Saved(monkeypatch)
    once = ["--checkpoint.every=0", "--grid.num_samples=0"]
    monkeypatch.setenv(KILL_AT, f"interrupt:{part}")
    with pytest.raises(KeyboardInterrupt):
        commands.fit(training("VAE", tmp_path / "parts", *once))
    assert saved.after == [22]
    monkeypatch.delenv(KILL_AT)
    commands.fit(training("VAE", tmp_path / "parts", *once))
    commands.fit(training("VAE", tmp_path / "whole", *once))
    assert_equal_bits(contents(tmp_path / "whole"), contents(tmp_path / "parts"))


class StopIn(Callback):
    """Asks once to stop the training, in the part that it is told."""

    def __init__(self, part: int) -> None:
        self.part = part

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.clock.batches_seen == self.part:
            trainer.should_stop = True


@pytest.mark.parametrize(("part", "steps"), [(9, 3), (11, 3), (12, 3), (13, 4)])
def test_whoever_stops_a_training_stops_it_after_a_step(part: int, steps: int, tmp_path: Path) -> None:
    stopped, whole = binary_model(), binary_model()
    for model, callback in ((stopped, StopIn(part)), (whole, Budget(BudgetSettings(16 * steps)))):
        fit = trainer(max_epochs=1, accumulate_grad_batches=4, callbacks=[callback])
        fit.fit(model, datamodule=binary_data())
        assert (model.images_seen, fit.global_step, model.clock.batches_seen) == (16 * steps, steps, 4 * steps)
        assert fit.should_stop
    assert torch.equal(flat(stopped), flat(whole))


def test_a_time_ends_a_training_after_a_step(tmp_path: Path) -> None:
    for key in ("--budget.seconds=0.7", "--trainer.max_time=00:00:00:01"):
        run = commands.fit(arguments("VAE", tmp_path, 10**9, IN_FOUR, "--grid.num_samples=0", key))
        checkpoint = torch.load(run.checkpoint, weights_only=True)
        assert checkpoint["batches_seen"] % 4 == 0 < checkpoint["global_step"]
        assert checkpoint["images_seen"] == 64 * checkpoint["global_step"] == 16 * checkpoint["batches_seen"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "steps"), [("max_epochs=1", 22), ("max_steps=5", 5), ("limit_train_batches=3", 6), ("max_epochs=2", 25)]
)
def test_settings_count_steps(setting: str, steps: int, tmp_path: Path) -> None:
    more = ["--trainer.max_epochs=2"] if "limit" in setting else []
    run = commands.fit(arguments("VAE", tmp_path, 64 * STEPS, IN_TWO, f"--trainer.{setting}", *more))
    assert run.metadata["images_seen"] == 64 * steps


def test_validations_come_after_steps(tmp_path: Path) -> None:
    words = ["--trainer.val_check_interval=3", "--data.num_val=40", "--trainer.log_every_n_steps=0"]
    run = commands.fit(arguments("VAE", tmp_path, 64 * 7, IN_TWO, *words))
    assert [row["images"] for row in curves(run) if "val/bits_per_dim" in row] == [64 * 3, 64 * 6, 64 * 7]


# --- two processes ---


def binary_model() -> FVSBN:
    torch.manual_seed(0)
    return FVSBN(image_shape=(1, 8, 8), optimizer=lambda p: torch.optim.SGD(p, lr=1.0), warmup=80)


def binary_data() -> ImageDataModule:
    return ImageDataModule(Binarised(Digits()), batch_size=16)


def flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def train_binary(parts: int, folder: Path | None = None, **processes: Any) -> tuple[Tensor, Tensor, int, int]:
    model, ema = binary_model(), EMA(EMASettings(0.9))
    fit = trainer(max_steps=100, max_epochs=-1, accumulate_grad_batches=parts, callbacks=[ema], **processes)
    fit.fit(model, datamodule=binary_data())
    average = torch.cat([weight.flatten() for weight in ema._average.values()])
    return flat(model), average, model.images_seen, fit.global_step


def vqgan() -> VQGAN:
    """Of no random numbers in a step."""
    torch.manual_seed(0)
    return VQGAN(
        (1, 8, 8),
        latent_dim=4,
        network=lambda shape, dim: ConvAutoencoder(shape, dim, channels=8),
        quantiser=lambda dim: VectorQuantiser(dim, 8, decay=0.9, revive_below=0.0),
        perceptual="none",
        discriminator=lambda shape: PatchDiscriminator(shape, channels=8, num_halvings=1),
        discriminator_start=32,
        discriminator_warmup=32,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        discriminator_optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        gradient_clip=0.5,
    )


def train_vqgan(parts: int, **processes: Any) -> tuple[dict[str, Tensor], float]:
    model = vqgan()
    model.split_steps(parts)
    fit = trainer(max_epochs=1, limit_train_batches=12, **processes)
    fit.fit(model, datamodule=ImageDataModule(Digits(), batch_size=16))
    return model.state_dict(), float(model.training_values["adaptive_weight"])


def train_in_two(rank: int, folder: Path) -> None:
    for parts in (1, 2):
        torch.save(train_binary(parts, **two_processes()), folder / f"{parts}-{rank}.pt")
        torch.save(train_vqgan(parts, **two_processes()), folder / f"vqgan-{parts}-{rank}.pt")


@pytest.mark.slow
def test_parts_of_one_process_are_the_shares_of_two(tmp_path: Path) -> None:
    """The second part of a step in two is what the second process has of it; two and two are four parts."""
    in_two_processes(train_in_two, tmp_path)
    begin = flat(binary_model())
    for parts in (1, 2):
        one = train_binary(2 * parts, devices=1)
        assert one[2:] == (1600, 100) and float((one[0] - begin).abs().max()) > 0.1
        for rank in range(2):
            two = torch.load(tmp_path / f"{parts}-{rank}.pt", weights_only=True)
            assert two[2:] == one[2:]
            torch.testing.assert_close(two[0], one[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(two[1], one[1], rtol=0, atol=1e-5)
        start, (whole, weight) = vqgan().state_dict(), train_vqgan(2 * parts, devices=1)
        moved = {name for name, value in whole.items() if float((value - start[name]).abs().max()) > 1e-4}
        assert {"autoencoder.quantiser.codes", "autoencoder.frequencies"} < moved
        assert any(name.startswith("discriminator.") for name in moved) and weight > 0
        for rank in range(2):
            shared, its_weight = torch.load(tmp_path / f"vqgan-{parts}-{rank}.pt", weights_only=True)
            assert its_weight == pytest.approx(weight, rel=1e-3), "lambda is of all processes"
            for name, value in whole.items():
                torch.testing.assert_close(shared[name], value, rtol=0, atol=1e-5, msg=name)


# --- settings that do not go with parts ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--trainer.accumulate_grad_batches=0"],
            "accumulate_grad_batches: 0 is not a number of micro-batches",
        ),
        (
            ["--trainer.accumulate_grad_batches=-2"],
            "accumulate_grad_batches: -2 is not a number of micro-batches",
        ),
        (["--trainer.accumulate_grad_batches={1: 2}"], "trainer.accumulate_grad_batches: .*1: 2.* expected int"),
        (["--trainer.accumulate_grad_batches=1.5"], "trainer.accumulate_grad_batches: 1.5 .*expected int"),
        (
            ["--trainer.callbacks=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={1: 2}"],
            "trainer.callbacks: GradientAccumulationScheduler .* set trainer.accumulate_grad_batches",
        ),
        (
            ["--trainer.accumulate_grad_batches=3"],
            "data.batch_size: 64 .* trainer.accumulate_grad_batches = 3; give a multiple of 3",
        ),
        ([IN_TWO, "--trainer.limit_train_batches=0.3"], "trainer.limit_train_batches: 0.3 may end .* number of steps"),
        ([IN_TWO, "--trainer.val_check_interval=0.3"], "trainer.val_check_interval: 0.3 may end .* number of steps"),
    ],
)
def test_what_would_split_a_step_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        commands.fit(arguments("VAE", tmp_path, 128, *words))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_a_batch_that_a_model_cannot_split_equally_is_refused(tmp_path: Path) -> None:
    said = "data.batch_size: 64 .* trainer.accumulate_grad_batches = 3; give a multiple of 3"
    with pytest.raises(UserError, match=said):
        commands.fit(arguments("WGAN", tmp_path, 128, "--trainer.accumulate_grad_batches=3"))
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_a_model_that_splits_its_batches_is_told_in_how_many(tmp_path: Path) -> None:
    cli = ExperimentCLI([*arguments("WGAN", tmp_path, 64, IN_FOUR)])
    objects = cli.objects()
    fit = make_trainer(objects.trainer, objects.model, cli.instantiate_trainer)
    assert objects.model.accumulate == 4 and fit.accumulate_grad_batches == 1
    cli = ExperimentCLI([*arguments("VAE", tmp_path, 64, IN_FOUR)])
    objects = cli.objects()
    assert objects.model.accumulate == 1
    fit = make_trainer(objects.trainer, objects.model, cli.instantiate_trainer)
    assert objects.model.accumulate == fit.accumulate_grad_batches == 4
