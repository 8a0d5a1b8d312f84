"""The recommended lists of sigmas, and which row belongs to a list that is one of them, or a part.

Hosts hand a sampler nothing but its sigmas. So the row is found again by them: for a whole list, for a
part of one (KSamplerAdvanced, split lists), and for a list that starts later (image to image).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ..grid import Grid
from ..schedules.process import NoiseSchedule, RectifiedFlow
from .rows import FARTHEST, KINDS, LARGEST, Row, interpolated, kind_of, row_of, share_of

NEAR_TOP = 2.5
"""In log s. Chosen for EDM's models, whose first sigma of 80 lies below a flow's second."""

MOST_CALLS = 200
"""The longest list in which a part is looked for, and the longest from a later start that is known."""

LONGER = 20
"""How many times as long as its end, from a later start, a whole list may be."""

SAME_CALLS = 1e-3
"""By how much the calls below a later start may miss their number: hosts hold sigmas in float32."""

AS_NEAR = 0.01
"""The end of a whole list is one from a later start, too: it counts as the end if it is as near."""

SAME_PLACE = {"flow": 0.05, "diffusion": 0.35}
"""Process -> how far a sigma may be from its place on a list, in units of the shorter step beside it.
Hosts round a flow's sigmas only to float32, but move a diffusion model's to whole times."""


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

    It is the end of the row with the fewest calls of which that many lie below the start, drawn out
    to begin there. The first steps are of lower order, as there are no outputs yet.

    Args:
        share: of the image's size; see `share_of`.
        low: log s of the model's sigma_min.
    """

    def place(total: int) -> float:
        """Where the start lies among the calls of the whole row."""
        own = _levels(kind, total, share, math.inf, low)
        after = bisect_left(own, -start, key=lambda level: -level)  # own falls
        if after in (0, total):
            return max(after - 1.0, 0.0)
        return after - (start - own[after]) / (own[after - 1] - own[after])

    total = most = max(MOST_CALLS, LONGER * calls)
    fewest = calls
    while fewest < most:  # the calls below the start grow with those of the row
        total = (fewest + most) // 2
        fewest, most = (
            (fewest, total) if total - place(total) > calls - SAME_CALLS else (total + 1, most)
        )
    total, row = most, row_of(kind, most, share)
    first = place(total)
    places = [first + i * (total - first) / calls for i in range(calls)]
    levels = [interpolated(_levels(kind, total, share, math.inf, low), each) for each in places]
    moved = start - levels[0]  # 0 unless the start lies outside the row
    gains = (
        [interpolated(gain, min(each, total - 1.0)) for each in places[:-1]] + [gain[-1]]
        for gain in (row.slope, row.curvature)
    )
    slope, curvature = ([0.0] * min(i, calls) + gain[i:] for i, gain in enumerate(gains, 1))
    return Row(tuple(math.exp(level + moved) for level in levels), tuple(slope), tuple(curvature))


def _later_levels(kind: str, calls: int, share: float, start: float, low: float) -> list[float]:
    return [math.log(s) for s in later_row(kind, calls, share, start, low).s]


def log_s(sigma: float, alpha: float) -> float:
    """log(sigma / alpha), and minus infinity at 0."""
    if sigma == 0.0:
        return -math.inf
    return math.log(sigma / alpha) if alpha > sigma / FARTHEST else math.log(FARTHEST)


class Part(NamedTuple):
    """The part of a row that a run takes.

    Attributes:
        row: the whole row.
        first: the call of the row with which the run starts.
        whole: the run takes all of it.
        later: the row is that of a later start; see `later_row`.
    """

    row: Row
    first: int
    whole: bool
    later: bool = False


def part_of(grid: Grid, share: float = 1.0) -> Part | None:
    """The part of a row that a list of sigmas is, or None for other lists.

    The list is one for the image's own size or, as hosts make them, for large images; the row has the
    gains for the image's own size. Only sigmas at which the model is called are compared; the last
    step may lead anywhere. A list from a later start is known only as a whole.

    Args:
        share: of the image's size; see `share_of`.
    """
    if not (grid.falls and grid.calls and len(set(grid.sigmas)) == len(grid.sigmas)):
        return None
    levels = tuple(log_s(level.sigma, level.alpha) for level in grid.levels[: grid.calls])
    schedule = grid.schedule
    low = schedule.sigma_min or 0.0
    low = log_s(low, schedule.alpha(low))
    nearest = SAME_PLACE["flow" if isinstance(schedule, RectifiedFlow) else "diffusion"]
    sizes = {share, 1.0}
    parts = [
        (*place, kind, calls)
        for kind in KINDS
        for size in sizes
        for top in (math.inf, levels[0])  # a part may be of a list that starts higher
        for calls in range(len(levels), MOST_CALLS + 1)
        if (place := _place(levels, _levels(kind, calls, size, top, low), nearest)) is not None
    ]
    distance, first, kind, calls = min(parts, default=(math.inf, 0, "", 0))
    if first == 0 and calls == len(levels):
        return Part(row_of(kind, calls, share), 0, True)
    if 1 < len(levels) <= MOST_CALLS and grid.sigmas[-1] == 0.0:
        ends = levels[0], low
        later = [
            (place[0], other)
            for other in KINDS
            for size in sizes
            if (place := _place(levels, _later_levels(other, len(levels), size, *ends), nearest))
        ]
        nearer, other = min(later, default=(math.inf, ""))
        if nearer < distance - AS_NEAR:
            return Part(later_row(other, len(levels), share, *ends), 0, True, True)
    return Part(row_of(kind, calls, share), first, False) if parts else None


def _place(
    levels: Sequence[float], own: Sequence[float], nearest: float
) -> tuple[float, int] | None:
    """Where some levels lie on a whole list: (distance, first), or None if they are too far away."""
    calls = len(own)
    start = levels[1] if len(levels) > 1 else levels[0]
    after = bisect_left(own, -start, key=lambda level: -level)  # own falls
    near = min(after - 1, after, key=lambda i: abs(own[min(max(i, 0), calls - 1)] - start))
    first = near - (len(levels) > 1)
    if not 0 <= first <= calls - len(levels):
        return None
    worst = 0.0
    for i, level in enumerate(levels, first):
        if i == 0:
            continue  # the model's own first sigma
        below = own[i] - own[i + 1] if i + 1 < calls else math.inf
        worst = max(worst, abs(level - own[i]) / min(own[i - 1] - own[i], below))
        if worst > nearest:
            return None
    return worst, first


@lru_cache(8 * len(KINDS) * MOST_CALLS)
def _levels(kind: str, calls: int, share: float, top: float, low: float) -> tuple[float, ...]:
    """The row of `recommended_sigmas` with these ends."""
    first, *later = map(math.log, row_of(kind, calls, share).s)
    return (first, *_within(later, top, low))
