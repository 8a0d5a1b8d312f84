"""A Gaussian whose denoiser is exact, and the mean and covariance that stochastic runs make of it.

They are found without chance. Weak orders are fitted to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.integrate import quad

from dpm_solver_nodes.samplers import NoiseSchedule, RectifiedFlow, VarianceExploding
from dpm_solver_nodes.samplers.schedules.sigma_lists import log_snr
from dpm_solver_nodes.tests.support.mixture import Sampler, difference

ENDS: dict[NoiseSchedule, tuple[float, float]] = {
    VarianceExploding(): (3.0, 0.3),
    RectifiedFlow(): (0.75, 0.25),
}
"""Short, so that few steps show the order."""

WITHIN = 0.2
"""How far a fitted order may be from the claimed one."""

Rate = Callable[[float], float]
"""An eta that depends on lambda_."""


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    fitted, _ = np.polyfit(np.log(steps), np.log(errors), 1)
    return -fitted


class Gaussian:
    """The exact denoiser of a Gaussian with a full covariance, and what the SDE makes of a start.

    Args:
        scale: multiplies the target's covariance; with 0 the denoised output is its mean.
    """

    MEAN = torch.tensor([0.8, -0.5], dtype=torch.float64)
    COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.9]], dtype=torch.float64)

    def __init__(self, schedule: NoiseSchedule, scale: float = 1.0) -> None:
        self.schedule = schedule
        self.eye = torch.eye(len(self.MEAN), dtype=torch.float64)
        self.covariance = scale * self.COVARIANCE

    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, seed: int | None = None
    ) -> torch.Tensor:
        level = sigma[0].item()
        alpha = self.schedule.alpha(level)
        gain = alpha * torch.linalg.solve(self.marginal(level)[1], self.covariance)
        return self.MEAN + (x - alpha * self.MEAN) @ gain

    def marginal(self, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance of the noised target."""
        alpha = self.schedule.alpha(sigma)
        return alpha * self.MEAN, alpha**2 * self.covariance + sigma**2 * self.eye

    def end(
        self,
        mean: torch.Tensor,
        covariance: torch.Tensor,
        ends: tuple[float, float],
        eta: float | Rate,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance that the SDE comes to from others than the noised target's.

        It draws a state to the noised target's mean and adds the noise that keeps its covariance
        V(sigma). With v an eigenvalue of V, d log(x) = d log(v) / 2 along the ODE; the SDE's score
        term adds -eta sigma^2 / v dlambda, for a constant eta eta / 2 dlog(v / alpha^2).
        """
        (m0, v0), (m1, v1) = map(self.marginal, ends)
        own, axes = torch.linalg.eigh(self.covariance)
        e0, e1 = ((axes.T @ v @ axes).diagonal() for v in (v0, v1))
        alpha0, alpha1 = map(self.schedule.alpha, ends)
        if callable(eta):
            terms = torch.tensor([self._score_term(ends, eta, one.item()) for one in own])
        else:
            terms = (eta / 2.0) * (e1 / e0 * (alpha0 / alpha1) ** 2).log()
        pulls = (e1 / e0).sqrt() * terms.exp()
        pull = axes @ pulls.diag() @ axes.T
        return m1 + pull @ (mean - m0), v1 + pull @ (covariance - v0) @ pull.T

    def _score_term(self, ends: tuple[float, float], eta: Rate, own: float) -> float:
        def rate(lambda_: float) -> float:
            sigma = self.schedule.sigma(lambda_)
            return eta(lambda_) * sigma**2 / (self.schedule.alpha(sigma) ** 2 * own + sigma**2)

        integral, _ = quad(rate, *map(self.schedule.lambda_, ends), epsabs=1e-13, epsrel=1e-13)
        return float(-integral)


def propagate(
    sampler: Sampler,
    target: Gaussian,
    sigmas: Sequence[float],
    mean: torch.Tensor,
    covariance: torch.Tensor,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of a run's end, from those of its start, without chance.

    Its steps being linear, a batch of the mean, of the mean plus each root of the start's covariance,
    and of the mean plus each unit of noise in each interval has it all.
    """
    schedule, size, n = target.schedule, len(mean), len(sigmas) - 1
    lambdas = [schedule.lambda_(sigma) for sigma in sigmas]
    at = {sigma: i for i, sigma in enumerate(sigmas)}

    def noise(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        """Of a Brownian path in the log-SNR, whose increments over the intervals are the units."""
        i, j = at[sigma.item()], at[sigma_next.item()]
        noise = torch.zeros(1 + size + n * size, size, dtype=torch.float64)
        for k in range(i, j):
            share = (lambdas[k + 1] - lambdas[k]) / (lambdas[j] - lambdas[i])
            noise[1 + size + k * size :][:size] = math.sqrt(share) * target.eye
        return noise

    x = mean.repeat(1 + size + n * size, 1)
    x[1 : 1 + size] += torch.linalg.cholesky(covariance).T
    end = sampler(target, x, sigmas, schedule=schedule, noise_sampler=noise, **settings)
    responses = end[1:] - end[0]
    return end[0], responses.T @ responses


Start = Callable[[Gaussian, float], tuple[torch.Tensor, torch.Tensor]]
WEAK_STEPS = (60, 120, 240)


def pure_noise(target: Gaussian, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What samplers are started from."""
    return 0.0 * target.MEAN, sigma**2 * target.eye


def weak_order(
    sampler: Sampler,
    schedule: NoiseSchedule,
    eta: float | Rate,
    begin: Start = pure_noise,
) -> float:
    """Fitted to the larger error of mean and covariance.

    Args:
        eta: of the SDE, a number or a function of lambda_.
    """
    target, ends = Gaussian(schedule), ENDS[schedule]
    moments = begin(target, ends[0])
    exact = target.end(*moments, ends, eta)
    errors = []
    for n in WEAK_STEPS:
        result = propagate(sampler, target, log_snr(schedule, *ends, n), *moments)
        errors.append(max(map(difference, result, exact)))
    return slope(WEAK_STEPS, errors)
