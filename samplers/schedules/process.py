"""Noise schedules: sigma <-> lambda_ (half log-SNR) <-> alpha.

A state is x = alpha * x0 + sigma * noise, and lambda_ = log(alpha / sigma) is the half log-SNR, the
variable in which every solver of the family is exact for its linear part (DPM-Solver, section 3.1).
In sigma space alpha(sigma) defines a schedule. There are two: variance exploding and rectified flow.

All functions take and return Python floats (float64).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class NoiseSchedule(ABC):
    """The noise process, as a sampler needs to know it.

    Args:
        sigma_min: the smallest noise level the model was trained on, if known. The adaptive solver
            integrates down to it before it denoises.

    Raises:
        ValueError: sigma_min is not above zero, or beyond the schedule's largest sigma.
    """

    sigma_min: float | None = None

    def __post_init__(self) -> None:
        if self.sigma_min is not None and not 0.0 < self.sigma_min < self.sigma_limit:
            raise ValueError(
                f"sigma_min of {type(self).__name__} must lie between 0 and {self.sigma_limit}, "
                f"not {self.sigma_min}."
            )

    @property
    @abstractmethod
    def sigma_limit(self) -> float:
        """The sigma at which no signal is left: infinity, or 1 for a flow."""

    @abstractmethod
    def alpha(self, sigma: float) -> float:
        """The weight of x0 in the state at sigma."""

    @abstractmethod
    def lambda_(self, sigma: float) -> float:
        """Half log-SNR at sigma: infinity at 0, minus infinity at sigma_limit."""

    @abstractmethod
    def sigma(self, lambda_: float) -> float:
        """The inverse of lambda_."""

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise whose weight is sigma."""
        return 1.0

    def scale(self, sigma: float) -> float:
        """sqrt(alpha^2 + (sigma noise_scale)^2): dividing a state by it puts it on the
        variance-preserving scale."""
        return math.hypot(self.alpha(sigma), sigma * self.noise_scale)


@dataclass(frozen=True)
class VarianceExploding(NoiseSchedule):
    """x = x0 + sigma * noise: k-diffusion's convention for noise- and v-prediction models and EDM.

    A variance-preserving model in this convention is the same ODE with its state divided by alpha.
    """

    @property
    def sigma_limit(self) -> float:
        return math.inf

    def alpha(self, sigma: float) -> float:
        return 1.0

    def lambda_(self, sigma: float) -> float:
        return -math.log(sigma) if sigma > 0.0 else math.inf

    def sigma(self, lambda_: float) -> float:
        return math.exp(-lambda_)


@dataclass(frozen=True)
class RectifiedFlow(NoiseSchedule):
    """x = (1 - sigma) * x0 + sigma * noise: SD3, Flux, Wan and other flow models.

    Args:
        noise_scale: standard deviation of the noise, 1 for nearly all models. It scales the noise that
            stochastic solvers add, and enters the adaptive solver's tolerance. Solvers of the ODE on
            a fixed list don't depend on it: it shifts lambda_ by a constant.

    Raises:
        ValueError: noise_scale is not above zero.
    """

    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.noise_scale < math.inf:
            raise ValueError(
                f"noise_scale of RectifiedFlow must be above 0, not {self.noise_scale}."
            )

    @property
    def sigma_limit(self) -> float:
        return 1.0

    def alpha(self, sigma: float) -> float:
        return 1.0 - sigma

    def lambda_(self, sigma: float) -> float:
        if sigma <= 0.0:
            return math.inf
        if sigma >= 1.0:
            return -math.inf
        return math.log1p(-sigma) - math.log(sigma)

    def sigma(self, lambda_: float) -> float:
        # 1 / (1 + e^lambda_), written so that neither tail overflows.
        if lambda_ > 0.0:
            decay = math.exp(-lambda_)
            return decay / (1.0 + decay)
        return 1.0 / (1.0 + math.exp(lambda_))
