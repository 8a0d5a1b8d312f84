"""The recommended sampler: sigmas and step weights that were fitted together on many models, as data.

`fitted.json` holds a row for each kind of model and number of calls. The solver interpolates x0; in
the coordinates z = x / alpha and s = sigma / alpha, with r = s' / s (0 in a step to zero), step i is

    z' = r z + (1 - r) ((1 + sum_j c_ij) D_i - sum_j c_ij D_{i-j})

so that c_i1 = (h_i / h_{i-1}) / 2, with h the steps in log s, would be DPM-Solver++ 2M. The rows were
found by `benchmarks/fit_recommended.py`, by descent through whole runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from .plan import Grid, Plan, Step
from .schedule import NoiseSchedule, RectifiedFlow

DATA = Path(__file__).parent / "fitted.json"

WIDE = 30.0
"""Diffusion models whose sigma_max is above this start from nearly pure noise, as flows do (EDM, zero
terminal SNR), and take a flow's rows."""

FARTHEST = 1e4
"""The s that stands for a flow's sigma = 1, where it is infinite."""

SNAP = 0.1
"""In log s: how far a host may move a sigma, to one of its whole times, for it to be the row's."""


@dataclass(frozen=True)
class Row:
    """A solver for one number of calls.

    Attributes:
        s: sigma / alpha of each call, falling; the first is the model's own.
        c: for each call the weights of the outputs before it, the newest first.
    """

    s: tuple[float, ...]
    c: tuple[tuple[float, ...], ...]

    @property
    def calls(self) -> int:
        return len(self.s)


@cache
def rows(kind: str) -> dict[int, Row]:
    """Kind of model, "flow" or "diffusion" -> calls -> row."""
    data = json.loads(DATA.read_text(encoding="utf-8"))[kind]
    return {
        int(calls): Row(tuple(row["s"]), tuple(map(tuple, row["c"]))) for calls, row in data.items()
    }


def kind_of(schedule: NoiseSchedule, sigma_max: float) -> str:
    return "flow" if isinstance(schedule, RectifiedFlow) or sigma_max > WIDE else "diffusion"


@cache
def row_of(kind: str, calls: int) -> Row:
    """The row for a number of calls: of that number, or between the two nearest."""
    known = rows(kind)
    if calls in known:
        return known[calls]
    below = max((n for n in known if n < calls), default=min(known))
    above = min((n for n in known if n > calls), default=max(known))
    if below == above:
        return stretched(known[below], calls)
    share = (math.log(calls) - math.log(below)) / (math.log(above) - math.log(below))
    low, high = stretched(known[below], calls), stretched(known[above], calls)

    def mixed(a: float, b: float) -> float:
        return a + share * (b - a)

    return Row(
        tuple(math.exp(mixed(math.log(a), math.log(b))) for a, b in zip(low.s, high.s, strict=True)),
        tuple(
            tuple(map(mixed, a, b)) for a, b in zip(low.c, high.c, strict=True)
        ),
    )


def stretched(row: Row, calls: int) -> Row:
    """The same for another number of calls: each step as at its place in the run."""

    def between(values: Sequence[float], i: int) -> float:
        place = i * (len(values) - 1) / max(calls - 2, 1)
        low = min(int(place), len(values) - 2)
        return values[low] + (place - low) * (values[low + 1] - values[low])

    if calls < 2 or row.calls < 3:
        return Row(row.s[:calls], row.c[:calls])
    levels = [math.log(s) for s in row.s[1:]]
    earlier = len(row.c[0])
    columns = [[c[j] for c in row.c[1:]] for j in range(earlier)]
    return Row(
        (row.s[0], *(math.exp(between(levels, i)) for i in range(calls - 1))),
        (
            (0.0,) * earlier,
            *(
                tuple(between(columns[j], i) if j <= i else 0.0 for j in range(earlier))
                for i in range(calls - 1)
            ),
        ),
    )


def fitted_sigmas(
    schedule: NoiseSchedule, sigma_max: float, sigma_min: float, calls: int
) -> list[float]:
    """The sigmas of a run of so many calls: calls + 1, from sigma_max to 0."""
    row = row_of(kind_of(schedule, sigma_max), calls)
    flow = isinstance(schedule, RectifiedFlow)
    top, low = (sigma / schedule.alpha(sigma) if sigma < schedule.sigma_limit else FARTHEST
                for sigma in (sigma_max, sigma_min))
    levels = _within([math.log(s) for s in row.s[1:]], math.log(top), math.log(low))
    later = [math.exp(level) for level in levels]
    return [sigma_max, *(s / (1.0 + s) if flow else s for s in later), 0.0]


def _within(levels: list[float], top: float, low: float) -> list[float]:
    """Levels between the two ends, squeezed from the end that they would pass."""
    if not levels:
        return levels
    if levels[-1] < low < levels[0]:
        scale = (levels[0] - low) / (levels[0] - levels[-1])
        levels = [levels[0] + scale * (level - levels[0]) for level in levels]
    if levels[0] >= top:
        step = (top - levels[-1]) / len(levels)
        scale = (top - step - levels[-1]) / (levels[0] - levels[-1]) if len(levels) > 1 else 0.0
        levels = [levels[-1] + scale * (level - levels[-1]) for level in levels]
    return levels


def plan_fitted(grid: Grid, row: Row, first: int = 0) -> Plan:
    """The plan on these sigmas, which are a row's, as far as the host moved none.

    Args:
        first: the row's call that the run starts with; outputs from before it don't exist and don't
            enter.
    """
    levels = [_log_s(level.sigma, level.alpha) for level in grid.levels]
    own = [math.log(s) for s in row.s[first:]] + [-math.inf]
    steps = []
    for i, (start, end) in enumerate(pairwise(grid.levels)):
        c = row.c[first + i][:i]
        scale = _ratio(levels, i) / _ratio(own, i) if c else 1.0
        c = tuple(scale * weight for weight in c)
        state = end.sigma / start.sigma
        total = end.alpha - start.alpha * state
        outputs = (total * (1.0 + sum(c)), *(-total * weight for weight in c))
        order = 1 + any(c)
        steps.append(Step(start.sigma, end.sigma, state, outputs, order=order))
    return grid.plan(steps)


def _log_s(sigma: float, alpha: float) -> float:
    if sigma == 0.0:
        return -math.inf
    return math.log(sigma / alpha) if alpha > sigma / FARTHEST else math.log(FARTHEST)


def _ratio(levels: Sequence[float], i: int) -> float:
    """h_i / h_{i-1}, as far as the steps are finite: what 2M's c would go with."""
    before, step = levels[i - 1] - levels[i], levels[i] - levels[i + 1]
    return (1.0 if math.isinf(step) else step) / before
