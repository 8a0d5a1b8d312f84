"""Singlestep solvers of orders 1 to 3: the inner sigmas of a group of intervals are a step's nodes.

DPM-Solver (arXiv 2206.00927), algorithms 1 and 2 and appendix B; DPM-Solver++ (arXiv 2211.01095),
appendix B; in the authors' code `singlestep_dpm_solver_{second,third}_update`, with r1 and r2 read
from the sigmas. A group of order p covers p intervals in p model calls. It uses no output of
an earlier group.

With eta above 0, orders 1 and 2 are the stochastic solvers that users know as Euler ancestral and
DPM++ SDE (k-diffusion's `sample_euler_ancestral`, `sample_dpmpp_sde`). `sample_dpmpp_sde` places the
inner node of a group itself, by its r. With r set a group of order 2 does so, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import cast

from ..checks import between, one_of
from ..coefficients import EXACT, MIDPOINT, Algorithm, Level, Transition, distance
from ..grid import Grid
from ..options import Options, algorithm_of, order_of, solver_type_of
from ..plan import PLANS_KEPT, Plan, Step, prediction
from ..schedules.process import NoiseSchedule
from .long_steps import groups

GROUPINGS = ("fast", "fixed")
PLACES = (0.01, 1.0)


@dataclass(frozen=True, kw_only=True)
class Singlestep(Options):
    """Settings of `sample_singlestep`; see there for their meaning."""

    algorithm: str = "dpmsolver++"
    order: int = 2
    solver_type: str = "dpmsolver"
    grouping: str = "fast"
    lower_long_steps: bool = False
    r: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        algorithm_of(self.algorithm)
        order = order_of(self.order, (1, 2, 3))
        self._set(order=order, solver_type=solver_type_of(self.solver_type))
        one_of("grouping", self.grouping, GROUPINGS)
        if self.eta > 0.0 and self.order == 3:
            raise ValueError(
                f"eta = {self.eta:g}: the singlestep solver of order 3 can't add noise; set order "
                "to 1 or 2, or eta to 0."
            )
        if self.r is not None:
            between("r", self.r, *PLACES)
            if self.order != 2:
                raise ValueError(
                    f"r = {self.r:g} is the place of the inner node of order 2: set order to 2, or "
                    "leave r out."
                )

    def on(self, schedule: NoiseSchedule) -> Singlestep:
        """With `lower_long_steps`: hosts' lists have long steps."""
        return replace(self, lower_long_steps=True)

    def plan(self, grid: Grid) -> Plan:
        self.check_direction(grid)
        return plan_singlestep(grid, self)


@lru_cache(PLANS_KEPT)
def plan_singlestep(grid: Grid, settings: Singlestep) -> Plan:
    """Plan a singlestep run: n calls for n intervals."""
    algorithm = cast(Algorithm, settings.algorithm)
    limited = settings.lower_long_steps or not grid.falls

    def limit_step(i: int) -> Step:
        fresh = min(settings.eta_to(grid.levels[i + 1].sigma), 1.0)
        return grid.limit_step(i, math.sqrt(1.0 - fresh**2))

    def placed(i: int, size: int) -> tuple[Level, ...]:
        levels = grid.levels[i : i + size + 1]
        if settings.r is None or size != 2:
            return levels
        start, _, end = levels
        node = grid.level_at(start.lambda_ + settings.r * (end.lambda_ - start.lambda_))
        return start, node, end

    def steps_of(levels: Sequence[Level]) -> tuple[Step, ...]:
        eta = settings.eta_to(levels[-1].sigma)  # of the whole group, its inner nodes included
        return group(
            algorithm, settings.solver_type, levels, lambda h: ancestral_eta(algorithm, h, eta)
        )

    steps: list[Step] = []
    if grid.first < grid.intervals:
        steps += map(limit_step, range(grid.first))
        sizes = group_sizes(grid.intervals - grid.first, settings.order, settings.grouping)
        for published in sizes:
            levels = placed(len(steps), published)
            for size in groups(algorithm, levels) if limited else [published]:
                steps += steps_of(placed(len(steps), size))
    steps += map(limit_step, range(len(steps), len(grid.levels) - 1))
    return grid.plan(steps)


def ancestral_eta(algorithm: Algorithm, h: float, eta: float) -> float:
    """The eta of `Transition.between` for which the noise of a step of h is eta times the SDE's.

    This is the eta of ancestral samplers (k-diffusion's `get_ancestral_step`), which multiplies the
    noise's standard deviation. At 0 and 1 the two etas agree. For DPM-Solver++ no more than all of the
    noise can be fresh, so larger values of eta are cut there.
    """
    if algorithm == "dpmsolver" or eta in (0.0, 1.0):
        return eta * eta
    fresh = min(-eta * eta * math.expm1(-2.0 * h), 1.0 - 2.0**-53)  # of the variance at the end
    return -math.log1p(-fresh) / (2.0 * h)


def group_sizes(intervals: int, order: int, grouping: str) -> list[int]:
    """Split a number of intervals into groups of at most `order`.

    "fast" follows the authors' `get_orders_and_timesteps_for_singlestep_solver`.
    """
    whole, rest = divmod(intervals, order)
    if grouping == "fast" and order == 3 and rest == 0 and whole > 0:
        return [3] * (whole - 1) + [2, 1]
    return [order] * whole + ([rest] if rest else [])


def group(
    algorithm: Algorithm,
    solver_type: str,
    levels: Sequence[Level],
    eta_of: Callable[[float], float] | None = None,
) -> tuple[Step, ...]:
    """The steps of one group, from the first of some levels to the last, one for each interval.

    Its order is the number of steps.

    Each node's state is made from the group's first state and the outputs so far: the first node by
    order 1, the second by order 2 with the exact weights.

    Args:
        levels: the start, the inner nodes and the end.
        eta_of: h of a transition -> its eta; None: eta is 0.
    """
    start, order = levels[0], len(levels) - 1
    steps = []
    for stage, (level, after) in enumerate(pairwise(levels), 1):
        h = distance(algorithm, start, after)
        transition = Transition.between(algorithm, start, after, eta_of(h) if eta_of else 0.0)
        # The nodes after the first whose outputs enter, the oldest first.
        used = list(range(1, stage))
        rule = EXACT[:stage]
        if stage == order and solver_type == "dpmsolver" and order > 1:
            # The published formulas: midpoint at order 2; only the last node at order 3.
            used = used[-1:]
            rule = MIDPOINT if order == 2 else EXACT[:2]
        first, *others = transition.weights(
            [distance(algorithm, start, levels[j]) for j in used], rule
        )
        by_node = dict(zip(used, others, strict=True)) | {0: first}
        steps.append(
            Step(
                sigma=level.sigma,
                sigma_next=after.sigma,
                state=transition.state,
                outputs=tuple(by_node.get(j, 0.0) for j in reversed(range(stage))),
                prediction=prediction(algorithm, level),
                order=stage,
                inner=stage < order,
                noise=transition.noise,
            )
        )
    return tuple(steps)
