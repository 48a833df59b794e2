"""Fixtures of the diffusion tests."""

from collections.abc import Iterator

import pytest
import torch

from lit_gen.families.diffusion import (
    VE,
    Cosine,
    DiscreteVP,
    EDMSchedule,
    GaussianMixtureDenoiser,
    LinearVP,
    Rectified,
    Schedule,
    SubVP,
)

SCHEDULES = {
    "linear": DiscreteVP(),
    "cosine": DiscreteVP("cosine"),
    "short": DiscreteVP(num_timesteps=50),
    "vp": LinearVP(),
    "subvp": SubVP(),
    "ve": VE(),
    "edm": EDMSchedule(),
    "rectified": Rectified(),
    "circle": Cosine(),
}


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, because the tensors are too small to benefit from more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(params=list(SCHEDULES.values()), ids=list(SCHEDULES))
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return request.param


@pytest.fixture
def mixture() -> GaussianMixtureDenoiser:
    """Return three anisotropic components on images of shape (2, 3)."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
    stds = torch.rand(3, 2, 3, generator=generator, dtype=torch.float64) + 0.2
    return GaussianMixtureDenoiser(means, stds, torch.tensor([0.2, 0.5, 0.3]))


@pytest.fixture
def mixture_1d() -> GaussianMixtureDenoiser:
    means = torch.tensor([[-1.0], [0.2], [0.9]])
    return GaussianMixtureDenoiser(means, torch.tensor([0.3, 0.15, 0.25]), torch.tensor([0.3, 0.3, 0.4]))
