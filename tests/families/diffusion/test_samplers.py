"""Properties of all samplers."""

import json
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import (
    DiscreteVP,
    EDMPreconditioning,
    EDMSchedule,
    FunctionDenoiser,
    GaussianMixtureDenoiser,
    Karras,
    NetworkDenoiser,
    Quadratic,
    Rectified,
    Uniform,
)
from lit_gen.families.diffusion.samplers import (
    DDIM,
    DDPM,
    DEIS,
    IPNDM,
    LMS,
    RK45,
    AnnealedLangevin,
    DiffusionSampler,
    DPMSolver,
    Euler,
    EulerMaruyama,
    GridSampler,
    Heun,
    PredictorCorrector,
    Restart,
    UniPC,
)
from tests.families.diffusion.exact_answers import SAMPLERS, Point, kolmogorov_smirnov, moments_for_normal_data, run

IDS = [f"{type(s).__name__}-{'-'.join(str(v) for v in list(s.to_dict().values())[3:])}" for s in SAMPLERS]
samplers = pytest.mark.parametrize("sampler", SAMPLERS, ids=IDS)

# A function in place of a denoiser.


@samplers
def test_a_function_is_a_denoiser(sampler: DiffusionSampler):
    """E[x_0 | x] of N(0.3, 0.5^2), which steps of one size per batch or per image evaluate as often as the class."""
    exact = GaussianMixtureDenoiser(
        torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    )
    calls = []

    def denoise(x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        calls.append(len(x))
        return (0.3 * sigma**2 + 0.25 * alpha * x) / (alpha**2 * 0.25 + sigma**2)

    counted = FunctionDenoiser(denoise)
    arguments = (EDMSchedule(), Noise(1, range(6)), (1,))
    expected = sampler.sample(exact, *arguments)
    for given in (denoise, counted):
        calls.clear()
        drawn = sampler.sample(given, EDMSchedule(), Noise(1, range(6)), (1,))
        torch.testing.assert_close(drawn, expected, rtol=1e-9, atol=1e-9)
        assert sum(calls) / 6 == pytest.approx(exact.evaluations)
    assert counted.evaluations == pytest.approx(exact.evaluations)


@pytest.mark.parametrize("sampler", [Heun(steps=3), RK45(rtol=1e-2, atol=1e-2)], ids=["Heun", "RK45"])
def test_a_function_is_given_the_labels(sampler: DiffusionSampler):
    labels = torch.tensor([2.0, 0.0, 1.0])

    def denoise(x: Tensor, alpha: Tensor, sigma: Tensor, given: Any) -> Tensor:
        return 0 * x + given[:, None]

    x = sampler.sample(denoise, EDMSchedule(), Noise(0, range(3)), (1,), labels)
    torch.testing.assert_close(x[:, 0].float(), labels, rtol=0, atol=1e-3)


# Initial state, and numbers of random numbers and evaluations.


@samplers
def test_starts_at_sigma_times_the_first_draw(mixture, schedule, sampler: DiffusionSampler):
    denoiser = Point(torch.zeros((), dtype=torch.float64))
    run(sampler, denoiser, schedule)
    x, _, sigma = denoiser.seen[0]
    eps = Noise(3, range(8)).normal((2, 3), torch.float64)
    if isinstance(sampler, Heun) and sampler.S_churn > 0 and sampler.S_max == math.inf:
        assert not torch.equal(x, sigma * eps)  # already churned
    else:
        torch.testing.assert_close(x, sigma * eps, rtol=1e-12, atol=0)


@samplers
def test_draws_noise_only_where_it_is_used(mixture, sampler: DiffusionSampler):
    noise = Noise(0, range(4))
    sampler.sample(mixture, EDMSchedule(), noise, (2, 3))
    levels = EDMSchedule().ratio(Karras()(EDMSchedule(), 7))[:-1]
    match sampler:
        case DDPM():
            expected = 7  # none at the last step
        case DDIM():
            expected = 7 if sampler.eta > 0 else 1
        case Restart():
            expected = 1 + sampler.repeats
        case Heun(S_churn=0):
            expected = 1
        case Heun():
            expected = 1 + int(((levels >= sampler.S_min) & (levels <= sampler.S_max)).sum())
        case EulerMaruyama():
            expected = 7 if sampler.noise_scale > 0 else 1
        case PredictorCorrector():
            expected = 1 + 6 * sampler.corrector_steps + 6 * (sampler.predictor != "probability_flow")
        case AnnealedLangevin():
            expected = 1 + 7 * 5
        case DPMSolver():
            expected = 7 if sampler.eta > 0 else 1
        case _:
            expected = 1
    assert noise.draws == expected


@samplers
def test_evaluations_are_counted(mixture, sampler: DiffusionSampler):
    run(sampler, mixture, EDMSchedule())
    match sampler:
        case Restart():
            expected = 13 + 2 * sampler.repeats * sampler.interval_steps
        case Heun() | DPMSolver(method="singlestep"):
            expected = 13
        case PredictorCorrector():
            expected = 7 + 6 * sampler.corrector_steps
        case AnnealedLangevin():
            expected = 7 * 5 + 1
        case RK45():
            return  # in test_adaptive
        case _:
            expected = 7
    assert mixture.evaluations == expected


@pytest.mark.parametrize(
    ("sampler", "steps", "evaluations"),
    [
        (Heun(steps=18), 18, 35),
        (Heun(nfe=35), 18, 35),
        (Heun(nfe=36), 18, 35),
        (Heun(nfe=34), 17, 33),
        (Heun(nfe=1), 1, 1),
        (Heun(nfe=2), 1, 1),
        (Heun(), 25, 49),
        (DDIM(nfe=35), 35, 35),
        (DDPM(nfe=1), 1, 1),
        (Euler(), 50, 50),
        (EulerMaruyama(nfe=35), 35, 35),
        (PredictorCorrector(nfe=35), 18, 35),
        (PredictorCorrector(nfe=34), 17, 33),
        (PredictorCorrector(nfe=36, corrector_steps=2), 12, 34),
        (PredictorCorrector(nfe=1), 1, 1),
        (AnnealedLangevin(nfe=36), 7, 36),
        (AnnealedLangevin(nfe=40), 7, 36),
        (AnnealedLangevin(nfe=35, denoise=False), 7, 35),
        (AnnealedLangevin(nfe=2, steps_each=1), 1, 2),
        (DPMSolver(nfe=35), 35, 35),
        (DPMSolver(nfe=35, method="singlestep"), 18, 35),
        (DPMSolver(nfe=1, method="singlestep"), 1, 1),
        (DPMSolver(nfe=8, method="singlestep", order=1), 8, 8),
        (UniPC(nfe=10), 10, 10),
        (DPMSolver(nfe=9, order=3), 9, 9),
        (IPNDM(nfe=6), 6, 6),
        (LMS(nfe=5), 5, 5),
        (DEIS(nfe=1), 1, 1),
    ],
)
def test_a_budget_is_filled_and_not_exceeded(mixture, sampler: GridSampler, steps: int, evaluations: int):
    assert sampler.steps == steps
    run(sampler, mixture, EDMSchedule(), num=2)
    assert mixture.evaluations == evaluations


# Samples depend neither on each other nor on global state.


@samplers
def test_a_sample_is_the_same_alone_and_among_others(mixture, sampler: DiffusionSampler):
    for schedule in (DiscreteVP(), Rectified()):
        whole = run(sampler, mixture, schedule, num=9)
        part = sampler.sample(mixture, schedule, Noise(3, [7, 2]), (2, 3))
        torch.testing.assert_close(whole[[7, 2]], part, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(whole, run(sampler, mixture, schedule, num=9, seed=4))


@samplers
def test_global_random_state_is_not_touched(mixture, sampler: DiffusionSampler):
    before = torch.get_rng_state()
    first = run(sampler, mixture, DiscreteVP())
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, run(sampler, mixture, DiscreteVP()))


@samplers
def test_state_is_of_the_given_type(mixture, sampler: DiffusionSampler):
    single = sampler.sample(mixture, DiscreteVP(), Noise(3, range(8)), (2, 3), dtype=torch.float32)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), run(sampler, mixture, DiscreteVP()), rtol=1e-3, atol=1e-3)


