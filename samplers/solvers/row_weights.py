"""The weights of a step with the gains of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .any_list import WIDE

FIRST_STEP = 1.0
"""The most, in log s, that a first step from nearly pure noise counts as, however long it is."""


def counted_as(levels: Sequence[float]) -> list[float]:
    """The levels of a run, log s, as its weights count them."""
    first, *later = levels
    if later and first > math.log(WIDE):
        first = min(first, later[0] + FIRST_STEP)
    return [first, *later]


def weights(levels: Sequence[float], slope: float, curvature: float) -> tuple[float, ...]:
    """The weights c_j of the outputs D_j before the newest one, D, in D + sum_j c_j (D - D_j).

    Args:
        levels: log s of the last calls, at most three, and of the end of the step, which may be
            minus infinity.
        slope, curvature: the gains.
    """
    *before, start, end = levels
    if not before:
        return ()
    h, h1 = start - end, before[-1] - start
    if math.isinf(h):  # a step to zero extrapolates the output by the length of the step before
        of_slope, of_curvature = h1, 2.0 * h1 * h1
    else:
        full = h / -math.expm1(-h)
        of_slope = full - 1.0
        of_curvature = h * full - 2.0 * of_slope + h1 * of_slope
    newer = slope * of_slope / h1
    if len(before) == 1:
        return (newer,)
    h2 = before[-2] - before[-1]
    of_curvature *= curvature
    return newer + of_curvature / (h1 * h2), -of_curvature / ((h1 + h2) * h2)
