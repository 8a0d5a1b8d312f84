"""ER-SDE solvers of orders 1 to 3: stochastic multistep solvers with another amount of noise.

"Elucidating the solution space of extended reverse-time SDE for diffusion models" (arXiv 2309.06169),
in the authors' code `vp_{1,2,3}_order_taylor`, in ComfyUI `sample_er_sde`. With s = sigma / alpha, the
SDE's noise is given by a function phi(s), and a step of it is

    x_t = alpha_t / alpha_s phi(s_t) / phi(s_s) x_s + alpha_t (1 - phi(s_t) / phi(s_s)) D
          + alpha_t (s_t - s_s + phi(s_t) int_{s_t}^{s_s} ds / phi) D'
          + alpha_t ((s_t - s_s)^2 / 2 + phi(s_t) int_{s_t}^{s_s} (s - s_s) ds / phi) D''
          + alpha_t sqrt(s_t^2 - s_s^2 (phi(s_t) / phi(s_s))^2) noise

D' and D'' are differences of the denoised outputs in s. Here phi(s) = s psi(s)^eta: eta = 0 is the
ODE, and eta = 1 the published function. For the reverse-time SDE, psi(s) = s, eta has the same meaning
as in `multistep`.

The integrals are published as sums of 200 terms. With them the weak order is 2 until a step's error is
near that of its sum, some hundredths of the second-order term. Exact ones are of weak order 2 however
short the steps are. Orders above 2 there are none: D' is a first-order difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..checks import one_of
from ..grid import Grid
from ..options import Options, order_of
from ..plan import PLANS_KEPT, Plan, Step

NOISE_TYPES = ("er_sde", "reverse_time")

INTEGRALS = ("published", "exact")

POINTS = 200
"""The published integrals are sums over so many points, from the end of the step on."""

NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(40)


@dataclass(frozen=True, kw_only=True)
class ErSde(Options):
    """Settings of `sample_er_sde`, which says what they mean.

    Attributes:
        cfg_pp: the CFG++ form, for which the sampler is given the unconditional predictions.
    """

    order: int = 3
    eta: float = 1.0
    noise_type: str = "er_sde"
    integrals: str = "published"
    cfg_pp: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(order=order_of(self.order, (1, 2, 3)))
        one_of("noise_type", self.noise_type, NOISE_TYPES)
        one_of("integrals", self.integrals, INTEGRALS)

    @property
    def needs_unconditional(self) -> bool:
        return self.cfg_pp

    def plan(self, grid: Grid) -> Plan:
        self.check_direction(grid)
        plan = plan_er_sde(grid, self)
        return plan.cfg_pp(grid.schedule) if self.cfg_pp else plan


@lru_cache(PLANS_KEPT)
def plan_er_sde(grid: Grid, settings: ErSde) -> Plan:
    """Plan an ER-SDE run: n calls for n intervals, the first ones of the order that outputs allow.

    Where s is infinite all of an SDE's noise is fresh, and the output there enters no later step.
    """
    s = [math.exp(-level.lambda_) for level in grid.levels[grid.first : grid.intervals + 1]]
    steps = [
        _step(grid, settings, i, s[: i + 2 - grid.first])
        if grid.first <= i < grid.intervals
        else grid.limit_step(i, 0.0 if settings.eta_to(end.sigma) else 1.0)
        for i, end in enumerate(grid.levels[1:])
    ]
    return grid.plan(steps)


def _step(grid: Grid, settings: ErSde, i: int, s: list[float]) -> Step:
    """The step from level i, with s of the calls so far and of the step's end."""
    start, end = grid.levels[i : i + 2]
    phi = Phi(settings.noise_type, settings.eta_to(end.sigma))
    *_, s_start, s_end = s
    log_kept = float(phi.log_psi(s_end) - phi.log_psi(s_start))
    state = math.exp(log_kept) * end.sigma / start.sigma
    moments = phi.moments(s_start, s_end, settings.integrals)
    of_slope, of_curvature = (end.alpha * moment for moment in moments)
    order = min(settings.order, len(s) - 1)
    newer, older, oldest = end.alpha - start.alpha * state, 0.0, 0.0
    if order > 1:
        first = s[-2] - s[-3]
        newer += of_slope / first
        older -= of_slope / first
    if order > 2:
        second = s[-3] - s[-4]
        weight = of_curvature * 2.0 / (first + second)
        newer += weight / first
        older -= weight / first + weight / second
        oldest += weight / second
    return Step(
        start.sigma,
        end.sigma,
        state,
        (newer, older, oldest)[:order],
        order=order,
        noise=end.sigma * math.sqrt(max(-math.expm1(2.0 * log_kept), 0.0)),
    )


class Phi(NamedTuple):
    """The noise function phi(s) = s psi(s)^eta."""

    noise_type: str
    eta: float

    def log_psi(self, s: Any) -> Any:
        """eta log psi, for a number or an array."""
        er_sde = self.noise_type == "er_sde"
        return self.eta * (np.logaddexp(s**0.3, math.log(10.0)) if er_sde else np.log(s))

    def moments(self, start: float, end: float, integrals: str) -> tuple[float, float]:
        """The factors of D' and D'' in a step."""
        length = start - end
        if integrals == "published":
            points = end + length / POINTS * np.arange(POINTS)
            widths = np.full(POINTS, length / POINTS)
        else:  # by Gauss and Legendre, in log s
            half = math.log(start / end) / 2.0
            points = end * np.exp(half * (1.0 + NODES))
            widths = half * NODE_WEIGHTS * points
        log_ratios = np.log(end / points) + self.log_psi(end) - self.log_psi(points)
        weights = widths * np.exp(log_ratios)  # phi at the end / phi at each point
        of_slope = weights.sum() - length
        of_curvature = ((points - start) * weights).sum() + length**2 / 2.0
        return float(of_slope), float(of_curvature)
