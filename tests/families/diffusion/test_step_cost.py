"""What a step costs beyond the network: operations on single numbers are done once per time, not in every batch."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import DiscreteVP, EDMPreconditioning, EDMSchedule, Epsilon, NetworkDenoiser
from lit_gen.families.diffusion.samplers import DDIM, DEIS, IPNDM, DPMSolver, Euler, GridSampler, Heun, UniPC
from lit_gen.families.diffusion.schedules import level_at, log_snr

SHAPE = (1, 8, 8)


class Operations(TorchDispatchMode):
    """Counts operations whose result is one number, and those whose result is a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = self.batches = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() > 1:
            self.batches += 1
        else:
            self.numbers += 1
        return result


def denoiser(vp: bool) -> NetworkDenoiser:
    schedule, parameterization = (DiscreteVP(), Epsilon()) if vp else (EDMSchedule(), EDMPreconditioning())
    return NetworkDenoiser(lambda x, c_noise, labels: 0.1 * x, schedule, parameterization)


def operations(sampler: GridSampler, vp: bool) -> tuple[float, float]:
    """Return the operations per evaluation on single numbers and on batches, without those of the initial noise."""
    model = denoiser(vp)

    def sample() -> Operations:
        with Operations() as counted:
            sampler.sample(model, model.schedule, Noise(0, range(5)), SHAPE, dtype=torch.float32)
        return counted

    sample()
    before = model.evaluations
    counted = sample()
    with Operations() as initial:
        Noise(0, range(5)).normal(SHAPE)
    evaluations = model.evaluations - before
    return (counted.numbers - initial.numbers) / evaluations, (counted.batches - initial.batches) / evaluations


@pytest.mark.parametrize("vp", [False, True])
@pytest.mark.parametrize("sampler", [DDIM, Euler, Heun, DPMSolver, UniPC, IPNDM, DEIS], ids=lambda each: each.__name__)
def test_a_later_batch_computes_few_single_numbers(sampler: type[GridSampler], vp: bool) -> None:
    numbers, batches = operations(sampler(nfe=15), vp)
    assert 0 < numbers <= 20
    assert 0 < batches <= 16


def test_what_is_remembered_is_of_its_schedule_and_time() -> None:
    edm, other, vp = EDMSchedule(), EDMSchedule(sigma_max=20.0), DiscreteVP()
    for _ in range(2):
        for t in (0.3, 0.7, 1.0):
            for schedule in (edm, other, vp):
                assert level_at(schedule, t) == schedule(t)
                assert log_snr(schedule, t) == pytest.approx(float((schedule(t)[0] / schedule(t)[1]).log()), rel=1e-12)
    assert level_at(edm, 0.3)[1] == 4 * level_at(other, 0.3)[1]


def test_a_single_level_is_as_a_batch_of_it() -> None:
    """One level is remembered, and a level for each image is not; both at levels of other schedules."""
    x = torch.randn(4, *SHAPE, dtype=torch.float64)
    for vp in (False, True):
        model = denoiser(vp)
        for alpha, sigma in ((1.0, 3.0), (0.4, 0.9), (0.6, 0.8), (0.4, 0.9)):
            one = model(x, torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))
            each = model(x, torch.full((4,), alpha, dtype=x.dtype), torch.full((4,), sigma, dtype=x.dtype))
            torch.testing.assert_close(one, each, rtol=1e-12, atol=1e-12)