@samplers
def test_labels_reach_the_network(sampler: DiffusionSampler):
    labels = torch.tensor([3, 1])
    seen = []

    def network(x, c_noise, given):
        seen.append(given)
        return 0 * x

    denoiser = NetworkDenoiser(network, EDMSchedule(), EDMPreconditioning())
    sampler.sample(denoiser, EDMSchedule(), Noise(0, range(2)), (1,), labels)
    assert all(given is labels for given in seen) and len(seen) == denoiser.evaluations


@samplers
def test_the_last_step_returns_the_denoised(schedule, sampler: DiffusionSampler):
    x_0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    denoised = run(sampler, Point(x_0), schedule)
    torch.testing.assert_close(denoised, x_0.expand(8, 2, 3), rtol=1e-9, atol=1e-9)


# Pure noise, alpha = 0.


FIRST, SECOND = (0.85, 1.15), (1.65, 2.5)  # measured orders; the grid is coarse in log SNR near the data


@pytest.mark.parametrize(
    ("sampler", "order", "bound"),
    [
        (DDPM, FIRST, 0.015),
        (partial(DDPM, variance="small"), FIRST, 0.015),
        (DDIM, FIRST, 0.015),
        (Euler, FIRST, 0.015),
        (partial(Heun, coordinates="rectified"), SECOND, 5e-5),
        (DPMSolver, SECOND, 5e-4),
        (partial(DPMSolver, method="singlestep"), SECOND, 5e-4),
        (partial(DPMSolver, eta=1.0), SECOND, 2e-3),
        (UniPC, SECOND, 1e-4),
        (partial(UniPC, order=3, variant="bh1"), SECOND, 1e-5),
        (partial(EulerMaruyama, g="damped", coordinates="rectified"), FIRST, 0.015),
        (partial(EulerMaruyama, g="damped", coordinates="schedule"), FIRST, 0.015),
        (partial(EulerMaruyama, noise_scale=0.0, coordinates="rectified"), FIRST, 0.015),
        (partial(PredictorCorrector, predictor="ancestral", norm="level", snr=0.01), FIRST, 0.015),
        (partial(PredictorCorrector, predictor="probability_flow", norm="level", snr=0.01), FIRST, 0.015),
    ],
)
def test_grids_that_start_at_pure_noise(mixture_1d, sampler, order: tuple[float, float], bound: float):
    """Since eps has the exact marginal, the mean of normal data is exact, and the variance has the solver's order."""
    errors = []
    for steps in (80, 160):
        mean, std = moments_for_normal_data(sampler(steps=steps, grid=Uniform()), Rectified(), 0.3, 0.5)
        assert mean == pytest.approx(0.3, abs=1e-12)
        errors.append(std**2 - 0.25)
    assert order[0] < math.log2(errors[0] / errors[1]) < order[1]
    assert abs(errors[1]) < bound
    x = sampler(steps=160, grid=Uniform()).sample(mixture_1d, Rectified(), Noise(0, range(2000)), (1,))
    assert kolmogorov_smirnov(mixture_1d, x) < 0.036


