"""Compare the time of our Frechet distance with that of torchmetrics, at 2048 features and from the same moments.

    python benchmarks/frechet.py [--repeats 5] [--threads 1]

The repeats are interleaved, so that changes of the load affect all measurements; the medians are compared. The
symmetric eigenvalue problem bounds the ratio from below, and is also timed separately. Half of LAPACK's reduction to
tridiagonal form reads the whole matrix from memory for each column, so a second thread hardly helps. The Cholesky
factor and the matrix products before it scale with the number of threads.
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
    """Return the moments of correlated normal features."""
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    return Moments.of(torch.randn(n, WIDTH, generator=generator) @ mixing + torch.randn(WIDTH, generator=generator))


def main() -> None:
    """Print times, ratios, and the relative difference of the two results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch (default: %(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    a, b = moments(generator), moments(generator)
    times = []
    for _ in range(options.repeats + 1):
        marks = [time.perf_counter()]
        distance = frechet_distance(a, b)
        marks.append(time.perf_counter())
        other = _compute_fid(a.mean, a.cov, b.mean, b.cov).item()
        marks.append(time.perf_counter())
        torch.linalg.eigvalsh(b.cov)
        marks.append(time.perf_counter())
        times.append([after - before for before, after in zip(marks, marks[1:], strict=False)])
    ours, theirs, eigenvalues = map(statistics.median, zip(*times[1:], strict=True))  # without the warm-up
    print(
        f"Frechet distance at {WIDTH} features, {options.threads} threads: ours {ours:.2f} s, "
        f"torchmetrics {theirs:.2f} s, ratio {ours / theirs:.3f} (aim: at most {AIM}; the eigenvalues alone "
        f"{eigenvalues / theirs:.3f}), results differ by {abs(distance / other - 1):.0e}"
    )


if __name__ == "__main__":
    main()
