"""Averages of any width: closed forms against brute force and quadrature, then the files and the commands."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.integrate import quad

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.report.leaderboard import rank
from lit_gen.report.results import load_results
from lit_gen.runs.directory import Run
from lit_gen.runs.power_averages import (
    MAX_STD,
    combine,
    gamma_of,
    halflife_decay,
    inner_product,
    power_decay,
    profile,
    std_of,
)
from lit_gen.runs.weights import Width, find_snapshots, load_average, parse_weights, reconstruct, save_snapshot
from tests.conftest import arguments

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""


def random_walk(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Times in images, unevenly spaced, and the weights (num, 3) that hold up to each."""
    generator = np.random.default_rng(seed)
    times = np.cumsum(generator.integers(20, 100, num)).astype(float)
    return times, np.cumsum(generator.normal(size=(num, 3)), 0)


def tracked(times: np.ndarray, weights: np.ndarray, gamma: float) -> np.ndarray:
    """The average after each update, as a training keeps it."""
    average, before, history = np.full(3, 1e9), 0.0, []
    for time, theta in zip(times, weights, strict=True):
        beta = power_decay(time - before, time, gamma)
        average = beta * average + (1 - beta) * theta
        before = time
        history.append(average)
    return np.array(history)


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.9722), (0.10, 6.9372), (0.15, 3.5579)])
def test_exponents_of_the_paper(std: float, gamma: float) -> None:
    assert gamma_of(std) == pytest.approx(gamma, abs=5e-5)


def test_std_is_that_of_the_profile_and_its_inverse_is_one() -> None:
    generator = np.random.default_rng(0)
    for gamma in [0.0, *generator.uniform(0.1, 30, 10)]:
        length = generator.uniform(1, 1000)
        moments = [
            quad(lambda t, n=n: t**n * float(profile(np.array(t), length, gamma)), 0, length, epsabs=0)[0]  # noqa: B023
            for n in range(3)
        ]
        assert moments[0] == pytest.approx(1, rel=1e-9)
        assert std_of(gamma) == pytest.approx(math.sqrt(moments[2] - moments[1] ** 2) / length, rel=1e-7)
        assert gamma_of(std_of(gamma)) == pytest.approx(gamma, rel=1e-9, abs=1e-9)
    assert gamma_of(MAX_STD) == pytest.approx(0, abs=1e-9)
    assert profile(np.array([5.0, 5.1]), 5.0, 2.0).tolist() == [0.6, 0.0]


@pytest.mark.parametrize("std", [0.0, -0.1, 0.288676, 0.2887, 1.0, math.nan])
def test_a_width_out_of_range(std: float) -> None:
    gamma_of(0.288675)
    with pytest.raises(UserError, match=rf"^--std: {std:g} is not .* give a number in \(0, 0.288675\]$"):
        gamma_of(std, "--std")


def test_inner_products_against_quadrature() -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        length, other_length = generator.uniform(1, 10, 2)
        gamma, other_gamma = generator.uniform(0.2, 20, 2)
        expected, _ = quad(
            lambda t: float(profile(np.array(t), length, gamma) * profile(np.array(t), other_length, other_gamma)),  # noqa: B023
            0,
            min(length, other_length),
            epsabs=0,
            epsrel=1e-11,
        )
        found = inner_product(*(np.array(value) for value in (length, gamma, other_length, other_gamma)))
        assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("std", [0.03, 0.1, 0.25])
def test_the_tracked_average_is_the_integral_over_the_profile(std: float) -> None:
    times, weights = random_walk(60)
    gamma = gamma_of(std)
    for num in (1, 2, 60):
        cumulative = (np.append(0.0, times[:num]) / times[num - 1]) ** (gamma + 1)
        shares = np.diff(cumulative)
        assert shares.sum() == pytest.approx(1, rel=1e-12)
        np.testing.assert_allclose(tracked(times, weights, gamma)[num - 1], shares @ weights[:num], rtol=1e-10)


def test_a_half_life_halves_whatever_the_batches() -> None:
    generator = np.random.default_rng(2)
    batches = generator.integers(1, 60, 100)
    images = 10**6 + np.cumsum(batches)
    halflife = int(batches.sum()) / 3
    decays = [halflife_decay(int(b), int(n), halflife, 0.05) for b, n in zip(batches, images, strict=True)]
    assert math.prod(decays) == pytest.approx(1 / 8, rel=1e-9)
    assert halflife_decay(64, 2000, 500_000, 0.05) == pytest.approx(0.5**0.64, rel=1e-12)


