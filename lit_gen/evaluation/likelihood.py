"""The likelihood of test images: bits per dimension, -log2 P(x) / (C H W), with the standard error of the mean."""

import math
import time

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
    chosen = np.arange(protocol.num_images) * len(images) // protocol.num_images  # a split may be sorted by class
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
    metrics = mean_and_stderr("bits_per_dim", bits_per_dim(log_p, math.prod(data.image_shape)))
    if data.source.num_levels == 2:  # as papers on binary images report it
        metrics |= mean_and_stderr("nll_nats", -log_p)
    record = LikelihoodRecord(
        protocol=protocol,
        nfe=max(each for _, _, each in shares),
        seed=seed,
        seconds=max(each for _, each, _ in shares),
        device=device_name(model.device, ranks()[1]),
    )
    return LikelihoodScores(metrics=metrics, likelihood=record)


def mean_and_stderr(name: str, values: Tensor) -> dict[str, float]:
    """Return the mean of values (N,) and its standard error, which is nan for a single value."""
    stderr = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {name: float(values.mean()), f"{name}_stderr": stderr}
