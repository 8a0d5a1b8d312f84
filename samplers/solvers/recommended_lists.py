"""The recommended lists of sigmas: whole ones, and those from a later start, for image to image."""

from __future__ import annotations

import math
from functools import lru_cache

from ..schedules.process import NoiseSchedule, RectifiedFlow
from .later_rows import later_row
from .rows import FARTHEST, KINDS, LARGEST, kind_of, levels_of_row, row_of, share_of, within

LONGEST = 200
"""Calls of the longest list in which a part is looked for, and of the longest from a later start that
is known."""


def recommended_sigmas(
    schedule: NoiseSchedule,
    sigma_max: float,
    sigma_min: float,
    calls: int,
    positions: int = LARGEST,
) -> list[float]:
    """The sigmas for this number of calls: calls + 1, from sigma_max to 0.

    Args:
        positions: of the image; see `positions_of`.

    Raises:
        ValueError: sigma_max and sigma_min are no range.
    """
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(
            f"The model's sigmas go from {sigma_max:g} down to {sigma_min:g}, so no steps lie between "
            "them: check the node that sets the model's shift or sigmas."
        )
    row = row_of(kind_of(schedule, sigma_max), calls, share_of(positions))
    flow = isinstance(schedule, RectifiedFlow)
    top, low = (
        sigma / schedule.alpha(sigma) if sigma < schedule.sigma_limit else FARTHEST
        for sigma in (sigma_max, sigma_min)
    )
    levels = within([math.log(s) for s in row.s[1:]], math.log(top), math.log(low))
    later = [math.exp(level) for level in levels]
    return [sigma_max, *(s / (1.0 + s) if flow else s for s in later), 0.0]


def later_sigmas(
    schedule: NoiseSchedule,
    start: float,
    sigma_min: float,
    calls: int,
    positions: int,
) -> list[float]:
    """The sigmas for this number of calls from a later start, for image to image: calls + 1.

    Args:
        start: the first sigma, from sigma_min up to the model's sigma_max.
        positions: of the image; see `positions_of`.
    """
    first, low = (log_s(sigma, schedule.alpha(sigma)) for sigma in (start, sigma_min))
    row = later_row(calls, share_of(positions), first, low)
    flow = isinstance(schedule, RectifiedFlow)
    return [start, *(s / (1.0 + s) if flow else s for s in row.s[1:]), 0.0]


def log_s(sigma: float, alpha: float) -> float:
    """log(sigma / alpha), and minus infinity at 0."""
    if sigma == 0.0:
        return -math.inf
    return math.log(sigma / alpha) if alpha > sigma / FARTHEST else math.log(FARTHEST)


@lru_cache(8 * len(KINDS) * LONGEST)
def levels_of(kind: str, calls: int, share: float, top: float, low: float) -> tuple[float, ...]:
    """The row of `recommended_sigmas` with these ends."""
    first, *later = levels_of_row(kind, calls, share)
    return (first, *within(later, top, low))
