"""Diffusion and flow matching: x_t = alpha(t) x_0 + sigma(t) eps. Samplers stand in `samplers`."""

from lit_gen.families.diffusion.augment import EDMAugmentation
from lit_gen.families.diffusion.chains import BetaChain, OnChain, Timesteps
from lit_gen.families.diffusion.coupling import optimal_transport
from lit_gen.families.diffusion.denoisers import (
    Denoiser,
    EDMPreconditioning,
    Epsilon,
    FunctionDenoiser,
    GaussianMixtureDenoiser,
    MixtureDenoiser,
    NetworkDenoiser,
    Parameterization,
    Sample,
    Score,
    V,
    Velocity,
    convert,
)
from lit_gen.families.diffusion.densities import (
    FixedTime,
    ImportanceSampling,
    LogitNormal,
    LognormalSigma,
    TimeDensity,
    UniformLogSigma,
    UniformSteps,
    UniformTime,
)
from lit_gen.families.diffusion.flow_maps import FlowMap, MixtureFlowMap, NetworkFlowMap
from lit_gen.families.diffusion.grids import Grid, Karras, Quadratic, TimeShift, Uniform, UniformAngle, UniformLogSNR
from lit_gen.families.diffusion.guidance import Guidance
from lit_gen.families.diffusion.likelihood import DiffusionLikelihood, ProbabilityFlow, VariationalBound
from lit_gen.families.diffusion.models.consistency import ConsistencyTraining
from lit_gen.families.diffusion.models.ddpm import DDPM, ImprovedDDPM
from lit_gen.families.diffusion.models.edm import EDM
from lit_gen.families.diffusion.models.flow_matching import FlowMatching, RectifiedFlow
from lit_gen.families.diffusion.models.general import Diffusion
from lit_gen.families.diffusion.models.mean_flow import MeanFlow
from lit_gen.families.diffusion.models.score_sde import ScoreSDE
from lit_gen.families.diffusion.models.shortcut import Shortcut
from lit_gen.families.diffusion.networks.dit import DiT
from lit_gen.families.diffusion.networks.foreign import DiffusersNetwork, FunctionNetwork
from lit_gen.families.diffusion.networks.mlp import ResidualMLP
from lit_gen.families.diffusion.networks.unet import UNet
from lit_gen.families.diffusion.objectives import (
    ELBO,
    ErrorOf,
    LossWeight,
    MinSNR,
    Uncertainty,
    diffusion_loss,
    hybrid_loss,
    variational_loss,
    weighted,
)
from lit_gen.families.diffusion.schedules import (
    VE,
    Cosine,
    DiscreteVP,
    EDMSchedule,
    LinearVP,
    Rectified,
    Schedule,
    SubVP,
    VariancePreserving,
)
from lit_gen.families.diffusion.searched import Searched

__all__ = [
    "BetaChain",
    "DiffusersNetwork",
    "FunctionNetwork",
    "OnChain",
    "Timesteps",
    "Cosine",
    "DDPM",
    "Denoiser",
    "DiT",
    "Diffusion",
    "DiffusionLikelihood",
    "DiscreteVP",
    "EDM",
    "EDMAugmentation",
    "EDMPreconditioning",
    "EDMSchedule",
    "ELBO",
    "Epsilon",
    "ErrorOf",
    "FixedTime",
    "FlowMap",
    "FlowMatching",
    "FunctionDenoiser",
    "GaussianMixtureDenoiser",
    "Grid",
    "Guidance",
    "ImportanceSampling",
    "ImprovedDDPM",
    "Karras",
    "Searched",
    "LinearVP",
    "LogitNormal",
    "LognormalSigma",
    "LossWeight",
    "MeanFlow",
    "Shortcut",
    "ConsistencyTraining",
    "MinSNR",
    "MixtureDenoiser",
    "MixtureFlowMap",
    "NetworkDenoiser",
    "NetworkFlowMap",
    "Parameterization",
    "ProbabilityFlow",
    "Quadratic",
    "Rectified",
    "RectifiedFlow",
    "ResidualMLP",
    "Sample",
    "Schedule",
    "Score",
    "ScoreSDE",
    "SubVP",
    "TimeDensity",
    "TimeShift",
    "UNet",
    "Uncertainty",
    "Uniform",
    "UniformAngle",
    "UniformLogSNR",
    "UniformLogSigma",
    "UniformSteps",
    "UniformTime",
    "V",
    "VE",
    "VariancePreserving",
    "VariationalBound",
    "Velocity",
    "convert",
    "diffusion_loss",
    "hybrid_loss",
    "optimal_transport",
    "variational_loss",
    "weighted",
]
