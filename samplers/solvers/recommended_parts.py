"""Which row belongs to a list of sigmas that is a recommended one, or a part of one.

Hosts hand a sampler nothing but its sigmas. So the row is found again by them: for a whole list, for a
part of one (KSamplerAdvanced, split lists), and for a list that starts later (image to image).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from ..grid import Grid
from ..schedules.process import RectifiedFlow
from .later_rows import later_row
from .recommended_lists import LONGEST, levels_of, log_s
from .rows import Row, kinds_of, row_of

EXACTLY = 0.01
"""What is nearer than this to the end of a whole list is one, and not a list from a later start."""

SAME_PLACE = {"flow": 0.05, "diffusion": 0.35}
"""Process -> how far a sigma may be from its place on a list, in units of the shorter step beside it.
Hosts round a flow's sigmas only to float32, but move a diffusion model's to whole times."""


LAST_STEP = 0.5
"""How far the end of a part's last step may be from its place, in units of that step; 0 has none."""

LEAST_START, HIGHEST_END = 5.0, 0.1
"""In s. A whole list starts at no less than the first, also where its model's sigmas end below those
of the row, and leads to no more than the second: the end of another scheduler's list is none."""

HALF_A_TIME = 0.25
"""Half the way in log s from one whole time of Stable Diffusion's schedule to the next, at its
sigma_min. It falls with the square of s."""


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
    gains for the image's own size. The last step of a part may lead to 0, too. A list from a later
    start is known only as a whole.

    Args:
        share: of the image's size; see `share_of`.
    """
    if not (grid.falls and grid.calls and len(set(grid.sigmas)) == len(grid.sigmas)):
        return None
    levels = tuple(log_s(level.sigma, level.alpha) for level in grid.levels[: grid.calls])
    end = log_s(grid.levels[-1].sigma, grid.levels[-1].alpha)
    schedule = grid.schedule
    low = schedule.sigma_min or 0.0
    low = log_s(low, schedule.alpha(low))
    nearest = SAME_PLACE["flow" if isinstance(schedule, RectifiedFlow) else "diffusion"]
    sizes = {share, 1.0}
    # A part may be of a list that starts higher; a model may start below its row.
    tops = (math.inf, levels[0]) if levels[0] >= math.log(LEAST_START) else (math.inf,)
    parts = [
        (*place, kind, calls)
        for kind in kinds_of(schedule)
        for size in sizes
        for top in tops
        for calls in range(len(levels), LONGEST + 1)
        if (place := _place(levels, levels_of(kind, calls, size, top, low), nearest, end))
        is not None
    ]
    distance, first, kind, calls = min(parts, default=(math.inf, 0, "", 0))
    whole = first == 0 and calls == len(levels)
    if distance > EXACTLY and 1 < len(levels) <= LONGEST and grid.sigmas[-1] == 0.0:
        ends = levels[0], low
        moved = -math.inf if isinstance(schedule, RectifiedFlow) else low
        for size in sizes:
            own = [math.log(s) for s in later_row(len(levels), size, *ends).s]
            place = _place(levels, own, nearest, low=moved)
            if place is not None and not (whole and distance < place[0]):
                return Part(later_row(len(levels), share, *ends), 0, True, True)
    return Part(row_of(kind, calls, share), first, whole) if parts else None


def _place(
    levels: Sequence[float],
    own: Sequence[float],
    nearest: float,
    end: float = -math.inf,
    low: float = -math.inf,
) -> tuple[float, int] | None:
    """Where some levels lie on a whole list: (distance, first), or None if they are too far away.

    Args:
        end: where the last step leads, in log s.
        low: log s of the sigma_min of a model whose levels may have been moved to whole times by more
            than the steps are long.
    """
    calls = len(own)
    start = levels[1] if len(levels) > 1 else levels[0]
    after = bisect_left(own, -start, key=lambda level: -level)  # own falls
    beside = (min(max(i, 0), calls - 1) for i in (after - 1, after))
    near = min(beside, key=lambda i: abs(own[i] - start))
    first = near - (len(levels) > 1)
    if not 0 <= first <= calls - len(levels):
        return None
    worst = 0.0
    for i, level in enumerate(levels, first):
        if i == 0:
            continue  # the model's own first sigma
        below = own[i] - own[i + 1] if i + 1 < calls else math.inf
        shortest = min(own[i - 1] - own[i], below)  # 0 in a list that has no room below its top
        apart = max(abs(level - own[i]) - HALF_A_TIME * math.exp(2.0 * (low - own[i])), 0.0)
        worst = max(worst, apart / shortest) if shortest else math.inf
        if worst > nearest:
            return None
    if end > -math.inf and not _leads_on(own[first + len(levels) - 1 :], end):
        return None
    return worst, first


def _leads_on(own: Sequence[float], end: float) -> bool:
    """Whether a step that ends above 0 is that of a list, of which these levels are left."""
    if len(own) == 1:
        return end <= math.log(HIGHEST_END)
    return abs(end - own[1]) <= LAST_STEP * (own[0] - own[1])