def test_heun_in_rectified_coordinates_starts_at_pure_noise_also_with_churn(mixture):
    for S_churn in (0.0, 10.0):
        heun = Heun(steps=10, grid=Uniform(), S_churn=S_churn, coordinates="rectified")
        assert run(heun, mixture, Rectified()).isfinite().all()


@pytest.mark.parametrize(
    "sampler", [Heun(steps=5, grid=Uniform()), Euler(steps=5, grid=Quadratic(), coordinates="sigma")]
)
def test_sigma_coordinates_at_pure_noise_are_a_user_error(mixture, sampler: GridSampler):
    with pytest.raises(UserError, match=f"{type(sampler.grid).__name__}.*coordinates rectified.*Karras"):
        run(sampler, mixture, Rectified())


@pytest.mark.parametrize(
    ("sampler", "remedy"),
    [
        (EulerMaruyama(steps=5, grid=Uniform()), "coordinates rectified"),
        (EulerMaruyama(steps=5, grid=Uniform(), coordinates="rectified"), "g damped"),
        (EulerMaruyama(steps=5, grid=Uniform(), coordinates="schedule"), "g damped"),
        (PredictorCorrector(steps=5, grid=Uniform()), "grid Karras"),
        (AnnealedLangevin(steps=5, grid=Uniform()), "grid Karras"),
    ],
)
def test_an_infinite_noise_level_is_a_user_error(mixture, sampler: DiffusionSampler, remedy: str):
    with pytest.raises(UserError, match=f"Uniform starts at pure noise.*{remedy}"):
        run(sampler, mixture, Rectified())


# Settings.


def test_steps_or_budget_but_not_both():
    for cls in (DDPM, DDIM, Euler, Heun, EulerMaruyama, PredictorCorrector, AnnealedLangevin, DPMSolver, UniPC):
        with pytest.raises(UserError, match="not both"):
            cls(steps=5, nfe=5)
        with pytest.raises(UserError, match=r"^sampler\.steps: 0 is not"):
            cls(steps=0)
        with pytest.raises(UserError, match=r"^sampler\.nfe: 0 is not"):
            cls(nfe=0)
    with pytest.raises(UserError, match=r"^sampler\.nfe: 5 is too small for one step of AnnealedLangevin"):
        AnnealedLangevin(nfe=5)


