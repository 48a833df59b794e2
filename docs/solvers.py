"""Print the table of docs/diffusion.md: solvers against the exact flow of two moons, by network evaluations."""

import argparse
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.data import TwoMoons
from lit_gen.families.diffusion import EDMSchedule, GaussianMixtureDenoiser, Searched
from lit_gen.families.diffusion.samplers import DDIM, DEIS, IPNDM, LMS, DPMSolver, UniPC

BUDGETS, SHOWN = (5, 10, 20, 80, 160, 320), (0, 1, 2, 3, 5)
SOLVERS = {
    "`DDIM`": DDIM,
    "`IPNDM(order=2)`": partial(IPNDM, order=2),
    "`IPNDM`, order 4": IPNDM,
    "`LMS`, order 4": LMS,
    "`DEIS`, order 4, time": DEIS,
    "`DEIS(order=3, variable=log)`": partial(DEIS, order=3, variable="log"),
    "`DPMSolver`, 2M": DPMSolver,
    "`DPMSolver(order=3)`, 3M": partial(DPMSolver, order=3),
    "`UniPC`, order 2": UniPC,
    "`UniPC(order=3)`": partial(UniPC, order=3),
}
SEARCHED = ("`DDIM`", "`IPNDM`, order 4", "`DPMSolver`, 2M", "`UniPC`, order 2")
"""Solvers that are shown on the searched grid as well."""


def end_of_the_flow(denoiser: GaussianMixtureDenoiser, start: Tensor) -> Tensor:
    """Return D (N, 2, 1, 1) at the end of the exact flow of points from noise level 80 to 0.002, to about 1e-13."""

    def denoise(x: np.ndarray, level: float) -> Tensor:
        one = torch.tensor(1.0, dtype=torch.float64)
        return denoiser.denoise(torch.from_numpy(x).reshape(start.shape), one, level * one, None)

    def slope(log_snr: float, x: np.ndarray) -> np.ndarray:
        return denoise(x, math.exp(-log_snr)).flatten().numpy() - x

    span = -math.log(80), -math.log(0.002)
    solved = solve_ivp(slope, span, start.flatten().numpy(), method="DOP853", rtol=1e-13, atol=1e-14)
    return denoise(solved.y[:, -1], 0.002)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args(arguments)
    moons = TwoMoons().exact
    denoiser = GaussianMixtureDenoiser(moons.means, moons.variances.sqrt())
    schedule, noise, shape = EDMSchedule(), partial(Noise, 0, range(40)), (2, 1, 1)
    end = end_of_the_flow(denoiser, 80 * noise().normal(shape, torch.float64))
    print(f"| sampler | {' | '.join(str(BUDGETS[place]) for place in SHOWN)} | order |")
    print(f"| --- |{' ---: |' * (len(SHOWN) + 1)}")
    grid = Searched(seed=1)  # other points than those of the table
    grid.search(denoiser, schedule, shape)
    for name, solver in SOLVERS.items():
        images = (solver(steps=steps).sample(denoiser, schedule, noise(), shape) for steps in BUDGETS)
        errors = [float((x - end).flatten(1).norm(dim=1).median()) for x in images]
        order = math.log2(errors[-2] / errors[-1])
        print(f"| {name} | {' | '.join(f'{errors[place]:.2g}' for place in SHOWN)} | {order:.1f} |")
        if name in SEARCHED:
            few = [BUDGETS[place] for place in SHOWN if BUDGETS[place] < grid.fine]
            images = (solver(steps=steps, grid=grid).sample(denoiser, schedule, noise(), shape) for steps in few)
            cells = [f"{float((x - end).flatten(1).norm(dim=1).median()):.2g}" for x in images]
            print(f"| {name}, `Searched` | {' | '.join(cells + ['-'] * (len(SHOWN) - len(few)))} | - |")


if __name__ == "__main__":
    main()
