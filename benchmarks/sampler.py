"""Time of a sampler over NFE x forward time of its network, in one run.

    python benchmarks/sampler.py [--size 32] [--batch 64] [--steps 10] [--repeats 5] [--threads 2]

A sampler's turn is followed by as many bare forward passes as it made evaluations; medians of the ratio of the two.
"""

import argparse
import statistics
import time

import torch

from lit_gen.diffusion.denoisers import NetworkDenoiser, Velocity
from lit_gen.diffusion.samplers import DDIM, DDPM, Euler, Heun, Sampler
from lit_gen.diffusion.schedules import Rectified
from lit_gen.networks import UNet
from lit_gen.noise import Noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = (1, args.size, args.size)
    mult = (1, 2, 2) if args.size >= 16 else (1, 2)
    network = UNet(shape, channels=32, channel_mult=mult, num_blocks=1).eval()
    denoiser = NetworkDenoiser(network, Rectified(), Velocity())
    x, t = torch.randn(args.batch, *shape), torch.rand(args.batch) * 999
    samplers: list[Sampler] = [
        DDPM(steps=args.steps),
        DDIM(steps=args.steps),
        Euler(steps=args.steps),
        Heun(steps=args.steps // 2),
        Heun(steps=args.steps // 2, S_churn=10),
    ]
    print(
        f"{args.size}x{args.size}x1, batch {args.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"UNet of {sum(p.numel() for p in network.parameters()):,} parameters, median of {args.repeats}"
    )
    print(f"{'sampler':24}{'NFE':>5}{'sampler s':>12}{'NFE x forward s':>18}{'ratio':>8}")
    for sampler in samplers:
        ratios, sampling, forwards = [], [], []
        for repeat in range(args.repeats + 1):
            before = denoiser.evaluations
            start = time.perf_counter()
            sampler.sample(denoiser, denoiser.schedule, Noise(0, range(args.batch)), shape)
            sampled = time.perf_counter()
            nfe = denoiser.evaluations - before
            with torch.no_grad():
                for _ in range(nfe):
                    network(x, t)
            stopped = time.perf_counter()
            if repeat:  # the first turn warms up
                sampling.append(sampled - start)
                forwards.append(stopped - sampled)
                ratios.append((sampled - start) / (stopped - sampled))
        name = type(sampler).__name__ + (" with churn" if getattr(sampler, "S_churn", 0) else "")
        print(
            f"{name:24}{nfe:>5}{statistics.median(sampling):>12.3f}{statistics.median(forwards):>18.3f}"
            f"{statistics.median(ratios):>8.3f}"
        )


if __name__ == "__main__":
    main()
