"""The DPM-Solver family in k-diffusion's sigma-space convention: torch only, no host needed."""

from .network import NetworkDenoiser
from .sample import sample_adaptive, sample_multistep, sample_singlestep
from .schedule import NoiseSchedule, RectifiedFlow, VarianceExploding
from .training import ContinuousCosine, ContinuousLinear, DiscreteSchedule, FlowSchedule

__all__ = [
    "ContinuousCosine",
    "ContinuousLinear",
    "DiscreteSchedule",
    "FlowSchedule",
    "NetworkDenoiser",
    "NoiseSchedule",
    "RectifiedFlow",
    "VarianceExploding",
    "sample_adaptive",
    "sample_multistep",
    "sample_singlestep",
]
