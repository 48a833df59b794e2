"""Losses of the diffusion models, and equality of times and noise between one and several processes."""

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lit_gen.cli import commands
from lit_gen.core.noise import Noise
from lit_gen.data import Batch
from lit_gen.families.clock import Division
from lit_gen.families.diffusion import (
    DDPM,
    EDM,
    ELBO,
    Diffusion,
    DiscreteVP,
    ErrorOf,
    FixedTime,
    FlowMatching,
    ImprovedDDPM,
    LogitNormal,
    MinSNR,
    RectifiedFlow,
    ScoreSDE,
    UNet,
    UniformLogSigma,
    UniformSteps,
    UniformTime,
    Velocity,
    hybrid_loss,
    optimal_transport,
    variational_loss,
)
from tests.behaviour.test_resume import assert_equal_bits, contents
from tests.conftest import arguments
from tests.interrupt import KILL_AT, CrashError
from tests.processes import lit_gen_in_two_processes

SHAPE = (1, 8, 8)


def network(shape: tuple[int, int, int], num_classes: int = 0, **options: Any) -> nn.Module:
    """Return a small UNet with non-zero output."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet(shape, num_classes, channels=8, channel_mult=(1,), num_blocks=1, **options)
        for parameter in unet.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return unet


class Processes:
    """Stand-in for the trainers of several processes at the same step."""

    def __init__(self, num: int, step: int = 5) -> None:
        self.num, self.step = num, step

    def models(
        self, cls: type[Diffusion], images: Tensor, labels: Tensor | None = None, **options: Any
    ) -> list[tuple[Diffusion, Batch]]:
        pairs = []
        shares: Sequence[Tensor | None] = [None] * self.num if labels is None else labels.chunk(self.num)
        self.trainers = [SimpleNamespace(world_size=self.num, global_rank=rank) for rank in range(self.num)]
        for trainer, part, share in zip(self.trainers, images.chunk(self.num), shares, strict=True):
            model = cls(image_shape=SHAPE, network=network, **options)
            model._trainer = trainer  # type: ignore[assignment]
            model.clock.seed, model.clock.batches_seen = 3, self.step
            model.clock.find_share(trainer.global_rank, Division(self.num))
            model.gathered = self._gathered(images, labels)  # type: ignore[method-assign]
            pairs.append((model, Batch(part, share, torch.arange(len(part)))))
        return pairs

    @staticmethod
    def _gathered(images: Tensor, labels: Tensor | None) -> Any:
        return lambda values: images if values.ndim > 1 else labels


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("cls", [DDPM, EDM, RectifiedFlow, FlowMatching, ScoreSDE, ImprovedDDPM])
def test_stratified_times_are_spread_over_the_batch_all_gather_cat(cls, images):
    def times(num: int, step: int = 5, **options: Any) -> Tensor:
        pairs = Processes(num, step).models(cls, images, **options)
        return torch.cat([model.training_times(len(batch.images)) for model, batch in pairs])

    torch.manual_seed(0)
    one = times(1, stratified=True)
    torch.manual_seed(1)  # must not matter
    assert torch.equal(one, times(3, stratified=True))
    assert not torch.equal(one, times(1, step=6, stratified=True))
    model = Processes(1).models(cls, images)[0][0]
    share = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    at = model.density.quantile(model.schedule, share)
    into = torch.searchsorted(at, one.sort().values) / 999 * 12  # the rank of each time, in strata
    assert (into.diff() - 1).abs().max() < 0.05
    torch.manual_seed(0)
    independent = times(1)
    torch.manual_seed(0)
    assert torch.equal(independent, times(1))
    torch.manual_seed(1)
    assert not torch.equal(independent, times(1))


def test_the_coupling_is_that_of_the_batch_all_gather_cat(images):
    def noise(num: int, step: int = 5, coupling: str = "ot") -> Tensor:
        pairs = Processes(num, step).models(FlowMatching, images, coupling=coupling)
        return torch.cat([model.training_noise(batch) for model, batch in pairs])

    one = noise(1)
    assert torch.equal(one, noise(3))
    assert not torch.equal(one, noise(1, step=6))
    assert torch.equal(optimal_transport(images, one), one), "no other order is nearer"
    assert not torch.equal(
        optimal_transport(images, noise(1, coupling="independent")), noise(1, coupling="independent")
    )
    model, batch = Processes(1).models(FlowMatching, images, coupling="ot")[0]
    torch.manual_seed(0)
    in_validation = model.validation_noise(batch)
    assert torch.equal(optimal_transport(images, in_validation), in_validation)


def test_a_conditional_model_couples_each_class_by_itself(images):
    """Also if labels are dropped, since no class may choose its noise."""
    labels = torch.arange(12) % 3
    options: dict[str, Any] = {"coupling": "ot", "num_classes": 3, "label_drop": 0.5}

    def noise(num: int, conditional: bool = True) -> Tensor:
        more = options if conditional else {"coupling": "ot", "num_classes": 3}
        pairs = Processes(num).models(FlowMatching, images, labels, class_conditional=conditional, **more)
        return torch.cat([model.training_noise(batch) for model, batch in pairs])

    def is_optimal(eps: Tensor) -> bool:
        return torch.equal(optimal_transport(images, eps), eps)

    one, of_all = noise(1), noise(1, conditional=False)
    assert torch.equal(one, noise(3))
    assert torch.equal(optimal_transport(images, one, labels), one) and not is_optimal(one)
    assert is_optimal(of_all) and torch.equal(of_all.flatten().sort().values, one.flatten().sort().values)
    model, batch = Processes(1).models(FlowMatching, images, labels, class_conditional=True, **options)[0]
    torch.manual_seed(0)
    in_validation = model.validation_noise(batch)
    assert torch.equal(optimal_transport(images, in_validation, labels), in_validation)
    assert not is_optimal(in_validation)


@pytest.mark.parametrize(("cls", "options"), [(RectifiedFlow, {}), (FlowMatching, {"coupling": "ot"})])
def test_a_flow_trains_and_validates_on_the_noise_of_its_pairs(cls, options, images, monkeypatch):
    model, unpaired = Processes(1).models(cls, images, density="noise", **options)[0]
    batch = unpaired._replace(noise=torch.randn_like(images))
    assert batch.noise is not None
    assert torch.equal(model.training_noise(batch), batch.noise)
    assert torch.equal(model.validation_noise(batch), batch.noise)
    velocity = model.network(batch.noise, torch.full((12,), 999.0))
    expected = (velocity - (batch.noise - images)).square().mean()
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(model, "log_training", lambda **values: logged.update(values))
    monkeypatch.setattr(model, "log_validation", lambda _, **values: logged.update(val=values["loss"]))
    torch.testing.assert_close(model.training_step(batch, 0), expected)
    model.validation_step(batch, 0)
    torch.testing.assert_close(logged["val"], expected)
    torch.testing.assert_close(logged["loss"], expected.detach())
    assert (model.training_step(unpaired, 0) - expected).abs() > 1e-3


def test_a_distilled_flow_draws_in_one_step_from_pure_noise():
    """The network is evaluated only at t = 1, its only training time, and the straightness is not computed."""
    model = RectifiedFlow(image_shape=SHAPE, network=network, density="noise")
    seen: list[tuple[Tensor, Tensor]] = []
    model.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[:2]))
    drawn = model.sample(Noise(4, range(3)))
    ((x, c_noise),) = seen
    eps = Noise(4, range(3)).normal(SHAPE)
    assert torch.equal(x, eps) and torch.equal(c_noise, torch.full((3,), 999.0))
    torch.testing.assert_close(drawn, eps - model.network(eps, c_noise))
    seen.clear()
    assert model.diagnostics(Noise(0, range(2))) == {} and not seen
    path = RectifiedFlow(image_shape=SHAPE, network=network)
    assert path.diagnostics(Noise(0, range(2)))["straightness"] > 0
    path.sample(Noise(4, range(3)))
    assert path.nfe == 50


def test_rectified_flow_is_flow_matching_with_independent_pairs(images):
    losses = []
    for cls in (RectifiedFlow, FlowMatching):
        torch.manual_seed(0)
        model, batch = Processes(1).models(cls, images)[0]
        t, eps = model.training_times(12), model.training_noise(batch)
        losses.append(model.loss(images, t, eps, None))
    assert torch.equal(*losses)
    assert "coupling" not in inspect.signature(RectifiedFlow.__init__).parameters
    assert isinstance(RectifiedFlow(image_shape=SHAPE, network=network, density="logit_normal").density, LogitNormal)
    # a given eps and time, as for the pairs of a flow
    t, eps = FixedTime()(model.schedule, 12), torch.randn_like(images)
    expected = (model.network(eps, torch.full((12,), 999.0)) - (eps - images)).square().mean((1, 2, 3))
    torch.testing.assert_close(model.loss(images, t, eps, None), expected)


def test_results_tell_the_variants_of_a_model_apart():
    def title(cls, **options):
        return cls(image_shape=SHAPE, network=network, **options).title

    assert [title(ScoreSDE, sde=sde) for sde in ("vp", "subvp", "ve")] == [
        "ScoreSDE-VP",
        "ScoreSDE-subVP",
        "ScoreSDE-VE",
    ]
    assert [title(FlowMatching), title(FlowMatching, coupling="ot")] == ["FlowMatching", "OT-FlowMatching"]
    assert title(RectifiedFlow) == "RectifiedFlow"


@pytest.mark.parametrize("sde", ["vp", "subvp", "ve"])
def test_score_matching_with_the_weight_sigma_squared(sde, images):
    levels: dict[str, Any] = {"sigma_min": 0.01, "sigma_max": 10} if sde == "ve" else {}
    model = ScoreSDE(image_shape=SHAPE, network=network, sde=sde, **levels)
    t = torch.linspace(0.05, 1, 12, dtype=torch.float64)
    eps = torch.randn_like(images)
    alpha, sigma = (value.float()[:, None, None, None] for value in model.schedule(t))
    c_noise = (sigma / alpha).log().flatten() if sde == "ve" else (999 * t).float()
    x_t = alpha * images + sigma * eps
    score = model.network(x_t, c_noise) / sigma
    of_transition = -(x_t - alpha * images) / sigma**2
    expected = (sigma**2 * (score - of_transition) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(model.loss(images, t, eps, None), expected, rtol=1e-4, atol=1e-5)
    # the marginal variances of the paper
    decay = 0.1 * t + 19.9 / 2 * t**2
    variance = {
        "vp": 1 - (-decay).exp(),
        "subvp": (1 - (-decay).exp()) ** 2,
        "ve": 0.01**2 * (1000 ** (2 * t) - 1),
    }[sde]
    torch.testing.assert_close(sigma.flatten().double() ** 2, variance, rtol=1e-5, atol=0)
    torch.testing.assert_close(alpha.flatten().double(), torch.ones_like(t) if sde == "ve" else (-decay / 2).exp())
    assert isinstance(model.density, UniformLogSigma if sde == "ve" else UniformTime)


def test_the_weight_changes_the_loss_by_its_ratio(images):
    t, eps = torch.linspace(0.05, 0.95, 12, dtype=torch.float64), torch.randn_like(images)
    plain = FlowMatching(image_shape=SHAPE, network=network)
    losses = {}
    for name, weight in {"snr": MinSNR(3.0), "same": ErrorOf(Velocity()), "elbo": ELBO()}.items():
        model = FlowMatching(image_shape=SHAPE, network=network, weight=weight)
        losses[name] = model.loss(images, t, eps, None) / plain.loss(images, t, eps, None)
    snr = ((1 - t) / t) ** 2
    torch.testing.assert_close(losses["same"], torch.ones(12))
    torch.testing.assert_close(losses["snr"], (t**2 * snr.clamp(max=3)).float())
    torch.testing.assert_close(losses["elbo"], ((1 - t) / t**3 * t**2).float())


@pytest.mark.parametrize("objective", ["hybrid", "vlb"])
def test_the_improved_ddpm_learns_a_variance(objective, images):
    weight: dict[str, Any] = {"vlb_weight": 0.01} if objective == "hybrid" else {}
    model = ImprovedDDPM(image_shape=SHAPE, network=network, num_timesteps=20, objective=objective, **weight)
    assert isinstance(model.schedule, DiscreteVP) and model.schedule.betas == "cosine"
    assert model.network(images, torch.zeros(12)).shape == (12, 2, 8, 8)
    t, eps = torch.arange(1, 13).double() / 20, torch.randn_like(images)
    if objective == "hybrid":
        expected = hybrid_loss(model.denoiser, images, t, eps, vlb_weight=0.01)
    else:
        expected = variational_loss(model.denoiser, images, t, eps)
    assert torch.equal(model.loss(images, t, eps, None), expected)
    drawn = model.sample(Noise(0, range(2)))
    assert model.nfe == 50 and not torch.equal(drawn[0], drawn[1])


def test_importance_sampling_has_the_mean_of_uniform_steps(images, monkeypatch):
    """With each step at its probability, the mean of the returned losses is the mean over uniform steps."""
    options: dict[str, Any] = {"num_timesteps": 4, "objective": "vlb", "importance_sampling": True}
    model, _ = Processes(1).models(ImprovedDDPM, images, **options)[0]
    assert isinstance(model, ImprovedDDPM) and model.importance is not None
    model.gathered = lambda values: values  # type: ignore[method-assign]
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(model, "log_training", lambda **values: logged.update(values))
    for _ in range(10):
        model.importance.update(torch.arange(1, 5) / 4, torch.tensor([8.0, 1.0, 2.0, 3.0]))
    share = model.importance.probabilities.clone()
    assert share[0] > 0.5
    eps = torch.randn_like(images[:1])
    monkeypatch.setattr(model, "training_noise", lambda batch: eps)
    losses = []
    for k in range(4):
        t = torch.tensor([(k + 1) / 4]).double()
        monkeypatch.setattr(model, "training_times", lambda num, t=t: t)
        before = {key: value.clone() for key, value in model.importance.state_dict().items()}
        losses.append(model.training_step(Batch(images[:1], None, torch.arange(1)), 0))
        assert logged["loss"] == losses[-1]
        fresh = model.importance.losses[k] != before["losses"][k]
        plain = variational_loss(model.denoiser, images[:1], t, eps)
        assert fresh.sum() == 1 and model.importance.losses[k][fresh].item() == pytest.approx(float(plain.detach()))
        assert float(losses[-1].detach()) == pytest.approx(float(plain.detach() / (4 * share[k])), rel=1e-5)
        model.importance.load_state_dict(before)
    assert isinstance(model.density, UniformSteps), "validation is over uniform steps"
    monkeypatch.undo()
    torch.manual_seed(0)
    drawn = (model.training_times(4000) * 4).round().long()
    assert (drawn == 1).double().mean() == pytest.approx(float(share[0]), abs=0.03)


@pytest.mark.parametrize("cls", [EDM, FlowMatching])
def test_uncertainty_is_trained_beside_the_network(cls, images, monkeypatch):
    model, batch = Processes(1).models(cls, images, uncertainty=True)[0]
    assert model.uncertainty is not None
    monkeypatch.setattr(model, "log_training", lambda **values: None)
    with torch.no_grad():
        model.uncertainty.bias.fill_(0.5)
        model.uncertainty.weight.fill_(0.3)
    torch.manual_seed(0)
    loss = model.training_step(batch, 0)
    torch.manual_seed(0)
    t = model.training_times(12)
    plain = model.loss(images, t, model.training_noise(batch), None)
    u = model.uncertainty.level(model.schedule.ratio(t))
    assert u.std() > 0.1
    torch.testing.assert_close(loss, (plain / u.exp() + u).mean())
    loss.backward()
    assert model.uncertainty.weight.grad is not None and model.uncertainty.weight.grad.abs().max() > 0
    monkeypatch.setattr(model, "warmup_schedule", lambda optimizer: optimizer)
    optimised = {parameter for group in model.configure_optimizers().param_groups for parameter in group["params"]}
    assert optimised == set(model.parameters()) and model.uncertainty.bias in optimised
    assert model.uncertainty.bias not in set(model.generator.parameters())


@pytest.mark.parametrize("cls", [DDPM, ImprovedDDPM, EDM, ScoreSDE, FlowMatching, RectifiedFlow])
def test_each_draws_by_its_own_sampler_image_by_image(cls):
    model = cls(image_shape=SHAPE, network=network)
    both, second = model.sample(Noise(0, range(2))), model.sample(Noise(0, [1]))
    assert both.isfinite().all() and model.nfe <= 50
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("ImprovedDDPM", ["--model.num_timesteps=4", "--model.importance_sampling=true"]),
        ("FlowMatching", ["--model.coupling=ot", "--model.stratified=true", "--model.uncertainty=true"]),
    ],
)
def test_resumed_training_ends_with_the_same_bits(model, options, tmp_path: Path, monkeypatch):
    def words(folder: str) -> list[str]:
        more = ["--checkpoint.every=256", "--trainer.callbacks=tests.interrupt.Interrupt", "--grid.num_samples=0"]
        return arguments(model, tmp_path / folder, 64 * 11, *more, *options)

    commands.fit(words("whole"))
    monkeypatch.setenv(KILL_AT, "raise:7")
    with pytest.raises(CrashError):
        commands.fit(words("parts"))
    monkeypatch.delenv(KILL_AT)
    commands.fit(words("parts"))
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    if model == "ImprovedDDPM":
        counts = whole["state_dict.importance.counts"]
        assert isinstance(counts, Tensor) and counts.min() > 10, "past its warm-up"
    assert_equal_bits(whole, parts)


TWO = ["--trainer.strategy=ddp", "--trainer.devices=2"]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path):
    """With coupled noise and stratified times, no process samples independently."""
    words = ["--model.optimizer=SGD", "--model.optimizer.lr=0.02", "--model.coupling=ot", "--model.stratified=true"]
    words.append("--model.class_conditional=true")
    one, two = (arguments("FlowMatching", tmp_path / name, 64 * 20, *words) for name in ("one", "two"))
    commands.fit(one)
    done = lit_gen_in_two_processes(tmp_path, "fit", *two, *TWO)
    assert done.returncode == 0, done.stderr
    shared = contents(tmp_path / "two")
    for key, value in contents(tmp_path / "one").items():
        if key.startswith("state_dict"):
            torch.testing.assert_close(shared[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_importance_sampling_counts_the_losses_all_gather_cat(tmp_path: Path):
    words = ["--model.importance_sampling=true", "--model.num_timesteps=5", *TWO]
    done = lit_gen_in_two_processes(tmp_path, "fit", *arguments("ImprovedDDPM", tmp_path / "runs", 64 * 10, *words))
    assert done.returncode == 0, done.stderr
    counts = contents(tmp_path / "runs")["state_dict.importance.counts"]
    assert isinstance(counts, Tensor) and counts.sum() == 64 * 10


def test_edm_trains_at_the_noise_levels_of_its_paper() -> None:
    """By default, ln sigma ~ N(-1.2, 1.2^2) and sigma_data = 0.5 (Karras et al. 2022, table 1)."""
    torch.manual_seed(0)
    model = EDM(image_shape=SHAPE, network=partial(UNet, channels=8, channel_mult=(1,), num_blocks=1))
    log_sigma = model.schedule.ratio(model.training_times(20_000)).log()
    share = torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98], dtype=torch.float64)
    exact = -1.2 + 1.2 * torch.special.ndtri(share)
    torch.testing.assert_close(log_sigma.quantile(share), exact, rtol=0, atol=0.1)
    assert stats.kstest(log_sigma.numpy(), stats.norm(-1.2, 1.2).cdf).pvalue > 0.01
    x, sigma = torch.randn(4, *SHAPE, dtype=torch.float64), torch.tensor([0.1, 0.5, 1.0, 10.0], dtype=torch.float64)
    found = model.denoiser(x, torch.ones_like(sigma), sigma)  # the network is still zero: c_skip x
    torch.testing.assert_close(found, (0.25 / (sigma**2 + 0.25))[:, None, None, None] * x, rtol=1e-12, atol=0)