@pytest.mark.parametrize("std", [0.04, 0.07, 0.15])
def test_a_combination_is_the_best_one(std: float) -> None:
    """Against least squares between profiles on a fine grid, with the last coefficient eliminated by the sum of 1."""
    length = 800.0
    lengths, stds = np.repeat(np.linspace(100, length, 8), 2), np.tile([0.05, 0.1], 8)
    coefficients, error = combine(lengths, stds, length, std)
    assert coefficients.sum() == pytest.approx(1, rel=1e-12)
    t = (np.arange(200_000) + 0.5) * length / 200_000
    columns = np.stack([profile(t, stored, gamma_of(width)) for stored, width in zip(lengths, stds, strict=True)], 1)
    target = profile(t, length, gamma_of(std))
    best, *_ = np.linalg.lstsq(columns[:, :-1] - columns[:, -1:], target - columns[:, -1], rcond=None)
    np.testing.assert_allclose(coefficients[:-1], best, rtol=0, atol=1e-4)
    residual = columns @ coefficients - target
    assert error == pytest.approx(np.sqrt((residual**2).sum() / (target**2).sum()), rel=1e-4)


def test_a_stored_width_is_given_back_as_it_is() -> None:
    lengths, stds = np.repeat(np.linspace(1000, 64_000, 64), 2), np.tile([0.05, 0.1], 64)
    for position in (0, 127, 126):
        coefficients, error = combine(
            lengths[: position + 1], stds[: position + 1], lengths[position], float(stds[position])
        )
        assert error == 0
        np.testing.assert_array_equal(coefficients, np.eye(position + 1)[position])


def test_reconstruction_is_the_tracked_average() -> None:
    """After the paper: two widths, stored now and then, give those between and around them."""
    times, weights = random_walk(4000)
    stored = np.arange(124, 4000, 125)
    averages = {std: tracked(times, weights, gamma_of(std)) for std in (0.05, 0.1)}
    rows = np.concatenate([np.stack([averages[std][i] for std in averages]) for i in stored])
    for std, accuracy in ((0.04, 0.02), (0.07, 0.005), (0.09, 0.005), (0.15, 0.01), (0.2, 0.02)):
        coefficients, error = combine(np.repeat(times[stored], 2), np.tile([0.05, 0.1], 32), times[-1], std)
        assert 0 < error < accuracy
        direct = tracked(times, weights, gamma_of(std))[-1]
        other = tracked(times, weights, gamma_of(0.9 * std))[-1]
        assert np.abs(coefficients @ rows - direct).max() < 0.1 * np.abs(other - direct).max()


def test_what_never_changed_stays_as_it_is() -> None:
    coefficients, error = combine(np.array([500.0, 500.0, 1000.0, 1000.0]), np.tile([0.05, 0.1], 2), 1000.0, 0.2)
    assert error > 0.2
    assert coefficients.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "width"),
    [("ema", None), ("raw", None), ("ema:0.10", Width(0.1)), ("ema:5e-2@640", Width(0.05, 640))],
)
def test_names_of_weights(text: str, width: Width | None) -> None:
    assert parse_weights(text, "weights") == width
    if width is not None:
        assert parse_weights(str(width), "weights") == width


@pytest.mark.parametrize("text", ["EMA", "ema:", "ema:x", "ema:0.1.2", "ema:0.1@", "ema:0.1@-3", "ema:0.4", "ema:-0.1"])
def test_no_names_of_weights(text: str) -> None:
    with pytest.raises(UserError, match="^evaluation.weights: "):
        parse_weights(text, "evaluation.weights")


# --- in the files of a run ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose snapshots of std 0.07 are moved aside, to be compared with."""
    kept = ["--ema.stds=[0.05,0.07,0.1]", "--ema.every=128", "--grid.num_samples=0"]
    run = commands.fit(arguments("EDM", tmp_path_factory.mktemp("runs"), 64 * 33, *kept))
    aside = run.directory / "aside"
    aside.mkdir()
    for path in run.snapshots.glob("*-0.07.safetensors"):
        shutil.move(path, aside / path.name)
    return run


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 2
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("lit-gen: error: ")


def test_snapshots_stand_at_every_so_many_images_and_at_the_end(trained: Run) -> None:
    times = [*range(128, 64 * 33, 128), 64 * 33]
    assert [(s.images, s.std) for s in find_snapshots(trained)] == [
        (time, std) for time in times for std in (0.05, 0.1)
    ]
    assert not list(trained.snapshots.glob(".*"))


