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

The stochastic solvers do the same to the reverse diffusion SDE, whose noise is scaled by eta: 0 is
the ODE above, 1 the SDE that the forward process reverses to (DPM-Solver++, on diffusion SDEs; the
family in eta is k-diffusion's, SA-Solver's tau^2). With W a Brownian motion in lambda_,

    SDE-DPM-Solver++  x_t = sigma_t / sigma_s e^(-eta h) x_s
                            + (1 + eta) alpha_t int_0^h e^-(1 + eta)(h - tau) m(tau) dtau
                            + sigma_t sqrt(2 eta) int_0^h e^-eta(h - tau) dW(tau)
    SDE-DPM-Solver    x_t = alpha_t / alpha_s x_s - (1 + eta) sigma_t int_0^h e^+(h - tau) m(tau) dtau
                            + sigma_t sqrt(2 eta) int_0^h e^+(h - tau) dW(tau)

so that state, scale and z change, and noise of a known standard deviation is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

Algorithm = Literal["dpmsolver++", "dpmsolver"]

_SERIES_TERMS = 20  # 1 / 20! is below float64's resolution for |z| < 1


def phi(k: int, z: float) -> float:
    """phi_k(z) = int_0^1 e^((1 - t) z) t^(k - 1) / (k - 1)! dt, for k >= 1.

    The closed recursion phi_{k+1} = (phi_k - 1 / k!) / z cancels for small z, so a series is used
    there (Hochbruck and Ostermann, Exponential integrators, Acta Numerica 2010, equation 2.10).
    """
    if k > 1 and abs(z) < 1.0:
        term = 1.0 / math.factorial(k)
        total = term
        for j in range(1, _SERIES_TERMS):
            term *= z / (j + k)
            total += term
        return total
    value = math.expm1(z) / z if z else 1.0
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


class Level(NamedTuple):
    """A noise level, with what its schedule says of it."""

    sigma: float
    alpha: float
    lambda_: float


class Transition(NamedTuple):
    """The way between two levels, both with a finite lambda_, for one algorithm.

    Attributes:
        h: lambda_t - lambda_s; negative where sigma rises.
        state: weight of the state at s.
        scale, z: of the sum over phi; see above.
        noise: standard deviation of the noise that is added.
    """

    h: float
    state: float
    scale: float
    z: float
    noise: float

    @classmethod
    def between(
        cls, algorithm: Algorithm, start: Level, end: Level, eta: float = 0.0
    ) -> Transition:
        """The transition of the ODE (eta = 0), or of the SDE, for which sigma must fall."""
        h = end.lambda_ - start.lambda_
        if algorithm == "dpmsolver++":
            state, scale, z = end.sigma / start.sigma, end.alpha * h, -h
            if eta == 0.0:
                return cls(h, state, scale, z, 0.0)
            noise = end.sigma * math.sqrt(-math.expm1(-2.0 * eta * h))
            return cls(h, state * math.exp(-eta * h), (1.0 + eta) * scale, (1.0 + eta) * z, noise)
        noise = end.sigma * math.sqrt(eta * math.expm1(2.0 * h)) if eta else 0.0
        return cls(h, end.alpha / start.alpha, -(1.0 + eta) * end.sigma * h, h, noise)

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
