"""The sampler to start with: sigmas and step weights that were fitted together, as data.

It is a multistep solver that interpolates x0 in lambda_. Each step takes the newest three outputs
with exact weights, and multiplies their slope and their curvature by a gain each. Gains of (1, 0) are
second order, (1, 1/2) the published third order, (1, 1) true third order.

`rows.py` has the gains, `recommended_lists.py` the lists of sigmas that they belong to, and
`recommended_parts.py` finds them again in a list or a part of one. Any other list gets the weights of
`any_list`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..grid import Grid
from ..options import Options
from ..plan import Plan, Step
from ..schedules.process import RectifiedFlow
from .any_list import WIDE, plan_list
from .recommended_lists import log_s
from .recommended_parts import part_of
from .rows import LARGEST, Row, share_of

FIRST_STEP = 1.0
"""The length in log s that a row's first step from pure noise counts as, however long it is."""


def plan_row(grid: Grid, row: Row, first: int = 0) -> Plan:
    """The plan on these sigmas, which are a row's, or near them if the host rounded them.

    Args:
        first: the call of the row with which the run starts. Outputs from before it don't exist, so
            they don't enter.
    """
    levels = [log_s(level.sigma, level.alpha) for level in grid.levels]
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
        begins = f" from sigma {grid.sigmas[0]:.3g}" if part.later else ""
        image = "" if share == 1.0 else f", for small images ({self.positions} positions)"
        return f"{kind} model, {grid.calls} calls{begins}: {which} own sigmas and weights{image}"