def test_the_command_gives_the_tracked_average(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ema", str(trained.directory), "--std", "0.07"]) == 0
    out = capsys.readouterr().out
    path = trained.checkpoint.parent / "ema_0.070.safetensors"
    assert str(path) in out and "--evaluation.weights ema:0.07" in out and "after 2,112 images" in out
    found = load_file(path)
    direct = load_file(trained.directory / "aside" / "000002112-0.07.safetensors")
    near = load_file(trained.snapshots / "000002112-0.05.safetensors")
    assert found.keys() == direct.keys() == set(torch.load(trained.checkpoint, weights_only=True)["ema"]["weights"])
    difference = sum(float((found[name] - direct[name]).square().sum()) for name in found)
    distance = sum(float((near[name] - direct[name]).square().sum()) for name in found)
    assert difference < 0.01**2 * distance


def test_a_stored_width_has_the_same_bits(trained: Run) -> None:
    for width in (Width(0.05), Width(0.1, 1024)):
        path, facts = reconstruct(trained, width)
        stored = load_file(trained.snapshots / f"{int(facts['images']):09d}-{width.std}.safetensors")
        for name, weight in load_file(path).items():
            assert torch.equal(weight, stored[name])
    assert path.name == "ema_0.100-000001024.safetensors"


def test_a_file_that_is_not_up_to_date_is_made_again(trained: Run) -> None:
    old, facts = reconstruct(trained, Width(0.08, 1024))
    assert facts["snapshots"] == "16"  # those of later weights have no part in it
    path = trained.checkpoint.parent / Width(0.08).file_name
    shutil.copy(old, path)
    weights, images = load_average(trained, Width(0.08))
    assert images == 2112
    stamp = path.stat().st_mtime_ns
    again, _ = load_average(trained, Width(0.08))
    assert path.stat().st_mtime_ns == stamp
    path.unlink()  # the weights are mapped from it
    path.write_bytes(b"damaged")
    mended, _ = load_average(trained, Width(0.08))
    for name, weight in weights.items():
        assert torch.equal(weight, again[name]) and torch.equal(weight, mended[name])


@pytest.mark.slow
def test_evaluations_name_their_weights(trained: Run) -> None:
    words = [str(trained.directory), "--sampler=DDIM", "--sampler.steps=3"]
    asked = ["ema", "ema:0.050", "ema:0.1@1024"]
    results = [json.loads(commands.evaluate([*words, f"--evaluation.weights={name}"]).read_text()) for name in asked]
    assert [result["weights"] for result in results] == ["ema", "ema:0.05", "ema:0.1@1024"]
    assert [result["images_seen"] for result in results] == [2112, 2112, 1024]
    assert len({result["metrics"]["fd_digits"] for result in results}) == 3
    assert len(rank(load_results(trained.directory)).rows) == 3


def test_sample_takes_them(trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-n=4", "--sampler=DDIM", "--sampler.steps=3"]
    images = []
    for name in ("raw", "ema:0.1"):
        out = tmp_path / f"{name}.npz"
        commands.sample([str(trained.directory), *words, "--weights", name, "--out", str(out)])
        assert f"{name} weights" in capsys.readouterr().out
        images.append(np.load(out)["images"])
    assert not np.array_equal(*images)


@pytest.mark.slow
def test_what_is_missing_is_said_in_one_line(trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(trained.directory)
    assert said(capsys, "ema", name, "--std", "0.5").startswith("--std: 0.5 is not the relative width")
    assert "after 1000 images; choose one near it: 768, 896, 1024, 1152" in said(
        capsys, "ema", name, "--std", "0.1", "--at", "1000"
    )
    assert "34 snapshots of std 0.05, 0.1 do not give an average of std 0.01 (profile error 17%)" in said(
        capsys, "ema", name, "--std", "0.01"
    )
    assert said(capsys, "evaluate", name, "--evaluation.weights=ema:9").startswith("evaluation.weights: 9 is not")
    assert said(capsys, "sample", name, "--weights", "averaged").startswith(
        "--weights: 'averaged' names no weights; give ema"
    )
    damaged = trained.snapshots / "000000001-0.1.safetensors"
    damaged.write_bytes(b"nothing")
    assert f"{damaged}: not a readable safetensors file" in said(capsys, "ema", name, "--std", "0.06")
    damaged.unlink()
    other = commands.fit(arguments("VAE", tmp_path, 64))
    for words in (["ema", "--std=0.1"], ["evaluate", "--evaluation.weights=ema:0.1"]):
        assert "no snapshots of power-function averages; train with --ema.stds" in said(
            capsys, words[0], str(other.directory), *words[1:]
        )
    asked = arguments("VAE", tmp_path / "none", 64, "--evaluation.weights=ema:0.1")
    assert "add --ema.stds '[0.05, 0.1]'" in said(capsys, "run", *asked)
    assert not (tmp_path / "none").exists()


def test_counters_are_those_of_the_latest(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for images in (100, 200):
        for std in (0.05, 0.1):
            weights = {"weight": torch.full((2, 2), float(images)), "count": torch.tensor(images)}
            save_snapshot(run.snapshots, images, std, weights, torch.bfloat16)
    path, _ = reconstruct(run, Width(0.07))
    found = load_file(path)
    assert found["count"] == 200 and found["weight"].dtype == torch.float32
    assert found["weight"].mean() == pytest.approx(200, rel=0.01)
