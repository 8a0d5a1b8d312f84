"""Multistep solvers of orders 1 to 3: one model call per interval, earlier outputs are reused.

Published weights: DPM-Solver++ (arXiv 2211.01095), algorithm 2 and appendix B, in the authors' code
`multistep_dpm_solver_{second,third}_update`; the noise form is the same with m = noise. The published
third order is of second order (see `exponential.HALF_CURVATURE`); the "exact" weights reach third.
"""

from __future__ import annotations

from .exponential import EXACT, HALF_CURVATURE, MIDPOINT, Algorithm, Rule
from .plan import Grid, Plan, Step, prediction
from .singlestep import group

RULES: dict[str, tuple[Rule, Rule, Rule]] = {
    "dpmsolver": (EXACT[:1], MIDPOINT, HALF_CURVATURE),
    "taylor": (EXACT[:1], EXACT[:2], HALF_CURVATURE),
    "exact": (EXACT[:1], EXACT[:2], EXACT[:3]),
}
"""Solver type -> the rule of a step of order 1, 2, 3."""

FEW_INTERVALS = 10  # "auto" lowers the last orders below this many, as the authors' code does


def plan_multistep(
    grid: Grid, algorithm: Algorithm, order: int, solver_type: str, lower_order_final: str
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
    """
    lowered = lower_order_final == "on" or (
        lower_order_final == "auto" and grid.intervals < FEW_INTERVALS
    )
    start = grid.first
    steps: list[Step] = []
    for i in range(len(grid.sigmas) - 1):
        if i < start or i >= grid.intervals:
            steps.append(grid.limit_step(i))
            continue
        highest = min(order, grid.intervals - i) if lowered else order
        if i == start + 1 and solver_type == "exact" and order == 3 and highest >= 2:
            steps[start:] = group(grid, algorithm, solver_type, start, i + 1)
            continue
        # Outputs from where lambda_ is infinite are worth nothing: the polynomial can't reach there.
        step_order = min(highest, i - start + 1)
        steps.append(_step(grid, algorithm, RULES[solver_type][step_order - 1], i))
    return grid.plan(steps)


def _step(grid: Grid, algorithm: Algorithm, rule: Rule, i: int) -> Step:
    transition = grid.transition(algorithm, i, i + 1)
    nodes = [grid.lambdas[i - age] - grid.lambdas[i] for age in range(1, len(rule))]
    return Step(
        sigma=grid.sigmas[i],
        sigma_next=grid.sigmas[i + 1],
        state=transition.state,
        outputs=transition.weights(nodes, rule),
        prediction=prediction(grid.schedule, algorithm, grid.sigmas[i]),
        order=len(rule),
    )
