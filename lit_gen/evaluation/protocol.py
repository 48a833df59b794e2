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

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_arrays
from lit_gen.core.noise import Noise
from lit_gen.core.pixels import to_float
from lit_gen.core.processes import from_first, gather, ranks
from lit_gen.core.progress import image_progress
from lit_gen.data.class_order import are_balanced, classes_of
from lit_gen.data.module import ImageDataModule
from lit_gen.distributions.dequantisation import bits_per_dim
from lit_gen.evaluation import drawn_classes
from lit_gen.evaluation.result_file import load_likelihood, load_result, save_likelihood, save_result
from lit_gen.families.base import GenerativeModel
from lit_gen.families.settings import LikelihoodMethod, Sampler
from lit_gen.metrics.feature_nets import FeatureNet, Inception, Points
from lit_gen.metrics.reference import reference_moments
from lit_gen.metrics.scores import ImageScores, PointScores, Scores
from lit_gen.pictures.grids import save_picture
from lit_gen.runs.directory import Run
from lit_gen.runs.weights import parse_weights

FeatureNetFactory = Callable[[], FeatureNet]


class Evaluation:
    """The protocol of an evaluation.

    Args:
        feature_net: What the distance and the inception score are computed from.
        num_samples: Images drawn; exactly so many, whatever the batch size.
        split: Split of the data that is the reference, all of it.
        seed: Seed of the noise; image i of a seed is the same in every evaluation of a run.
        weights: The averaged weights (ema), those of the last step (raw), or a power-function average of any width:
            ema:0.1, or ema:0.1@51200 after so many images (see `lit-gen ema`).
        inception_splits: Splits of the samples over which the inception score's mean and deviation are taken.
        batch_size: Images drawn at once by one process.
        num_kept: Images kept in samples.npz and shown in samples.png, the first of the seed.
        likelihood: Test images whose likelihood is computed, in bits per dimension: 0, a number (evenly spaced ones of
            the split) or all.
        likelihood_method: How the likelihood of a diffusion model is computed; null: its own way.
        other_data: Accept images other than those that the run was trained on; the result records both fingerprints.
    """

    def __init__(
        self,
        feature_net: FeatureNetFactory = Inception,
        num_samples: int = 10_000,
        split: Literal["train", "val", "test"] = "train",
        seed: int = 0,
        weights: str = "ema",
        inception_splits: int = 10,
        batch_size: int = 256,
        num_kept: int = 64,
        likelihood: int | Literal["all"] = 0,
        likelihood_method: LikelihoodMethod | None = None,
        other_data: bool = False,
    ) -> None:
        least = {"num_samples": (num_samples, 2), "batch_size": (batch_size, 1), "num_kept": (num_kept, 1)}
        for name, (value, minimum) in (least | {"inception_splits": (inception_splits, 1)}).items():
            if value < minimum:
                raise UserError(f"evaluation.{name}: {value} is too few; give at least {minimum}")
        if inception_splits > num_samples:
            raise UserError(
                f"evaluation.inception_splits: {inception_splits} splits need at least as many images, not "
                f"{num_samples}; give fewer splits or more --evaluation.num_samples"
            )
        if likelihood != "all" and (likelihood < 0 or likelihood == 1):
            raise UserError(f"evaluation.likelihood: {likelihood} is too few; give at least 2, or 0 for none")
        self.feature_net = feature_net
        self.num_samples = num_samples
        self.split = split
        self.seed = seed
        self.weights = str(parse_weights(weights, "evaluation.weights") or weights)
        self.inception_splits = inception_splits
        self.batch_size = batch_size
        self.num_kept = min(num_kept, num_samples)
        self.likelihood = likelihood
        self.likelihood_method = likelihood_method
        self.other_data = other_data

    def check(self, data: ImageDataModule) -> None:
        """Builds the feature net and shows it an image: what is missing is said before a training, not after."""
        net = self.features_of(data)
        net(torch.zeros(2, *data.image_shape, dtype=net.dtype))
        self.protocol(data, net)

    def features_of(self, data: ImageDataModule) -> FeatureNet:
        """The feature net.

        Raises:
            UserError: it takes images where the data are points, or the other way round.
        """
        net = self.feature_net()
        if (net.dtype == torch.uint8) != data.source.quantised:
            kind, remedy = ("images", "DigitsFeatures or Inception") if data.source.quantised else ("points", "Points")
            raise UserError(
                f"evaluation.feature_net: {data.name} holds {kind}, which have no {net.name} features; use "
                f"--evaluation.feature_net {remedy}"
            )
        return net

    def compare_data(self, run: Run, model: GenerativeModel, data: ImageDataModule) -> dict[str, str] | None:
        """Compare the training images of the data with those that the run was trained on.

        Where others are accepted, the data module forgets the facts of the run.

        Returns:
            Both fingerprints if they differ and `other_data` accepts it; None if they are the same, or if a run of an
            older version did not record its own.

        Raises:
            UserError: They differ and `other_data` is false; or the model makes no images of their shape or classes.
        """
        recorded, now = run.images_fingerprint, data.fingerprint("train")
        if recorded in (None, now):
            return None
        if not self.other_data:
            raise UserError(
                f"data.source: {run.directory} was trained on other images (fingerprint {recorded[:12]}) than these "
                f"({now[:12]}); restore its images, name their place with --data.source, or accept these with "
                "--evaluation.other_data true"
            )
        shape = data.image_shape
        data.facts = None
        if data.image_shape != shape:
            ours, theirs = ("x".join(map(str, each)) for each in (shape, data.image_shape))
            raise UserError(
                f"data.source: its images are {theirs}, but {run.directory} makes {ours}; choose other data"
            )
        if model.num_classes not in (0, data.num_classes):
            raise UserError(
                f"data.source: it has {data.num_classes or 'no'} classes, but {run.directory} makes images of "
                f"{model.num_classes}; choose other data"
            )
        return {"trained_on": recorded, "given": now}

    def protocol(self, data: ImageDataModule, net: FeatureNet) -> dict[str, Any]:
        """Everything that two rows of a leaderboard must share.

        Raises:
            UserError: there are fewer points to compare with than are drawn.
        """
        num_real = len(data.images(self.split))
        if isinstance(net, Points):
            if num_real < self.num_samples:
                raise UserError(
                    f"evaluation.num_samples: a Wasserstein distance is from as many real points, and the "
                    f"{self.split} split of {data.name} has {num_real}; give no more than that"
                )
            num_real = self.num_samples
        protocol = {
            "data": data.name,
            "data_fingerprint": data.fingerprint(self.split),
            "split": self.split,
            "image_shape": list(data.image_shape),
            "num_real": num_real,
            "num_samples": self.num_samples,
            "feature_net": net.name,
            "feature_net_version": net.version,
            "feature_width": net.width,
            "resize": net.resize,
            "quantisation": "uint8" if data.source.quantised else "none",
            "drawn_classes": drawn_classes.RULE,
        }
        return protocol | ({"inception_splits": self.inception_splits} if net.num_classes else {})

    def scores(self, data: ImageDataModule, net: FeatureNet, cache: Path, device: torch.device) -> Scores:
        """What the samples are scored by, with what it needs of the real images."""
        if isinstance(net, Points):
            splits = (self.split, "train" if self.split == "test" else "test")
            real, others = (torch.from_numpy(data.images(split)) for split in splits)
            return PointScores(net, real[: self.num_samples], others, device)
        what, num_real = f"reference statistics of {data.name}", len(data.images(self.split))
        with image_progress(what, num_real, show=ranks()[0] == 0, at_once=False) as progress:
            reference = reference_moments(data, self.split, net, cache, progress=progress.add if progress else None)
        return ImageScores(net, reference, self.num_samples, self.inception_splits, device)

    def directory(
        self,
        run: Run,
        sampler: Sampler | None,
        protocol: dict[str, Any],
        images_seen: int,
        class_counts: tuple[int, ...] | None = None,
        other_data: dict[str, str] | None = None,
    ) -> Path:
        """Return where the result of this evaluation of a run is kept: the same settings give the same place.

        Args:
            run: The run.
            sampler: How images are drawn.
            protocol: What `protocol` returned.
            images_seen: Images that the model was trained on.
            class_counts: What the classes of drawn images follow; None for a model without classes.
            other_data: What `compare_data` returned.
        """
        settings = None if sampler is None else sampler.to_dict()
        if class_counts is None or are_balanced(class_counts):  # an older version drew the same, and is to be found
            protocol = {key: value for key, value in protocol.items() if key != "drawn_classes"}
        other = [] if other_data is None else [other_data]
        facts = json.dumps([settings, protocol, self.seed, self.weights, images_seen, *other], sort_keys=True)
        name = "one_pass" if settings is None else settings["name"]
        if settings is not None and "steps" in settings:
            name += f"-{settings['steps']}"
        return run.evaluations / f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:10]}"

    def __call__(
        self, model: GenerativeModel, data: ImageDataModule, sampler: Sampler | None, run: Run, cache: Path
    ) -> tuple[dict[str, Any], Path, bool]:
        """Draws, quantises and scores, and computes the likelihood of test images if it is asked for.

        A result that stood there already is kept; a likelihood that it does not hold is added to it.

        Returns:
            The result, the path of its result.json, and whether it was computed now (False: it stood there already).
        """
        result, path, computed = self.score_samples(model, data, sampler, run, cache)
        if not self.likelihood:
            return result, path, computed
        metrics, record = self.test_likelihood(model, data, run)
        if result.get("likelihood") != record:
            result = result | {"metrics": result["metrics"] | metrics, "likelihood": record}
            if ranks()[0] == 0:
                save_result(path, result)
                path.with_name("wandb_runs").unlink(missing_ok=True)  # W&B holds the result without it
            computed = True
        return result, path, computed

    def score_samples(
        self, model: GenerativeModel, data: ImageDataModule, sampler: Sampler | None, run: Run, cache: Path
    ) -> tuple[dict[str, Any], Path, bool]:
        """Draws, quantises and scores.

        Every process takes part: batch b of the samples goes to process b mod world size, so the batches, and with them
        the images, are those of a single process.

        Returns:
            The result, the path of its result.json, and whether it was computed now (False: it stood there already).
        """
        net = self.features_of(data).to(model.device)
        sampler = sampler or model.default_sampler()
        other_data = self.compare_data(run, model, data)
        protocol = self.protocol(data, net)
        counts = data.class_counts(self.split) if model.num_classes else None
        directory = self.directory(run, sampler, protocol, model.images_seen, counts, other_data)
        path = directory / "result.json"
        rank, world_size = ranks()
        found = from_first(load_result(path) if rank == 0 and path.exists() else None)
        if found is not None:
            if found["protocol"]["drawn_classes"] != drawn_classes.RULE:  # of an older version, with the same classes
                found["protocol"]["drawn_classes"] = drawn_classes.RULE
                if rank == 0:
                    save_result(path, found)
            return found, path, False
        scores = self.scores(data, net, cache, model.device)
        kept: dict[int, Tensor] = {}
        seconds, evaluations = 0.0, 0.0
        with image_progress(f"evaluating {directory.name}", self.num_samples, show=rank == 0) as progress:
            for batch in range(rank, math.ceil(self.num_samples / self.batch_size), world_size):
                first = batch * self.batch_size
                noise = Noise(self.seed, range(first, min(first + self.batch_size, self.num_samples)), model.device)
                labels = None if counts is None else torch.from_numpy(classes_of(noise.index.cpu().numpy(), counts))
                begin = time.perf_counter()
                images = data.source.stored(model.sample(noise, labels, sampler))
                if images.is_cuda:
                    torch.cuda.synchronize()
                seconds += time.perf_counter() - begin
                evaluations += len(images) * model.nfe
                scores.update(images, noise.index)
                if first < self.num_kept:
                    kept[first] = images[: self.num_kept - first].cpu()
                if progress is not None:
                    progress.update(min(first + self.batch_size * world_size, self.num_samples))
        metrics = scores.compute() | self.further_scores(model, data, net)
        gathered = gather((kept, seconds, evaluations))
        images = torch.cat([tile for _, tile in sorted(pair for part, _, _ in gathered for pair in part.items())])
        seconds = max(part[1] for part in gathered)
        metadata, stage = run.metadata, model.first_stage
        result = {
            "run": {
                "name": run.directory.name,
                "identity": metadata["identity"],
                "recipe": metadata["recipe"],
                "finished": run.finished,
                "directory": run.directory.name,
            },
            "model": model.title,
            "num_parameters": sum(parameter.numel() for parameter in model.generator.parameters())
            + (stage.num_parameters if stage is not None else 0),
            "first_stage": None if stage is None else stage.describe(),
            "images_seen": model.images_seen,
            "training_seconds": metadata.get("training_seconds"),
            "earlier_seconds": metadata.get("earlier_seconds", 0.0),
            "training_seed": metadata["seed"],
            "sampler": None if sampler is None else sampler.to_dict(),
            "nfe": sum(part[2] for part in gathered) / self.num_samples,
            "weights": self.weights,
            "seed": self.seed,
            "protocol": protocol,
            "other_data": other_data,
            "metrics": metrics,
            **model.further_protocol(data),
            "timing": {
                "sampling_seconds": seconds,
                "images_per_second": self.num_samples / seconds,
                "device": device_name(model.device, world_size),
            },
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if rank == 0:
            write_arrays(directory / "samples.npz", images=images.numpy())
            save_picture(images, data.source, directory / "samples.png")
            save_result(path, result)
        if world_size > 1:
            distributed.barrier()
        return result, path, True

    def further_scores(self, model: GenerativeModel, data: ImageDataModule, net: FeatureNet) -> dict[str, float]:
        """What the family has beside the scores of samples, in evaluation mode."""
        with torch.inference_mode():
            return model.eval().further_scores(data, net)

    def likelihood_protocol(self, model: GenerativeModel, data: ImageDataModule) -> dict[str, Any]:
        """Everything that two likelihoods must share to be compared, and the method.

        Raises:
            UserError: the model has no likelihood or takes no method, or the test split has too few images, or points.
        """
        if not data.source.quantised:
            raise UserError(
                f"evaluation.likelihood: {data.name} holds points, which have a density and no mass in bits; leave it "
                "at 0 (python -m lit_gen.report.theory learned RUN draws the density)"
            )
        model.check_likelihood(self.likelihood_method)
        method = self.likelihood_method or model.default_likelihood_method()
        num_test = len(data.images("test"))
        num_images = num_test if self.likelihood == "all" else self.likelihood
        if num_images > num_test:
            raise UserError(f"evaluation.likelihood: {data.name} has {num_test} test images; give no more, or all")
        return {
            "kind": method.kind if method else model.capabilities.likelihood_kind,
            "split": "test",
            "data_fingerprint": data.fingerprint("test"),
            "num_images": num_images,
            "conditional": bool(model.num_classes),
            "dequantisation": (method and method.dequantisation) or model.capabilities.dequantisation,
            "method": None if method is None else method.to_dict(),
        }

    def test_likelihood(
        self, model: GenerativeModel, data: ImageDataModule, run: Run
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Bits per dimension of test images with their standard error, and the record of how they were computed.

        Of binary images there is -log P in nats per image, too.

        They depend on no sampler, so they are computed once for a run and kept in a file of their own. Batches are
        shared among the processes as those of the samples are.
        """
        protocol = self.likelihood_protocol(model, data)
        facts = json.dumps([protocol, self.seed, self.weights, model.images_seen], sort_keys=True)
        path = run.evaluations / f"likelihood-{hashlib.sha256(facts.encode()).hexdigest()[:10]}.json"
        rank, world_size = ranks()
        found = from_first(load_likelihood(path) if rank == 0 and path.exists() else None)
        if found is not None:
            return found["metrics"], found["likelihood"]
        images, labels, num_images = data.images("test"), data.labels("test"), protocol["num_images"]
        chosen = np.arange(num_images) * len(images) // num_images  # a split may be sorted by class
        part: dict[int, Tensor] = {}
        seconds, nfe = 0.0, 0.0
        with image_progress("likelihood", num_images, show=rank == 0) as progress:
            for first in range(rank * self.batch_size, num_images, world_size * self.batch_size):
                index = chosen[first : first + self.batch_size]
                batch = to_float(torch.from_numpy(np.array(images[index])).to(model.device))
                given = None if labels is None else torch.from_numpy(labels[index])
                begin = time.perf_counter()
                log_p = model.log_likelihood(
                    batch, Noise(self.seed, index, model.device), given, self.likelihood_method
                ).cpu()
                seconds += time.perf_counter() - begin
                nfe = max(nfe, model.nfe)
                part[first] = log_p
                if progress is not None:
                    progress.update(min(first + self.batch_size * world_size, num_images))
        gathered = gather((part, seconds, nfe))
        log_p = torch.cat([value for _, value in sorted(pair for part, _, _ in gathered for pair in part.items())])
        metrics = mean_and_stderr("bits_per_dim", bits_per_dim(log_p, math.prod(data.image_shape)))
        if data.source.num_levels == 2:  # as papers have it
            metrics |= mean_and_stderr("nll_nats", -log_p)
        record = {
            "protocol": protocol,
            "nfe": max(part[2] for part in gathered),
            "seed": self.seed,
            "seconds": max(part[1] for part in gathered),
            "device": device_name(model.device, world_size),
        }
        if rank == 0:
            save_likelihood(path, metrics, record)
        if world_size > 1:
            distributed.barrier()
        return metrics, record


def mean_and_stderr(name: str, values: Tensor) -> dict[str, float]:
    """The mean of values (N,) and its standard error, which is not known of one."""
    stderr = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {name: float(values.mean()), f"{name}_stderr": stderr}


def device_name(device: torch.device, world_size: int = 1) -> str:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return name if world_size == 1 else f"{world_size} x {name}"
