"""Time to draw codes with a forward pass over all codes before each, over that with keys and values kept, in one run.

    python benchmarks/token_sampling.py [--size 16] [--batch 8] [--repeats 3] [--threads 1]

A grid of 16x16 is 256 codes. The two take turns, so that a busy spell of the machine meets both; both draw the same
codes, which is checked.
"""

import argparse
import statistics
import time
from functools import partial

import torch
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.families.vq import TokenPrior
from lit_gen.families.vq.networks.token_transformer import TokenTransformer
from lit_gen.families.vq.token_sampling import TokenSampling


def without_cache(model: TokenPrior, noise: Noise, sampler: TokenSampling) -> Tensor:
    """The codes (N, h, w) by as many forward passes over ever more codes."""
    length = model.grid[0] * model.grid[1]
    uniform = noise.uniform((length,), torch.float64)
    codes = torch.zeros(len(noise), length, dtype=torch.int64)
    for t in range(length):
        codes[:, t] = sampler.choose(model.network(codes[:, : t + 1])[:, -1], uniform[:, t])
    return codes.unflatten(1, model.grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    network = partial(TokenTransformer, width=args.width, depth=args.depth)
    model = TokenPrior((4, args.size, args.size), num_codes=256, network=network).eval()
    sampler, noise = TokenSampling(), range(args.batch)
    ratios = []
    with torch.inference_mode():
        for _ in range(args.repeats):
            begin = time.process_time()
            slow = without_cache(model, Noise(0, noise), sampler)
            middle = time.process_time()
            fast = model.draw(Noise(0, noise), None, sampler)
            end = time.process_time()
            assert (slow == fast).float().mean() > 0.9  # a rounding may change a code, and then those behind it
            ratios.append((middle - begin) / (end - middle))
            print(f"{middle - begin:.2f} s without, {end - middle:.2f} s with: {ratios[-1]:.1f} times", flush=True)
    print(
        f"{args.size**2} codes, batch {args.batch}: median {statistics.median(ratios):.1f} times faster with the cache"
    )


if __name__ == "__main__":
    main()