@pytest.mark.parametrize(
    ("cls", "setting"),
    [
        (DDPM, {"variance": "medium"}),
        (DDIM, {"eta": 1.5}),
        (DDIM, {"eta": -0.1}),
        (Euler, {"coordinates": "polar"}),
        (Heun, {"coordinates": "schedule"}),
        (Heun, {"S_churn": -1.0}),
        (Heun, {"S_noise": -5.0}),
        (Heun, {"S_noise": 0.0}),
        (Heun, {"S_min": 5.0, "S_max": 1.0}),
        (Heun, {"S_min": -1.0}),
        (EulerMaruyama, {"noise_scale": -0.1}),
        (EulerMaruyama, {"g": "huge"}),
        (EulerMaruyama, {"coordinates": "polar"}),
        (PredictorCorrector, {"predictor": "ddim"}),
        (PredictorCorrector, {"corrector_steps": -1}),
        (PredictorCorrector, {"snr": 0.0}),
        (PredictorCorrector, {"norm": "batch"}),
        (AnnealedLangevin, {"steps_each": 0}),
        (AnnealedLangevin, {"step_size": 2.0}),
        (DPMSolver, {"order": 4}),
        (DPMSolver, {"order": 3, "method": "singlestep"}),
        (DPMSolver, {"method": "2M"}),
        (DPMSolver, {"eta": -1.0}),
        (DPMSolver, {"eta": 1.0, "method": "singlestep"}),
        (UniPC, {"order": 4}),
        (UniPC, {"variant": "bh3"}),
        (RK45, {"rtol": 0.0}),
        (RK45, {"atol": -1e-5}),
        (RK45, {"sigma_min": 100.0}),
    ],
)
def test_bad_settings_name_the_key(cls, setting):
    steps = {} if cls is RK45 else {"steps": 5}
    with pytest.raises(UserError, match=next(iter(setting))):
        cls(**steps, **setting)


def test_to_dict():
    karras = {"name": "Karras", "rho": 7.0, "sigma_min": 0.002, "sigma_max": 80.0}
    assert DDIM(nfe=10).to_dict() == {"name": "DDIM", "steps": 10, "grid": karras, "eta": 0.0}
    assert DDPM(steps=3, variance="large").to_dict() == {
        "name": "DDPM",
        "steps": 3,
        "grid": karras,
        "variance": "large",
    }
    assert Heun(nfe=35).to_dict() == Heun(steps=18).to_dict()
    assert Heun(steps=18).to_dict()["S_max"] == "inf"
    euler = Euler(steps=2, grid=Quadratic(0.8)).to_dict()
    assert euler == {
        "name": "Euler",
        "steps": 2,
        "grid": {"name": "Quadratic", "start": 0.8},
        "coordinates": "rectified",
    }
    for sampler in SAMPLERS:
        assert json.loads(json.dumps(sampler.to_dict(), allow_nan=False)) == sampler.to_dict()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--sampler", "Heun"], Heun()),
        (["--sampler", "Heun", "--sampler.nfe", "35", "--sampler.grid", "Uniform"], Heun(steps=18, grid=Uniform())),
        (
            ["--sampler=DDIM", "--sampler.eta=0.5", "--sampler.grid=Karras", "--sampler.grid.rho=3"],
            DDIM(eta=0.5, grid=Karras(3)),
        ),
        (["--sampler", "Heun", "--sampler.S_max", ".inf"], Heun()),
        (["--sampler=UniPC", "--sampler.order=3", "--sampler.corrector=false"], UniPC(order=3, corrector=False)),
        (
            ["--sampler=DPMSolver", "--sampler.nfe=35", "--sampler.method=singlestep"],
            DPMSolver(steps=18, method="singlestep"),
        ),
        (["--sampler=RK45", "--sampler.rtol=1e-3"], RK45(rtol=1e-3)),
        (["--config", "heun.yaml"], Heun(steps=18)),
        (["--config", "heun.yaml", "--sampler.steps", "20"], Heun(steps=20)),
    ],
)
def test_is_built_from_yaml_and_the_command_line(tmp_path, monkeypatch, arguments, expected):
    jsonargparse = pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heun.yaml").write_text(
        "sampler: {class_path: Heun, init_args: {steps: 18, grid: {class_path: Karras}}}"
    )
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--sampler", type=DiffusionSampler | None, default=None)
    parser.add_argument("--config", action="config")
    sampler = parser.instantiate_classes(parser.parse_args(arguments)).sampler
    assert (sampler and sampler.to_dict()) == (expected and expected.to_dict())
