"""Guidance against brute force on exact mixtures, and from dropped training labels to a leaderboard row."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Batch
from lit_gen.experiment.checks import check_sampler
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.diffusion import Denoiser, EDMSchedule, GaussianMixtureDenoiser, Guidance, Rectified, Schedule
from lit_gen.families.diffusion.samplers import DDIM, RK45, DiffusionSampler, Heun
from lit_gen.report.leaderboard import rank
from lit_gen.report.results import load_results
from lit_gen.runs.directory import Run
from tests.behaviour.test_resume import assert_equal_bits, contents
from tests.conftest import arguments
from tests.interrupt import KILL_AT, CrashError


class Conditional(Denoiser):
    """Exact denoiser of a mixture whose labels select a component; a label below 0 selects none."""

    def __init__(self, mixture: GaussianMixtureDenoiser) -> None:
        components = zip(mixture.means, mixture.variances.sqrt(), strict=True)
        self.of_label = [*(GaussianMixtureDenoiser(mean[None], std[None]) for mean, std in components), mixture]
        self.asked: list[Tensor | None] = []

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        each = torch.stack([one.log_density(x, alpha, sigma) for one in self.of_label])
        return each[labels, torch.arange(len(x))]

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        self.asked.append(labels)
        if labels is None:
            labels = torch.full((len(x),), -1)
        each = torch.stack([one.denoise(x, alpha, sigma, None) for one in self.of_label])
        return each[labels, torch.arange(len(x))]


@pytest.fixture
def denoiser(mixture: GaussianMixtureDenoiser) -> Conditional:
    return Conditional(mixture)


@pytest.fixture
def weaker(mixture: GaussianMixtureDenoiser) -> Conditional:
    """Return the denoiser of a less trained model, with all components wider."""
    return Conditional(GaussianMixtureDenoiser(mixture.means, 1.5 * mixture.variances.sqrt(), mixture.weights))


LABELS = torch.tensor([0, 1, 2, 2, 0])
LEVELS = [(1.0, 0.1), (1.0, 30.0), (0.6, 0.8), (0.05, 0.95), (0.0, 1.0)]


def points(num: int = 5) -> Tensor:
    return 2 * torch.randn(num, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def level(alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)


@pytest.mark.parametrize("weight", [-0.5, 0.0, 0.3, 1.0, 2.0, 7.5])
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_the_guided_score_is_that_of_the_sharpened_density(
    denoiser: Conditional, weight: float, alpha: float, sigma: float
) -> None:
    """The guided (alpha D - x) / sigma^2 is the gradient of w log p(x | c) + (1 - w) log p(x)."""
    x, at = points().requires_grad_(), level(alpha, sigma)
    none = torch.full_like(LABELS, -1)
    log_p = weight * denoiser.log_density(x, *at, LABELS) + (1 - weight) * denoiser.log_density(x, *at, none)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    denoised = Guidance(weight)(denoiser, LABELS)(x.detach(), *at)
    torch.testing.assert_close((at[0] * denoised - x.detach()) / at[1] ** 2, score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_weight_0_is_without_class_and_1_is_the_conditional_one(
    denoiser: Conditional, alpha: float, sigma: float
) -> None:
    x, at = points(), level(alpha, sigma)
    with_class, without = denoiser(x, *at, LABELS), denoiser(x, *at, torch.full_like(LABELS, -1))
    assert (with_class - without).abs().max() > 1e-3
    assert torch.equal(without, denoiser.of_label[-1](x, *at))
    torch.testing.assert_close(Guidance(0.0)(denoiser, LABELS)(x, *at), without, rtol=0, atol=1e-12)
    assert torch.equal(Guidance(1.0)(denoiser, LABELS)(x, *at), with_class)
    expected = without + 3.5 * (with_class - without)
    torch.testing.assert_close(Guidance(3.5)(denoiser, LABELS)(x, *at), expected, rtol=1e-12, atol=1e-12)


def test_autoguidance_asks_the_weaker_model_for_the_same_class(denoiser: Conditional, weaker: Conditional) -> None:
    x, at = points(), level(0.7, 0.4)
    for labels in (LABELS, None):
        guidance = Guidance(2.5, run="somewhere").by(weaker)
        ours, theirs = denoiser(x, *at, labels), weaker(x, *at, labels)
        guided = guidance(denoiser, labels)
        before = denoiser.evaluations
        torch.testing.assert_close(guided(x, *at), theirs + 2.5 * (ours - theirs), rtol=1e-12, atol=1e-12)
        assert denoiser.evaluations - before == 2
        assert weaker.asked[-1] is labels and denoiser.asked[-1] is labels
    guidance.weight = 1.0
    counts = denoiser.evaluations, weaker.evaluations
    assert torch.equal(guidance(denoiser, LABELS)(x, *at), denoiser.denoise(x, *at, LABELS))
    assert (denoiser.evaluations, weaker.evaluations) == (counts[0] + 1, counts[1])


def test_guidance_keeps_to_its_interval(denoiser: Conditional) -> None:
    """Ratios above the first end and up to the second, for any scale of x."""
    x = points()
    guided, everywhere = Guidance(3.0, (0.5, 2.0))(denoiser, LABELS), Guidance(3.0)(denoiser, LABELS)
    for ratio, inside in ((0.1, False), (0.5, False), (0.51, True), (1.0, True), (2.0, True), (2.01, False)):
        for alpha in (1.0, 0.25):
            at = level(alpha, alpha * ratio)
            expected = everywhere(x, *at) if inside else denoiser(x, *at, LABELS)
            before = denoiser.evaluations
            assert torch.equal(guided(x, *at), expected)
            assert denoiser.evaluations - before == 1 + inside
    before = denoiser.evaluations
    guided(x, *level(0.0, 1.0))
    assert denoiser.evaluations - before == 1
    everywhere(x, *level(0.0, 1.0))
    assert denoiser.evaluations - before == 3


def test_images_at_times_of_their_own(denoiser: Conditional, weaker: Conditional) -> None:
    """As in an adaptive sampler: only images inside the interval are guided, and each counts by its fraction."""
    x = points()
    alpha, sigma = torch.tensor([[0.9, 0.5, 0.5, 0.2, 0.3], [0.1, 0.5, 0.9, 0.8, 0.3]]).double()
    inside = [False, True, True, False, True]
    for weak in (None, weaker):
        guidance = Guidance(2.0, (0.5, 2.0))
        guidance = guidance if weak is None else guidance.by(weak)
        guided = guidance(denoiser, LABELS)
        before = denoiser.evaluations
        together = guided(x, alpha, sigma)
        assert denoiser.evaluations - before == pytest.approx(1 + 3 / 5)
        before = denoiser.evaluations
        rows = torch.tensor([3, 4, 1])
        part = guided.part(rows, 5)(x[rows], alpha[rows], sigma[rows])
        assert denoiser.evaluations - before == pytest.approx(3 / 5 + 2 / 5)
        torch.testing.assert_close(part, together[rows], rtol=0, atol=1e-12)
        for i, within in enumerate(inside):
            one = guidance(denoiser, LABELS[i : i + 1])(x[i : i + 1], alpha[i], sigma[i])
            torch.testing.assert_close(one, together[i : i + 1], rtol=0, atol=1e-12)
            own = denoiser(x[i : i + 1], alpha[i], sigma[i], LABELS[i : i + 1])
            assert torch.equal(one, own) != within


@pytest.mark.parametrize("schedule", [EDMSchedule(), Rectified()], ids=["edm", "rectified"])
@pytest.mark.parametrize("cls", [DDIM, Heun])
def test_a_sampler_guides_where_it_is_told_to(denoiser: Conditional, schedule: Schedule, cls: type[Any]) -> None:
    def draw(guidance: Guidance | None, labels: Tensor | None = LABELS) -> tuple[Tensor, float]:
        sampler: DiffusionSampler = cls(steps=12, guidance=guidance)
        before = denoiser.evaluations
        images = sampler.sample(denoiser, schedule, Noise(1, range(5)), (2, 3), labels)
        return images, denoiser.evaluations - before

    images, nfe = draw(None)
    alone, nfe_alone = draw(Guidance(1.0))
    assert torch.equal(alone, images) and nfe_alone == nfe
    guided, nfe_guided = draw(Guidance(2.0))
    assert nfe_guided == 2 * nfe and (guided - images).abs().max() > 0.01
    without, nfe_without = draw(Guidance(0.0))
    torch.testing.assert_close(without, draw(None, None)[0], rtol=0, atol=1e-9)
    assert nfe_without == 2 * nfe
    everywhere, _ = draw(Guidance(2.0, (0.0, math.inf)))
    assert torch.equal(everywhere, guided)
    nowhere, nfe_nowhere = draw(Guidance(2.0, (200.0, math.inf)))
    assert torch.equal(nowhere, images) and nfe_nowhere == nfe
    middle, nfe_middle = draw(Guidance(2.0, (0.3, 3.0)))
    alpha, sigma = zip(*(schedule(t) for t in cls(steps=12).times(schedule)[:-1]), strict=True)
    ratios = torch.stack(sigma) / torch.stack(alpha)
    once = int(((ratios > 0.3) & (ratios <= 3.0)).sum())
    assert 0 < once < 12
    assert nfe_middle - nfe == (once if cls is DDIM else 2 * once)
    assert (middle - guided).abs().max() > 1e-3 and (middle - images).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", [DDIM(steps=6, eta=0.5), Heun(steps=6, S_churn=3), RK45(rtol=1e-3, atol=1e-3)])
def test_an_image_does_not_depend_on_its_batch(denoiser: Conditional, sampler: DiffusionSampler) -> None:
    sampler.guidance = Guidance(2.0, (0.2, 4.0))

    def draw(indices: list[int]) -> Tensor:
        labels = torch.tensor(indices) % 3
        return sampler.sample(denoiser, EDMSchedule(), Noise(4, indices), (2, 3), labels)

    together = draw(list(range(7)))
    torch.testing.assert_close(draw([5]), together[5:6], rtol=0, atol=1e-9)
    torch.testing.assert_close(draw([6, 20, 0])[[0, 2]], together[[6, 0]], rtol=0, atol=1e-9)


def test_a_budget_counts_both_evaluations() -> None:
    assert Heun(nfe=35, guidance=Guidance(2.0)).steps == 9
    assert Heun(nfe=35, guidance=Guidance(1.0)).steps == Heun(nfe=35).steps == 18
    assert DDIM(nfe=11, guidance=Guidance(0.0)).steps == 5
    with pytest.raises(UserError, match=r"^sampler\.nfe: 1 is too small for one step of DDIM"):
        DDIM(nfe=1, guidance=Guidance(2.0))


def test_settings_are_recorded_if_there_are_any() -> None:
    assert "guidance" not in DDIM(steps=3).to_dict()
    guidance = Guidance(2.0, run="weak").by(GaussianMixtureDenoiser(torch.zeros(1, 1), torch.ones(1)))
    settings = DDIM(steps=3, guidance=guidance).to_dict()["guidance"]
    assert settings == {"name": "Guidance", "weight": 2.0, "interval": [0.0, "inf"], "run": "weak"}
    assert json.loads(json.dumps(settings)) == settings
    assert "run" not in DDIM(steps=3, guidance=Guidance(2.0)).to_dict()["guidance"]


@pytest.mark.parametrize("interval", [(2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (0.0, math.nan)])
def test_an_empty_interval_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="^sampler.guidance.interval: "):
        Guidance(2.0, interval)


def test_what_is_missing_is_said(denoiser: Conditional) -> None:
    for weight in (math.nan, math.inf):
        with pytest.raises(UserError, match="^sampler.guidance.weight: "):
            Guidance(weight)
    with pytest.raises(UserError, match="^sampler.guidance: without a weaker run"):
        Guidance(2.0)(denoiser, None)
    with pytest.raises(UserError, match="the model of weak is not loaded"):
        Guidance(2.0, run="weak")(denoiser, LABELS)


# --- from training to leaderboard ---

CONDITIONAL = ["--model.class_conditional=true", "--grid.num_samples=0"]
DROP = [*CONDITIONAL, "--model.label_drop=0.1"]


def test_labels_are_dropped_in_training_alone(tmp_path: Path) -> None:
    def build(*more: str) -> Any:
        return ExperimentCLI(arguments("EDM", tmp_path, 64, *CONDITIONAL, *more)).objects().model

    classes = torch.arange(20_000) % 10
    batch = Batch(torch.zeros(20_000, 1, 8, 8), classes, torch.arange(20_000))
    model = build("--model.label_drop=0.2").train()
    torch.manual_seed(0)
    labels = model.conditioning(batch)
    dropped = labels < 0
    assert dropped.double().mean() == pytest.approx(0.2, abs=5 * math.sqrt(0.2 * 0.8 / 20_000))
    assert torch.equal(labels[~dropped], classes[~dropped]) and set(labels[dropped].tolist()) == {-1}
    torch.manual_seed(0)
    assert torch.equal(model.conditioning(batch), labels)
    assert torch.equal(model.eval().conditioning(batch), classes)
    undropped = build().train()
    before = torch.get_rng_state()
    assert torch.equal(undropped.conditioning(batch), classes)
    assert torch.equal(torch.get_rng_state(), before)
    for words in (["--model.label_drop=1"], ["--model.label_drop=0.1", "--model.class_conditional=false"]):
        with pytest.raises(UserError, match="^model.label_drop: "):
            build(*words)


def test_a_clamped_denoiser_stays_clamped(tmp_path: Path) -> None:
    model: Any = ExperimentCLI(arguments("DDPM", tmp_path, 64, *DROP)).objects().model
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x, at = torch.randn(4, 1, 8, 8), level(0.1, 0.99)
    labels = torch.arange(4)
    with torch.no_grad():
        ours, theirs = (model.denoiser.denoise(x, *at, given) for given in (labels, torch.full_like(labels, -1)))
        guided = Guidance(9.0)(model.denoiser, labels)(x, *at)
    assert (theirs + 9 * (ours - theirs)).abs().max() > 1
    torch.testing.assert_close(guided, (theirs + 9 * (ours - theirs)).clamp(-1, 1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return commands.fit(arguments("EDM", tmp_path_factory.mktemp("runs"), 64 * 12, *DROP, "--model.optimizer.lr=0.01"))


@pytest.fixture(scope="module")
def less_trained(trained: Run) -> Run:
    return commands.fit(arguments("EDM", trained.directory.parent, 64 * 2, *CONDITIONAL))


def evaluate(run: Run, *words: str) -> tuple[dict[str, Any], np.ndarray]:
    path = commands.evaluate([str(run.directory), "--sampler=Heun", "--sampler.steps=4", *words])
    return json.loads(path.read_text()), np.load(path.with_name("samples.npz"))["images"]


@pytest.mark.slow
def test_guidance_on_the_command_line(trained: Run, less_trained: Run) -> None:
    by_weaker = f"--sampler.guidance.run={less_trained.directory}"
    settings = [
        (),
        ("--sampler.guidance.weight=2",),
        ("--sampler.guidance.weight=2", "--sampler.guidance.interval=[0.1,5]"),
        ("--sampler.guidance.weight=2", by_weaker),
    ]
    results, images = zip(*(evaluate(trained, *words) for words in settings), strict=True)
    assert [result["nfe"] for result in results] == [7, 14, 9, 14]
    assert "guidance" not in results[0]["sampler"]
    assert [result["sampler"]["guidance"]["weight"] for result in results[1:]] == [2, 2, 2]
    assert results[3]["sampler"]["guidance"]["run"] == less_trained.directory.name
    for one, other in itertools.combinations(range(4), 2):
        assert not np.array_equal(images[one], images[other])
    rows = rank(load_results(trained.directory)).rows
    assert {row.first.sampler for row in rows} == {
        "Heun",
        "Heun(guidance=2)",
        "Heun(guidance=2 in 0.1 to 5.0)",
        f"Heun(guidance=2 by {less_trained.directory.name})",
    }


@pytest.mark.slow
def test_a_weaker_model_is_loaded_without_a_change_of_the_settings(trained: Run, less_trained: Run) -> None:
    words = ["--sampler=Heun", "--sampler.nfe=8", "--sampler.guidance.weight=2"]
    by_weaker = f"--sampler.guidance.run={less_trained.directory}"
    experiment = ExperimentCLI([f"--config={trained.config}", *words, by_weaker]).objects()
    assert isinstance(experiment.sampler, Heun) and experiment.sampler.guidance is not None
    before = experiment.sampler.to_dict()
    for _ in range(2):
        loaded = check_sampler(experiment, torch.device("cpu"))
        assert isinstance(loaded, Heun) and loaded.guidance is not None and loaded.guidance.weaker is not None
        assert loaded.to_dict() == before | {"guidance": before["guidance"] | {"run": less_trained.directory.name}}
        assert experiment.sampler.to_dict() == before and experiment.sampler.guidance.weaker is None


@pytest.mark.slow
def test_what_cannot_guide_is_said_in_one_line(
    trained: Run, less_trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> str:
        capsys.readouterr()
        assert main(words) == 2
        return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("lit-gen: error: ")

    guided = ["--sampler=DDIM", "--sampler.steps=2", "--sampler.guidance.weight=2"]
    missing = said("evaluate", str(less_trained.directory), *guided)
    assert missing.startswith("sampler.guidance: this model was trained without model.label_drop")
    assert said("run", *arguments("EDM", tmp_path, 64, *guided)) == missing and not list(tmp_path.iterdir())
    vae = commands.fit(arguments("VAE", tmp_path, 64, "--grid.num_samples=0"))
    other = commands.fit(arguments("EDM", tmp_path, 64, "--grid.num_samples=0"))
    for run, reason in (
        (vae, "holds the model VAE"),
        (other, "of no classes, the model to be guided 1x8x8 images of 10"),
    ):
        line = said("sample", str(trained.directory), *guided, f"--sampler.guidance.run={run.directory}")
        assert line.startswith("sampler.guidance.run: ") and reason in line
    line = said("evaluate", str(trained.directory), *guided, f"--sampler.guidance.run={tmp_path / 'none'}")
    assert "not a run directory" in line


@pytest.mark.slow
def test_a_training_with_dropped_labels_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def words(folder: str) -> list[str]:
        interrupt = ["--checkpoint.every=128", "--trainer.callbacks=tests.interrupt.Interrupt"]
        return arguments("RectifiedFlow", tmp_path / folder, 64 * 8, *DROP, *interrupt)

    commands.fit(words("whole"))
    monkeypatch.setenv(KILL_AT, "raise:5")
    with pytest.raises(CrashError):
        commands.fit(words("parts"))
    monkeypatch.delenv(KILL_AT)
    commands.fit(words("parts"))
    assert_equal_bits(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
