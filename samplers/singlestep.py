"""Singlestep solvers of orders 1 to 3: groups of intervals, the inner sigmas being a step's nodes.

DPM-Solver (arXiv 2206.00927), algorithms 1 and 2 and appendix B; DPM-Solver++ (arXiv 2211.01095),
appendix B; in the authors' code `singlestep_dpm_solver_{second,third}_update`, with r1 and r2 read
from the sigmas. A group of order p covers p intervals in p model calls and starts afresh after it.
"""

from __future__ import annotations

from .exponential import EXACT, MIDPOINT, Algorithm
from .plan import Grid, Plan, Step, prediction


def plan_singlestep(
    grid: Grid, algorithm: Algorithm, order: int, solver_type: str, grouping: str
) -> Plan:
    """Plan a singlestep run: n calls for n intervals.

    Args:
        order: 1, 2 or 3.
        solver_type: "dpmsolver", or "taylor" and "exact", which are the same here.
        grouping: "fast" ends in shorter groups, as published; "fixed" uses groups of `order` and the
            remainder as one.
    """
    steps: list[Step] = []
    if grid.first < grid.intervals:
        steps += [grid.limit_step(i) for i in range(grid.first)]
        for size in group_sizes(grid.intervals - grid.first, order, grouping):
            start = len(steps)
            steps += group(grid, algorithm, solver_type, start, start + size)
    steps += [grid.limit_step(i) for i in range(len(steps), len(grid.sigmas) - 1)]
    return grid.plan(steps)


def group_sizes(intervals: int, order: int, grouping: str) -> list[int]:
    """Split a number of intervals into groups of at most `order`.

    "fast" follows the authors' `get_orders_and_timesteps_for_singlestep_solver`.
    """
    whole, rest = divmod(intervals, order)
    if grouping == "fast" and order == 3 and rest == 0 and whole > 0:
        return [3] * (whole - 1) + [2, 1]
    return [order] * whole + ([rest] if rest else [])


def group(
    grid: Grid, algorithm: Algorithm, solver_type: str, start: int, end: int
) -> tuple[Step, ...]:
    """The steps of one group, from grid.sigmas[start] to grid.sigmas[end]; its order is end - start.

    Each node's state is made from the group's first state and the outputs so far: the first node by
    order 1, the second by order 2 with the exact weights.
    """
    order = end - start
    steps = []
    for stage in range(1, order + 1):
        transition = grid.transition(algorithm, start, start + stage)
        used = list(range(1, stage))  # the nodes after the first that enter, the oldest first
        rule = EXACT[:stage]
        if stage == order and solver_type == "dpmsolver" and order > 1:
            # The published formulas: midpoint at order 2; at order 3 the last node alone.
            used = used[-1:]
            rule = MIDPOINT if order == 2 else EXACT[:2]
        nodes = [grid.lambdas[start + j] - grid.lambdas[start] for j in used]
        first, *others = transition.weights(nodes, rule)
        by_node = dict(zip(used, others, strict=True)) | {0: first}
        index = start + stage - 1
        steps.append(
            Step(
                sigma=grid.sigmas[index],
                sigma_next=grid.sigmas[index + 1],
                state=transition.state,
                outputs=tuple(by_node.get(j, 0.0) for j in reversed(range(stage))),
                prediction=prediction(grid.schedule, algorithm, grid.sigmas[index]),
                order=stage,
                inner=stage < order,
            )
        )
    return tuple(steps)
