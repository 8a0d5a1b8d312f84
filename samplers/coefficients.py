"""Exact exponential integrals, in float64.

Between sigma_s and sigma_t, with h = lambda_t - lambda_s, the probability-flow ODE in x0 and in the
noise has an exact linear part and an integral of the model's output m along lambda_:

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

Adams' solvers, which programs ship as LMS, iPNDM and DEIS, take the ODE as it stands, dx / dsigma =
(x - x0) / sigma = m, so that the state keeps its weight and m is a polynomial in a power of sigma:

    Adams  x_t = x_s + int_{sigma_s}^{sigma_t} m dsigma

The power 1 is Adams and Bashforth's own method (DEIS, arXiv 2204.13902, calls it rho-AB); towards 0
the polynomial comes to run in log sigma, which on variance exploding is DPM-Solver.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Algorithm = Literal["dpmsolver++", "dpmsolver", "adams"]

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
"""The k of phi_k and a factor for each of the derivatives D_0, D_1, ... in a step."""

EXACT: Rule = ((1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0))
"""The interpolation polynomial integrated exactly, for up to as many outputs as listed."""

MIDPOINT: Rule = ((1, 1.0), (1, 0.5))
"""The published second-order "dpmsolver" type: phi_2 replaced by phi_1 / 2."""

HALF_CURVATURE: Rule = ((1, 1.0), (2, 1.0), (3, 0.5))
"""The published third-order multistep formula. Its D2 is half of the second derivative, so that it
converges at order 2."""


class Level(NamedTuple):
    """A noise level: sigma, with its alpha and lambda_ on a schedule."""

    sigma: float
    alpha: float
    lambda_: float


def distance(algorithm: Algorithm, start: Level, end: Level, power: float = 1.0) -> float:
    """The distance from one level to another in the variable of the algorithm's polynomials.

    The variable is lambda_; for "adams" it is (sigma / sigma_start)^power / power or, at power 0,
    log sigma.
    """
    if algorithm != "adams":
        return end.lambda_ - start.lambda_
    way = math.log(end.sigma / start.sigma)
    return math.expm1(power * way) / power if power else way


class Transition(NamedTuple):
    """The step between two levels at a finite distance, for one algorithm.

    Attributes:
        h: `distance` (in lambda_ it is negative where sigma rises).
        state: weight of the state at s.
        scale: a factor of the outputs' weights.
        z: the argument of phi; see above. For "adams", log(sigma_t / sigma_s).
        noise: standard deviation of the noise that is added.
        power: the power of sigma, for "adams"; None otherwise.
    """

    h: float
    state: float
    scale: float
    z: float
    noise: float
    power: float | None = None

    @classmethod
    def between(
        cls,
        algorithm: Algorithm,
        start: Level,
        end: Level,
        eta: float = 0.0,
        power: float = 1.0,
    ) -> Transition:
        """The transition of the ODE (eta = 0), or of the SDE, for which sigma must fall."""
        h = distance(algorithm, start, end, power)
        if algorithm == "adams":
            way = math.log(end.sigma / start.sigma)
            return cls(h, 1.0, start.sigma, way, 0.0, power)
        if algorithm == "dpmsolver++":
            state, scale, z = end.sigma / start.sigma, end.alpha * h, -h
            if eta == 0.0:
                return cls(h, state, scale, z, 0.0)
            noise = end.sigma * math.sqrt(-math.expm1(-2.0 * eta * h))
            return cls(h, state * math.exp(-eta * h), (1.0 + eta) * scale, (1.0 + eta) * z, noise)
        noise = end.sigma * math.sqrt(eta * math.expm1(2.0 * h)) if eta else 0.0
        return cls(h, end.alpha / start.alpha, -(1.0 + eta) * end.sigma * h, h, noise)

    def weights(self, nodes: Sequence[float], rule: Rule, reach: float = 1.0) -> tuple[float, ...]:
        """Weights of the model outputs at sigma_s and at other nodes.

        Args:
            nodes: `distance` of the other nodes from sigma_s; their outputs and the one at sigma_s
                define the polynomial.
            rule: which multiple of which phi goes with D_0, D_1, ...; "adams" takes only EXACT.
            reach: the share of the step up to which the polynomial is read: m(reach tau) replaces
                m(tau).

        Returns:
            One weight for sigma_s, then one for each of the nodes.
        """
        # A polynomial in theta = distance / h has the outputs m_j = sum_k D_k theta_j^k / k!, so that
        # the weights must satisfy sum_j w_j theta_j^k = k! scale phi_{k+1}: a Vandermonde system.
        theta = [0.0, *(node / self.h for node in nodes)]
        if self.power is not None:
            moments = power_moments(len(theta), self.z, self.power)
        else:
            moments = [
                math.factorial(k) * factor * phi(index, self.z)
                for k, (index, factor) in zip(range(len(theta)), rule, strict=False)
            ]
        moments = [self.scale * moment * reach**k for k, moment in enumerate(moments)]
        return _vandermonde(theta, moments)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)  # exact up to rounding over twenty decades


def power_moments(count: int, way: float, power: float) -> list[float]:
    """int e^l theta^k dl over l = log(sigma / sigma_s), up to `way`, for k = 0, 1, ..., count - 1.

    theta goes from 0 to 1 with the power of sigma, or with l at power 0.
    """
    at = way * (_NODES + 1.0) / 2.0
    theta = np.expm1(power * at) / math.expm1(power * way) if power else at / way
    powers = theta ** np.arange(count)[:, None]
    moments: list[float] = (powers @ (_WEIGHTS * way / 2.0 * np.exp(at))).tolist()
    return moments


def _vandermonde(nodes: Sequence[float], moments: Sequence[float]) -> tuple[float, ...]:
    """Solve sum_j w_j nodes_j^k = moments_k for w, nodes being distinct.

    Bjorck and Pereyra, Solution of Vandermonde systems of equations, 1970: it stays accurate
    even if the matrix is nearly singular.
    """
    w = list(moments)
    last = len(nodes) - 1
    for k in range(last):
        for i in range(last, k, -1):
            w[i] -= nodes[k] * w[i - 1]
    for k in range(last - 1, -1, -1):
        for i in range(k + 1, last + 1):
            w[i] /= nodes[i] - nodes[i - k - 1]
        for i in range(k, last):
            w[i] -= w[i + 1]
    return tuple(w)
