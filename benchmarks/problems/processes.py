"""Noise processes: what links a host's states and sigmas to the coordinates of the exact models.

The exact models live in z = x / alpha and s = sigma / alpha, in which every process is
z = x0 + s noise, so that one model serves all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...samplers import NoiseSchedule, RectifiedFlow, VarianceExploding

PURE_NOISE = 1e4
"""The s that stands for a flow's sigma = 1, where s is infinite: no image is left at either."""


@dataclass(frozen=True)
class Process:
    """A kind of model, as hosts know it.

    Attributes:
        name: a key of PROCESSES.
        flow: x = (1 - sigma) x0 + sigma noise instead of x = x0 + sigma noise.
        sigma_max, sigma_min: ends of the host's schedule.
        shift: of a flow's times.
    """

    name: str
    flow: bool
    sigma_max: float
    sigma_min: float
    shift: float = 1.0

    @property
    def whole_times(self) -> bool:
        """Whether hosts call such a model at whole times alone."""
        return self.name in ("sd", "zero-snr")

    @property
    def s_max(self) -> float:
        return self.s(self.sigma_max)

    @property
    def s_min(self) -> float:
        return self.s(self.sigma_min)

    def s(self, sigma: float) -> float:
        return sigma / self.alpha(sigma)

    def sigma(self, s: float) -> float:
        if not self.flow:
            return s
        return 1.0 if s >= PURE_NOISE else s / (1.0 + s)

    def alpha(self, sigma: float) -> float:
        return max(1.0 - sigma, 1.0 / PURE_NOISE) if self.flow else 1.0

    @property
    def schedule(self) -> NoiseSchedule:
        """What our solvers take."""
        return (RectifiedFlow if self.flow else VarianceExploding)(self.sigma_min)

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        """The state z at sigma_max, as hosts scale it: with an image of variance 1 in it."""
        return noise * (self.s_max if self.flow else math.hypot(1.0, self.s_max))


def _flow(shift: float) -> Process:
    first_time = 0.001
    sigma_min = shift * first_time / (1.0 + (shift - 1.0) * first_time)
    return Process(f"flow{shift:g}", True, 1.0, sigma_min, shift)


PROCESSES = {
    process.name: process
    for process in (
        Process("sd", False, 14.614641229333643, 0.029167158120816724),
        Process("zero-snr", False, 4518.763671875, 0.029167158529162407),
        Process("edm", False, 80.0, 0.002),
        *map(_flow, (1.0, 3.0, 6.0, 12.0)),
    )
}
"""Stable Diffusion's schedule, the same with zero terminal SNR, EDM's, and flows by their shift."""
