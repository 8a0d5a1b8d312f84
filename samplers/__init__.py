"""The DPM-Solver family in k-diffusion's sigma-space convention. It needs no host."""

from .denoiser import NetworkDenoiser
from .sample import (
    sample_adaptive,
    sample_ancestral,
    sample_calibrated,
    sample_er_sde,
    sample_multistep,
    sample_recommended,
    sample_singlestep,
)
from .schedules.networks import ContinuousCosine, ContinuousLinear, DiscreteSchedule, FlowSchedule
from .schedules.process import NoiseSchedule, RectifiedFlow, VarianceExploding
from .solvers.fitted import Calibration

__all__ = [
    "Calibration",
    "ContinuousCosine",
    "ContinuousLinear",
    "DiscreteSchedule",
    "FlowSchedule",
    "NetworkDenoiser",
    "NoiseSchedule",
    "RectifiedFlow",
    "VarianceExploding",
    "sample_adaptive",
    "sample_ancestral",
    "sample_calibrated",
    "sample_er_sde",
    "sample_multistep",
    "sample_recommended",
    "sample_singlestep",
]
