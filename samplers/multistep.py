"""Multistep solvers of orders 1 to 4: one model call per interval, earlier outputs are reused.

Published weights: DPM-Solver++ (arXiv 2211.01095), algorithm 2 and appendix B, in the authors' code
`multistep_dpm_solver_{second,third}_update`; the noise form is the same with m = noise. The published
third order is of second order (see `exponential.HALF_CURVATURE`); the "exact" weights reach third.

With eta above 0 they are the same paper's SDE-DPM-Solver and SDE-DPM-Solver++, which k-diffusion calls
2M SDE and, at order 3 with "taylor" weights, 3M SDE. Their weak order is 2 at most.

The corrector is UniC of UniPC (arXiv 2302.04867, algorithm 1) with its integrals exact: the output at
the predicted state, which the next step needs anyway, first makes that state again as an interpolation
in place of an extrapolation. That is one order more at no call.
"""

from __future__ import annotations

from functools import lru_cache

from .exponential import EXACT, HALF_CURVATURE, MIDPOINT, Algorithm, Rule
from .long_steps import FAR, LINEAR, grows, is_group, reach
from .plan import PLANS_KEPT, Grid, Plan, Step, Weights, prediction
from .singlestep import group

RULES: dict[str, tuple[Rule, ...]] = {
    "dpmsolver": (EXACT[:1], MIDPOINT, HALF_CURVATURE),
    "taylor": (EXACT[:1], EXACT[:2], HALF_CURVATURE),
    "exact": (EXACT[:1], EXACT[:2], EXACT[:3], EXACT[:4]),
}
"""Solver type -> the rule of a step of order 1, 2, 3, ...: the published types end with 3."""

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
    corrector: bool = False,
    power: float = 1.0,
) -> Plan:
    """Plan a multistep run: n calls for n intervals.

    The first steps have the order that the outputs so far allow. "exact" at order 3 would lose an
    order by starting with an Euler step, so it takes its first two intervals as one second-order
    singlestep group instead, within the same calls; with the corrector, which wins another order, its
    first three as one of third order. "adams" always starts with an Euler step, as those who use it
    expect: it converges at order 2 at most, with the corrector at 3.

    Args:
        order: 1, 2 or 3, and with "exact" weights 4.
        solver_type: a key of RULES.
        lower_order_final: whether the k-th interval from the end (above zero) has at most order k:
            "on", "off", or "auto", which is on below 10 intervals.
        eta: how much noise the SDE has. Where lambda_ is infinite all of it is fresh: in the exact
            limit nothing is left of the state at a flow's 1 for any eta above 0.
        lower_long_steps: whether polynomials are read no further than `long_steps` says. With exact
            weights of order 3 and 4, and for the corrector, they never are, unless lower_order_final
            is "off".
        corrector: whether each state is corrected by the output at it.
        power: of sigma, in which the polynomials of "adams" run.
    """
    lowered = lower_order_final == "on" or (
        lower_order_final == "auto" and grid.intervals < FEW_INTERVALS
    )
    singlestep_start = solver_type == "exact" and order >= 3 and algorithm != "adams"
    careful = lower_order_final != "off"
    limited = careful and (lower_long_steps or singlestep_start)
    start, intervals = _first(grid, algorithm), grid.intervals
    steps: list[Step] = []
    for i in range(len(grid.levels) - 1):
        if i < start or i >= intervals:
            steps.append(grid.limit_step(i, kept=0.0 if eta else 1.0))
            continue
        highest = min(order, intervals - i) if lowered else order
        grouped = i - start + 1  # intervals so far, this one included
        if (
            singlestep_start
            and 2 <= grouped <= min(2 + corrector, highest)
            and not (limited and not is_group(algorithm, grid.levels[start : i + 2]))
        ):
            steps[start:] = group(grid, algorithm, solver_type, start, i + 1, lambda _: eta)
            continue
        # Outputs from where lambda_ is infinite are worth nothing: the polynomial can't reach there.
        step_order = min(highest, grouped)
        share = 1.0
        if limited and step_order > 1:
            share = reach(FAR[algorithm], *grid.levels[i - 1 : i + 2])
            if share < LINEAR:
                step_order = 2
        rule = RULES[solver_type][step_order - 1]
        steps.append(_step(grid, algorithm, rule, i, eta, power, share))
    if corrector:
        steps = _corrected(grid, algorithm, steps, power, careful)
    return grid.plan(steps)


def _first(grid: Grid, algorithm: Algorithm) -> int:
    """The first level with a finite position: Adams' variable has none that is infinite."""
    return 0 if algorithm == "adams" else grid.first


def _corrected(
    grid: Grid, algorithm: Algorithm, steps: list[Step], power: float, careful: bool
) -> list[Step]:
    """The same steps, each with the correction of the state it starts from.

    The state that a step of order p made is corrected by the polynomial through p + 1 outputs, the new
    one included. That of a singlestep group is as good as it would become, and the outputs at its
    inner nodes are too far off for a correction to use.

    Args:
        careful: whether a step stays uncorrected where the new output's error would grow too much.
    """
    first = _first(grid, algorithm)
    corrected = list(steps)
    base = 0  # index of the level that the present state was made from
    for i in range(1, len(steps)):
        made = steps[i - 1]
        if made.inner:
            continue
        grouped = i > 1 and steps[i - 2].inner
        grown = careful and grows(algorithm, *grid.levels[base : i + 1 : i - base])
        if base >= first and not grouped and not grown:
            transition = grid.transition(algorithm, base, i, power=power)
            # The polynomial's origin is the base.
            usable = [j for j in range(i, first - 1, -1) if not (j and steps[j - 1].inner)]
            others = [j for j in usable[: made.order + 1] if j != base]
            nodes = [grid.distance(algorithm, base, j, power) for j in others]
            of_base, *rest = transition.weights(nodes, EXACT)
            by_level = dict(zip(others, rest, strict=True)) | {base: of_base}
            weights = tuple(by_level.get(j, 0.0) for j in range(i, min(by_level) - 1, -1))
            corrected[i] = steps[i]._replace(correction=Weights(transition.state, weights))
        base = i
    return corrected


def _step(
    grid: Grid, algorithm: Algorithm, rule: Rule, i: int, eta: float, power: float, share: float
) -> Step:
    levels = grid.levels
    transition = grid.transition(algorithm, i, i + 1, eta, power)
    nodes = [grid.distance(algorithm, i, i - age, power) for age in range(1, len(rule))]
    return Step(
        sigma=levels[i].sigma,
        sigma_next=levels[i + 1].sigma,
        state=transition.state,
        outputs=transition.weights(nodes, rule, share),
        prediction=prediction(algorithm, levels[i]),
        order=len(rule),
        noise=transition.noise,
    )
