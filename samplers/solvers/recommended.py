"""The sampler to take without thinking: order, form, corrector and sigmas by the number of calls.

The table was found by `benchmarks/recommended.py`, which prints such rows. Between those that were
about as good for a number of calls (and for 6, 20, 30 and 40 between mixtures of them) the noises of
`benchmarks/quality.py` decided: on its default seed the table is a little flattered, so take another
to judge it. What it depends on is the number of model calls and the kind of schedule; guidance it
can't know, so that each row is a compromise of runs with and without, on an exact denoiser and on a
trained network.

What makes Adams' steps good here is the power of sigma. The slope bends the more the smaller sigma is,
which a polynomial in sigma does not expect; in log sigma (a power of 0) or beyond, it does. From 15
calls on the corrector, which sees the bend, makes up for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..options import Options
from ..plan import Grid, Plan
from ..schedules.process import NoiseSchedule, RectifiedFlow
from ..schedules.sigma_lists import Density, dense
from .multistep import Multistep

SOLVERS: dict[str, dict[str, Any]] = {
    "2M unic": {
        "algorithm": "dpmsolver++",
        "order": 2,
        "solver_type": "exact",
        "corrector": "unic",
    },
    **{f"adams {order}": {"algorithm": "adams", "order": order} for order in (2, 3, 4)},
    **{
        f"adams {order} unic": {"algorithm": "adams", "order": order, "corrector": "unic"}
        for order in (2, 3, 4)
    },
}
"""What `sample_multistep` is called with, by name; the order of no step is lowered at the end."""


class Recommendation(NamedTuple):
    """A solver, by its name in SOLVERS, the sigmas that go with it, and for "adams" its power."""

    solver: str
    density: Density
    power: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        power = {} if self.power is None else {"power": self.power}
        return {**SOLVERS[self.solver], **power, "lower_order_final": "off"}


TABLE: dict[str, dict[int, Recommendation]] = {
    "diffusion": {
        5: Recommendation("adams 2", Density(1.19, 0.41, -0.95, 0.95), -0.54),
        6: Recommendation("adams 2", Density(1.2, 0.55, -0.7, 0.6), -0.48),
        8: Recommendation("adams 2", Density(1.22, 0.78, -0.32, 0.2), -0.39),
        10: Recommendation("adams 3", Density(1.33, 0.37, -0.25, 0.08), 0.12),
        12: Recommendation("adams 3", Density(1.72, 0.35, -0.17, 0.11), 0.14),
        15: Recommendation("adams 3 unic", Density(-0.43, 0.33, 0.98, 0.33), 0.91),
        20: Recommendation("adams 3 unic", Density(-0.6, 0.65, 1.37, 0.18), 1.08),
        25: Recommendation("adams 3 unic", Density(-0.59, 0.67, 1.24, 0.1), 0.91),
        30: Recommendation("adams 3 unic", Density(-0.59, 0.67, 1.24, 0.07), 0.91),
        40: Recommendation("adams 3 unic", Density(-0.59, 0.67, 1.24, 0.03), 0.91),
    },
    "flow": {
        5: Recommendation("adams 4", Density(2.35, -0.01, -0.15, 2.81)),
        6: Recommendation("adams 2 unic", Density(2.27, 0.74, 0.75, 0.66)),
        8: Recommendation("2M unic", Density(1.87, -1.07, 1.21, 3.13)),
        10: Recommendation("2M unic", Density(2.38, -0.04, 0.36, 3.13)),
        12: Recommendation("adams 3 unic", Density(2.2, 1.01, 0.39, 2.11)),
        15: Recommendation("adams 3 unic", Density(1.98, 1.12, 0.71, 2.02)),
        20: Recommendation("adams 4 unic", Density(1.76, 1.3, 1.11, 0.94)),
        25: Recommendation("adams 4 unic", Density(1.2, 1.45, 1.74, 0.39)),
        30: Recommendation("adams 4 unic", Density(1.23, 1.51, 1.82, 0.0)),
    },
}
"""Kind of schedule -> model calls -> what to take."""


def recommended(schedule: NoiseSchedule, calls: int) -> Recommendation:
    """What to take for a number of model calls: the row of the nearest number, by ratio."""
    rows = TABLE["flow" if isinstance(schedule, RectifiedFlow) else "diffusion"]
    nearest = min(rows, key=lambda known: abs(math.log(known / max(calls, 1))))
    return rows[nearest]


def recommended_sigmas(
    schedule: NoiseSchedule, sigma_max: float, sigma_min: float, calls: int
) -> list[float]:
    """The sigmas of a run of so many calls: calls + 1, from sigma_max to 0."""
    density = recommended(schedule, calls).density
    return [*dense(density, sigma_max, sigma_min, calls - 1), 0.0]


@dataclass(frozen=True, kw_only=True)
class Recommended(Options):
    """Settings of `sample_recommended`: only what all samplers have. It adds no noise."""

    def plan(self, grid: Grid) -> Plan:
        settings = recommended(grid.schedule, grid.calls).settings
        return Multistep(**settings).plan(grid)
