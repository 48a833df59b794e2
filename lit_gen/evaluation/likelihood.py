"""The likelihood of test images: bits per dimension, -log2 P(x) / (C H W), with the standard error of the mean."""

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.pixels import to_float
from lit_gen.core.processes import gather, ranks
from lit_gen.data.module import ImageDataModule
from lit_gen.distributions.dequantisation import bits_per_dim
from lit_gen.evaluation.device import device_name
from lit_gen.evaluation.result_file import LikelihoodProtocol, LikelihoodRecord, LikelihoodScores
from lit_gen.evaluation.shares import in_order, shared_batches
from lit_gen.families.base import GenerativeModel
from lit_gen.families.settings import LikelihoodMethod


def likelihood_protocol(
    model: GenerativeModel, data: ImageDataModule, num_images: int | None, method: LikelihoodMethod | None
) -> LikelihoodProtocol:
    """Return the protocol of the likelihood of test images.

    Args:
        model: The model.
        data: The data.
        num_images: Number of test images; all if not given.
        method: Method of a family that has several; the model's own if not given.

    Raises:
        UserError: If the model has no likelihood or does not take the method, or the test split has too few images, or
            points.
    """
    if not data.source.quantised:
        raise UserError(
            f"evaluation.likelihood: {data.name} holds points, which have a density and no mass in bits; leave it "
            "at 0 (python -m lit_gen.report.theory learned RUN draws the density)"
        )
    model.check_likelihood(method)
    method = method or model.default_likelihood_method()
    num_test = len(data.images("test"))
    if num_images is not None and num_images > num_test:
        raise UserError(f"evaluation.likelihood: {data.name} has {num_test} test images; give no more, or all")
    return LikelihoodProtocol(
        kind=method.kind if method else str(model.capabilities.likelihood_kind),
        split="test",
        data_fingerprint=data.fingerprint("test"),
        num_images=num_test if num_images is None else num_images,
        conditional=bool(model.num_classes),
        dequantisation=(method and method.dequantisation) or model.capabilities.dequantisation,
        method=None if method is None else method.to_dict(),
    )


def compute_likelihood(
    model: GenerativeModel,
    data: ImageDataModule,
    protocol: LikelihoodProtocol,
    method: LikelihoodMethod | None,
    seed: int,
    batch_size: int,
) -> LikelihoodScores:
    """Compute the likelihood of evenly spaced test images; collective: each process takes its share of the batches.

    Args:
        model: The model.
        data: The data.
        protocol: What `likelihood_protocol` returned for the same model, data and method.
        method: Method of a family that has several; the model's own if not given.
        seed: Seed of the noise.
        batch_size: Images per batch.

    Returns:
        `bits_per_dim`, and for binary images also `nll_nats`, the negative log-likelihood in nats per image; each with
        its standard error.
    """
    assert isinstance(protocol.num_images, int)
    images, labels = data.images("test"), data.labels("test")
    chosen = evenly_spaced(protocol.num_images, len(images))
    share: dict[int, Tensor] = {}
    seconds, nfe = 0.0, 0.0
    with shared_batches("likelihood", protocol.num_images, batch_size) as batches:
        for batch in batches:
            index = chosen[batch.start : batch.stop]
            pixels = to_float(torch.from_numpy(np.array(images[index])).to(model.device))
            noise = Noise(seed, index.tolist(), model.device)
            given = None if labels is None else torch.from_numpy(labels[index])
            begin = time.perf_counter()
            share[batch.start] = model.log_likelihood(pixels, noise, given, method).cpu()
            seconds += time.perf_counter() - begin
            nfe = max(nfe, model.nfe)
    shares = gather((share, seconds, nfe))
    log_p = in_order(each for each, _, _ in shares)
    record = LikelihoodRecord(
        protocol=protocol,
        nfe=max(each for _, _, each in shares),
        seed=seed,
        seconds=max(each for _, each, _ in shares),
        device=device_name(model.device, ranks()[1]),
    )
    return LikelihoodScores(metrics=_metrics(log_p, data), likelihood=record)


def likelihood_floors(data: ImageDataModule, num_images: int) -> dict[str, dict[str, Any]]:
    """Return what is known of the likelihood of test images without a model, as rows like those of `floors`.

    | row | P(x) of an image of D values |
    | --- | --- |
    | equal_values | L^-D for L possible values: 8 bits per dimension for 8-bit images, 1 for binary ones |
    | histogram | the product of p(x_d), with the shares p of the values of training images in each channel |

    The shares are those after one more pixel of each value, so none of them is 0.

    Args:
        data: The data.
        num_images: Number of test images, evenly spaced.
    """
    images, train, levels = data.images("test"), data.images("train"), data.source.num_levels
    level_of = np.rint(np.arange(256) * ((levels - 1) / 255)).astype(int)
    counts = np.ones((len(train[0]), levels))
    for start in range(0, len(train), 1024):
        for channel, values in enumerate(np.array(train[start : start + 1024]).swapaxes(0, 1)):
            counts[channel] += np.bincount(level_of[values].ravel(), minlength=levels)
    log_p = np.log(counts / counts.sum(1, keepdims=True))
    known = torch.zeros(num_images, dtype=torch.float64)
    for row, index in enumerate(evenly_spaced(num_images, len(images))):
        known[row] = sum(float(log_p[channel][level_of[values]].sum()) for channel, values in enumerate(images[index]))
    num_dims = math.prod(data.image_shape)
    rows = {"equal_values": torch.full_like(known, -num_dims * math.log(levels)), "histogram": known}
    return {name: _row(_metrics(log_p, data), num_images) for name, log_p in rows.items()}


def _row(metrics: dict[str, float], num_images: int) -> dict[str, Any]:
    errors = {name.removesuffix("_stderr"): value for name, value in metrics.items() if name.endswith("_stderr")}
    scores = {name: value for name, value in metrics.items() if not name.endswith("_stderr")}
    known = {name: error for name, error in errors.items() if math.isfinite(error)}
    return {"num_images": num_images, "scores": scores, "standard_errors": known}


def _metrics(log_p: Tensor, data: ImageDataModule) -> dict[str, float]:
    """Return the scores of log-likelihoods (N,) with their standard errors."""
    metrics = mean_and_stderr("bits_per_dim", bits_per_dim(log_p, math.prod(data.image_shape)))
    if data.source.num_levels == 2:  # as papers on binary images report it
        metrics |= mean_and_stderr("nll_nats", -log_p)
    return metrics


def evenly_spaced(num_chosen: int, num_images: int) -> np.ndarray:
    """Return indices of evenly spaced images, since a split may be sorted by class."""
    return np.arange(num_chosen) * num_images // num_chosen


def mean_and_stderr(name: str, values: Tensor) -> dict[str, float]:
    """Return the mean of values (N,) and its standard error, which is nan for a single value."""
    stderr = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {name: float(values.mean()), f"{name}_stderr": stderr}
