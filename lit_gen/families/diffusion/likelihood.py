r"""Likelihoods of diffusion models: the density by the probability-flow ODE, and the variational bound of the chain.

Both use the same parts of a model as a sampler: its denoiser D = E[x_0 | x_t] and the noise levels of its schedule.

Papers: Song et al. 2021, https://arxiv.org/abs/2011.13456 (ODE); Ho et al. 2020, https://arxiv.org/abs/2006.11239, and
Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672 (bound)
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.pixels import BIN_WIDTH
from lit_gen.distributions.dequantisation import log_mass
from lit_gen.families.diffusion.denoisers import Denoiser, per_image
from lit_gen.families.diffusion.grids import Grid, Uniform, UniformLogSNR
from lit_gen.families.diffusion.posterior import StepVariance, posterior, step_variance
from lit_gen.families.diffusion.samplers.adaptive import solve
from lit_gen.families.diffusion.schedules import DiscreteVP, Schedule
from lit_gen.families.settings import LikelihoodMethod

KEY = "evaluation.likelihood_method"

# Slopes (n, ...) of the given rows of the batch (all rows if None), at one time or times (n,), and states (n, ...).
Slope = Callable[[Tensor | None, Tensor, Tensor], Tensor]


class DiffusionLikelihood(LikelihoodMethod):
    """Method for the likelihood of a diffusion model."""

    @abstractmethod
    def log_likelihood(self, denoiser: Denoiser, schedule: Schedule, images: Tensor, noise: Noise) -> Tensor:
        """Return log P of 8-bit images, (N,) in nats; image i uses only the random numbers of its index.

        Args:
            denoiser: Denoiser of the model, with its labels.
            schedule: Schedule of the model.
            images: Images (N, ...), with the values u / 127.5 - 1.
            noise: Random numbers by image index.
        """

    @abstractmethod
    def check(self, schedule: Schedule) -> None:
        """Raise a UserError unless the grid suits the schedule."""


class ProbabilityFlow(DiffusionLikelihood):
    r"""Log-density by integration along the probability-flow ODE.

    With r = sigma / alpha and x scaled so that alpha^2 + sigma^2 = 1, which keeps the size of x fixed, the ODE and the
    instantaneous change of variables are

        dx / d log r = alpha^2 x - alpha D(x; alpha, sigma),
        d log p(x) / d log r = -(alpha^2 dim(x) - alpha tr dD / dx).

    An image is integrated from the smallest noise level of the grid to the largest, at which x ~ N(0, sigma^2 I) is the
    samplers' initial distribution. The trace is exact (one backward pass per dimension), or Hutchinson's unbiased
    estimate v^T (dD / dx) v with random v, the same v at all times.

    As in the paper, the density is that of images with noise of the smallest level; the part of the flow between that
    level and the data is left out, and the model is not trained there. Limiting the resolution to the width of that
    noise has a cost for a pixel whose value is certain: 1.7 bits at 0.01 (DDPM with linear betas) and a quarter of a
    bit at 0.002, which a sharper model would not pay.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456; Hutchinson's estimate as in Grathwohl et al. 2019,
    https://arxiv.org/abs/1810.01367

    Args:
        steps: Number of steps of a fixed-step solver.
        solver: heun (order 2, two evaluations per step), rk4 (order 4, four evaluations per step) or rk45 (order 5,
            with adaptive steps per image, as in the sampler `RK45`).
        grid: Grid of the steps, between its largest and smallest noise level above 0. Default: `UniformLogSNR()`.
        divergence: Method for the trace.
        probes: Distribution of v.
        num_probes: Number of v per image, averaged.
        num_draws: Number of dequantisations per image, averaged.
        rtol: Relative tolerance of rk45, for x and for the log-density.
        atol: Absolute tolerance of rk45.

    Raises:
        UserError: If an option is out of range, or the grid starts at pure noise.
    """

    kind = "estimate"
    dequantisation = "uniform"

    def __init__(
        self,
        steps: int = 32,
        solver: Literal["heun", "rk4", "rk45"] = "rk4",
        grid: Grid | None = None,
        divergence: Literal["hutchinson", "exact"] = "hutchinson",
        probes: Literal["rademacher", "gaussian"] = "rademacher",
        num_probes: int = 1,
        num_draws: int = 1,
        rtol: float = 1e-5,
        atol: float = 1e-5,
    ) -> None:
        counts = {"steps": steps, "num_probes": num_probes, "num_draws": num_draws}
        for name, count in counts.items():
            if count < 1:
                raise UserError(f"{KEY}.{name}: {count} is not a positive number; give 1 or more")
        if solver not in (*_NODES, "rk45"):
            raise UserError(f"{KEY}.solver: {solver!r} is not a solver; choose heun, rk4 or rk45")
        for name, tolerance in {"rtol": rtol, "atol": atol}.items():
            if not tolerance > 0:
                raise UserError(f"{KEY}.{name}: {tolerance} is not a tolerance; give a number above 0")
        self.steps = steps
        self.solver = solver
        self.grid = UniformLogSNR() if grid is None else grid
        self.divergence = divergence
        self.probes = probes
        self.num_probes = num_probes
        self.num_draws = num_draws
        self.rtol = rtol
        self.atol = atol

    def check(self, schedule: Schedule) -> None:
        self._log_ratios(schedule)

    def log_likelihood(self, denoiser: Denoiser, schedule: Schedule, images: Tensor, noise: Noise) -> Tensor:
        def log_density(x: Tensor, noise: Noise) -> Tensor:
            return self.log_density(denoiser, schedule, x, noise)

        return log_mass(log_density, images, noise, self.num_draws)

    @torch.no_grad()
    def log_density(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, noise: Noise) -> Tensor:
        """Return log p(x) in nats, (N,), of points x (N, ...) in the scale of the data.

        Args:
            denoiser: Denoiser of the model, with its labels.
            schedule: Schedule of the model.
            x: Points (N, ...).
            noise: Random numbers by image index.
        """
        num, dim = len(x), x[0].numel()
        log_ratios = self._log_ratios(schedule).to(x.device)
        probes = self._probes(x, noise)

        def slope(rows: Tensor | None, log_ratio: Tensor, state: Tensor) -> Tensor:
            some, vectors = (denoiser, probes) if rows is None else (denoiser.part(rows, num), probes[:, rows])
            alpha, sigma = _unit_scale(log_ratio)
            point = state[:, :-1].reshape(-1, *x.shape[1:])
            denoised, trace = _with_trace(some, point, alpha, sigma, vectors)
            trace = trace if self.divergence == "exact" else trace / self.num_probes
            velocity = per_image(alpha**2, point) * point - per_image(alpha, point) * denoised
            return torch.cat([velocity.flatten(1), (alpha**2 * dim - alpha * trace)[:, None]], 1)

        alpha, _ = _unit_scale(log_ratios[0])
        _, sigma = _unit_scale(log_ratios[-1])
        state = torch.cat([alpha * x.double().flatten(1), x.new_zeros(num, 1, dtype=torch.float64)], 1)
        state = self._integrate(slope, state, log_ratios)
        log_prior = -0.5 * ((state[:, :-1] / sigma) ** 2 + (2 * math.pi * sigma**2).log()).sum(1)
        return log_prior + state[:, -1] + dim * alpha.log()

    def _log_ratios(self, schedule: Schedule) -> Tensor:
        """Return the increasing log(sigma / alpha) at the boundaries of the steps."""
        ratios = schedule.ratio(self.grid(schedule, self.steps + 1)[:-1]).flip(0)
        if not ratios[-1] < math.inf:
            raise UserError(
                f"{KEY}.grid: {type(self.grid).__name__} starts at pure noise (alpha = 0), at which sigma / alpha is "
                "infinite; choose the grid UniformLogSNR"
            )
        return ratios.log()

    def _probes(self, x: Tensor, noise: Noise) -> Tensor:
        r"""Return probe vectors (K, N, \*shape): random vectors, or the unit vectors of all dimensions."""
        if self.divergence == "exact":
            vectors = torch.eye(x[0].numel(), dtype=torch.float64, device=x.device)
            return vectors.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
        shape = (self.num_probes, *x.shape[1:])
        if self.probes == "gaussian":
            probes = noise.normal(shape, torch.float64)
        else:
            probes = (noise.uniform(shape, torch.float64) - 0.5).sign()
        return probes.to(x.device).transpose(0, 1)

    def _integrate(self, slope: Slope, state: Tensor, times: Tensor) -> Tensor:
        if self.solver == "rk45":
            start = times[-1] + 1  # `solve` integrates a positive time downwards

            def falling(rows: Tensor, u: Tensor, state: Tensor) -> Tensor:
                return -slope(rows, start - u, state)

            levels = [float(start - times[0]), 1.0]
            states, _ = solve(falling, state, levels, self.rtol, self.atol, KEY)
            return states[-1]
        for begin, end in pairwise(times):
            state = _runge_kutta_step(slope, state, begin, end - begin, *_NODES[self.solver])
        return state


# Nodes and weights of Runge-Kutta rules in which each stage depends only on the stage before it.
_NODES = {
    "heun": ((0.0, 1.0), (1 / 2, 1 / 2)),
    "rk4": ((0.0, 1 / 2, 1 / 2, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def _runge_kutta_step(
    slope: Slope, state: Tensor, time: Tensor, step: Tensor, nodes: tuple[float, ...], weights: tuple[float, ...]
) -> Tensor:
    total, last = torch.zeros_like(state), torch.zeros_like(state)
    for node, weight in zip(nodes, weights, strict=True):
        last = slope(None, time + node * step, state + node * step * last)
        total += weight * last
    return state + step * total


def _unit_scale(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Return (alpha, sigma) with the given log(sigma / alpha) and alpha^2 + sigma^2 = 1."""
    ratio = log_ratio.exp()
    alpha = (1 + ratio**2) ** -0.5
    return alpha, ratio * alpha


