"""Samples are scored while the device computes: the CPU waits for no batch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.core.pixels import NotFiniteError
from lit_gen.data import Digits, ImageDataModule
from lit_gen.evaluation import sampling as sampling_module
from lit_gen.evaluation.real_images import DataImages
from lit_gen.evaluation.sampling import Sampling
from lit_gen.evaluation.scoring import Scoring
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.base import GenerativeModel
from lit_gen.metrics import DensityCoverage, FrechetDistance, InceptionScore, PrecisionRecall
from lit_gen.metrics.feature_nets import DigitsFeatures
from tests.conftest import DIGITS, TINY

NUM_SAMPLES, BATCH_SIZE = 44, 10
WAITING = {"item", "cpu", "numpy", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__array__"}
"""Methods that wait until a GPU has computed the tensor."""


class OnDevice(Tensor):
    """Stands for a tensor on a GPU, as does all that is computed from it; records what would wait for the GPU."""

    waits: list[str] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        masked = name == "__getitem__" and isinstance(args[1], Tensor) and args[1].dtype == torch.bool
        if name in WAITING or masked:
            cls.waits.append(name)
        return super().__torch_function__(function, types, args, kwargs)


class Watched(Scoring):
    """Notes after each batch how often it has waited."""

    seen: list[int]

    def update(self, images: Tensor, index: Tensor, labels: Tensor | None = None) -> None:
        super().update(images, index, labels)
        self.seen.append(len(OnDevice.waits))


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    return ExperimentCLI([*TINY["VAE"], *DIGITS]).objects().model


def scored(model: GenerativeModel, folder: Path, device: str = "cpu") -> tuple[Sampling, Watched]:
    data, model = ImageDataModule(Digits()), model.to(device)
    real = DataImages(data, "train", DigitsFeatures().to(device), folder)
    metrics = [FrechetDistance(max_images=25), InceptionScore(2), PrecisionRecall(max_images=25), DensityCoverage()]
    scoring = Watched(metrics, real, NUM_SAMPLES, model.device)
    scoring.seen = []
    return Sampling(model, None, data.source.unchecked, NUM_SAMPLES, BATCH_SIZE, 12, 0, None), scoring


def test_no_batch_is_waited_for(model: GenerativeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "ranks", lambda: (0, 2))  # one process on the CPU checks at once
    sample = model.sample
    monkeypatch.setattr(model, "sample", lambda *given: sample(*given).as_subclass(OnDevice))
    monkeypatch.setattr(OnDevice, "waits", [])
    sampling, scoring = scored(model, tmp_path)
    samples = sampling.score(scoring, None)
    assert scoring.seen == [0] * 5
    assert OnDevice.waits, "at the end"
    assert len(samples.kept) == 12 and samples.seconds > 0
    assert all(math.isfinite(each.value) for each in scoring.compute().values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_not_waited_for(model: GenerativeModel, tmp_path: Path) -> None:
    def run(device: str) -> dict[str, float]:
        sampling, scoring = scored(model, tmp_path, device)
        for numbers in [range(0, 10), range(10, 20)] * (device == "cuda"):  # the first batches load kernels
            scoring.real.net(sampling.batch(numbers).images)
        update = scoring.update

        def strict(images: Tensor, index: Tensor, labels: Tensor | None = None) -> None:
            torch.cuda.set_sync_debug_mode("error")
            try:
                update(images, index, labels)
                torch.cuda._sleep(10_000_000)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        if device == "cuda":
            scoring.update = strict  # type: ignore[method-assign]
        sampling.score(scoring, None)
        return {name: each.value for name, each in scoring.compute().items()}

    on_cpu, on_gpu = run("cpu"), run("cuda")
    model.to("cpu")
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)


@pytest.mark.parametrize("processes", [1, 2])
def test_pixels_that_are_not_finite_are_reported(
    processes: int, model: GenerativeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once by one process on a CPU, and by several only once all have sampled, so that none waits for another."""
    sampled: list[int] = []

    def broken(noise: Noise, *more: Any) -> Tensor:
        sampled.append(len(noise))
        images = torch.zeros(len(noise), 1, 8, 8)
        images[0, 0, 0, 0] = torch.inf
        return images

    monkeypatch.setattr(sampling_module, "ranks", lambda: (0, processes))
    monkeypatch.setattr(model, "sample", broken)
    sampling, scoring = scored(model, tmp_path)
    with pytest.raises(NotFiniteError, match=rf"^{1 if processes == 1 else 5} of .* pixels"):
        sampling.score(scoring, None)
    assert sampled == ([10] if processes == 1 else [10, 10, 10, 10, 4])
