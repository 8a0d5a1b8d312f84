"""A checked list of sigmas, in the order of the run: solvers make plans for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

from .coefficients import Algorithm, Level, Transition, distance
from .devices import as_float64
from .plan import Plan, Step
from .schedules.process import NoiseSchedule, VarianceExploding

NEARLY_EQUAL = 1e-6
"""Sigmas nearer than this in lambda_ count as equal. In float32 lists neighbours may differ only by
rounding, and a slope between them would be nothing but rounding."""

SMALLEST, LARGEST = 1e-18, 1e18
"""Noise levels beyond these would give weights that float32 can't hold; no model comes near them."""


def read_sigmas(
    sigmas: torch.Tensor | Sequence[float], schedule: NoiseSchedule
) -> tuple[float, ...]:
    """Check a list of sigmas and copy it to the CPU. Only here does a run wait for its device.

    Args:
        sigmas: 1-D, falling (noise to image; may end at 0) or rising (image to noise; starts above
            0 and ends below the schedule's limit). Neighbours may be equal.

    Raises:
        ValueError: the list is empty or not 1-D, changes its direction, leaves the schedule's range,
            or holds NaN, infinity, a negative number, or one not between SMALLEST and LARGEST.
    """
    sigmas = as_float64(sigmas)
    if sigmas.ndim != 1:
        raise ValueError(f"sigmas must be a 1-D list, not of shape {tuple(sigmas.shape)}.")
    limit = schedule.sigma_limit
    values = tuple(
        limit if abs(sigma - limit) < NEARLY_EQUAL else sigma  # a flow's 1, rounded in float32
        for sigma in sigmas.tolist()
    )
    if not values:
        raise ValueError("sigmas is empty: a sampler needs at least the sigma it starts from.")
    for i, sigma in enumerate(values):
        if not math.isfinite(sigma) or sigma < 0.0:
            raise ValueError(
                f"sigmas[{i}] is {sigma}: every sigma must be finite and not negative."
            )
        if sigma > LARGEST or 0.0 < sigma < SMALLEST:
            raise ValueError(
                f"sigmas[{i}] is {sigma:g}: every sigma above 0 must lie between {SMALLEST:g} and "
                f"{LARGEST:g}."
            )
        if sigma > limit:
            raise ValueError(
                f"sigmas[{i}] is {sigma:g}, and a flow model has none above {limit:g}: take a "
                "scheduler made for this model, and in nodes that multiply sigmas (MultiplySigmas) "
                "a factor of at most 1."
            )
    falls = any(b < a for a, b in pairwise(values))
    rises = any(b > a for a, b in pairwise(values))
    if falls and rises:
        raise ValueError(
            "sigmas change direction: they must fall all the way, or rise all the way."
        )
    if rises and values[0] == 0.0:
        raise ValueError("rising sigmas must start above 0, for example at the model's sigma_min.")
    if rises and values[-1] >= limit:
        raise ValueError(
            f"rising sigmas of a {type(schedule).__name__} model must end below "
            f"{limit:g}, where no signal is left."
        )
    return values


