"""Time of a sampler over NFE x forward time of its network, in one run.

    python benchmarks/sampler.py [--nfe 10] [--repeats 5] [--threads 2] [--cpu-time] [--only UniPC]

A sampler's turn is followed by as many bare forward passes as it made evaluations; medians of the ratio of the two. The
samplers take turns, so that a busy spell of the machine meets them all. `--cpu-time` counts processor time instead of
wall time (use it with one thread on a busy machine). As the ratio of two nearly equal times is only as exact as the
machine is quiet, the sampler is also timed with a network that costs nothing: its own share of an evaluation.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--nfe", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--only", default="", help="the samplers whose line begins so")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = (1, args.size, args.size)
    mult = (1, 2, 2) if args.size >= 16 else (1, 2)
    network = UNet(shape, channels=32, channel_mult=mult, num_blocks=1).eval()
    with torch.no_grad():  # the output layer of a fresh UNet is zero, which RK45 would find too easy
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    denoiser = NetworkDenoiser(network, Rectified(), Velocity())
    x, t = torch.randn(args.batch, *shape), torch.rand(args.batch) * 999
    samplers: dict[str, DiffusionSampler] = {
        "DDPM": DDPM(nfe=args.nfe),
        "DDIM": DDIM(nfe=args.nfe),
        "Euler": Euler(nfe=args.nfe),
        "Heun": Heun(nfe=args.nfe),
        "Heun with churn": Heun(nfe=args.nfe, S_churn=10),
        "EulerMaruyama": EulerMaruyama(nfe=args.nfe),
        "PredictorCorrector": PredictorCorrector(nfe=args.nfe),
        "AnnealedLangevin": AnnealedLangevin(nfe=args.nfe),
        "DPMSolver 2M": DPMSolver(nfe=args.nfe),
        "DPMSolver 2S": DPMSolver(nfe=args.nfe, method="singlestep"),
        "DPMSolver SDE": DPMSolver(nfe=args.nfe, eta=1.0),
        "UniPC": UniPC(nfe=args.nfe),
        "UniPC of order 3": UniPC(nfe=args.nfe, order=3),
        "RK45": RK45(rtol=1e-2, atol=1e-2),
    }
    samplers = {name: sampler for name, sampler in samplers.items() if name.startswith(args.only)}
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
