"""The DPM-Solver family in k-diffusion's sigma-space convention: torch only, no host needed."""

from .calibrated import Calibration
from .network import NetworkDenoiser
from .sample import (
    sample_adaptive,
    sample_calibrated,
    sample_multistep,
    sample_recommended,
    sample_singlestep,
)
from .schedule import NoiseSchedule, RectifiedFlow, VarianceExploding
from .training import ContinuousCosine, ContinuousLinear, DiscreteSchedule, FlowSchedule

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
    "sample_calibrated",
    "sample_multistep",
    "sample_recommended",
    "sample_singlestep",
]
