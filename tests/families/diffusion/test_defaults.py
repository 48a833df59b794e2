"""Default values given by papers."""

import inspect
import math
from typing import Any

import pytest

from lit_gen.families.diffusion import (
    DDPM,
    EDM,
    VE,
    DiscreteVP,
    EDMPreconditioning,
    EDMSchedule,
    Epsilon,
    ImportanceSampling,
    ImprovedDDPM,
    Karras,
    LinearVP,
    LogitNormal,
    LognormalSigma,
    MinSNR,
    SubVP,
    TimeShift,
    UniformLogSNR,
)
from lit_gen.families.diffusion.samplers import RK45, Heun, PredictorCorrector

KARRAS_2022 = {"sigma_min": 0.002, "sigma_max": 80.0}
SONG_2021 = {"beta_min": 0.1, "beta_max": 20.0, "min_time": 1e-5}


@pytest.mark.parametrize(
    ("cls", "defaults"),
    [
        # Karras et al. 2022, table 1
        (EDM, {"sigma_data": 0.5, "p_mean": -1.2, "p_std": 1.2}),
        (EDMPreconditioning, {"sigma_data": 0.5}),
        (LognormalSigma, {"mean": -1.2, "std": 1.2}),
        (EDMSchedule, KARRAS_2022),
        (Karras, {"rho": 7.0} | KARRAS_2022),
        (UniformLogSNR, KARRAS_2022),
        (RK45, KARRAS_2022),
        (Heun, {"S_churn": 0.0, "S_min": 0.0, "S_max": math.inf, "S_noise": 1.0}),
        # Ho et al. 2020
        (DDPM, {"betas": "linear", "num_timesteps": 1000}),
        (DiscreteVP, {"betas": "linear", "num_timesteps": 1000}),
        (Epsilon, {"num_timesteps": 1000}),
        # Nichol and Dhariwal 2021
        (ImprovedDDPM, {"betas": "cosine", "objective": "hybrid", "vlb_weight": 1e-3}),
        (ImportanceSampling, {"num_losses": 10, "uniform": 1e-3}),
        # Song et al. 2021
        (LinearVP, SONG_2021),
        (SubVP, SONG_2021),
        (VE, {"sigma_min": 0.01, "sigma_max": 50.0}),
        (PredictorCorrector, {"corrector_steps": 1, "snr": 0.16}),
        (MinSNR, {"gamma": 5.0}),  # Hang et al. 2023
        (LogitNormal, {"mean": 0.0, "std": 1.0}),  # Esser et al. 2024
        (TimeShift, {"shift": 3.0}),  # Esser et al. 2024
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_defaults_are_those_of_the_paper(cls: type, defaults: dict[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    assert {name: parameters[name].default for name in defaults} == defaults
