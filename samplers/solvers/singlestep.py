"""Singlestep solvers of orders 1 to 3: the inner sigmas of a group of intervals are a step's nodes.

DPM-Solver (arXiv 2206.00927), algorithms 1 and 2 and appendix B; DPM-Solver++ (arXiv 2211.01095),
appendix B; in the authors' code `singlestep_dpm_solver_{second,third}_update`, with r1 and r2 read
from the sigmas. A group of order p covers p intervals in p model calls. It uses no output of
an earlier group.

With eta above 0, orders 1 and 2 are the stochastic solvers that users know as Euler ancestral and
DPM++ SDE (k-diffusion's `sample_euler_ancestral`, `sample_dpmpp_sde`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

from ..checks import one_of
from ..coefficients import EXACT, MIDPOINT, Algorithm, distance
from ..grid import Grid
from ..options import Options, algorithm_of, order_of, solver_type_of
from ..plan import PLANS_KEPT, Plan, Step, prediction
from ..schedules.process import NoiseSchedule
from .long_steps import groups

GROUPINGS = ("fast", "fixed")


@dataclass(frozen=True, kw_only=True)
class Singlestep(Options):
    """Settings of `sample_singlestep`; see there for their meaning."""

    algorithm: str = "dpmsolver++"
    order: int = 2
    solver_type: str = "dpmsolver"
    grouping: str = "fast"
    lower_long_steps: bool = False

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

    def on(self, schedule: NoiseSchedule) -> Singlestep:
        """With `lower_long_steps`: hosts' lists have long steps."""
        return replace(self, lower_long_steps=True)

    def plan(self, grid: Grid) -> Plan:
        self.check_direction(grid)
        return plan_singlestep(grid, self)


@lru_cache(PLANS_KEPT)
def plan_singlestep(grid: Grid, settings: Singlestep) -> Plan:
    """Plan a singlestep run: n calls for n intervals."""
    algorithm, eta = cast(Algorithm, settings.algorithm), settings.eta
    kept = math.sqrt(1.0 - min(eta, 1.0) ** 2)
    limited = settings.lower_long_steps or not grid.falls

    def eta_of(h: float) -> float:
        return ancestral_eta(algorithm, h, eta)

    steps: list[Step] = []
    if grid.first < grid.intervals:
        steps += [grid.limit_step(i, kept) for i in range(grid.first)]
        sizes = group_sizes(grid.intervals - grid.first, settings.order, settings.grouping)
        for published in sizes:
            levels = grid.levels[len(steps) : len(steps) + published + 1]
            for size in groups(algorithm, levels) if limited else [published]:
                start = len(steps)
                end = start + size
                steps += group(grid, algorithm, settings.solver_type, start, end, eta_of)
    steps += [grid.limit_step(i, kept) for i in range(len(steps), len(grid.levels) - 1)]
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
    grid: Grid,
    algorithm: Algorithm,
    solver_type: str,
    start: int,
    end: int,
    eta_of: Callable[[float], float] | None = None,
) -> tuple[Step, ...]:
    """The steps of one group, from grid.levels[start] to grid.levels[end]; its order is end - start.

    Each node's state is made from the group's first state and the outputs so far: the first node by
    order 1, the second by order 2 with the exact weights.

    Args:
        eta_of: h of a transition -> its eta; None: eta is 0.
    """
    levels, order = grid.levels, end - start
    steps = []
    for stage in range(1, order + 1):
        h = distance(algorithm, levels[start], levels[start + stage])
        eta = eta_of(h) if eta_of else 0.0
        transition = grid.transition(algorithm, start, start + stage, eta)
        used = list(
            range(1, stage)
        )  # the nodes after the first whose outputs enter, the oldest first
        rule = EXACT[:stage]
        if stage == order and solver_type == "dpmsolver" and order > 1:
            # The published formulas: midpoint at order 2; only the last node at order 3.
            used = used[-1:]
            rule = MIDPOINT if order == 2 else EXACT[:2]
        nodes = [distance(algorithm, levels[start], levels[start + j]) for j in used]
        first, *others = transition.weights(nodes, rule)
        by_node = dict(zip(used, others, strict=True)) | {0: first}
        index = start + stage - 1
        steps.append(
            Step(
                sigma=levels[index].sigma,
                sigma_next=levels[index + 1].sigma,
                state=transition.state,
                outputs=tuple(by_node.get(j, 0.0) for j in reversed(range(stage))),
                prediction=prediction(algorithm, levels[index]),
                order=stage,
                inner=stage < order,
                noise=transition.noise,
            )
        )
    return tuple(steps)
