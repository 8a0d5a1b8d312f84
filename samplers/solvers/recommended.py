"""The sampler to start with: sigmas and step weights that were fitted together, as data.

`recommended.json` has two rows for each kind of model (flow, diffusion, diffusion with zero terminal
SNR) and number of calls: one for large images and one for the smallest; an image takes a mean of the
two. The larger it is, the higher the noise at which its coarse structure is decided. They were fitted
on many models at once, with and without guidance, by gradient descent through whole runs
(`benchmarks/fit_recommended.py`).

The solver is a multistep that interpolates x0 in lambda_. Each step takes the newest three outputs
with exact weights, and multiplies their slope and their curvature by a gain each. Gains of (1, 0) are
second order, (1, 1/2) the published third order, (1, 1) true third order.

The rows hold s = sigma / alpha, in which a flow is a diffusion model, whatever its shift. On a
part of such a list (image to image, split lists) the steps keep their gains. Any other list gets the
weights of `any_list`.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..grid import Grid
from ..options import Options
from ..plan import Plan, Step
from ..schedules.process import NoiseSchedule, RectifiedFlow
from .any_list import WIDE, plan_list

DATA = Path(__file__).with_suffix(".json")

NO_SIGNAL = 1000.0
"""Diffusion models whose sigma_max is above this have zero terminal SNR, and rows of their own: their
sigma_min is as high as Stable Diffusion's, a flow's is lower."""

FARTHEST = 1e4
"""Stands for the s of a flow's sigma = 1, which is infinite."""

FIRST_STEP = 1.0
"""The length in log s that a row's first step from pure noise counts as, however long it is."""

SIZES = "small", "large"
SMALLEST, LARGEST = 8 * 8, 64 * 64
"""Positions of an image (height x width, and x frames) up to which it is small, and from which it is
large. All of today's large models make large ones: 512 x 512 pixels are 64 x 64 latents."""

CAUTION = 0.8
"""The part of the way from the small row to the large one that large images go. The large rows were
fitted on exact models alone, whose fine detail is decided at once; trained networks want more calls at
low noise. By the rest of that way exact models gain little, and networks lose much."""

NEAR_TOP = 2.5
"""In log s. Chosen for EDM's models, whose first sigma of 80 lies below a flow's second."""


@dataclass(frozen=True)
class Row:
    """A solver for one number of calls.

    Attributes:
        s: sigma / alpha of each call, falling; the first is the model's own.
        slope, curvature: the gains of the step after each call; 0 if there are too few outputs yet.
    """

    s: tuple[float, ...]
    slope: tuple[float, ...]
    curvature: tuple[float, ...]

    @property
    def calls(self) -> int:
        return len(self.s)


@cache
def rows(kind: str, size: str) -> dict[int, Row]:
    """One of KINDS and one of SIZES -> calls -> row."""
    data = json.loads(DATA.read_text(encoding="utf-8"))[kind]
    return {
        int(calls): Row(*(tuple(two[size][name]) for name in ("s", "slope", "curvature")))
        for calls, two in data.items()
    }


def positions_of(shape: Sequence[int]) -> int:
    """The positions of an image, from a batch's shape, [batch, channels, ...] or [batch, values]."""
    return math.prod(shape[2:]) if len(shape) > 2 else math.prod(shape[1:])


def share_of(positions: int) -> float:
    """Where an image of this many positions lies between small, 0, and large, 1.

    The larger an image, the higher the noise at which its coarse structure is decided.
    """
    share = math.log(max(positions, 1) / SMALLEST) / math.log(LARGEST / SMALLEST)
    return min(max(share, 0.0), 1.0)


def kind_of(schedule: NoiseSchedule, sigma_max: float) -> str:
    """One of KINDS. EDM's models start from nearly pure noise, as flows do, and take a flow's rows."""
    if not isinstance(schedule, RectifiedFlow) and sigma_max > NO_SIGNAL:
        return "zero-snr"
    return "flow" if isinstance(schedule, RectifiedFlow) or sigma_max > WIDE else "diffusion"


@cache
def row_of(kind: str, calls: int, share: float = 1.0) -> Row:
    """The row for a number of calls and a size of the image: see `share_of`."""
    small, large = (_row(kind, calls, size) for size in SIZES)
    return _mixed(small, large, CAUTION * share) if share else small


def _row(kind: str, calls: int, size: str) -> Row:
    known = rows(kind, size)
    if calls in known:
        return known[calls]
    below = max((n for n in known if n < calls), default=min(known))
    above = min((n for n in known if n > calls), default=max(known))
    between = (math.log(calls / below) / math.log(above / below)) if below < above else 0.0
    return _mixed(stretched(known[below], calls), stretched(known[above], calls), between)


def _mixed(a: Row, b: Row, share: float) -> Row:
    """From a, at 0, to b, at 1."""

    def mean(x: Sequence[float], y: Sequence[float]) -> tuple[float, ...]:
        return tuple(v + share * (w - v) for v, w in zip(x, y, strict=True))

    levels = mean(tuple(map(math.log, a.s)), tuple(map(math.log, b.s)))
    return Row(tuple(map(math.exp, levels)), mean(a.slope, b.slope), mean(a.curvature, b.curvature))


