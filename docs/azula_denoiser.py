"""A denoiser of azula as a function that `lit-gen import` takes: E[x_0 | x_t] on any of azula's schedules.

    cd docs
    lit-gen import --denoiser azula_denoiser.denoiser --data.source Digits \
        --model.schedule EDMSchedule --model.parameterization Sample

Put your own model in place of this one, which is exact for normal pixels. Plugins of azula, such as
azula.plugins.adm.load_model, fetch weights and may unpickle them: only load those that you trust.
"""

import numpy as np
import torch
from azula.denoise import GaussianDenoiser
from azula.linalg.covariance import DiagonalCovariance
from azula.noise import VPSchedule
from torch import Tensor

SIGMA_MAX = 80.0  # EDMSchedule has sigma(t) = SIGMA_MAX t
model = GaussianDenoiser(torch.full((1, 8, 8), -0.4), DiagonalCovariance(torch.full((1, 8, 8), 0.3)), VPSchedule())


def denoiser(x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
    """Return E[x_0 | x_t], for x = x_t / sqrt(1 + sigma^2), as Sample scales it, and c_noise = 999 t."""
    device, x, c_noise = x.device, x.cpu(), c_noise.cpu()  # of the model
    sigma = SIGMA_MAX * c_noise.double() / 999
    times = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    alphas, sigmas = model.schedule(times)
    t = torch.from_numpy(np.interp(sigma.log().numpy(), (sigmas / alphas).log().numpy(), times.numpy()))
    x_t = x.double() * ((1 + sigma**2).sqrt() * model.schedule(t)[0])[:, None, None, None]
    means = [model(image, time).mean for image, time in zip(x_t, t, strict=True)]
    return torch.stack(means).float().to(device)
