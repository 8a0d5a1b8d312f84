"""Multistep solvers of orders 1 to 3: one model call per interval, earlier outputs are reused.

Published weights: DPM-Solver++ (arXiv 2211.01095), algorithm 2 and appendix B, in the authors' code
`multistep_dpm_solver_{second,third}_update`; the noise form is the same with m = noise. The published
third order is of second order (see `exponential.HALF_CURVATURE`); the "exact" weights reach third.

With eta above 0 they are the same paper's SDE-DPM-Solver and SDE-DPM-Solver++, which k-diffusion calls
2M SDE and, at order 3 with "taylor" weights, 3M SDE. Their weak order is 2 at most.
"""

from __future__ import annotations

from functools import lru_cache

from .exponential import EXACT, HALF_CURVATURE, MIDPOINT, Algorithm, Rule
from .plan import PLANS_KEPT, Grid, Plan, Step, prediction
from .singlestep import group

RULES: dict[str, tuple[Rule, Rule, Rule]] = {
    "dpmsolver": (EXACT[:1], MIDPOINT, HALF_CURVATURE),
    "taylor": (EXACT[:1], EXACT[:2], HALF_CURVATURE),
    "exact": (EXACT[:1], EXACT[:2], EXACT[:3]),
}
"""Solver type -> the rule of a step of order 1, 2, 3."""

LONG, LONGER = 2.0, 3.0
"""A step of more than LONG in lambda_ and LONGER times the one before leads out of what the outputs
so far can tell: a polynomial through them is worse there than none (benchmarks/defaults.py). Lists
that are even in time down to a small sigma, and then 0, end with such a step, on flows most of all."""

FEW_INTERVALS = 10  # "auto" lowers the last orders below this many, as the authors' code does


@lru_cache(PLANS_KEPT)
def plan_multistep(
    grid: Grid,
    algorithm: Algorithm,
    order: int,
    solver_type: str,
    lower_order_final: str,
    eta: float = 0.0,
    lower_long_steps: bool = False,
) -> Plan:
    """Plan a multistep run: n calls for n intervals.

    The first steps have the order that the outputs so far allow. "exact" at order 3 would lose an
    order by starting with an Euler step, so it takes its first two intervals as one second-order
    singlestep group instead, within the same calls.

    Args:
        order: 1, 2 or 3.
        solver_type: a key of RULES.
        lower_order_final: whether the k-th interval from the end (above zero) has at most order k:
            "on", "off", or "auto", which is on below 10 intervals.
        eta: how much noise the SDE has. Where lambda_ is infinite all of it is fresh: in the exact
            limit nothing is left of the state at a flow's 1 for any eta above 0.
        lower_long_steps: whether a step far longer than the one before (see LONGER) has order 1; for
            the exact order 3 it always has, unless lower_order_final is "off".
    """
    lowered = lower_order_final == "on" or (
        lower_order_final == "auto" and grid.intervals < FEW_INTERVALS
    )
    lower_long_steps = lower_order_final != "off" and (
        lower_long_steps or (solver_type == "exact" and order == 3)
    )
    start, intervals = grid.first, grid.intervals
    steps: list[Step] = []
    for i in range(len(grid.levels) - 1):
        if i < start or i >= intervals:
            steps.append(grid.limit_step(i, kept=0.0 if eta else 1.0))
            continue
        highest = min(order, intervals - i) if lowered else order
        if lower_long_steps and i > start and _leads_out(grid, i):
            highest = 1
        if i == start + 1 and solver_type == "exact" and order == 3 and highest >= 2:
            steps[start:] = group(grid, algorithm, solver_type, start, i + 1, lambda _: eta)
            continue
        # Outputs from where lambda_ is infinite are worth nothing: the polynomial can't reach there.
        step_order = min(highest, i - start + 1)
        steps.append(_step(grid, algorithm, RULES[solver_type][step_order - 1], i, eta))
    return grid.plan(steps)


def _leads_out(grid: Grid, i: int) -> bool:
    before, start, end = (level.lambda_ for level in grid.levels[i - 1 : i + 2])
    return abs(end - start) > max(LONG, LONGER * abs(start - before))


def _step(grid: Grid, algorithm: Algorithm, rule: Rule, i: int, eta: float) -> Step:
    levels = grid.levels
    transition = grid.transition(algorithm, i, i + 1, eta)
    nodes = [levels[i - age].lambda_ - levels[i].lambda_ for age in range(1, len(rule))]
    return Step(
        sigma=levels[i].sigma,
        sigma_next=levels[i + 1].sigma,
        state=transition.state,
        outputs=transition.weights(nodes, rule),
        prediction=prediction(algorithm, levels[i]),
        order=len(rule),
        noise=transition.noise,
    )
