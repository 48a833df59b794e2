r"""Samplers: rules that step x from time t to an earlier time s.

With x = alpha_t x_0 + sigma_t eps, D = E[x_0 | x] from the denoiser and eps_hat = (x - alpha_t D) / sigma_t:

- `DDPM` samples from the posterior q(x_s | x_t, x_0 = D).
- `DDIM` re-noises D to time s with eps_hat, part of which it replaces by fresh noise.
- `Euler` and `Heun` integrate the probability-flow ODE dx/dt = alpha'(t) D + sigma'(t) eps_hat.
- `RK45` integrates it with adaptive steps.
- `DPMSolver` and `UniPC` integrate it exactly except for D, which they extrapolate from earlier evaluations.
- `IPNDM`, `LMS` and `DEIS` extrapolate eps_hat from earlier evaluations.
- `EulerMaruyama` integrates the reverse SDEs, which have the marginals of the probability flow; so does `DPMSolver`
  with eta > 0. `Restart` integrates the probability flow, and goes back up by noise.
- `FlowMapSampler` steps along the flow map of a model that has learned one, with one evaluation per step.
- `PredictorCorrector` and `AnnealedLangevin` take Langevin steps at a fixed time, the former between steps in time.

The grid, the solver, the noise, the coordinates of the ODE and the model are independent: any combination runs. A step
keeps no state. In the last step, to sigma = 0, all samplers return D, except `AnnealedLangevin` with `denoise=False`.
"""

from lit_gen.families.diffusion.samplers.adams import DEIS, IPNDM, LMS
from lit_gen.families.diffusion.samplers.adaptive import RK45
from lit_gen.families.diffusion.samplers.ancestral import DDIM, DDPM
from lit_gen.families.diffusion.samplers.base import DiffusionSampler, GridSampler
from lit_gen.families.diffusion.samplers.flow_map import FlowMapSampler
from lit_gen.families.diffusion.samplers.langevin import AnnealedLangevin, PredictorCorrector
from lit_gen.families.diffusion.samplers.multistep import DPMSolver, UniPC
from lit_gen.families.diffusion.samplers.ode import Euler, Heun
from lit_gen.families.diffusion.samplers.restart import Restart
from lit_gen.families.diffusion.samplers.sde import EulerMaruyama

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "IPNDM",
    "LMS",
    "RK45",
    "AnnealedLangevin",
    "DPMSolver",
    "Euler",
    "EulerMaruyama",
    "FlowMapSampler",
    "GridSampler",
    "Heun",
    "PredictorCorrector",
    "Restart",
    "DiffusionSampler",
    "UniPC",
]
