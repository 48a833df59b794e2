"""Ratio of the time of our Frechet distance to torchmetrics' own at 2048 features, from the same moments.

    python benchmarks/frechet.py [--repeats 5] [--threads 1]

The repeats of the two are interleaved, so that a change of the machine's load meets both; the medians are compared.
"""

import argparse
import statistics
import time

import torch
from torchmetrics.image.fid import _compute_fid

from lit_gen.metrics import Moments, frechet_distance

WIDTH = 2048
AIM = 0.15


def moments(generator: torch.Generator, n: int = 3 * WIDTH) -> Moments:
    """Moments of correlated normal features."""
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    return Moments.of(torch.randn(n, WIDTH, generator=generator) @ mixing + torch.randn(WIDTH, generator=generator))


def main() -> None:
    """Prints times, ratio, and the relative difference of the two results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of PyTorch; its default here: %(default)s"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    a, b = moments(generator), moments(generator)
    ours, theirs = [], []
    for _ in range(options.repeats + 1):
        start = time.perf_counter()
        distance = frechet_distance(a, b)
        middle = time.perf_counter()
        other = _compute_fid(a.mean, a.cov, b.mean, b.cov).item()
        ours.append(middle - start)
        theirs.append(time.perf_counter() - middle)
    first, second = statistics.median(ours[1:]), statistics.median(theirs[1:])  # without the warm-up
    print(
        f"Frechet distance at {WIDTH} features, {options.threads} threads: ours {first:.2f} s, "
        f"torchmetrics {second:.2f} s, ratio {first / second:.3f} "
        f"(aim: at most {AIM}), results differ by {abs(distance / other - 1):.0e}"
    )


if __name__ == "__main__":
    main()