def _with_trace(denoiser: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """Return D (N, ...) and the sum over the probes v of v^T (dD / dx) v, (N,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = denoiser(x, alpha, sigma)
    trace = x.new_zeros(len(x))
    for number, probe in enumerate(probes, start=1):
        (product,) = torch.autograd.grad(denoised, x, probe, retain_graph=number < len(probes))
        trace += (probe * product).flatten(1).sum(1)
    return denoised.detach(), trace


class VariationalBound(DiffusionLikelihood):
    r"""Variational bound of a discrete chain t_1 < ... < t_T, in nats of the 8-bit image.

        -log P(x_0) <= L_T + sum_{k = 2}^{T} L_{k - 1} + L_0,
        L_T = KL(q(x_T | x_0) || N(0, sigma_T^2 I)),
        L_{k - 1} = KL(q(x_{k - 1} | x_k, x_0) || p(x_{k - 1} | x_k)),
        L_0 = -log P(x_0 | x_1),

    with p(x_{k - 1} | x_k) as in the sampler `DDPM`: q with x_0 replaced by D, and one of three variances. P(x_0 | x_1)
    gives each 8-bit value the mass of its bin under N(D, s^2 I). The expectation over x_k is estimated by one sample
    per k, which depends only on the index of the image.

    Papers: Ho et al. 2020, https://arxiv.org/abs/2006.11239, equations 5 and 13; Nichol and Dhariwal 2021,
    https://arxiv.org/abs/2102.09672

    Args:
        variance: Variance of p(x_{k - 1} | x_k): small, large or learned, as in the sampler `DDPM`.
        steps: Length T of the chain. Default: the length of the model's schedule if it has one, otherwise 1000.
        grid: Grid of the chain's times. Default: `Uniform()`, which is DDPM's chain.
        num_terms: Number of the T - 1 terms L_{k - 1} evaluated per image: evenly spaced k with a random start, scaled
            so that the estimate of the bound is unbiased. Default: all terms.
        decoder_std: Standard deviation s of P(x_0 | x_1). Default: as in the papers' code, s^2 is the small variance of
            step k = 2, or, if the variance is learned, between that and the large variance of step k = 1. A grid with
            many times near the data needs another value, close to sigma / alpha at t_1.

    Raises:
        UserError: If an option is out of range; when evaluated, if variance is learned and the model has none.
    """

    kind = "bound"
    dequantisation = "none"

    def __init__(
        self,
        variance: StepVariance = "large",
        steps: int | None = None,
        grid: Grid | None = None,
        num_terms: int | None = None,
        decoder_std: float | None = None,
    ) -> None:
        if variance not in ("small", "large", "learned"):
            raise UserError(f"{KEY}.variance: {variance!r} is not a variance; choose small, large or learned")
        if steps is not None and steps < 2:
            raise UserError(f"{KEY}.steps: {steps} is too short for a chain; give 2 or more")
        if num_terms is not None and num_terms < 1:
            raise UserError(f"{KEY}.num_terms: {num_terms} is not a positive number; give 1 or more, or null for all")
        if decoder_std is not None and not 0 < decoder_std < math.inf:
            raise UserError(
                f"{KEY}.decoder_std: {decoder_std} is not a standard deviation; give a number above 0, or null for the "
                "value of the papers"
            )
        self.variance = variance
        self.steps = steps
        self.grid = Uniform() if grid is None else grid
        self.num_terms = num_terms
        self.decoder_std = decoder_std

    def check(self, schedule: Schedule) -> None:
        self._times(schedule)

    def log_likelihood(self, denoiser: Denoiser, schedule: Schedule, images: Tensor, noise: Noise) -> Tensor:
        terms = self.terms(denoiser, schedule, images, noise)
        return -(terms["prior"] + terms["transitions"] + terms["decoder"])

    @torch.no_grad()
    def terms(self, denoiser: Denoiser, schedule: Schedule, images: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Return L_T (prior), the sum of the L_{k - 1} (transitions) and L_0 (decoder), each (N,) in nats.

        Arguments as in `log_likelihood`.
        """
        x_0 = images.double()
        times = self._times(schedule).to(images.device)
        num = len(times) - 2
        alpha, sigma = (per_image(value.expand(len(x_0)), x_0) for value in schedule(times[-1]))
        prior = _normal_kl(alpha * x_0, sigma**2, 0.0, sigma**2)
        total = torch.zeros_like(x_0)
        chosen = self._chosen(num, noise).to(images.device) + 2
        for k in chosen.T:
            step = posterior(schedule, times[k], times[k - 1])
            x = _noisy(schedule, times[k], x_0, noise)
            denoised, between = denoiser.with_variance(x, *schedule(times[k]))
            small, large = per_image(step.small, x_0), per_image(step.large, x_0)
            variance = step_variance(self.variance, small, large, between, f"{KEY}.variance")
            total += _normal_kl(step.mean(x, x_0), small, step.mean(x, denoised), variance)
        decoder = self._decoder(denoiser, schedule, x_0, times, noise)
        terms = {"prior": prior, "transitions": total * num / chosen.shape[1], "decoder": decoder}
        return {name: term.flatten(1).sum(1) for name, term in terms.items()}

    def _decoder(self, denoiser: Denoiser, schedule: Schedule, x_0: Tensor, times: Tensor, noise: Noise) -> Tensor:
        """Return -log P(x_0 | x_1) of each dimension."""
        data, first, second = (times[k].expand(len(x_0)) for k in range(3))
        x = _noisy(schedule, first, x_0, noise)
        denoised, between = denoiser.with_variance(x, *schedule(first))
        variance = per_image(posterior(schedule, second, first).small, x_0)  # the first step has a small variance of 0
        if self.decoder_std is not None:
            variance = torch.full_like(variance, self.decoder_std**2)
        elif self.variance == "learned":
            large = per_image(posterior(schedule, first, data).large, x_0)
            variance = step_variance("learned", variance, large, between, f"{KEY}.variance")
        return -discretised_gaussian_log_prob(x_0, denoised, variance.sqrt())

    def _times(self, schedule: Schedule) -> Tensor:
        """Return the increasing times 0 = t_0 < t_1 < ... < t_T."""
        steps = self.steps or (schedule.num_timesteps if isinstance(schedule, DiscreteVP) else 1000)
        return self.grid(schedule, steps).flip(0)

    def _chosen(self, num: int, noise: Noise) -> Tensor:
        """Return the indices of the evaluated terms of each image, (N, K), evenly spaced in 0 .. num - 1."""
        num_terms = min(self.num_terms or num, num)
        start = noise.uniform((1,), torch.float64)
        places = (start + torch.arange(num_terms, device=noise.device)) * (num / num_terms)
        return places.long().clamp(max=num - 1)


def _noisy(schedule: Schedule, t: Tensor, x_0: Tensor, noise: Noise) -> Tensor:
    """Sample x_t given x_0 (N, ...) at times t (N,)."""
    alpha, sigma = (per_image(value, x_0) for value in schedule(t))
    return alpha * x_0 + sigma * noise.normal(x_0.shape[1:], x_0.dtype).to(x_0.device)


def _normal_kl(mean: Tensor, variance: Tensor, other_mean: Tensor | float, other_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(other_mean, other_variance)) of each dimension, in nats."""
    ratio = variance / other_variance
    return 0.5 * (ratio - 1 - ratio.log() + (mean - other_mean) ** 2 / other_variance)


def discretised_gaussian_log_prob(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the log mass of the bin of each 8-bit value under N(mean, std^2), in nats, in the shape of the images.

    The bin of x extends from x - 1 / 255 to x + 1 / 255; the first and the last of the 256 bins extend to minus and
    plus infinity, so the masses sum to one.

    Paper: Ho et al. 2020, https://arxiv.org/abs/2006.11239, equation 13

    Args:
        images: Values u / 127.5 - 1, of any shape.
        mean: Mean, in the shape of the images.
        std: Standard deviation, broadcastable to that shape.
    """
    half = BIN_WIDTH / 2
    lower = torch.where(images < -1 + half, -math.inf, (images - half - mean) / std)
    upper = torch.where(images > 1 - half, math.inf, (images + half - mean) / std)
    # In the upper tail both CDFs are almost one, so the mass is computed from the mirrored interval.
    mirrored = lower > 0
    lower, upper = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_lower, log_upper = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    log_mass: Tensor = log_upper + torch.log(-torch.expm1(log_lower - log_upper))
    return log_mass
