"""Measure the speed-up that cached keys and values give when a transformer samples codes.

    python benchmarks/token_sampling.py [--size 16] [--batch 8] [--repeats 3] [--threads 1]

A 16x16 grid has 256 codes. Without the cache, every code takes a forward pass over all codes before it. The two methods
take turns, so that other load affects both, and the benchmark checks that they sample the same codes.
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
    """Sample codes (N, h, w), each by a forward pass over all codes before it."""
    length = model.grid[0] * model.grid[1]
    uniform = noise.uniform((length,), torch.float64)
    codes = torch.zeros(len(noise), length, dtype=torch.int64)
    for t in range(length):
        codes[:, t] = sampler.choose(model.network(codes[:, : t + 1])[:, -1], uniform[:, t])
    return codes.unflatten(1, model.grid)


def main() -> None:
    """Print the times with and without the cache, and their ratio."""
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
            assert (slow == fast).float().mean() > 0.9  # rounding may change a code, and then the codes after it
            ratios.append((middle - begin) / (end - middle))
            print(f"{middle - begin:.2f} s without, {end - middle:.2f} s with: {ratios[-1]:.1f} times", flush=True)
    print(
        f"{args.size**2} codes, batch {args.batch}: median {statistics.median(ratios):.1f} times faster with the cache"
    )


if __name__ == "__main__":
    main()
