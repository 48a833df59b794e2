r"""Likelihoods of diffusion models: the density by the probability-flow ODE, and the variational bound of the chain.

Both see of a model what a sampler sees of it: its denoiser D = E[x_0 | x_t], and the noise levels of its schedule.

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
from lit_gen.families.diffusion.samplers.adaptive import solve
from lit_gen.families.diffusion.schedules import DiscreteVP, Schedule
from lit_gen.families.settings import LikelihoodMethod

# Slopes (n, ...) of the given rows of the batch, all of them if None, at one time or times (n,), and states (n, ...).
Slope = Callable[[Tensor | None, Tensor, Tensor], Tensor]


class DiffusionLikelihood(LikelihoodMethod):
    """How the likelihood of a diffusion model is computed."""

    @abstractmethod
    def log_likelihood(self, denoiser: Denoiser, schedule: Schedule, images: Tensor, noise: Noise) -> Tensor:
        """log P of 8-bit images, (N,) in nats, image i from the random numbers of its index alone.

        Args:
            denoiser: of the model, given its labels.
            schedule: that of the model.
            images: (N, ...), the values u / 127.5 - 1.
            noise: keyed by the index of the image.
        """

    @abstractmethod
    def check(self, schedule: Schedule) -> None:
        """Lays the grid, so that what does not suit the schedule is said early."""


class ProbabilityFlow(DiffusionLikelihood):
    r"""The log-density of a model's samples, carried along the probability-flow ODE.

    With r = sigma / alpha and in the scale alpha^2 + sigma^2 = 1, where x neither grows nor shrinks, the ODE and the
    instantaneous change of variables are

        dx / d log r = alpha^2 x - alpha D(x; alpha, sigma),
        d log p(x) / d log r = -(alpha^2 dim(x) - alpha tr dD / dx).

    An image is carried from the least noise level of the grid to the greatest, where x ~ N(0, sigma^2 I) is what
    samplers start from. The trace is exact (one backward pass for each dimension), or Hutchinson's unbiased estimate
    v^T (dD / dx) v with random v, the same v at all times.

    The density is that of images with noise of the least level, as in the paper: whatever lies between it and the data
    is left out, and below the least level that a model was trained on there is nothing to integrate. Seen at less than
    that noise's width a pixel of known value costs: at 0.01 (DDPM with linear betas) 1.7 bits that a sharper model
    would not pay, at 0.002 a quarter of a bit.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456; Hutchinson's estimate as in Grathwohl et al. 2019,
    https://arxiv.org/abs/1810.01367

    Args:
        steps: number of steps of a fixed-step solver.
        solver: heun (order 2, two evaluations a step), rk4 (order 4, four) or rk45 (order 5, steps of its own for each
            image, as in the sampler `RK45`).
        grid: where the steps lie; its first and last noise levels above 0 are the limits. Default: `UniformLogSNR()`.
        divergence: how the trace is computed.
        probes: distribution of v.
        num_probes: number of v for each image, averaged.
        num_draws: number of dequantisations of each image, averaged.
        rtol: relative tolerance of rk45, for x and for the log-density.
        atol: absolute tolerance of rk45.

    Raises:
        UserError: an option is out of range; a grid that starts at pure noise.
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
                raise UserError(f"{name} of the likelihood must be at least 1, not {count}")
        if solver not in (*_NODES, "rk45"):
            raise UserError(f"solver of the likelihood must be heun, rk4 or rk45, not {solver!r}")
        if not (rtol > 0 and atol > 0):
            raise UserError(f"rtol and atol of the likelihood must be above 0, not {rtol} and {atol}")
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
        """log p(x) in nats, (N,), of points x (N, ...) in the scale of the data; arguments as in `log_likelihood`."""
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
        """The increasing log(sigma / alpha) that the steps lie between."""
        ratios = schedule.ratio(self.grid(schedule, self.steps + 1)[:-1]).flip(0)
        if not ratios[-1] < math.inf:
            raise UserError(
                f"the grid {type(self.grid).__name__} starts at pure noise (alpha = 0), where sigma / alpha is"
                " infinite: give the likelihood the grid UniformLogSNR"
            )
        return ratios.log()

    def _probes(self, x: Tensor, noise: Noise) -> Tensor:
        r"""(K, N, \*shape): random vectors for each image, or the unit vectors of all dimensions."""
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
            start = times[-1] + 1  # it counts down a positive time

            def falling(rows: Tensor, u: Tensor, state: Tensor) -> Tensor:
                return -slope(rows, start - u, state)

            levels = [float(start - times[0]), 1.0]
            states, _ = solve(falling, state, levels, self.rtol, self.atol, "evaluation.likelihood_method")
            return states[-1]
        for begin, end in pairwise(times):
            state = _runge_kutta_step(slope, state, begin, end - begin, *_NODES[self.solver])
        return state


