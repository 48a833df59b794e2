"""Compare the time of each sampler with NFE x forward time of its network.

    python benchmarks/sampler.py [--nfe 10] [--repeats 5] [--threads 2] [--cpu-time] [--only UniPC]

After each run of a sampler, as many bare forward passes are timed as it made evaluations; the median of the ratios is
printed. The samplers take turns, so that other load affects all of them. `--cpu-time` measures processor time instead
of wall time; use it with one thread on a busy machine. The ratio of two nearly equal times is noisy, so each sampler is
also timed with a network without cost, which gives its own share of an evaluation.
"""

import argparse
import math
import statistics
import time

import torch

from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import NetworkDenoiser, Rectified, UNet, Velocity
from lit_gen.families.diffusion.samplers import (
    DDIM,
    DDPM,
    RK45,
    AnnealedLangevin,
    DiffusionSampler,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    UniPC,
)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--nfe", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--only", default="", help="select samplers whose name starts with this")
    return parser.parse_args()


def all_samplers(nfe: int) -> dict[str, DiffusionSampler]:
    """Return the samplers by name, all but RK45 with the same number of network evaluations."""
    return {
        "DDPM": DDPM(nfe=nfe),
        "DDIM": DDIM(nfe=nfe),
        "Euler": Euler(nfe=nfe),
        "Heun": Heun(nfe=nfe),
        "Heun with churn": Heun(nfe=nfe, S_churn=10),
        "EulerMaruyama": EulerMaruyama(nfe=nfe),
        "PredictorCorrector": PredictorCorrector(nfe=nfe),
        "AnnealedLangevin": AnnealedLangevin(nfe=nfe),
        "DPMSolver 2M": DPMSolver(nfe=nfe),
        "DPMSolver 2S": DPMSolver(nfe=nfe, method="singlestep"),
        "DPMSolver SDE": DPMSolver(nfe=nfe, eta=1.0),
        "UniPC": UniPC(nfe=nfe),
        "UniPC of order 3": UniPC(nfe=nfe, order=3),
        "RK45": RK45(rtol=1e-2, atol=1e-2),
    }


def main() -> None:
    """Print times, ratios and own shares of the samplers."""
    args = arguments()
    clock = time.process_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = (1, args.size, args.size)
    mult = (1, 2, 2) if args.size >= 16 else (1, 2)
    network = UNet(shape, channels=32, channel_mult=mult, num_blocks=1).eval()
    with torch.no_grad():  # a fresh UNet outputs zero, which is too easy for RK45
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    denoiser = NetworkDenoiser(network, Rectified(), Velocity())
    x, t = torch.randn(args.batch, *shape), torch.rand(args.batch) * 999
    samplers = {name: sampler for name, sampler in all_samplers(args.nfe).items() if name.startswith(args.only)}
    free = NetworkDenoiser(lambda x, c_noise, labels: torch.zeros_like(x), Rectified(), Velocity())
    turns: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in samplers}
    for repeat in range(args.repeats + 1):
        for name, sampler in samplers.items():
            before = denoiser.evaluations
            start_of_turn = clock()
            sampler.sample(denoiser, denoiser.schedule, Noise(0, range(args.batch)), shape)
            sampled = clock()
            nfe = denoiser.evaluations - before
            with torch.no_grad():
                for _ in range(math.ceil(nfe)):
                    network(x, t)
            forwards = (clock() - sampled) * nfe / math.ceil(nfe)
            before, start = free.evaluations, clock()
            sampler.sample(free, free.schedule, Noise(0, range(args.batch)), shape)
            own = (clock() - start) / (free.evaluations - before) * nfe / forwards
            if repeat:  # the first turn warms up
                turns[name].append((nfe, sampled - start_of_turn, forwards, own))
    print(
        f"{args.size}x{args.size}x1, batch {args.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"UNet of {sum(p.numel() for p in network.parameters()):,} parameters, median of {args.repeats}, "
        f"{'processor' if args.cpu_time else 'wall'} time"
    )
    print(f"{'sampler':24}{'NFE':>6}{'sampler s':>12}{'NFE x forward s':>18}{'ratio':>8}{'own share':>12}")
    for name, measured in turns.items():
        nfe, sampling, forward, own = (statistics.median(column) for column in zip(*measured, strict=True))
        ratio = statistics.median(sampled / forwards for _, sampled, forwards, _ in measured)
        print(f"{name:24}{nfe:>6.4g}{sampling:>12.3f}{forward:>18.3f}{ratio:>8.3f}{own:>12.4f}")


if __name__ == "__main__":
    main()