def stretched(row: Row, calls: int) -> Row:
    """A row stretched to another number of calls: each step is read at its place in the run."""
    if calls < 2:
        return Row(row.s[:calls], row.slope[:calls], row.curvature[:calls])

    def between(values: Sequence[float]) -> list[float]:
        places = [i * (len(values) - 1) / max(calls - 2, 1) for i in range(calls - 1)]
        lows = [min(int(place), len(values) - 2) for place in places]
        return [
            values[low] + (place - low) * (values[low + 1] - values[low])
            for low, place in zip(lows, places, strict=True)
        ]

    levels = between([math.log(s) for s in row.s[1:]])
    return Row(
        (row.s[0], *map(math.exp, levels)),
        (0.0, *between(row.slope[1:])),
        (0.0, 0.0, *between(row.curvature[1:])[1:]),
    )


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


def plan_row(grid: Grid, row: Row, first: int = 0) -> Plan:
    """The plan on these sigmas, which are a row's, or near them if the host rounded them.

    Args:
        first: the call of the row with which the run starts. Outputs from before it don't exist, so
            they don't enter.
    """
    levels = [_log_s(level.sigma, level.alpha) for level in grid.levels]
    if first == 0 and row.s[0] > WIDE and len(levels) > 1:
        levels[0] = levels[1] + FIRST_STEP
    steps = []
    call = first
    for i, (start, end) in enumerate(pairwise(grid.levels)):
        call += grid.repeats[i]
        at = min(call + i, row.calls - 1)
        c = weights(levels[max(i - 2, 0) : i + 2], row.slope[at], row.curvature[at])
        if end.sigma == 0.0 and c:
            share = to_zero(levels[i - 1] - levels[i]) / to_zero(math.log(row.s[-2] / row.s[-1]))
            c = tuple(weight * share for weight in c)
        state = end.sigma / start.sigma
        total = end.alpha - start.alpha * state
        outputs = (total * (1.0 + sum(c)), *(-total * weight for weight in c))
        steps.append(Step(start.sigma, end.sigma, state, outputs, order=1 + len(c)))
    return grid.plan(steps)


def to_zero(h: float) -> float:
    """The weight of the last output but one in the last step, after a step of length h.

    It is exact for outputs that change with the square of s, as they do near s = 0. Hosts move the
    last sigmas to whole times, so a row's weights are scaled by it.
    """
    return 1.0 / math.expm1(2.0 * h)


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


def _log_s(sigma: float, alpha: float) -> float:
    if sigma == 0.0:
        return -math.inf
    return math.log(sigma / alpha) if alpha > sigma / FARTHEST else math.log(FARTHEST)


class Part(NamedTuple):
    """The part of a row that a run takes.

    Attributes:
        row: the whole row.
        first: the call of the row with which the run starts.
        whole: the run takes all of it.
    """

    row: Row
    first: int
    whole: bool


KINDS = ("flow", "diffusion", "zero-snr")

MOST_CALLS = 200
"""The longest list in which a part is looked for: 20 steps at a denoise of 0.1 are the end of one."""

SAME_PLACE = {"flow": 0.05, "diffusion": 0.35}
"""Process -> how far a sigma may be from its place on a list, in units of the shorter step beside it.
Hosts round a flow's sigmas only to float32, but move a diffusion model's to whole times."""


def part_of(grid: Grid, share: float = 1.0) -> Part | None:
    """The part of a row that a list of sigmas is, or None for other lists.

    The list is one for the image's own size or, as hosts make them, for large images; the row has the
    gains for the image's own size. Only sigmas at which the model is called are compared; the last
    step may lead anywhere.

    Args:
        share: of the image's size; see `share_of`.
    """
    if not (grid.falls and grid.calls and len(set(grid.sigmas)) == len(grid.sigmas)):
        return None
    levels = tuple(_log_s(level.sigma, level.alpha) for level in grid.levels[: grid.calls])
    schedule = grid.schedule
    low = schedule.sigma_min or 0.0
    low = _log_s(low, schedule.alpha(low))
    nearest = SAME_PLACE["flow" if isinstance(schedule, RectifiedFlow) else "diffusion"]
    found = [
        (*place, kind, calls)
        for kind in KINDS
        for size in {share, 1.0}
        for top in (math.inf, levels[0])  # a part may be of a list that starts higher
        for calls in range(len(levels), MOST_CALLS + 1)
        if (place := _place(levels, _levels(kind, calls, size, top, low), nearest)) is not None
    ]
    if not found:
        return None
    _, first, kind, calls = min(found)
    return Part(row_of(kind, calls, share), first, first == 0 and len(levels) == calls)


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


@dataclass(frozen=True, kw_only=True)
class Recommended(Options):
    """Settings of `sample_recommended`: only those that all samplers have. It adds no noise.

    Attributes:
        positions: of the image, whose size decides which weights are taken; see `positions_of`.
    """

    positions: int = LARGEST

    def plan(self, grid: Grid) -> Plan:
        part = part_of(grid, share_of(self.positions))
        if part is None:
            return plan_list(grid)
        return plan_row(grid, part.row, part.first)

    def describe(self, grid: Grid) -> str:
        """What it does on a list, in words, for the log."""
        kind = "flow" if isinstance(grid.schedule, RectifiedFlow) else "diffusion"
        share = share_of(self.positions)
        part = part_of(grid, share)
        if part is None:
            return f"{kind} model, {grid.calls} calls on other sigmas than its own"
        last = part.first + grid.calls
        which = (
            "its" if part.whole else f"calls {part.first + 1} to {last} of {part.row.calls} of its"
        )
        image = "" if share == 1.0 else f", for small images ({self.positions} positions)"
        return f"{kind} model, {grid.calls} calls: {which} own sigmas and weights{image}"
