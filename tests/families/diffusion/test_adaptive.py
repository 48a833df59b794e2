"""Adaptive Runge-Kutta: error against tolerance, per-image steps, number of evaluations."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import (
    Denoiser,
    DiscreteVP,
    EDMPreconditioning,
    EDMSchedule,
    LinearVP,
    NetworkDenoiser,
    ProbabilityFlow,
    Rectified,
    Schedule,
)
from lit_gen.families.diffusion.samplers import RK45
from lit_gen.families.diffusion.samplers.adaptive import solve
from tests.families.diffusion.exact_answers import Point, Silent, cdf, error, run


@pytest.mark.parametrize("schedule", [EDMSchedule(), LinearVP(), Rectified()])
def test_the_error_follows_the_tolerance(mixture_1d, schedule: Schedule):
    counts = []
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6):
        mixture_1d.evaluations = 0
        found = error(mixture_1d, RK45(tolerance, tolerance, sigma_min=0.001), schedule)
        assert tolerance < found < 15 * tolerance
        counts.append(mixture_1d.evaluations)
    assert 20 < counts[0] < counts[1] < counts[2] < counts[3] < 100


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
def test_an_image_is_that_of_a_public_solver(mixture, tolerance: float):
    """RK45 of scipy uses the same pair and step-size rule, for one image at a time."""
    sampler, edm = RK45(tolerance, tolerance), EDMSchedule()
    u, end = (level / (1 + level) for level in (80.0, 0.002))
    for index in range(4):
        mixture.evaluations = 0
        ours = sampler.sample(mixture, edm, Noise(3, [index]), (2, 3))
        ours_evaluations, calls = mixture.evaluations, 0

        def slope(u, y):
            nonlocal calls
            calls += 1
            u = torch.tensor(u, dtype=torch.float64)
            y = torch.from_numpy(y).reshape(1, 2, 3)
            return ((y - mixture(y, 1 - u, u)) / u).flatten().numpy()

        start = 80 / 81 * Noise(3, [index]).normal((2, 3), torch.float64)
        solution = solve_ivp(slope, (u, end), start.flatten().numpy(), "RK45", rtol=tolerance, atol=tolerance)
        y = torch.from_numpy(solution.y[:, -1]).reshape(1, 2, 3)
        theirs = mixture(y, torch.tensor(1 - end), torch.tensor(end))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=20 * tolerance)
        assert ours_evaluations == pytest.approx(calls, rel=0.2)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-5, 1e-6, 1e-9])
def test_is_the_dopri5_of_torchdiffeq(mixture, tolerance: float):
    """Compare with dopri5, the usual solver of flow matching, for one image at a time.

    Our step sizes are rounded down to powers of 2^(1/4); the evaluations are 1.16, 1.08, 1.10 and 0.98 times theirs.
    """
    torchdiffeq = pytest.importorskip("torchdiffeq")
    start, end = (torch.tensor(level / (1 + level), dtype=torch.float64) for level in (80.0, 0.002))
    counts = []
    for index in range(8):
        mixture.evaluations = 0
        ours = RK45(tolerance, tolerance).sample(mixture, EDMSchedule(), Noise(3, [index]), (2, 3))
        counts.append([mixture.evaluations])
        mixture.evaluations = 0
        _, y = torchdiffeq.odeint(
            lambda u, y: (y - mixture(y, 1 - u, u)) / u,
            start * Noise(3, [index]).normal((2, 3), torch.float64),
            torch.stack([start, end]),
            rtol=tolerance,
            atol=tolerance,
            method="dopri5",
            options={"step_t": end[None]},  # otherwise it steps past the end and interpolates
        )
        counts[-1].append(mixture.evaluations)
        theirs = mixture(y, 1 - end, end)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8 if tolerance == 1e-9 else 100 * tolerance)
    ours_in_all, theirs_in_all = (sum(column) for column in zip(*counts, strict=True))
    assert 0.9 < ours_in_all / theirs_in_all < 1.25


def test_the_order_is_five():
    """With equal steps, forced by a loose tolerance, halving the step divides the error by 2^5."""
    end = 0.5

    def err(num: int) -> float:
        y = torch.ones(1, 1, dtype=torch.float64)
        times = torch.linspace(1, end, num + 1).tolist()
        for begin, after in zip(times[:-1], times[1:], strict=True):
            (_, y), _ = solve(lambda rows, u, y: y * torch.cos(5 * u)[:, None] * 5, y, [begin, after], 1e3, 1e3)
        return abs(float(y) - math.exp(math.sin(5 * end) - math.sin(5)))

    assert 4.7 < math.log2(err(8) / err(16)) < 5.4


def test_the_estimate_of_the_error_is_of_order_five():
    """A step of order 4 has an error of h^5: the estimate vanishes for polynomials of degree 4, and not of degree 5."""
    evaluations: list[int] = []
    for degree in (4, 5):

        def slope(rows: Tensor, u: Tensor, y: Tensor, degree: int = degree) -> Tensor:
            evaluations[-1] += 1
            return (degree * u ** (degree - 1))[:, None]

        evaluations.append(0)
        (_, y), _ = solve(slope, torch.ones(1, 1, dtype=torch.float64), [1.0, 1e-3], 1e-9, 1e-9)
        assert float(y) == pytest.approx(1e-3**degree, abs=1e-9)
    assert evaluations[0] < 40 < evaluations[1]


# Independent images.


def test_the_same_images_for_any_batch(mixture):
    whole = run(RK45(), mixture, DiscreteVP(), num=64)
    for size, num in ((1, 8), (7, 14)):
        for first in range(0, num, size):
            part = RK45().sample(mixture, DiscreteVP(), Noise(3, range(first, first + size)), (2, 3))
            torch.testing.assert_close(part, whole[first : first + size], rtol=1e-10, atol=1e-10)


def test_rounding_stays_rounding(mixture):
    """Differences of 1e-7, like those of a network between batch sizes, do not change the steps."""

    class Rounded(Denoiser):
        def __init__(self, size: float) -> None:
            self.size = size

        def denoise(self, x, alpha, sigma, labels):
            rough = 0.1 * (40 * (sigma / alpha).log()).sin()[:, None, None]
            return mixture.denoise(x, alpha, sigma, labels) + rough + self.size * (1e4 * x).sin()

    for tolerance in (1e-2, 1e-3, 1e-4):
        exact, other = (run(RK45(tolerance, tolerance), Rounded(size), EDMSchedule(), num=64) for size in (0.0, 1e-7))
        torch.testing.assert_close(other, exact, rtol=0, atol=1e-5)


def test_evaluations_are_the_mean_over_images(mixture):
    alone = []
    for index in range(12):
        mixture.evaluations = 0
        RK45().sample(mixture, EDMSchedule(), Noise(3, [index]), (2, 3))
        assert (mixture.evaluations - 2) % 6 == 0
        alone.append(mixture.evaluations)
    assert len(set(alone)) > 1
    mixture.evaluations = 0
    run(RK45(), mixture, EDMSchedule(), num=12)
    assert mixture.evaluations == pytest.approx(sum(alone) / 12, rel=1e-12)


def test_evaluations_are_those_of_the_network(mixture):
    """Finished images are not evaluated any more."""
    seen = []

    class Watched(Denoiser):
        def denoise(self, x, alpha, sigma, labels):
            seen.append(len(x))
            assert labels is None and len(x) == len(alpha) == len(sigma)
            return mixture.denoise(x, alpha, sigma, labels)

    watched = Watched()
    run(RK45(), watched, EDMSchedule(), num=12)
    assert watched.evaluations == pytest.approx(sum(seen) / 12, rel=1e-12)
    assert seen[0] == 12 > seen[-1]


def test_labels_stay_with_their_images():
    """Each image converges to the value of its label."""
    labels = torch.tensor([3, 0, 1, 7])

    def network(x, c_noise, given):
        assert len(given) == len(x) == len(c_noise)
        sigma = (4 * c_noise).exp()[:, None]
        _, c_skip, c_out = EDMPreconditioning().coefficients(torch.ones_like(sigma), sigma)
        c_in, _, _ = EDMPreconditioning().coefficients(torch.ones_like(sigma), sigma)
        return (given[:, None] / 10 + 0.05 * torch.sin(given[:, None] * x) - c_skip * x / c_in) / c_out

    denoiser = NetworkDenoiser(network, EDMSchedule(), EDMPreconditioning())
    x = RK45(1e-4, 1e-4).sample(denoiser, EDMSchedule(), Noise(0, range(4)), (1,), labels)
    torch.testing.assert_close(x[:, 0], labels.double() / 10, rtol=0, atol=0.06)
    alone = RK45(1e-4, 1e-4).sample(denoiser, EDMSchedule(), Noise(0, [3]), (1,), labels[3:])
    torch.testing.assert_close(x[3:], alone, rtol=1e-9, atol=1e-9)


# Levels and errors.


def test_draws_no_noise_after_the_start(mixture, schedule):
    first, second = (RK45().sample(mixture, schedule, Silent(3, range(4)), (2, 3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("schedule", [EDMSchedule(), DiscreteVP(), Rectified()])
def test_a_trajectory_lies_on_the_flow(mixture_1d, schedule: Schedule):
    """At all of its times, within the error of a cubic."""
    states = list(RK45(1e-6, 1e-6).trajectory(mixture_1d, schedule, Noise(0, range(50)), (1,)))
    assert [t for t, _ in states] == RK45().times(schedule) and len(states) == 11
    (t_0, start), *rest = states
    rank = cdf(mixture_1d, start, *schedule(t_0))
    for t, x in rest:
        alpha, sigma = schedule(t)
        torch.testing.assert_close(
            cdf(mixture_1d, x, alpha, sigma) if t > 0 else cdf(mixture_1d, x), rank, rtol=0, atol=5e-4
        )
    end = RK45(1e-6, 1e-6).sample(mixture_1d, schedule, Noise(0, range(50)), (1,))
    assert torch.equal(end, states[-1][1])


def test_has_no_steps_and_says_so():
    settings = RK45(rtol=1e-3).to_dict()
    assert settings == {"name": "RK45", "rtol": 1e-3, "atol": 1e-5, "sigma_min": 0.002, "sigma_max": 80.0}
    for name in ("steps", "nfe", "grid"):
        with pytest.raises(TypeError, match=name):
            RK45(**{name: 5})


def test_levels_are_those_of_the_model():
    denoiser = Point(torch.zeros((), dtype=torch.float64))
    run(RK45(), denoiser, DiscreteVP())
    ratios = [sigma / alpha for _, alpha, sigma in denoiser.seen]
    assert ratios[0] == pytest.approx(80.0) and min(ratios) == pytest.approx(DiscreteVP().min_ratio)


def test_a_network_that_fails_is_a_user_error():
    class Broken(Denoiser):
        def denoise(self, x, alpha, sigma, labels):
            return torch.where(sigma[:, None, None] < 0.3, math.nan, x)

    message = (
        r"^sampler.rtol: RK45 makes no progress at u = 0.3.*non-finite values; raise sampler.rtol and sampler.atol$"
    )
    with pytest.raises(UserError, match=message):
        run(RK45(), Broken(), EDMSchedule())
    message = r"^evaluation.likelihood_method.rtol: .*; raise evaluation.likelihood_method.rtol and evaluation"
    with pytest.raises(UserError, match=message):
        ProbabilityFlow(solver="rk45").log_density(Broken(), EDMSchedule(), torch.zeros(1, 2, 3), Noise(0, [0]))


@pytest.mark.slow
def test_a_tolerance_below_the_rounding_of_the_network_ends(mixture):
    """The steps become too small to finish but not minimal; without rounding, the integration finishes."""

    class Rounded(Denoiser):
        def denoise(self, x, alpha, sigma, labels):
            return mixture.denoise(x, alpha, sigma).float().to(x.dtype)

    rounded, noise = Rounded(), Noise(3, [0])
    with pytest.raises(UserError, match=r"^sampler.rtol: .* after 1000 steps.* raise sampler.rtol and sampler.atol$"):
        RK45(1e-14, 1e-14).sample(rounded, EDMSchedule(), noise, (2, 3))
    assert rounded.evaluations == 2 + 6 * 1000
    assert RK45(1e-14, 1e-14).sample(mixture, EDMSchedule(), noise, (2, 3)).isfinite().all()
