"""A multistep solver for whatever list of sigmas it is given.

Hosts' lists are not made for a solver: "simple" starts a flow with s = sigma / alpha infinite and ends
with a step that is many times as long in lambda_ as the one before. A polynomial in lambda_ goes
astray there. What a model draws changes only between two noise levels: above COARSEST nothing of the
image is left, so that the output is the average of all images, and below FINEST all of it is decided.
This solver therefore interpolates x0 by a polynomial in a variable that stops there, `place`. The
weights are the exact integrals of x0's solution (DPM-Solver++, arXiv 2211.01095, equation 8), taken by
quadrature, and less of the polynomial is used over steps that are long even so.

All constants were chosen on `TUNE` of `benchmarks/problems`, for the error over that of the best of
five of ComfyUI's samplers, and over Euler's, on the same list; `benchmarks/judge_other_lists.py`
measures it on others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ..grid import Grid
from ..plan import PLANS_KEPT, Plan, Step
from .long_steps import reach_2m

FINEST, COARSEST = 0.3, 300.0
"""Of s = sigma / alpha, for images of variance 1."""

CURVATURE = 0.25
"""The part of a parabola's curvature that is used. All of it makes third order, and is unstable under
guidance."""

APART = 1e-6
"""Outputs nearer to each other than this, in `place`, have no slope to be told."""

WIDE = 30.0
"""A run that starts above this s starts from nearly pure noise."""

FIRST_STEP = 1.5
"""The most, in `place`, that a first step from pure noise counts as: from any s that is high enough
the model's output is the average of all images."""

PURE_NOISE = 1e4
"""Stands for all larger s."""

NODES, SHARES = np.polynomial.legendre.leggauss(12)
"""Of Gauss-Legendre quadrature on [-1, 1], for each unit of log s."""


def place(s: np.ndarray) -> np.ndarray:
    """Where a noise level lies on the way from noise to image: log s, bounded at both ends."""
    return 0.5 * np.log((s * s + FINEST**2) / (1.0 + (s / COARSEST) ** 2))


@lru_cache(PLANS_KEPT)
def plan_list(grid: Grid) -> Plan:
    """One model call for each sigma of a list, falling or rising: order 1, then 2, then nearly 3."""
    levels = [min(sigma / max(alpha, 1e-18), PURE_NOISE) for sigma, alpha, _ in grid.levels]
    places = place(np.array(levels)).tolist()
    if grid.falls and levels[0] > WIDE and len(places) > 1:
        places[0] = min(places[0], places[1] + FIRST_STEP)
    steps = []
    for i, (start, end) in enumerate(pairwise(grid.levels)):
        c: tuple[float, ...] = ()
        before, ahead = places[i - 1] - places[i], places[i] - places[i + 1]
        if i and abs(before) > APART:
            share = reach_2m(abs(before), max(abs(ahead), APART), start, end)
            known = places[max(i - 2, 0) : i + 1]
            c = earlier_weights(known, levels[i], levels[i + 1], share)
        state = end.sigma / start.sigma
        total = end.alpha - start.alpha * state
        outputs = (total * (1.0 + sum(c)), *(-total * weight for weight in c))
        steps.append(Step(start.sigma, end.sigma, state, outputs, order=1 + len(c)))
    return grid.plan(steps)


def earlier_weights(
    places: Sequence[float], start: float, end: float, share: float
) -> tuple[float, ...]:
    """The weights c_j of the outputs D_j before the newest one, D, in D + sum_j c_j (D - D_j).

    Args:
        places: of the last calls, two or three.
        start, end: s at the ends of the step.
        share: of the line's change that is used; less than 1 over a long step (`long_steps`).
    """
    *earlier, here = places
    before = earlier[-1] - here
    inside, parts = _inside(start, end)
    ahead = here - place(inside)
    line = share * float(parts @ ahead) / before
    if len(earlier) < 2 or abs(earlier[0] - earlier[1]) < APART:
        return (line,)
    curved = share * share * CURVATURE * float(parts @ (ahead * (ahead + before)))
    whole = earlier[0] - here
    return line + curved / (before * (whole - before)), -curved / (whole * (whole - before))


def _inside(start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of s within a step, and the part of each in the mean of x0 that the step takes."""
    if end == 0.0:
        return np.zeros(1), np.ones(1)
    length = math.log(start / end)
    panels = max(1, math.ceil(abs(length)))
    width = length / panels
    passed = ((NODES + 1.0) / 2.0 + np.arange(panels)[:, None]).ravel() * width
    parts = np.tile(SHARES, panels) * np.exp(passed - length)
    return start * np.exp(-passed), parts / parts.sum()
