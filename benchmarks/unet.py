"""Compare the speed of our UNet with torchcfm and diffusers, and of our DiT with diffusers, in training and forward.

    python benchmarks/unet.py [--network unet | dit] [--size 32] [--batch 64] [--threads 2] [--repeats 7] [--cpu-time]

All UNets have the same widths, levels and residual blocks per level, and no attention, except that torchcfm always has
it in the middle. Both DiTs have the same width, depth, heads and patches; that of diffusers embeds the noise level
again in every block. Parameter counts agree within 10 %. The networks take turns, so that other load slows all of them
equally, and the medians are compared. `--cpu-time` measures processor time instead of wall time; use it with one thread
on a busy machine.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from lit_gen.families.diffusion import DiT, UNet

CHANNELS, MULT, BLOCKS = 32, (1, 2, 2), 1
WIDTH, DEPTH, HEADS, PATCH = 384, 4, 6, 2
Forward = Callable[[Tensor, Tensor], Tensor]


def ours(size: int) -> tuple[str, nn.Module, Forward]:
    """Return name, network and forward function of our UNet."""
    network = UNet((1, size, size), channels=CHANNELS, channel_mult=_mult(size), num_blocks=BLOCKS)
    return "lit_gen UNet", network, network


def torchcfm(size: int) -> tuple[str, nn.Module, Forward]:
    """Return name, network and forward function of the UNet of torchcfm."""
    from torchcfm.models.unet.unet import UNetModelWrapper

    # "1" requests attention at the downsampling factor `size`, which no level has.
    network = UNetModelWrapper(
        dim=(1, size, size),
        num_channels=CHANNELS,
        num_res_blocks=BLOCKS,
        channel_mult=_mult(size),
        attention_resolutions="1",
        use_scale_shift_norm=True,
    )
    return f"torchcfm {version('torchcfm')} UNetModelWrapper", network, lambda x, t: network(t, x)


def diffusers(size: int) -> tuple[str, nn.Module, Forward]:
    """Return name, network and forward function of the UNet of diffusers."""
    from diffusers import UNet2DModel

    levels = len(_mult(size))
    network: Any = UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        layers_per_block=BLOCKS,
        block_out_channels=tuple(CHANNELS * mult for mult in _mult(size)),
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        norm_num_groups=8,
        add_attention=False,
    )
    return f"diffusers {version('diffusers')} UNet2DModel", network, lambda x, t: network(x, t).sample


def our_dit(size: int) -> tuple[str, nn.Module, Forward]:
    """Return name, network and forward function of our DiT."""
    network = DiT((1, size, size), 1, patch_size=PATCH, width=WIDTH, depth=DEPTH, num_heads=HEADS)
    return "lit_gen DiT", network, lambda x, t: network(x, t, _label(x))


def diffusers_dit(size: int) -> tuple[str, nn.Module, Forward]:
    """Return name, network and forward function of the DiT of diffusers."""
    from diffusers import DiTTransformer2DModel

    network: Any = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=1,
        num_layers=DEPTH,
        sample_size=size,
        patch_size=PATCH,
        num_embeds_ada_norm=1,
    )
    name = f"diffusers {version('diffusers')} DiTTransformer2DModel"
    return name, network, lambda x, t: network(x, timestep=t, class_labels=_label(x)).sample


def _label(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.long)


def _mult(size: int) -> tuple[int, ...]:
    return MULT if size >= 16 else MULT[:2]


def measure(
    networks: dict[str, tuple[nn.Module, Forward]], size: int, batch: int, repeats: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Return the median images per second in "train" and "forward" for every network; the networks take turns."""
    x, t = torch.randn(batch, 1, size, size), torch.rand(batch) * 999
    seconds: dict[str, dict[str, list[float]]] = {name: {"train": [], "forward": []} for name in networks}
    for repeat in range(repeats + 1):
        for name, (network, forward) in networks.items():
            start = clock()
            forward(x, t).square().mean().backward()
            trained = clock()
            with torch.no_grad():
                forward(x, t)
            forwarded = clock()
            network.zero_grad()
            if repeat:  # the first turn warms up
                seconds[name]["train"].append(trained - start)
                seconds[name]["forward"].append(forwarded - trained)
    return {
        name: {mode: batch / statistics.median(times) for mode, times in modes.items()}
        for name, modes in seconds.items()
    }


def main() -> None:
    """Print parameter counts, speeds and ratios of all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=["unet", "dit"], default="unet")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")

    networks = {}
    for build in (ours, torchcfm, diffusers) if args.network == "unet" else (our_dit, diffusers_dit):
        try:
            name, network, forward = build(args.size)
        except ImportError as error:
            print(f"skipped: {build.__name__} is not installed ({error})")
            continue
        networks[name] = (network, forward)

    clock = time.process_time if args.cpu_time else time.perf_counter
    rates = measure(networks, args.size, args.batch, args.repeats, clock)
    own = rates[next(iter(rates))]
    print(
        f"{args.size}x{args.size}x1, batch {args.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"median of {args.repeats}, {'processor' if args.cpu_time else 'wall'} time"
    )
    print(f"{'':40}{'parameters':>12}{'train img/s':>14}{'ours / it':>11}{'forward img/s':>16}{'ours / it':>11}")
    for name, rate in rates.items():
        parameters = sum(p.numel() for p in networks[name][0].parameters())
        print(
            f"{name:40}{parameters:>12,}{rate['train']:>14.1f}{own['train'] / rate['train']:>11.2f}"
            f"{rate['forward']:>16.1f}{own['forward'] / rate['forward']:>11.2f}"
        )


if __name__ == "__main__":
    main()
