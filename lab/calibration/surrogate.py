"""A search for the student's sigmas without model calls: a surrogate predicts the errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ...samplers import NoiseSchedule
from ..metrics import geometric_mean
from .fit import SLOPES, Student, prior, reweighted
from .teacher import Array, Records

STATES_BYTES = 2**26
"""The most memory that a search uses for its states."""

SPREADS = (0.5, 0.3, 1.0)
"""The values of `spread` to search with; see `Surrogate`."""


class Predicts(Protocol):
    """Predicts a student's error from its sigmas' indices, without calling the model."""

    points: int

    def error(self, indices: tuple[int, ...]) -> float: ...


class _State(NamedTuple):
    """A student's state during a run, as combinations of the vectors in `Surrogate`."""

    x: Array
    slopes: tuple[Array, ...]
    unknown: Array
    error: float


class Surrogate:
    """Predicts a student's error without calling the model.

    At the teacher's states the model's outputs are known. Away from them, the output is assumed to
    change with the state as for Gaussian data of a third of the images' variance, and in addition by
    `spread` times the distance in an unknown direction. All of the student's states are then linear
    combinations of the teacher's states and outputs and of these unknown directions. Only the products
    of these vectors are needed, so that the cost doesn't depend on the images' size.
    """

    def __init__(
        self,
        records: Records,
        schedule: NoiseSchedule,
        calls: int,
        slopes: int = SLOPES,
        spread: float = SPREADS[0],
    ) -> None:
        self.records, self.schedule = records, schedule
        self.calls, self.slopes, self.spread = calls, slopes, spread
        self.products = records.products.sum(1)[records.counted]
        self.points = len(records.sigmas)
        self.variance = 0.3 * records.variance
        self.unit = np.eye(2 * self.points + 1 + calls)
        self.states: dict[tuple[int, ...], _State] = {}
        numbers = len(self.products) * calls + (slopes + 2) * len(self.unit)
        self.most_states = STATES_BYTES // (8 * numbers)
        self.priors: dict[tuple[int, ...], Array] = {}

    def gain(self, sigma: float) -> float:
        """How much the output changes with the state."""
        alpha = self.schedule.alpha(sigma)
        return alpha * self.variance / (alpha**2 * self.variance + sigma**2)

    def prior(self, indices: Sequence[int]) -> Array:
        """Exact weights of the step that leads to the last of these, padded to its slopes."""
        recent = tuple(indices[-(self.slopes + 1) :])
        if recent not in self.priors:
            sigmas = [self.sigma(index) for index in recent]
            self.priors[recent] = prior(self.schedule, sigmas, self.slopes)
        return self.priors[recent]

    def sigma(self, index: int) -> float:
        return self.records.sigmas[index] if index < self.points else 0.0

    def error(self, indices: tuple[int, ...]) -> float:
        """The predicted error of a student on these sigmas, one for each call."""
        if len(self.states) > self.most_states:
            self.states.clear()
        return self._state((*indices, self.points)).error

    def _state(self, indices: tuple[int, ...]) -> _State:
        """The student's state after steps along these indices; lists that begin alike share it."""
        if indices in self.states:
            return self.states[indices]
        # Vectors: the teacher's states, its outputs, and one unknown direction for each call.
        known, unit = 2 * self.points + 1, self.unit
        if len(indices) == 1:
            none = np.zeros((len(self.products), self.calls))
            state = _State(unit[indices[0]], (), none, 0.0)
        else:
            before = self._state(indices[:-1])
            call, index = len(indices) - 2, indices[-2]
            unknown, output = before.unknown, unit[self.points + 1 + index]
            if call:
                away = before.x - unit[index]
                unknown = unknown.copy()
                unknown[:, call] = self.spread**2 * self._products(away[None], unknown)[:, 0, 0]
                output = output + self.gain(self.sigma(index)) * away + unit[known + call]
            slope = (before.x - output) / self.sigma(index)
            slopes = (slope, *before.slopes[: self.slopes - 1])
            vectors = np.stack([before.x, *slopes, unit[indices[-1]]])
            weights, errors = reweighted(self._products(vectors, unknown), self.prior(indices))
            state = _State(weights @ vectors[:-1], slopes, unknown, geometric_mean(np.sqrt(errors)))
        self.states[indices] = state
        return state

    def _products(self, vectors: Array, unknown: Array) -> Array:
        """[S, m, m], mean products of m vectors. `unknown` has the mean squares of the unknown
        directions, [S, calls]."""
        known = 2 * self.points + 1
        used = np.flatnonzero(vectors[:, :known].any(0))
        of_known = vectors[:, used] @ self.products[:, used[:, None], used] @ vectors[:, used].T
        off = vectors[:, known:]
        return of_known + (off * unknown[:, None, :]) @ off.T


def search(
    surrogate: Predicts, start: Sequence[int], tick: Callable[[], object] = lambda: None
) -> tuple[int, ...]:
    """Minimise the surrogate's error by coordinate descent: move one sigma, or one and all after it.

    Args:
        tick: called before each sigma is moved, some hundreds of times a second.
    """
    best = tuple(start)
    stride = max(2, surrogate.points // 12)
    while stride:
        before = best
        for i in range(1, len(best)):
            tick()
            for until in (i + 1, len(best)):
                for shift in (-stride, stride):
                    moved = (*best[:i], *(k + shift for k in best[i:until]), *best[until:])
                    if _falls(moved, surrogate.points) and (
                        surrogate.error(moved) < surrogate.error(best)
                    ):
                        best = moved
        if best == before:
            stride //= 2
    return best


def moves(student: Student, points: int) -> list[tuple[int, ...]]:
    """Lists that differ from a student's in one sigma, or in one and all after it; in random order."""
    indices = student.indices
    found = [
        (*indices[:i], *(k + shift for k in indices[i:until]), *indices[until:])
        for shift in (-2, 2, -1, 1)
        for i in range(1, len(indices))
        for until in {i + 1, len(indices)}
    ]
    order = np.random.default_rng(len(indices)).permutation(len(found))
    return [found[i] for i in order if _falls(found[i], points)]


def _falls(indices: Sequence[int], points: int) -> bool:
    return indices[-1] < points and all(a < b for a, b in itertools.pairwise(indices))


def nearest(sigmas: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """Indices of the falling sigmas that are nearest by ratio to the wanted ones, all different."""
    levels, points, chosen = np.log(sigmas), len(sigmas), list[int]()
    for i, sigma in enumerate(wanted):
        index = int(np.abs(levels - math.log(sigma)).argmin())
        lowest = chosen[-1] + 1 if chosen else 0
        chosen.append(min(max(index, lowest), points - len(wanted) + i))
    return tuple(chosen)
