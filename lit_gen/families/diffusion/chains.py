r"""Discrete chains of checkpoints that other software trained: their betas, network inputs and time grids.

A chain of T steps has alpha_bar_k = prod_{j <= k} (1 - beta_j). Its timestep n = 0 .. T - 1, as in diffusers, is the
knot t = (n + 1) / T of `DiscreteVP`.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.denoisers import Parameterization
from lit_gen.families.diffusion.grids import Grid
from lit_gen.families.diffusion.schedules import DiscreteVP, Schedule

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
ROUNDING = 1e-4
"""Distance to a whole timestep below which rounding is its cause."""


class BetaChain(DiscreteVP):
    r"""DDPM's chain with any betas, in float32 as in diffusers.

    - linear: beta from beta_start to beta_end.
    - scaled_linear: sqrt(beta) from sqrt(beta_start) to sqrt(beta_end), as in latent diffusion.
    - squaredcos_cap_v2: the cosine betas of improved DDPM, at most 0.999.
    - a list: one beta per timestep.

    With zero terminal SNR, sqrt(alpha_bar) is shifted and scaled so that it is 0 at the last timestep; in the last step
    alpha is linear in t.

    Papers: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Lin et al. 2023, https://arxiv.org/abs/2305.08891 (zero
    terminal SNR)

    Args:
        betas: Name of the sequence, or the betas.
        num_timesteps: Length T of the chain.
        beta_start: First beta of linear and scaled_linear.
        beta_end: Last beta of linear and scaled_linear.
        zero_terminal_snr: Rescale the betas to zero terminal SNR.

    Raises:
        UserError: If betas is not one of the sequences, or a beta is outside (0, 1).
    """

    def __init__(
        self,
        betas: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | list[float] = "linear",
        num_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        zero_terminal_snr: bool = False,
    ) -> None:
        if num_timesteps < 2:
            raise UserError(f"num_timesteps: {num_timesteps} is too short for a chain; give 2 or more")
        self.betas = betas  # type: ignore[assignment]
        self.num_timesteps = num_timesteps
        self.beta_start = beta_start
        self.beta_end = beta_end
        self.zero_terminal_snr = zero_terminal_snr
        beta = self._sequence()
        if len(beta) != num_timesteps:
            raise UserError(f"betas: {len(beta)} betas for {num_timesteps} timesteps; give one per timestep")
        if not bool(((beta > 0) & (beta < 1)).all()):
            raise UserError("betas: a beta is outside (0, 1); correct beta_start, beta_end or the list")
        alpha_bar = (1 - beta).cumprod(0)
        if zero_terminal_snr:
            alpha_bar = _rescaled(alpha_bar)
        self._decay = torch.cat([torch.zeros(1, dtype=torch.float64), -alpha_bar.double().log()])
        self.min_ratio, self.max_ratio = float(self.ratio(1 / num_timesteps)), float(self.ratio(1.0))

    def _sequence(self) -> Tensor:
        num, start, end = self.num_timesteps, self.beta_start, self.beta_end
        betas: object = self.betas
        if not isinstance(betas, str):
            return torch.tensor(betas, dtype=torch.float32)
        if betas == "linear":
            return torch.linspace(start, end, num, dtype=torch.float32)
        if betas == "scaled_linear":
            return torch.linspace(start**0.5, end**0.5, num, dtype=torch.float32) ** 2
        if betas == "squaredcos_cap_v2":
            alpha_bar = [math.cos((k / num + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(num + 1)]
            return torch.tensor([min(1 - alpha_bar[k + 1] / alpha_bar[k], 0.999) for k in range(num)])
        raise UserError(
            f"betas: {self.betas!r} is not a sequence of variances; choose one of {', '.join(BETAS)}, or give a list"
        )

    def decay(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        decay, beta = super().decay(t)
        if not self.zero_terminal_snr:
            return decay, beta
        rest = (
            1 - torch.as_tensor(t, dtype=torch.float64)
        ) * self.num_timesteps  # steps left, below 1 in the last step
        last = rest < 1
        before = self._decay[-2].to(rest.device)
        return (
            torch.where(last, before - 2 * rest.clamp(0, 1).log(), decay),
            torch.where(last, 2 * self.num_timesteps / rest, beta),
        )

    def decay_time(self, decay: Tensor) -> Tensor:
        t = super().decay_time(decay)
        if not self.zero_terminal_snr:
            return t
        before = self._decay[-2].to(decay.device)
        return torch.where(decay > before, 1 - ((before - decay) / 2).exp() / self.num_timesteps, t)


def _rescaled(alpha_bar: Tensor) -> Tensor:
    """Return alpha_bar of a chain with zero terminal SNR and the same first step, computed as in diffusers."""
    root = alpha_bar.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * (first / (first - last))
    alpha_bar = root**2
    alphas = torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return (1 - (1 - alphas)).cumprod(0)


class OnChain(Parameterization):
    """F of another parameterization, for a network whose noise level is the timestep of a chain: c_noise = t T - 1.

    At the steps of the chain, c_noise is exactly a whole number.

    Args:
        prediction: The parameterization: Epsilon, V (v_prediction) or Sample.
        num_timesteps: Length T of the chain.
    """

    def __init__(self, prediction: Parameterization, num_timesteps: int = 1000) -> None:
        self.prediction = prediction
        self.num_timesteps = num_timesteps
        self.max_ratio = prediction.max_ratio

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return self.prediction.weights(alpha, sigma)

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.prediction.c_in(alpha, sigma)

    def c_noise(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        timestep = t * self.num_timesteps - 1
        nearest = timestep.round()
        return torch.where((timestep - nearest).abs() < ROUNDING, nearest, timestep)


class Timesteps(Grid):
    """Whole timesteps of a chain, spaced as in diffusers, and then t = 0.

    With n steps of a chain of length T, from the noise to the data:

    - leading: offset + k (T // n) for k = n - 1 .. 0, so the first timestep is below T - 1.
    - trailing: round(T - k T / n) - 1 for k = 0 .. n - 1, from T - 1.
    - linspace: round of n equal steps from T - 1 to 0.

    Args:
        spacing: Rule of the timesteps.
        offset: Added to the timesteps of leading.

    Raises:
        UserError: If spacing is not one of the three; when sampling, if the schedule is not a chain or has fewer
            timesteps than steps.
    """

    def __init__(self, spacing: Literal["leading", "trailing", "linspace"] = "leading", offset: int = 0) -> None:
        if spacing not in ("leading", "trailing", "linspace"):
            raise UserError(f"spacing: {spacing!r} is not a spacing; choose leading, trailing or linspace")
        if offset < 0:
            raise UserError(f"offset: {offset} is not a number of timesteps; give 0 or more")
        self.spacing = spacing
        self.offset = offset

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        if not isinstance(schedule, DiscreteVP):
            raise UserError(
                f"sampler.grid: Timesteps needs a chain such as DiscreteVP, not {type(schedule).__name__}; choose the "
                "grid Uniform"
            )
        num = schedule.num_timesteps
        if steps > num:
            raise UserError(f"sampler.steps: {steps} is more than the {num} timesteps of the chain; give fewer")
        index = torch.arange(steps, dtype=torch.float64)
        if self.spacing == "leading":
            timesteps = (steps - 1 - index) * (num // steps) + self.offset
        elif self.spacing == "trailing":
            timesteps = (num - index * (num / steps)).round() - 1
        else:
            timesteps = torch.linspace(num - 1, 0, steps, dtype=torch.float64).round()
        times = ((timesteps + 1) / num).clamp(max=1)
        return torch.cat([times, times.new_zeros(1)])
