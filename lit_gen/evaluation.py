"""An evaluation: one run x one sampler setting x one protocol -> one result.json.

It owns the whole protocol: which images, how many, quantised where, through which features, against which reference.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, distributed

from lit_gen.callbacks.progress import image_progress
from lit_gen.data import ImageDataModule
from lit_gen.diffusion.samplers import Sampler
from lit_gen.errors import UserError
from lit_gen.images import save_grid
from lit_gen.metrics import (
    FeatureNet,
    FrechetDistance,
    Inception,
    InceptionScore,
    quantise,
    reference_moments,
)
from lit_gen.models.base import GenerativeModel
from lit_gen.noise import Noise
from lit_gen.runs import Run, write_atomically

FeatureNetFactory = Callable[[], FeatureNet]


class Evaluation:
    """The protocol of an evaluation.

    Args:
        feature_net: What the distance and the inception score are computed from.
        num_samples: Images drawn; exactly so many, whatever the batch size.
        split: Split of the data that is the reference, all of it.
        seed: Seed of the noise; image i of a seed is the same in every evaluation of a run.
        weights: The averaged weights (ema) or those of the last step (raw).
        inception_splits: Splits of the samples over which the inception score's mean and deviation are taken.
        batch_size: Images drawn at once by one process.
        num_kept: Images kept in samples.npz and shown in samples.png, the first of the seed.
    """

    def __init__(
        self,
        feature_net: FeatureNetFactory = Inception,
        num_samples: int = 10_000,
        split: Literal["train", "val", "test"] = "train",
        seed: int = 0,
        weights: Literal["ema", "raw"] = "ema",
        inception_splits: int = 10,
        batch_size: int = 256,
        num_kept: int = 64,
    ) -> None:
        least = {"num_samples": (num_samples, 2), "batch_size": (batch_size, 1), "num_kept": (num_kept, 1)}
        for name, (value, minimum) in (least | {"inception_splits": (inception_splits, 1)}).items():
            if value < minimum:
                raise UserError(f"evaluation.{name}: {value} is too few; give at least {minimum}")
        self.feature_net = feature_net
        self.num_samples = num_samples
        self.split = split
        self.seed = seed
        self.weights = weights
        self.inception_splits = inception_splits
        self.batch_size = batch_size
        self.num_kept = min(num_kept, num_samples)

    def check(self, data: ImageDataModule) -> None:
        """Builds the feature net and shows it an image: what is missing is said before a training, not after."""
        self.feature_net()(torch.zeros(2, *data.image_shape, dtype=torch.uint8))

    def protocol(self, data: ImageDataModule, net: FeatureNet) -> dict[str, Any]:
        """Everything that two rows of a leaderboard must share."""
        return {
            "data": data.name,
            "data_fingerprint": data.fingerprint(self.split),
            "split": self.split,
            "image_shape": list(data.image_shape),
            "num_real": len(data.images(self.split)),
            "num_samples": self.num_samples,
            "feature_net": net.name,
            "feature_net_version": net.version,
            "feature_width": net.width,
            "resize": net.resize,
            "quantisation": "uint8",
            "inception_splits": self.inception_splits,
        }

    def directory(self, run: Run, sampler: Sampler | None, protocol: dict[str, Any], images_seen: int) -> Path:
        """Where the result of this evaluation of a run is kept: the same settings give the same place."""
        settings = None if sampler is None else sampler.to_dict()
        facts = json.dumps([settings, protocol, self.seed, self.weights, images_seen], sort_keys=True)
        name = "one_pass" if settings is None else f"{settings['name']}-{settings['steps']}"
        return run.evaluations / f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:10]}"

    def __call__(
        self, model: GenerativeModel, data: ImageDataModule, sampler: Sampler | None, run: Run, cache: Path
    ) -> tuple[dict[str, Any], Path, bool]:
        """Draws, quantises and scores.

        Every process takes part: batch b of the samples goes to process b mod world size, so the batches, and with them
        the images, are those of a single process.

        Returns:
            The result, the path of its result.json, and whether it was computed now (False: it stood there already).
        """
        net = self.feature_net().to(model.device)
        sampler = sampler or model.default_sampler()
        protocol = self.protocol(data, net)
        directory = self.directory(run, sampler, protocol, model.images_seen)
        path = directory / "result.json"
        if path.is_file():
            return json.loads(path.read_text()), path, False
        rank, world_size = ranks()
        reference = reference_moments(data, self.split, net, cache)
        distance = FrechetDistance(reference).to(model.device)
        score = InceptionScore(net.num_classes, self.num_samples, self.inception_splits).to(model.device)
        kept: dict[int, Tensor] = {}
        seconds, nfe = 0.0, 0.0
        with image_progress(f"evaluating {directory.name}", self.num_samples, show=rank == 0) as progress:
            for batch in range(rank, math.ceil(self.num_samples / self.batch_size), world_size):
                first = batch * self.batch_size
                noise = Noise(self.seed, range(first, min(first + self.batch_size, self.num_samples)), model.device)
                begin = time.perf_counter()
                images = quantise(model.sample(noise, sampler=sampler))
                if images.is_cuda:
                    torch.cuda.synchronize()
                seconds += time.perf_counter() - begin
                nfe = max(nfe, model.nfe)
                features, logits = net(images)
                distance.update(features)
                score.update(logits, noise.index)
                if first < self.num_kept:
                    kept[first] = images[: self.num_kept - first].cpu()
                if progress is not None:
                    progress.update(min(first + self.batch_size * world_size, self.num_samples))
        metrics = {net.distance_name: float(distance.compute())}
        mean, std = score.compute()
        metrics |= {"inception_score": float(mean), "inception_score_std": float(std)}
        gathered = gather((kept, seconds, nfe))
        images = torch.cat([tile for _, tile in sorted(pair for part, _, _ in gathered for pair in part.items())])
        seconds = max(part[1] for part in gathered)
        metadata = run.metadata
        result = {
            "schema": 1,
            "run": {
                "name": run.directory.name,
                "identity": metadata["identity"],
                "recipe": metadata["recipe"],
                "directory": run.directory.name,
            },
            "model": type(model).__name__,
            "num_parameters": sum(parameter.numel() for parameter in model.generator.parameters()),
            "images_seen": model.images_seen,
            "training_seconds": metadata.get("training_seconds"),
            "training_seed": metadata["seed"],
            "sampler": None if sampler is None else sampler.to_dict(),
            "nfe": max(part[2] for part in gathered),
            "weights": self.weights,
            "seed": self.seed,
            "protocol": protocol,
            "metrics": metrics,
            "timing": {
                "sampling_seconds": seconds,
                "images_per_second": self.num_samples / seconds,
                "device": device_name(model.device, world_size),
            },
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if rank == 0:
            directory.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(directory / "samples.npz", images=images.numpy())
            save_grid(images, directory / "samples.png")
            write_atomically(path, json.dumps(result, indent=2) + "\n")
        if world_size > 1:
            distributed.barrier()
        return result, path, True


def ranks() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) when nothing is distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather(part: Any) -> list[Any]:
    """The part of every process, on every process."""
    _, world_size = ranks()
    if world_size == 1:
        return [part]
    parts: list[Any] = [None] * world_size
    distributed.all_gather_object(parts, part)
    return parts


def device_name(device: torch.device, world_size: int = 1) -> str:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return name if world_size == 1 else f"{world_size} x {name}"
