r"""Samplers: rules that carry x from time t to an earlier time s.

With x = alpha_t x_0 + sigma_t eps, D = E[x_0 | x] from the denoiser and eps_hat = (x - alpha_t D) / sigma_t:

- `DDPM` draws from the posterior p(x_s | x_t, x_0 = D).
- `DDIM` re-noises D to time s with eps_hat, a part of which it replaces by fresh noise.
- `Euler` and `Heun` integrate the probability-flow ODE dx/dt = alpha'(t) D + sigma'(t) eps_hat.

The grid, the solver, the noise, the coordinates of the ODE and the model are independent: any combination runs. A step
keeps no state. At the last step, to sigma = 0, all of them return D.
"""

from lit_gen.diffusion.samplers.ancestral import DDIM, DDPM
from lit_gen.diffusion.samplers.base import Sampler
from lit_gen.diffusion.samplers.ode import Euler, Heun

__all__ = ["DDIM", "DDPM", "Euler", "Heun", "Sampler"]
