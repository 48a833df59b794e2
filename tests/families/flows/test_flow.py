"""Normalizing flows as models: exact answers, stability, and initial values that images set once."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_gen.cli import commands
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.pixels import BIN_WIDTH
from lit_gen.data import Batch
from lit_gen.distributions.dequantisation import bits_per_dim
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.flows import (
    NICE,
    ActNorm,
    Affine,
    Base,
    Channels,
    Compose,
    ConvCoupling,
    Coupling,
    DequantisedFlow,
    Flow,
    Glow,
    InvertibleConv,
    Logistic,
    Logit,
    Masked,
    MLPCoupling,
    Normal,
    Planar,
    PointFlow,
    Radial,
    RealNVP,
    Spline,
    UniformDequantisation,
    UnitInterval,
    VariationalDequantisation,
    VariationalDequantiser,
    alternating,
)
from lit_gen.families.flows.models.image_flows import NormalizingFlow
from lit_gen.families.settings import Temperature
from lit_gen.runs.directory import Run
from tests.conftest import arguments
from tests.families.flows.test_bijections import log_det, randomised
from tests.processes import lit_gen_in_two_processes

SMALL = partial(ConvCoupling, channels=8, num_blocks=1)
Dequantiser = partial(VariationalDequantiser, channels=8, num_blocks=1)
IMAGES = torch.randint(256, (6, 1, 4, 4), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
MODELS = {
    "NICE": lambda **options: NICE((1, 4, 4), network=partial(MLPCoupling, width=16), **options),
    "RealNVP": lambda **options: RealNVP((1, 4, 4), num_couplings=2, network=SMALL, **options),
    "Glow": lambda **options: Glow((1, 4, 4), num_steps=2, network=SMALL, **options),
    "Spline-Glow": lambda **options: Glow((1, 4, 4), num_steps=2, coupling=Spline(), network=SMALL, **options),
}


def made(name: str, scale: float = 0.05, **options) -> NormalizingFlow:
    torch.manual_seed(0)
    model = MODELS[name](**options)
    randomised(model, scale)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_invert_and_know_their_determinant(name: str) -> None:
    model = made(name)
    f = model.network.flow.bijection
    x = IMAGES.double() * 0.99
    z, given = f(x)
    assert (f.inverse(z) - x).abs().max() < 1e-10
    assert (given[:3] - log_det(lambda one: f(one)[0], x[:3])).abs().max() < 1e-8
    assert model.title == name and z[0].numel() == 16


def integral(flow: Flow, low: float, high: float, num: int = 500) -> float:
    """Integrate exp(log p) over a square by the midpoint rule."""
    middles = low + (torch.arange(num, dtype=torch.float64) + 0.5) * (high - low) / num
    points = torch.cartesian_prod(middles, middles)[:, :, None, None]
    with torch.no_grad():
        return float(torch.cat([flow(part).exp() for part in points.split(50_000)]).sum()) * ((high - low) / num) ** 2


POINTS = (2, 1, 1)
MLP = partial(MLPCoupling, width=16, depth=2)
DENSITIES = {
    "affine": lambda i: Compose([ActNorm(2), InvertibleConv(2), Coupling(POINTS, Channels(bool(i)), Affine(1.0), MLP)]),
    "spline": lambda i: Coupling(POINTS, Masked(alternating(POINTS, i)), Spline(num_bins=4), MLP),
    "planar": lambda i: Planar(2),
    "radial": lambda i: Radial(2),
}


@pytest.mark.parametrize("base", [Normal, Logistic])
@pytest.mark.parametrize("name", DENSITIES)
def test_densities_of_the_plane_integrate_to_one(name: str, base) -> None:
    torch.manual_seed(0)
    flow = Flow(Compose([DENSITIES[name](i) for i in range(2)]), base(POINTS))
    randomised(flow, 0.2)
    reach = 14.0 if base is Normal else 40.0
    assert integral(flow, -reach, reach, 500) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_a_density_behind_the_logit_integrates_to_one(alpha: float) -> None:
    """The domain is the range of the inverse logit, a little more than [-1, 1]."""
    torch.manual_seed(0)
    coupling = Coupling(POINTS, Channels(), Affine(), MLP)
    flow = Flow(Compose([UnitInterval(), Logit(alpha), coupling]), Normal(POINTS))
    randomised(flow)
    margin = alpha / (1 - 2 * alpha)
    low, high = ((256 * edge - 128) * BIN_WIDTH for edge in (-margin, 1 + margin))
    assert integral(flow, low, high, 1000) == pytest.approx(1, abs=1e-3)


class Uniform(Base):
    """The domain is [0, 1]."""

    def log_density(self, z: Tensor) -> Tensor:
        return torch.where((z >= 0) & (z <= 1), 0.0, -math.inf).to(z.dtype)

    def draw(self, noise: Noise, dtype: torch.dtype) -> Tensor:
        return noise.uniform(self.shape, dtype)


def test_the_identity_on_dequantised_bytes_is_eight_bits() -> None:
    model = NormalizingFlow((3, 4, 4), bijection=Compose([]), base=Uniform, alpha=None)
    model.register_parameter("dtype_of_the_test", torch.nn.Parameter(torch.zeros((), dtype=torch.float64)))
    images = torch.randint(256, (20, 3, 4, 4)) / 127.5 - 1
    images[0], images[1] = -1, 1
    bits = bits_per_dim(model.log_likelihood(images.double(), Noise(0, range(20))), 48)
    assert (bits - 8).abs().max() < 1e-12


# --- dequantisation, on images of one pixel whose true mass is an integral ---


def one_pixel(variational: bool) -> DequantisedFlow:
    torch.manual_seed(0)
    shape = (1, 1, 1)
    scale = ActNorm(1)
    density = Flow(Compose([UnitInterval(), Logit(0.05), scale]), Normal(shape))
    network = DequantisedFlow(density, Dequantiser(shape) if variational else None)
    randomised(network, 0.3)
    with torch.no_grad():
        scale.log_std.fill_(-4.5)
        scale.mean.fill_(0.2)
    return network


def true_log_mass(flow: Flow, image: float, num: int = 20_000) -> float:
    middles = (torch.arange(num, dtype=torch.float64) + 0.5) / num - 0.5
    log_p = flow((image + middles * BIN_WIDTH).reshape(-1, 1, 1, 1))
    return float(log_p.logsumexp(0)) - math.log(num) + math.log(BIN_WIDTH)


def test_uniform_below_variational_below_the_true_mass() -> None:
    network = one_pixel(variational=True)
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    inside = torch.tensor([true_log_mass(network.flow, float(value)) for value in values]).exp()
    assert float(inside.sum()) == pytest.approx(1, abs=1e-6), "its mass lies in the bins of few values"
    value = float(values[int(inside.argmax()) + 1])  # where the density falls across the bin
    truth = true_log_mass(network.flow, value)
    assert network.dequantiser is not None
    optimizer = torch.optim.Adam(network.dequantiser.parameters(), lr=2e-2)
    images = torch.full((64, 1, 1, 1), value, dtype=torch.float64)
    for _ in range(60):
        loss = -network(images, torch.rand_like(images)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    many = images[:1].expand(1000, 1, 1, 1)
    with torch.no_grad():
        bounds = {
            name: method.bound(network, many, Noise(0, range(1000)), None)
            for name, method in {
                "uniform": UniformDequantisation(),
                "uniform_16": UniformDequantisation(16, importance_weighted=True),
                "variational": VariationalDequantisation(),
                "variational_16": VariationalDequantisation(16, importance_weighted=True),
            }.items()
        }
    mean = {name: float(bound.mean()) for name, bound in bounds.items()}
    error = {name: float(bound.std()) / math.sqrt(1000) for name, bound in bounds.items()}
    assert mean["uniform"] < mean["variational"] - 0.02 < truth
    assert mean["uniform"] < mean["uniform_16"] - 0.02 < truth
    for name in mean:
        assert mean[name] <= truth + 4 * error[name], name
    assert mean["variational_16"] == pytest.approx(truth, abs=4 * error["variational_16"] + 0.01)


def test_the_density_of_the_dequantiser_integrates_to_one() -> None:
    """The mean of 1 / q(x | u) over its own draws, on a grid of uniform numbers, is the volume of the bins."""
    torch.manual_seed(0)
    dequantiser = Dequantiser((1, 1, 2), num_couplings=2)
    randomised(dequantiser, 0.2)
    num = 150
    middles = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    uniform = torch.cartesian_prod(middles, middles).reshape(-1, 1, 1, 2)
    with torch.no_grad():
        places, log_q = dequantiser(torch.tensor([-0.4, 0.2]).double().expand_as(uniform), uniform)
    assert places.min() > 0 and places.max() < 1 and log_q.std() > 0.05
    assert float((-log_q).exp().mean()) == pytest.approx(1, abs=5e-3)


def test_an_untrained_dequantiser_is_the_uniform_distribution() -> None:
    torch.manual_seed(0)
    uniform = torch.rand(6, 1, 4, 4).double()
    places, log_q = Dequantiser((1, 4, 4)).double()(IMAGES.double(), uniform)
    torch.testing.assert_close(places, uniform)
    assert log_q.abs().max() < 1e-10


def test_a_method_suits_the_model() -> None:
    plain, variational = made("Glow"), made("Glow", dequantiser=Dequantiser)
    assert variational.title == "Variational-Glow"
    noise = Noise(0, range(6))
    with pytest.raises(UserError, match="model.dequantiser"):
        plain.log_likelihood(IMAGES, noise, method=VariationalDequantisation())
    own = variational.log_likelihood(IMAGES, Noise(0, range(6)))
    named = variational.log_likelihood(IMAGES, Noise(0, range(6)), method=VariationalDequantisation())
    uniform = variational.log_likelihood(IMAGES, Noise(0, range(6)), method=UniformDequantisation())
    assert torch.equal(own, named) and (own - uniform).abs().min() > 1e-6
    plain.log_likelihood(IMAGES, noise, method=UniformDequantisation(num_draws=3))
    assert plain.nfe == 3
    with pytest.raises(UserError, match="num_draws"):
        UniformDequantisation(num_draws=0)


@pytest.mark.parametrize("dequantiser", [None, Dequantiser])
def test_training_minimises_the_bound(dequantiser, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("Glow", dequantiser=dequantiser)
    uniform = Noise(3, range(6)).uniform((1, 4, 4), torch.float64)
    monkeypatch.setattr(torch, "rand_like", lambda images: uniform)
    monkeypatch.setattr(model, "log_training", lambda **values: None)
    loss = model.training_step(Batch(IMAGES.double(), None, torch.arange(6)), 0)
    log_p = model.log_likelihood(IMAGES.double(), Noise(3, range(6)))
    torch.testing.assert_close(loss, bits_per_dim(log_p, 16).mean())


# --- sampling ---


@pytest.mark.parametrize("base", [Normal, Logistic])
def test_samples_have_the_density_of_the_base(base) -> None:
    z = base((2,)).sample(Noise(0, range(50_000)), dtype=torch.float64)
    scale = 1.0 if base is Normal else math.pi / math.sqrt(3)
    assert abs(float(z.std()) / scale - 1) < 0.01
    entropy = math.log(2 * math.pi * math.e) if base is Normal else 4.0
    assert float(-base((2,)).log_prob(z).mean()) == pytest.approx(entropy, abs=0.02)


def test_samples_come_from_the_model_of_their_density() -> None:
    """f maps a sample back to the draw of the base."""
    model = made("Glow", 0.03)
    x = model.sample(Noise(0, range(1000))).double()
    flow = model.network.flow
    z, _ = flow.bijection(x)
    expected = flow.base.sample(Noise(0, range(1000)), dtype=torch.float64)
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-3)


def test_temperature_scales_the_noise_of_the_base() -> None:
    model = made("RealNVP")
    f = model.network.flow.bijection
    z = [f(model.sample(Noise(0, range(5)), sampler=Temperature(T)).double())[0] for T in (1.0, 0.5)]
    torch.testing.assert_close(0.5 * z[0], z[1], rtol=0, atol=1e-3)
    assert model.nfe == 1


def test_classes_have_means_of_their_own() -> None:
    model = made("NICE", 0.3, num_classes=3, class_conditional=True)
    images, labels = IMAGES[:1].expand(3, 1, 4, 4), torch.arange(3)
    log_p = model.log_likelihood(images, Noise(0, [0, 0, 0]), labels)
    assert log_p.diff().abs().min() > 1e-3
    z = [model.network.flow.base.sample(Noise(0, [0]), torch.tensor([c]), dtype=torch.float64) for c in range(2)]
    mean = model.network.flow.base.mean
    assert mean is not None
    torch.testing.assert_close(z[1] - z[0], (mean[1] - mean[0])[None])
    with pytest.raises(UserError, match="labels"):
        model.log_likelihood(images, Noise(0, [0, 0, 0]))


# --- initial values and training ---


def test_a_linear_flow_learns_a_gaussian() -> None:
    """The loss reaches the entropy of the data, its lower bound."""
    torch.manual_seed(0)
    root = torch.tensor([[1.0, 0.0], [1.2, 0.4]], dtype=torch.float64)
    data = (torch.randn(20_000, 2).double() @ root.T + torch.tensor([3.0, -1.0]))[:, :, None, None]
    covariance = torch.cov(data.flatten(1).T, correction=0)
    entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * covariance))
    flow = Flow(Compose([ActNorm(2), InvertibleConv(2)]), Normal(POINTS)).double()
    flow.initialise(data)
    assert -float(flow(data).mean()) > entropy + 0.3
    optimizer = torch.optim.LBFGS(flow.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -flow(data).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    assert -float(flow(data).mean()) == pytest.approx(entropy, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NICE", "RealNVP", "Glow"])
def test_training_in_float32_is_stable(name: str) -> None:
    """Train on digits with learning rate 1e-3 and no clipping."""
    objects: Any = ExperimentCLI(arguments(name, Path("unused"))).objects()
    model, images = objects.model, objects.data.examples("train", 64).images
    model.initialise(images)
    first = model.log_likelihood(images, Noise(0, range(64))).mean()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(15):
        loss = -model.network(images, torch.rand_like(images)).mean() / 64
        optimizer.zero_grad()
        loss.backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
        optimizer.step()
    last = model.log_likelihood(images, Noise(0, range(64))).mean()
    assert last > first + 5
    assert bool(torch.isfinite(model.sample(Noise(0, range(64)))).all())


def test_initial_values_are_of_the_images_alone_and_only_set_once(tmp_path: Path, monkeypatch) -> None:
    """Training, checkpoint and resuming keep the values that the first images set."""
    words = arguments("Glow", tmp_path, 64 * 2, "--model.optimizer=SGD", "--model.optimizer.lr=0")
    run = commands.fit(words)
    trained = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    objects: Any = ExperimentCLI(["--config", str(run.config)]).objects()
    torch.manual_seed(5)
    objects.model.load_state_dict(trained)
    objects.model.initialise(objects.data.examples("train", 512).images)
    for name, value in objects.model.state_dict().items():
        torch.testing.assert_close(value, trained[name], msg=name)
    f = objects.model.network.flow.bijection
    uniform = Noise(0, range(512)).uniform((1, 8, 8))
    squeezed = objects.data.examples("train", 512).images + (uniform - 0.5) * BIN_WIDTH
    level = f.parts[-1].levels[0]
    y = f.parts[0](squeezed)[0]
    y = level.parts[1](level.parts[0](y)[0])[0]
    std, mean = torch.std_mean(y, (0, 2, 3), correction=0)
    assert mean.abs().max() < 1e-4 and (std - 1).abs().max() < 1e-4
    monkeypatch.setattr(NormalizingFlow, "initialise", lambda *_: pytest.fail("initialised again"))
    run.update(status="training")
    commands.fit(words)  # resumes


@pytest.mark.slow
def test_two_processes_begin_alike(tmp_path: Path) -> None:
    """With learning rate zero, two processes end with the initial values of one process."""
    zero = ["--model.optimizer=SGD", "--model.optimizer.lr=0", "--grid.num_samples=0"]
    two = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    weights = []
    commands.fit(arguments("Glow", tmp_path / "one", 128, *zero))
    done = lit_gen_in_two_processes(tmp_path, "fit", *arguments("Glow", tmp_path / "two", 128, *zero, *two))
    assert done.returncode == 0, done.stderr
    for name in ("one", "two"):
        (run,) = (Run(path) for path in (tmp_path / name).iterdir() if not path.name.startswith("."))
        weights.append(torch.load(run.checkpoint, weights_only=True)["state_dict"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert any(name.endswith("log_std") and value.abs().max() > 0.1 for name, value in weights[0].items())


# --- what does not suit ---


def test_what_does_not_suit_is_said() -> None:
    points = ExperimentCLI(arguments("PointFlow", Path("unused"))).objects()
    digits = ExperimentCLI(arguments("Glow", Path("unused"))).objects()
    points.model.check_data(points.data)
    digits.model.check_data(digits.data)
    with pytest.raises(UserError, match="model: Glow .*PointFlow"):
        digits.model.check_data(points.data)
    with pytest.raises(UserError, match="model: PointFlow .*Glow"):
        points.model.check_data(digits.data)
    with pytest.raises(UserError, match="cannot be halved"):
        Glow((1, 28, 28), num_levels=3)
    with pytest.raises(UserError, match="model.num_levels"):
        Glow((1, 8, 8), num_levels=0)
    with pytest.raises(UserError, match="model.num_steps"):
        Glow((1, 8, 8), num_steps=0)


# --- points ---


@pytest.mark.parametrize("layer", ["planar", "radial", "spline"])
def test_point_flows_are_exact_and_centre_the_data(layer) -> None:
    torch.manual_seed(0)
    model = PointFlow((2, 1, 1), layer=layer, num_layers=2)
    x = torch.randn(1000, 2, 1, 1) * 0.3 + 0.2
    model.initialise(x)
    entropy = 1 + math.log(2 * math.pi) + 2 * math.log(0.3)
    log_p = model.log_likelihood(x, Noise(0, range(1000)))
    assert float(-log_p.mean()) == pytest.approx(entropy, abs=0.1), "a normal distribution before training"
    randomised(model, 0.05)
    assert integral(model.flow, -2, 2, 200) == pytest.approx(1, abs=1e-3)
    samples = model.sample(Noise(0, range(20)))
    z, _ = model.flow.bijection(samples.double())
    torch.testing.assert_close(z, Noise(0, range(20)).normal((2, 1, 1), torch.float64), rtol=0, atol=1e-4)


def test_the_density_is_drawn_beside_the_true_one(tmp_path: Path) -> None:
    run = commands.fit(arguments("PointFlow", tmp_path, 64 * 4))
    objects = ExperimentCLI(["--config", str(run.config)]).objects()
    tiles = objects.model.show("density", objects.data, 4, 0)
    assert tiles.shape == (1, 2, 1, 160, 160) and tiles.min() == -1 and tiles.max() <= 1
    learned, true = tiles[0, :, 0]
    assert true.std() > 0.1 and learned.std() > 0.1
    moons = objects.data.source.load("test").images[:2000, :, 0, 0]
    columns, rows = ((moons[:, 0] + 1) * 80).astype(int), ((1 - moons[:, 1]) * 80).astype(int)
    assert true[rows, columns].mean() < 0 < true.mean(), "dark where points lie, with y upwards"
    assert "planarflow" in run.directory.name and json.loads(run.metadata_path.read_text())["title"] == "PlanarFlow"
