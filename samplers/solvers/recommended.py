"""The sampler to start with: sigmas and step weights that were fitted together, as data.

It is a multistep solver that interpolates x0 in lambda_. Each step takes the newest three outputs
with exact weights, and multiplies their slope and their curvature by a gain each. Gains of (1, 0) are
second order, (1, 1/2) the published third order, (1, 1) true third order.

`rows.py` and `later_rows.py` have the gains, `recommended_lists.py` the lists of sigmas that they
belong to. `recommended_parts.py` finds them again in a list or a part of one, and `response.py` suits
them to where the sigmas are. Any other list gets the weights of `any_list`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ..grid import Grid
from ..options import Options
from ..plan import Plan, Step
from ..schedules.process import RectifiedFlow
from .any_list import plan_list
from .recommended_lists import log_s
from .recommended_parts import Part, part_of
from .response import adapted
from .row_weights import counted_as, weights
from .rows import LARGEST, Row, share_of

DECIDED = 15.0
"""Below this s the coarse structure of an image is decided, and the rest is much like a Gaussian.
Chosen with BEGUN on `CHECK`, three models of `TUNE`, and those of `benchmarks/two_models.py`."""

BEGUN = 2.0
"""A part that starts with an s of more than that of the whole run over this lacks few outputs."""


def plan_part(grid: Grid, part: Part) -> Plan:
    """The plan on these sigmas, which are near those of a row, or of a part of it.

    A part lacks the outputs from before it, so they don't enter.
    """
    levels = [log_s(level.sigma, level.alpha) for level in grid.levels]
    row = suited(part, levels, grid)
    if part.first == 0:
        levels = counted_as(levels)
    steps = []
    for i, (start, end) in enumerate(pairwise(grid.levels)):
        at = part.first + i
        c = weights(levels[max(i - 2, 0) : i + 2], row.slope[at], row.curvature[at])
        state = end.sigma / start.sigma
        total = end.alpha - start.alpha * state
        outputs = (total * (1.0 + sum(c)), *(-total * weight for weight in c))
        steps.append(Step(start.sigma, end.sigma, state, outputs, order=1 + len(c)))
    return grid.plan(steps)


def suited(part: Part, levels: Sequence[float], grid: Grid) -> Row:
    """The part's row with gains for these levels."""
    row, first, last = part.row, part.first, part.first + grid.calls
    low = grid.schedule.sigma_min or 0.0
    low = log_s(low, grid.schedule.alpha(low))
    own = tuple(levels[: grid.calls])
    decided = math.exp(own[0]) < min(DECIDED, row.s[0] / BEGUN)
    if first and last == row.calls and decided:
        # The gains of its first steps are for outputs that don't exist here.
        rest = adapted(row.end(first), own, low, exactly=True)
        slope, curvature = row.slope[:first] + rest.slope, row.curvature[:first] + rest.curvature
        return replace(row, slope=slope, curvature=curvature)
    own_of_row = tuple(map(math.log, row.s))  # the rest of the run is where the row has it
    whole = own_of_row[:first] + own + own_of_row[last:]
    falls = all(before > after for before, after in pairwise(whole))
    # A part of the list for large images may not fit between the calls of a small image's row.
    return adapted(row, whole, low) if falls else row


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
        return plan_part(grid, part)

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
