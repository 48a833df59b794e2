"""Measure the sampling time of autoregressive models: a cached step per pixel against a forward pass per pixel.

    python benchmarks/autoregressive_sampling.py [--size 28] [--batch 16] [--pixels 8] [--repeats 3] [--threads 2]
                                                 [--cpu-time] [--only binary]

`model.sample` uses the cache. Without it, the first `--pixels` pixels of an image are sampled with the same random
numbers, each from a whole forward pass. Their time is scaled to all pixels, since every pass takes the same time. The
models take turns.
"""

import argparse
import statistics
import time
from functools import partial

import torch
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.families.autoregressive import FVSBN, MADE, NADE, ImageTransformer, MaskedMLP, PixelCNN, PixelCNNPlusPlus
from lit_gen.families.autoregressive.models.dense import Autoregressive


@torch.inference_mode()
def without_cache(model: Autoregressive, noise: Noise, num_pixels: int) -> Tensor:
    """Sample the first pixels (N, num_pixels) of one-channel images, each from a forward pass over the whole image."""
    images = next(model.parameters()).new_zeros(len(noise), *model.image_shape)
    pixels = images.flatten(2)
    noise.draws = int(isinstance(model, MADE))  # the first draw of MADE selects the mask
    noise.reads_ahead = True
    for pixel in range(num_pixels):
        params = model.network(images, None).flatten(2)[:, :, pixel, None, None]
        pixels[:, :, pixel] = model.distribution.likelihood.sample(params, noise)[:, :, 0, 0]
    return pixels[:, 0, :num_pixels]


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=8, help="number sampled without the cache in each turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="select models whose name contains this")
    parser.add_argument("--cpu-time", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Print the sampling times with and without the cache."""
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape, num_pixels = (1, args.size, args.size), args.size**2
    models: dict[str, Autoregressive] = {
        "FVSBN, binary": FVSBN(image_shape=shape),
        "NADE, binary": NADE(image_shape=shape),
        "MADE, binary": MADE(partial(MaskedMLP, hidden=[2000]), image_shape=shape),
        "gated PixelCNN": PixelCNN(image_shape=shape),
        "PixelCNN++": PixelCNNPlusPlus(image_shape=shape),
        "ImageTransformer": ImageTransformer(image_shape=shape),
    }
    models = {name: model.to(args.device).eval() for name, model in models.items() if args.only in name}
    on_gpu = torch.device(args.device).type == "cuda"

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.process_time() if args.cpu_time else time.perf_counter()

    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for repeat in range(args.repeats + 1):
        for name, model in models.items():
            noise = range(args.batch)
            begin = now()
            images = model.sample(Noise(0, noise, args.device))
            middle = now()
            pixels = without_cache(model, Noise(0, noise, args.device), args.pixels)
            end = now()
            # rounding may change a value, and then the values after it
            same = (images.flatten(1)[:, : args.pixels] - pixels).abs() < 1e-3
            assert same.float().mean() > 0.9, name
            if repeat:  # the first turn warms up
                turns[name].append((middle - begin, (end - middle) * num_pixels / args.pixels))
    device = torch.cuda.get_device_name() if on_gpu else f"cpu, {torch.get_num_threads()} threads"
    print(
        f"{args.size}x{args.size}x1, batch {args.batch}, {device}, torch {torch.__version__}, "
        f"median of {args.repeats}, {'processor' if args.cpu_time else 'wall'} time; "
        f"without the cache: the first {args.pixels} pixels, scaled by {num_pixels / args.pixels:g}"
    )
    print(f"{'model':20}{'parameters':>12}{'cached s':>10}{'forward passes s':>18}{'ratio':>8}")
    for name, model in models.items():
        cached, passes = (statistics.median(column) for column in zip(*turns[name], strict=True))
        ratio = statistics.median(whole / steps for steps, whole in turns[name])
        num_parameters = sum(parameter.numel() for parameter in model.generator.parameters())
        print(f"{name:20}{num_parameters:>12,}{cached:>10.2f}{passes:>18.1f}{ratio:>8.1f}")


if __name__ == "__main__":
    main()