# Nodes and weights of rules each of whose stages builds on the one before alone.
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
    """The pair (alpha, sigma) of that ratio with alpha^2 + sigma^2 = 1."""
    ratio = log_ratio.exp()
    alpha = (1 + ratio**2) ** -0.5
    return alpha, ratio * alpha


def _with_trace(denoiser: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """D (N, ...) and the sum over the probes v of v^T (dD / dx) v, (N,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = denoiser(x, alpha, sigma)
    trace = x.new_zeros(len(x))
    for number, probe in enumerate(probes, start=1):
        (product,) = torch.autograd.grad(denoised, x, probe, retain_graph=number < len(probes))
        trace += (probe * product).flatten(1).sum(1)
    return denoised.detach(), trace


class VariationalBound(DiffusionLikelihood):
    r"""The variational bound of a discrete chain t_1 < ... < t_T, in nats of the 8-bit image.

        -log P(x_0) <= L_T + sum_{k = 2}^{T} L_{k - 1} + L_0,
        L_T = KL(q(x_T | x_0) || N(0, sigma_T^2 I)),
        L_{k - 1} = KL(q(x_{k - 1} | x_k, x_0) || p(x_{k - 1} | x_k)),
        L_0 = -log P(x_0 | x_1),

    with p(x_{k - 1} | x_k) as in the sampler `DDPM`: q with D in the place of x_0, and one of three variances.
    P(x_0 | x_1) gives each 8-bit value the mass of its bin under N(D, s^2 I). The expectation over x_k is taken by one
    draw for each k, the same for an image in every batch.

    Papers: Ho et al. 2020, https://arxiv.org/abs/2006.11239, equations 5 and 13; Nichol and Dhariwal 2021,
    https://arxiv.org/abs/2102.09672

    Args:
        variance: of p(x_{k - 1} | x_k): small, large or learned, as in the sampler `DDPM`.
        steps: the length T of the chain. Default: that of the model's schedule if it has one, else 1000.
        grid: where the chain's times lie. Default: `Uniform()`, which is DDPM's chain.
        num_terms: how many of the T - 1 terms L_{k - 1} are evaluated for each image: evenly spaced k with a random
            start, scaled so that the estimate of the bound is unbiased. Default: all of them.
        decoder_std: the s of P(x_0 | x_1). Default: as in the papers' code, that of a small step k = 2, or between it
            and that of a large step k = 1 where the variance is learned. A grid whose times crowd at the data needs
            another, near sigma / alpha at t_1.
    """

    kind = "bound"
    dequantisation = "none"

    def __init__(
        self,
        variance: Literal["small", "large", "learned"] = "large",
        steps: int | None = None,
        grid: Grid | None = None,
        num_terms: int | None = None,
        decoder_std: float | None = None,
    ) -> None:
        if variance not in ("small", "large", "learned"):
            raise UserError(f"variance of the likelihood must be small, large or learned, not {variance!r}")
        if steps is not None and steps < 2:
            raise UserError(f"steps of the likelihood must be at least 2, not {steps}")
        if num_terms is not None and num_terms < 1:
            raise UserError(f"num_terms of the likelihood must be at least 1, not {num_terms}")
        if decoder_std is not None and not 0 < decoder_std < math.inf:
            raise UserError(
                f"evaluation.likelihood_method.decoder_std: {decoder_std} is not a standard deviation; give a number "
                "above 0, or null for that of the papers"
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
        """L_T (prior), the sum of the L_{k - 1} (transitions) and L_0 (decoder), each (N,) in nats."""
        x_0 = images.double()
        times = self._times(schedule).to(images.device)
        num = len(times) - 2
        alpha, sigma = (per_image(value.expand(len(x_0)), x_0) for value in schedule(times[-1]))
        prior = _normal_kl(alpha * x_0, sigma**2, 0.0, sigma**2)
        total = torch.zeros_like(x_0)
        chosen = self._chosen(num, noise).to(images.device) + 2
        for k in chosen.T:
            step = _Step(schedule, times[k], times[k - 1], x_0)
            x = step.noisy(x_0, noise)
            denoised, between = denoiser.with_variance(x, step.alpha_t, step.sigma_t)
            variance = self._variance(step.small, step.large, between)
            total += _normal_kl(step.mean(x, x_0), step.small, step.mean(x, denoised), variance)
        decoder = self._decoder(denoiser, schedule, x_0, times, noise)
        terms = {"prior": prior, "transitions": total * num / chosen.shape[1], "decoder": decoder}
        return {name: term.flatten(1).sum(1) for name, term in terms.items()}

    def _decoder(self, denoiser: Denoiser, schedule: Schedule, x_0: Tensor, times: Tensor, noise: Noise) -> Tensor:
        """-log P(x_0 | x_1) of each dimension."""
        data, first, second = (times[k].expand(len(x_0)) for k in range(3))
        step = _Step(schedule, first, data, x_0)
        denoised, between = denoiser.with_variance(step.noisy(x_0, noise), step.alpha_t, step.sigma_t)
        variance = _Step(schedule, second, first, x_0).small  # that of the first step itself is 0
        if self.decoder_std is not None:
            variance = torch.full_like(variance, self.decoder_std**2)
        elif self.variance == "learned":
            variance = self._variance(variance, step.large, between)
        return -discretised_gaussian_log_prob(x_0, denoised, variance.sqrt())

    def _variance(self, small: Tensor, large: Tensor, between: Tensor | None) -> Tensor:
        if self.variance != "learned":
            return small if self.variance == "small" else large
        if between is None:
            raise UserError("variance of the likelihood: this model has no learned variance; use small or large")
        return small * (large / small) ** between

    def _times(self, schedule: Schedule) -> Tensor:
        """0 = t_0 < t_1 < ... < t_T."""
        steps = self.steps or (schedule.num_timesteps if isinstance(schedule, DiscreteVP) else 1000)
        return self.grid(schedule, steps).flip(0)

    def _chosen(self, num: int, noise: Noise) -> Tensor:
        """Which of num terms are evaluated for each image, (N, K) evenly spaced in 0 .. num - 1."""
        num_terms = min(self.num_terms or num, num)
        start = noise.uniform((1,), torch.float64)
        places = (start + torch.arange(num_terms, device=noise.device)) * (num / num_terms)
        return places.long().clamp(max=num - 1)


class _Step:
    """The step of a chain from times t to times s, (N,), shaped to multiply images; formulas as in `DDPM`."""

    def __init__(self, schedule: Schedule, t: Tensor, s: Tensor, images: Tensor) -> None:
        self.alpha_t, self.sigma_t = schedule(t)
        alpha_t, sigma_t, alpha_s, sigma_s = (
            per_image(value.expand(len(images)), images) for value in (self.alpha_t, self.sigma_t, *schedule(s))
        )
        a = alpha_t / alpha_s
        v = sigma_t**2 - (a * sigma_s) ** 2
        self._of_x, self._of_data = a * sigma_s**2 / sigma_t**2, alpha_s * v / sigma_t**2
        self.small = v * sigma_s**2 / sigma_t**2
        self.large = v * (alpha_s**2 + sigma_s**2) / (alpha_t**2 + sigma_t**2)

    def noisy(self, x_0: Tensor, noise: Noise) -> Tensor:
        """x_t, with one draw of the noise."""
        eps = noise.normal(x_0.shape[1:], x_0.dtype).to(x_0.device)
        return per_image(self.alpha_t, x_0) * x_0 + per_image(self.sigma_t, x_0) * eps

    def mean(self, x: Tensor, x_0: Tensor) -> Tensor:
        """Of x_s given x_t and x_0."""
        return self._of_x * x + self._of_data * x_0


def _normal_kl(mean: Tensor, variance: Tensor, other_mean: Tensor | float, other_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(other_mean, other_variance)) of each dimension, in nats."""
    ratio = variance / other_variance
    return 0.5 * (ratio - 1 - ratio.log() + (mean - other_mean) ** 2 / other_variance)


def discretised_gaussian_log_prob(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log mass that N(mean, std^2) gives to the bin of each 8-bit value, in nats; the shape of the images.

    The bin of x reaches from x - 1 / 255 to x + 1 / 255; the first and the last of the 256 reach to minus and plus
    infinity, so that the masses sum to one.

    Paper: Ho et al. 2020, https://arxiv.org/abs/2006.11239, equation 13

    Args:
        images: the values u / 127.5 - 1, any shape.
        mean: of that shape.
        std: broadcast to that shape.
    """
    half = BIN_WIDTH / 2
    lower = torch.where(images < -1 + half, -math.inf, (images - half - mean) / std)
    upper = torch.where(images > 1 - half, math.inf, (images + half - mean) / std)
    # In the upper tail both CDFs are almost one; the mass is the same seen from below.
    mirrored = lower > 0
    lower, upper = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_lower, log_upper = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    return log_upper + torch.log(-torch.expm1(log_lower - log_upper))
