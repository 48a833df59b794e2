"""Two processes that saw unequal numbers of images and batches compute what one process computes."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from lit_gen.core.errors import UserError
from lit_gen.metrics import Moments, ScoredBatch, frechet_distance
from tests.metrics.real import batch, frechet, inception
from tests.processes import in_two_processes

NUM_SAMPLES, WIDTH, NUM_CLASSES, SPLITS = 103, 12, 5, 4


def inputs() -> tuple[torch.Tensor, torch.Tensor, Moments]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    features = torch.randn(NUM_SAMPLES, WIDTH, generator=generator, dtype=torch.float64) @ mixing + 5
    logits = 3 * torch.randn(NUM_SAMPLES, NUM_CLASSES, generator=generator, dtype=torch.float64)
    return features, logits, Moments.of(torch.randn(200, WIDTH, generator=generator, dtype=torch.float64))


def scores(batches: list[torch.Tensor]) -> list[float]:
    features, logits, reference = inputs()
    distance, score = frechet(reference, NUM_SAMPLES), inception(NUM_CLASSES, NUM_SAMPLES, SPLITS)
    for rows in batches:
        distance.update(batch(features[rows], rows))
        score.update(ScoredBatch(rows, logits=logits[rows]))
    with distance.sync_context(dist_sync_fn=distance.dist_sync_fn):
        moments = distance.moments()
        first = [moments.n, moments.mean.sum().item(), moments.cov.sum().item()]
    (estimate,) = distance.compute().values()
    assert estimate.deviations is not None
    return [*first, estimate.value, *estimate.deviations.tolist(), *(each.value for each in score.compute().values())]


def worker(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    order = torch.arange(NUM_SAMPLES)
    few, many = order[::4], order[torch.arange(NUM_SAMPLES) % 4 != 0]
    uneven = scores([few] if rank == 0 else list(many.split(7)))
    idle = scores([] if rank == 0 else list(order.split(10)))
    bad = frechet(inputs()[2])
    bad.update(batch(torch.full((5, WIDTH), float("nan") if rank == 0 else 1.0)))
    try:  # only one rank saw bad features, yet both must raise, or the other would wait for ever
        bad.compute()
        error = ""
    except UserError as caught:
        error = str(caught)
    (folder / f"{rank}.json").write_text(json.dumps([uneven, idle, error]))


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    features, _, reference = inputs()
    expected = scores([torch.arange(NUM_SAMPLES)])
    assert expected[3] == pytest.approx(frechet_distance(Moments.of(features), reference), rel=1e-10)
    in_two_processes(worker, tmp_path)
    for rank in range(2):
        uneven, idle, error = json.loads((tmp_path / f"{rank}.json").read_text())
        assert uneven == pytest.approx(expected, rel=1e-9)
        assert idle == pytest.approx(expected, rel=1e-9)
        assert "features of 10 images are not finite" in error
