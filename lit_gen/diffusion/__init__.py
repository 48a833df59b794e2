"""The mathematics of diffusion and flow matching: schedules, denoisers, objectives, grids and samplers."""

from lit_gen.diffusion.denoisers import (
    Denoiser,
    EDMPreconditioning,
    Epsilon,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    Parameterization,
    Velocity,
)
from lit_gen.diffusion.grids import Grid, Karras, Quadratic, Uniform, UniformLogSNR
from lit_gen.diffusion.objectives import (
    LogitNormal,
    LognormalSigma,
    TimeDensity,
    UniformSteps,
    UniformTime,
    diffusion_loss,
)
from lit_gen.diffusion.samplers import DDIM, DDPM, Euler, Heun, Sampler
from lit_gen.diffusion.schedules import DiscreteVP, EDMSchedule, Rectified, Schedule

__all__ = [
    "DDIM",
    "DDPM",
    "Denoiser",
    "DiscreteVP",
    "EDMPreconditioning",
    "EDMSchedule",
    "Epsilon",
    "Euler",
    "GaussianMixtureDenoiser",
    "Grid",
    "Heun",
    "Karras",
    "LogitNormal",
    "LognormalSigma",
    "NetworkDenoiser",
    "Parameterization",
    "Quadratic",
    "Rectified",
    "Sampler",
    "Schedule",
    "TimeDensity",
    "Uniform",
    "UniformLogSNR",
    "UniformSteps",
    "UniformTime",
    "Velocity",
    "diffusion_loss",
]
