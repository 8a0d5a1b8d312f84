"""Training schedules: how much noise a network saw at which time, and how the time is given to it.

A network's state is z = alpha * x0 + std * noise. The samplers' state is x, in which noise has the
weight sigma. For a variance-preserving network (alpha^2 + std^2 = 1) x is z / alpha; for a flow x is
z. Time is the paper's: 1 at the noise and near 0 at the image.

All functions take and return tensors of any shape. They compute in the dtype and on the device of
their input, so that a running sampler never waits for its device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..devices import CPU_FLOAT64, as_float64, to_device
from .process import NoiseSchedule, RectifiedFlow, VarianceExploding

LAMBDA_START = -5.1
"""Half log-SNR at which sampling starts if training went further, as in the authors' code. Below it
the image is lost in the noise, and one step of the cosine schedule spans half the range of lambda_."""

Array = torch.Tensor | np.ndarray | Sequence[float]


class TrainingSchedule(ABC):
    """The noise process of a network."""

    @property
    @abstractmethod
    def t_start(self) -> float:
        """The time from which to sample."""

    @property
    @abstractmethod
    def t_end(self) -> float:
        """The time to which to sample, before the last step to 0."""

    @abstractmethod
    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Noise level at time t of the samplers' state."""

    @abstractmethod
    def time(self, sigma: torch.Tensor) -> torch.Tensor:
        """The inverse of `sigma`, clamped to the schedule's times."""

    @abstractmethod
    def label(self, sigma: torch.Tensor) -> torch.Tensor:
        """The network's time input at this noise level."""

    @abstractmethod
    def state(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(scale, alpha, std): the network's state is scale * x = alpha * x0 + std * noise."""

    @property
    @abstractmethod
    def noise_schedule(self) -> NoiseSchedule:
        """The `schedule` argument of the samplers."""

    def sigma_at(self, t: float) -> float:
        """sigma of one time, in float64."""
        return float(self.sigma(torch.tensor(t, **CPU_FLOAT64)))


class VariancePreserving(TrainingSchedule):
    """z = alpha * x0 + sqrt(1 - alpha^2) * noise, so that x = z / alpha = x0 + sigma * noise."""

    @abstractmethod
    def log_alpha(self, t: torch.Tensor) -> torch.Tensor:
        """log alpha at time t; 0 at the image."""

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return torch.expm1(-2.0 * self.log_alpha(t)).sqrt()

    def label(self, sigma: torch.Tensor) -> torch.Tensor:
        return self.time(sigma)

    def state(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        alpha = (1.0 + sigma.square()).rsqrt()
        return alpha, alpha, alpha * sigma

    @property
    def noise_schedule(self) -> NoiseSchedule:
        return VarianceExploding(self.sigma_at(self.t_end))


@dataclass(frozen=True, eq=False)
class DiscreteSchedule(VariancePreserving):
    """N noise levels, numbered 0 to N - 1: DDPM, Stable Diffusion and most others.

    Level i is the time (i + 1) / N, and the network's time input is i. Between levels, log alpha is
    linear in time (DPM-Solver, appendix D; the authors' code).

    Args:
        log_alphas: [N], log alpha of each level, falling: half the log of `alphas_cumprod`.

    Raises:
        ValueError: they are not 1-D, finite, below 0 and falling, or hold fewer than two levels from
            which to sample.
    """

    log_alphas: torch.Tensor

    def __post_init__(self) -> None:
        log_alphas = self.log_alphas
        if log_alphas.ndim != 1 or len(log_alphas) < 2:
            raise ValueError(
                "A discrete schedule needs a 1-D list of at least two levels, "
                f"not one of shape {tuple(log_alphas.shape)}."
            )
        valid = log_alphas.isfinite().all() and (log_alphas < 0.0).all()
        if not valid or not (log_alphas.diff() < 0.0).all():
            raise ValueError(
                "alphas_cumprod must fall all the way, from below 1 to above 0 (the last may be 0): "
                "check that these are not betas, and that no beta is 0."
            )
        if self._levels < 2:
            raise ValueError(
                f"Fewer than two levels have a half log-SNR of at least {LAMBDA_START}: "
                "there is nothing to sample from, check the schedule."
            )

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Array) -> DiscreteSchedule:
        """Make it from alpha^2 of each level, falling. A last 0 (sigma infinite) is left out."""
        values = _float64(alphas_cumprod)
        if values.ndim == 1 and len(values) and values[-1] == 0.0:
            values = values[:-1]
        return cls(0.5 * values.log())

    @classmethod
    def from_betas(cls, betas: Array) -> DiscreteSchedule:
        """Make it from the noise added at each level, in (0, 1); the last may be 1."""
        values = _float64(betas)
        if values.ndim == 1 and len(values) and values[-1] == 1.0:
            values = values[:-1]
        if not ((values > 0.0) & (values < 1.0)).all():
            raise ValueError("Every beta must lie between 0 and 1 (the last may be 1).")
        return cls(0.5 * torch.log1p(-values).cumsum(-1))

    @classmethod
    def linear(
        cls, count: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> DiscreteSchedule:
        """Evenly spaced betas (DDPM, arXiv 2006.11239)."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, count, **CPU_FLOAT64))

    @classmethod
    def scaled_linear(
        cls, count: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> DiscreteSchedule:
        """Evenly spaced square roots of beta (latent diffusion, arXiv 2112.10752; SD 1, 2 and XL)."""
        ends = beta_start**0.5, beta_end**0.5
        return cls.from_betas(torch.linspace(*ends, count, **CPU_FLOAT64).square())

    @classmethod
    def cosine(
        cls, count: int = 1000, s: float = 0.008, max_beta: float = 0.999
    ) -> DiscreteSchedule:
        """alpha^2 = cos^2 of an even angle, betas capped (improved DDPM, arXiv 2102.09672, equation
        17; "squaredcos_cap_v2" in diffusers)."""
        t = torch.linspace(0.0, 1.0, count + 1, **CPU_FLOAT64)
        alphas_cumprod = torch.cos((t + s) / (1.0 + s) * (math.pi / 2.0)).square()
        return cls.from_betas((1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=max_beta))

    @property
    def t_start(self) -> float:
        return self._levels / len(self.log_alphas)

    @property
    def t_end(self) -> float:
        return 1.0 / len(self.log_alphas)

    @property
    def _levels(self) -> int:
        """How many levels to sample from. The authors' code drops the others from its table, and
        relabels the M that remain up to 1000 (M - 1) / M; here they keep their trained numbers."""
        sigmas = torch.expm1(-2.0 * self.log_alphas).sqrt()
        return int((-sigmas.log() >= LAMBDA_START).sum())

    def log_alpha(self, t: torch.Tensor) -> torch.Tensor:
        table = self._table(t)
        number = (t * len(table) - 1.0).clamp(0.0, len(table) - 1.0)
        below = number.long().clamp(max=len(table) - 2)
        return torch.lerp(table[below], table[below + 1], number - below)

    def time(self, sigma: torch.Tensor) -> torch.Tensor:
        return (self.label(sigma) + 1.0) / len(self.log_alphas)

    def label(self, sigma: torch.Tensor) -> torch.Tensor:
        depths = -self._table(sigma)
        depth = 0.5 * torch.log1p(sigma.square())
        above = torch.searchsorted(depths, depth.contiguous()).clamp(1, len(depths) - 1)
        low, high = depths[above - 1], depths[above]
        return above - 1 + ((depth - low) / (high - low)).clamp(0.0, 1.0)

    def _table(self, like: torch.Tensor) -> torch.Tensor:
        return to_device(self.log_alphas, like.device, like.dtype)


@dataclass(frozen=True)
class ContinuousLinear(VariancePreserving):
    """beta(t) = beta_0 + t (beta_1 - beta_0): the VP SDE (Song et al., arXiv 2011.13456, appendix C).

    The network's time input is t in (0, 1].

    Args:
        t_end: the authors advise 1e-3 for up to 15 steps and 1e-4 for more.

    Raises:
        ValueError: a number is out of its range.
    """

    beta_0: float = 0.1
    beta_1: float = 20.0
    t_start: float = 1.0
    t_end: float = 1e-3

    def __post_init__(self) -> None:
        _check_times(self)
        if not 0.0 <= self.beta_0 <= self.beta_1 or self.beta_1 == 0.0:
            raise ValueError(
                "beta_0 must be at least 0, and beta_1 above 0 and at least beta_0, "
                f"not {self.beta_0!r} and {self.beta_1!r}."
            )

    def log_alpha(self, t: torch.Tensor) -> torch.Tensor:
        return -t * (0.25 * t * (self.beta_1 - self.beta_0) + 0.5 * self.beta_0)

    def time(self, sigma: torch.Tensor) -> torch.Tensor:
        depth = 2.0 * torch.log1p(sigma.square())  # -4 log alpha
        root = (self.beta_0**2 + (self.beta_1 - self.beta_0) * depth).sqrt()
        return (depth / (root + self.beta_0)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class ContinuousCosine(VariancePreserving):
    """alpha = cos(angle) / cos(angle at 0), with the angle even in time (the authors' "cosine").

    The network's time input is t in (0, 1].

    Args:
        t_start: alpha is 0 at 1; 0.9946 is the authors' limit.

    Raises:
        ValueError: a number is out of its range.
    """

    s: float = 0.008
    t_start: float = 0.9946
    t_end: float = 1e-3

    def __post_init__(self) -> None:
        _check_times(self)
        if self.t_start == 1.0:
            raise ValueError(
                "t_start of ContinuousCosine must lie below 1, where its sigma is infinite."
            )
        if not self.s >= 0.0:
            raise ValueError(f"s of ContinuousCosine must be at least 0, not {self.s!r}.")

    def log_alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.cos((t + self.s) * self._rate).log() - math.log(math.cos(self.s * self._rate))

    def time(self, sigma: torch.Tensor) -> torch.Tensor:
        # tan of the angle, from 1 + sigma^2 = 1 / alpha^2; arccos(alpha) cancels near the image.
        origin = self.s * self._rate
        tangent = (sigma.square() + math.sin(origin) ** 2).sqrt() / math.cos(origin)
        return (torch.atan(tangent) / self._rate - self.s).clamp(0.0, 1.0)

    @property
    def _rate(self) -> float:
        """The angle per time."""
        return math.pi / 2.0 / (1.0 + self.s)


@dataclass(frozen=True)
class FlowSchedule(TrainingSchedule):
    """z = (1 - sigma) * x0 + sigma * noise: SD3, Flux, Wan. The network's time input is
    sigma.

    Args:
        shift: moves evenly spaced times t to sigma = shift t / (1 + (shift - 1) t) (SD3, arXiv
            2403.03206, equation 23). The network's input at a given sigma does not depend on it.

    Raises:
        ValueError: a number is out of its range.
    """

    shift: float = 1.0
    t_start: float = 1.0
    t_end: float = 1e-3

    def __post_init__(self) -> None:
        _check_times(self)
        if not self.shift > 0.0:
            raise ValueError(f"shift of FlowSchedule must be above 0, not {self.shift!r}.")

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return self.shift * t / (1.0 + (self.shift - 1.0) * t)

    def time(self, sigma: torch.Tensor) -> torch.Tensor:
        level = self.label(sigma)
        return level / (self.shift - (self.shift - 1.0) * level)

    def label(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma.clamp(0.0, 1.0)

    def state(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.ones_like(sigma), 1.0 - sigma, sigma

    @property
    def noise_schedule(self) -> NoiseSchedule:
        return RectifiedFlow(self.sigma_at(self.t_end))


def _check_times(training: TrainingSchedule) -> None:
    if not 0.0 < training.t_end < training.t_start <= 1.0:
        raise ValueError(
            f"Times of {type(training).__name__} must obey 0 < t_end < t_start <= 1, "
            f"not t_end = {training.t_end!r} and t_start = {training.t_start!r}."
        )


def _float64(values: Array) -> torch.Tensor:
    return as_float64(values).detach()
