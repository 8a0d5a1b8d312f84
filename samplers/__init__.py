"""The DPM-Solver family in k-diffusion's sigma-space convention: torch only, no host needed."""

from .sample import sample_adaptive, sample_multistep, sample_singlestep
from .schedule import NoiseSchedule, RectifiedFlow, VarianceExploding

__all__ = [
    "NoiseSchedule",
    "RectifiedFlow",
    "VarianceExploding",
    "sample_adaptive",
    "sample_multistep",
    "sample_singlestep",
]