@dataclass(frozen=True)
class Grid:
    """A checked list of sigmas, and its distinct levels.

    Attributes:
        sigmas: the list, in the order of the run.
        levels: its levels, at least one; neighbours differ by more than NEARLY_EQUAL in lambda_.
        repeats: for each level, how many more times it stands in the list.
    """

    schedule: NoiseSchedule = field(compare=False)  # plans depend on the levels only
    sigmas: tuple[float, ...] = field(compare=False)
    levels: tuple[Level, ...]
    repeats: tuple[int, ...]

    @classmethod
    def of(cls, sigmas: torch.Tensor | Sequence[float], schedule: NoiseSchedule) -> Grid:
        levels: list[Level] = []
        repeats: list[int] = []
        last = math.nan
        values = read_sigmas(sigmas, schedule)
        for sigma in values:
            lambda_ = schedule.lambda_(sigma)
            if lambda_ == last or abs(lambda_ - last) < NEARLY_EQUAL:
                repeats[-1] += 1
            else:
                levels.append(Level(sigma, schedule.alpha(sigma), lambda_))
                repeats.append(0)
                last = lambda_
        return cls(schedule, values, tuple(levels), tuple(repeats))

    @property
    def calls(self) -> int:
        """Model calls on the list: one for each sigma but the last."""
        return len(self.sigmas) - 1

    @property
    def intervals(self) -> int:
        """N: the number of intervals above zero."""
        return len(self.levels) - 1 - (self.levels[-1].sigma == 0.0)

    @property
    def falls(self) -> bool:
        return self.levels[-1].sigma <= self.levels[0].sigma

    @property
    def first(self) -> int:
        """Index of the first sigma with a finite lambda_: 1 where a flow starts at sigma = 1."""
        return int(math.isinf(self.levels[0].lambda_))

    def in_log_sigma(self) -> Grid:
        """The same list with -log sigma for lambda_, in which a flow's 1 has a finite place.

        The ODE of all models is dx / dsigma = (x - x0) / sigma, that of variance exploding, so that
        x0 may be interpolated in its variable whatever the schedule. Not so the noise, nor an SDE.
        """
        process = VarianceExploding()
        levels = (Level(sigma, 1.0, process.lambda_(sigma)) for sigma, _, _ in self.levels)
        return replace(self, levels=tuple(levels))

    def level_at(self, lambda_: float) -> Level:
        """The noise level at a lambda_, which need not be on the list."""
        sigma = self.schedule.sigma(lambda_)
        return Level(sigma, self.schedule.alpha(sigma), lambda_)

    def transition(
        self, algorithm: Algorithm, start: int, end: int, eta: float = 0.0, power: float = 1.0
    ) -> Transition:
        return Transition.between(algorithm, self.levels[start], self.levels[end], eta, power)

    def distance(self, algorithm: Algorithm, start: int, end: int, power: float = 1.0) -> float:
        return distance(algorithm, self.levels[start], self.levels[end], power)

    def limit_step(self, index: int, kept: float = 1.0) -> Step:
        """The exact first-order step of x0, which is defined where lambda_ is infinite, too.

        Both algorithms have it as their limit from a flow's 1, and to 0. In terms of the denoised
        output it is an Euler step.

        Args:
            kept: the fraction of the state's noise that is kept; fresh noise makes up for the rest.
        """
        start, end = self.levels[index], self.levels[index + 1]
        # x_t = sigma_t / sigma_s x_s + (alpha_t - alpha_s sigma_t / sigma_s) x0
        state = kept * end.sigma / start.sigma
        denoised = end.alpha - start.alpha * state
        noise = end.sigma * math.sqrt(1.0 - kept * kept)
        return Step(start.sigma, end.sigma, state, (denoised,), noise=noise)

    def plan(self, steps: Sequence[Step]) -> Plan:
        """The plan of these steps, one per interval, with a call added for each repeated sigma.

        At a repeated sigma the model is called and the state stays, so that n + 1 sigmas always
        mean n calls.
        """
        if not any(self.repeats):
            return Plan(tuple(steps))
        rows: list[Step] = []
        for i, (sigma, _, _) in enumerate(self.levels):
            rows += [Step(sigma, sigma, 1.0, (), order=0)] * self.repeats[i]
            if i < len(steps):
                step, correction = steps[i], steps[i].correction
                if correction:
                    outputs = self._among_repeats(i, correction.outputs)
                    correction = correction._replace(outputs=outputs)
                outputs = self._among_repeats(i, step.outputs)
                rows.append(step._replace(outputs=outputs, correction=correction))
        return Plan(tuple(rows))

    def _among_repeats(self, index: int, outputs: Sequence[float]) -> tuple[float, ...]:
        """The weights with a 0 for each repeated call, up to the last call at levels[index]."""
        weights: list[float] = []
        for age, weight in enumerate(outputs):
            weights += [weight] + [0.0] * self.repeats[index - age]
        while weights and weights[-1] == 0.0:
            weights.pop()
        return tuple(weights)
