"""Time of drawing images from autoregressive networks: one step for each pixel, against a forward pass for each.

    python benchmarks/autoregressive_sampling.py [--size 28] [--batch 16] [--repeats 3] [--threads 2] [--cpu-time]
                                                 [--only binary]

The pixels of an image are drawn by cached steps; then come as many whole forward passes as `--forwards`, whose mean
time is multiplied by the number of pixels: that is what an image costs without the cache. The networks take turns.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from lit_gen.networks import (
    CausalTransformer,
    GatedPixelCNN,
    LogisticRegressions,
    MaskedMLP,
    NADENetwork,
    ResidualPixelCNN,
)


@torch.inference_mode()
def draw(network: nn.Module, images: Tensor) -> None:
    """All steps of images, with values that are given; looking up the next value costs next to nothing."""
    drawing, values = network.start(len(images)), None  # type: ignore[operator]
    for pixel in images.flatten(2).unbind(2):
        network.step(drawing, values)  # type: ignore[operator]
        values = pixel


@torch.inference_mode()
def forward(network: nn.Module, images: Tensor, num: int) -> None:
    for _ in range(num):
        network(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--forwards", type=int, default=2, help="forward passes in each turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape, num_pixels = (1, args.size, args.size), args.size**2
    images = (torch.rand(args.batch, *shape) * 2 - 1).to(args.device)
    networks: dict[str, nn.Module] = {
        "FVSBN, binary": LogisticRegressions(shape, 1),
        "NADE, binary": NADENetwork(shape, 1),
        "MADE, binary": MaskedMLP(shape, 1, hidden=[2000]),
        "gated PixelCNN": GatedPixelCNN(shape, 256),
        "PixelCNN++": ResidualPixelCNN(shape, 30),
        "ImageTransformer": CausalTransformer(shape, 256),
    }
    networks = {name: network for name, network in networks.items() if args.only in name}
    clock = time.process_time if args.cpu_time else time.perf_counter

    def timed(work: str, network: nn.Module) -> float:
        begin = clock()
        if work == "steps":
            draw(network, images)
        else:
            forward(network, images, args.forwards)
        if images.is_cuda:
            torch.cuda.synchronize()
        return clock() - begin

    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in networks}
    for repeat in range(args.repeats + 1):
        for name, network in networks.items():
            network.to(args.device).eval()
            steps = timed("steps", network) if repeat else 0.0  # the first turn warms up
            forwards = timed("forwards", network) * num_pixels / args.forwards
            if repeat:
                turns[name].append((steps, forwards))
    device = torch.cuda.get_device_name() if images.is_cuda else f"cpu, {torch.get_num_threads()} threads"
    print(
        f"{args.size}x{args.size}x1, batch {args.batch}, {device}, torch {torch.__version__}, "
        f"median of {args.repeats}, {'processor' if args.cpu_time else 'wall'} time"
    )
    print(f"{'network':20}{'parameters':>12}{'steps s':>10}{'forward passes s':>18}{'ratio':>8}")
    for name, network in networks.items():
        steps, forwards = (statistics.median(column) for column in zip(*turns[name], strict=True))
        ratio = statistics.median(whole / cached for cached, whole in turns[name])
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        print(f"{name:20}{num_parameters:>12,}{steps:>10.2f}{forwards:>18.1f}{ratio:>8.1f}")


if __name__ == "__main__":
    main()
