"""Exact exponential integrals, in float64.

Between sigma_s and sigma_t, with h = lambda_t - lambda_s, both forms of the probability-flow ODE
have an exact linear part and an integral of the model's output m along lambda_:

    DPM-Solver++  x_t = sigma_t / sigma_s x_s + alpha_t  int_0^h e^-(h - tau) m(tau) dtau, m = x0
    DPM-Solver    x_t = alpha_t / alpha_s x_s - sigma_t  int_0^h e^+(h - tau) m(tau) dtau, m = noise

(DPM-Solver++, equation 8; DPM-Solver, equation 3.4.) With m replaced by a polynomial whose scaled
derivatives at sigma_s are D_k = h^k m^(k), both become

    x_t = state * x_s + scale * sum_k phi_{k+1}(z) D_k

with scale = alpha_t h, z = -h, or scale = -sigma_t h, z = +h. Every solver here is this sum with its
own estimates of D_k from model outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .schedule import NoiseSchedule

Algorithm = Literal["dpmsolver++", "dpmsolver"]

_SERIES_TERMS = 20  # 1 / 20! is below float64's resolution for |z| < 1


def phi(k: int, z: float) -> float:
    """phi_k(z) = int_0^1 e^((1 - t) z) t^(k - 1) / (k - 1)! dt, for k >= 1.

    The closed recursion phi_{k+1} = (phi_k - 1 / k!) / z cancels for small z, so a series is used
    there (Hochbruck and Ostermann, Exponential integrators, Acta Numerica 2010, equation 2.10).
    """
    if abs(z) < 1.0:
        term = 1.0 / math.factorial(k)
        total = term
        for j in range(1, _SERIES_TERMS):
            term *= z / (j + k)
            total += term
        return total
    value = math.expm1(z) / z
    for j in range(1, k):
        value = (value - 1.0 / math.factorial(j)) / z
    return value


Rule = tuple[tuple[int, float], ...]
"""How a step weighs the derivatives: for D_0, D_1, ... the k of phi_k and a factor."""

EXACT: Rule = ((1, 1.0), (2, 1.0), (3, 1.0))
"""The interpolation polynomial integrated exactly."""

MIDPOINT: Rule = ((1, 1.0), (1, 0.5))
"""The published second-order "dpmsolver" type: phi_2 replaced by phi_1 / 2."""

HALF_CURVATURE: Rule = ((1, 1.0), (2, 1.0), (3, 0.5))
"""The published third-order multistep formula: its D2 is half of the second derivative, so that it
converges at order 2."""


@dataclass(frozen=True)
class Transition:
    """The way from sigma_s to sigma_t, both with a finite lambda_, for one algorithm.

    Attributes:
        h: lambda_t - lambda_s; negative where sigma rises.
        state: weight of the state at sigma_s.
    """

    h: float
    state: float
    scale: float
    z: float

    @classmethod
    def between(
        cls, schedule: NoiseSchedule, algorithm: Algorithm, sigma_s: float, sigma_t: float
    ) -> Transition:
        h = schedule.lambda_(sigma_t) - schedule.lambda_(sigma_s)
        alpha_s, alpha_t = schedule.alpha(sigma_s), schedule.alpha(sigma_t)
        if algorithm == "dpmsolver++":
            return cls(h, sigma_t / sigma_s, alpha_t * h, -h)
        return cls(h, alpha_t / alpha_s, -sigma_t * h, h)

    def weights(self, nodes: Sequence[float], rule: Rule) -> tuple[float, ...]:
        """Weights of the model outputs at sigma_s and at other nodes.

        Args:
            nodes: lambda_ of the other nodes (at most two) relative to sigma_s; their outputs and
                the one at sigma_s define the polynomial.
            rule: which multiple of which phi goes with D_0, D_1, ...

        Returns:
            One weight for sigma_s, then one for each of the nodes.
        """
        terms = [self.scale * factor * phi(k, self.z) for k, factor in rule]
        if not nodes:
            return (terms[0],)
        theta1 = nodes[0] / self.h
        if len(nodes) == 1:
            first = terms[1] / theta1  # D_1 = (m_1 - m_0) / theta_1
            return terms[0] - first, first
        # m_j - m_0 = D_1 theta_j + D_2 theta_j^2 / 2 for j = 1, 2, solved for D_1 and D_2.
        theta2 = nodes[1] / self.h
        first = (terms[1] * theta2 - 2.0 * terms[2]) / (theta1 * (theta2 - theta1))
        second = (2.0 * terms[2] - terms[1] * theta1) / (theta2 * (theta2 - theta1))
        return terms[0] - first - second, first, second
