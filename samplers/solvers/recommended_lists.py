"""The recommended lists of sigmas: whole ones, and those from a later start, for image to image."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache

from ..schedules.process import NoiseSchedule, RectifiedFlow
from .rows import FARTHEST, KINDS, LARGEST, Row, interpolated, kind_of, row_of, share_of

NEAR_TOP = 2.5
"""In log s. For models whose largest sigma lies below the second of their row."""

LONGEST = 200
"""A later start is looked for in lists of so many calls. For one so late that even these have too few
below it, the calls are put between theirs."""

SAME_CALLS = 1e-3
"""By how much the calls below a later start may miss their number: hosts hold sigmas in float32."""


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
    levels = _within([math.log(s) for s in row.s[1:]], math.log(top), math.log(low))
    later = [math.exp(level) for level in levels]
    return [sigma_max, *(s / (1.0 + s) if flow else s for s in later), 0.0]


def _within(levels: list[float], top: float, low: float) -> list[float]:
    """The levels, compressed to lie between the two ends if they would pass one.

    At the low end all are compressed; at the top only those within NEAR_TOP of it, since the others
    lie where the image is decided.
    """
    if not levels:
        return levels
    if levels[-1] < low < levels[0]:
        scale = (levels[0] - low) / (levels[0] - levels[-1])
        levels = [levels[0] + scale * (level - levels[0]) for level in levels]
    if levels[0] >= top:
        pivot = max(top - NEAR_TOP, levels[-1])
        count = sum(level > pivot for level in levels)
        highest = top - (top - pivot) / (count + 1)  # the first step is as long as those after it
        scale = (highest - pivot) / (levels[0] - pivot or 1.0)
        levels = [pivot + scale * (level - pivot) if level > pivot else level for level in levels]
    return levels


def later_sigmas(
    schedule: NoiseSchedule,
    start: float,
    sigma_min: float,
    calls: int,
    positions: int,
    kind: str,
) -> list[float]:
    """The sigmas for this number of calls from a later start, for image to image: calls + 1.

    Args:
        start: the first sigma, from sigma_min up to the model's sigma_max.
        positions: of the image; see `positions_of`.
        kind: one of KINDS.
    """
    first, low = (log_s(sigma, schedule.alpha(sigma)) for sigma in (start, sigma_min))
    row = later_row(kind, calls, share_of(positions), first, low)
    flow = isinstance(schedule, RectifiedFlow)
    return [start, *(s / (1.0 + s) if flow else s for s in row.s[1:]), 0.0]


@lru_cache(512)
def later_row(kind: str, calls: int, share: float, start: float, low: float) -> Row:
    """The row for a run of so many calls that starts at log s = start.

    It is the end of the row with the fewest calls of which that many lie below the start, drawn out to
    begin there. The first steps are of lower order, as there are no outputs yet.

    Args:
        share: of the image's size; see `share_of`.
        low: log s of the model's sigma_min.
    """

    def place(total: int) -> float:
        """Where the start lies among the calls of the whole row."""
        own = levels_of(kind, total, share, math.inf, low)
        after = bisect_left(own, -start, key=lambda level: -level)  # own falls
        if after in (0, total):
            return max(after - 1.0, 0.0)
        return after - (start - own[after]) / (own[after - 1] - own[after])

    fewest, most = calls, max(LONGEST, calls)
    while fewest < most:  # the calls below the start grow with those of the row
        total = (fewest + most) // 2
        if total - place(total) > calls - SAME_CALLS:
            most = total
        else:
            fewest = total + 1
    total, row = most, row_of(kind, most, share)
    first = place(total)
    places = [first + i * (total - first) / calls for i in range(calls)]
    levels = [interpolated(levels_of(kind, total, share, math.inf, low), each) for each in places]
    moved = start - levels[0]  # 0 unless the start lies outside the row
    gains = (
        [interpolated(gain, min(each, total - 1.0)) for each in places[:-1]] + [gain[-1]]
        for gain in (row.slope, row.curvature)
    )
    slope, curvature = ([0.0] * min(i, calls) + gain[i:] for i, gain in enumerate(gains, 1))
    return Row(tuple(math.exp(level + moved) for level in levels), tuple(slope), tuple(curvature))


def log_s(sigma: float, alpha: float) -> float:
    """log(sigma / alpha), and minus infinity at 0."""
    if sigma == 0.0:
        return -math.inf
    return math.log(sigma / alpha) if alpha > sigma / FARTHEST else math.log(FARTHEST)


@lru_cache(8 * len(KINDS) * LONGEST)
def levels_of(kind: str, calls: int, share: float, top: float, low: float) -> tuple[float, ...]:
    """The row of `recommended_sigmas` with these ends."""
    first, *later = map(math.log, row_of(kind, calls, share).s)
    return (first, *_within(later, top, low))
