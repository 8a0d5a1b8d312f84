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

from dataclasses import dataclass, replace
from functools import lru_cache

from ..checks import between, one_of
from ..coefficients import EXACT, HALF_CURVATURE, MIDPOINT, Algorithm, Rule
from ..options import ALGORITHMS, Options, algorithm_of, order_of, solver_type_of
from ..plan import PLANS_KEPT, Grid, Plan, Step, Weights, prediction
from ..schedules.process import NoiseSchedule, RectifiedFlow
from .singlestep import group

RULES: dict[str, tuple[Rule, ...]] = {
    "dpmsolver": (EXACT[:1], MIDPOINT, HALF_CURVATURE),
    "taylor": (EXACT[:1], EXACT[:2], HALF_CURVATURE),
    "exact": (EXACT[:1], EXACT[:2], EXACT[:3], EXACT[:4]),
}
"""Solver type -> the rule of a step of order 1, 2, 3, ...: the published types end with 3."""

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
        lower_long_steps: whether a step far longer than the one before (see LONGER) has order 1; for
            the exact order 3 it always has, unless lower_order_final is "off".
        corrector: whether each state is corrected by the output at it.
        power: of sigma, in which the polynomials of "adams" run.
    """
    lowered = lower_order_final == "on" or (
        lower_order_final == "auto" and grid.intervals < FEW_INTERVALS
    )
    singlestep_start = solver_type == "exact" and order >= 3 and algorithm != "adams"
    lower_long_steps = lower_order_final != "off" and (lower_long_steps or singlestep_start)
    start, intervals = _first(grid, algorithm), grid.intervals
    steps: list[Step] = []
    for i in range(len(grid.levels) - 1):
        if i < start or i >= intervals:
            steps.append(grid.limit_step(i, kept=0.0 if eta else 1.0))
            continue
        highest = min(order, intervals - i) if lowered else order
        if lower_long_steps and i > start and _leads_out(grid, i):
            highest = 1
        grouped = i - start + 1  # intervals so far, this one included
        if singlestep_start and 2 <= grouped <= min(2 + corrector, highest):
            steps[start:] = group(grid, algorithm, solver_type, start, i + 1, lambda _: eta)
            continue
        # Outputs from where lambda_ is infinite are worth nothing: the polynomial can't reach there.
        step_order = min(highest, i - start + 1)
        steps.append(_step(grid, algorithm, RULES[solver_type][step_order - 1], i, eta, power))
    if corrector:
        steps = _corrected(grid, algorithm, steps, power)
    return grid.plan(steps)


def _first(grid: Grid, algorithm: Algorithm) -> int:
    """The first level with a finite position: Adams' variable has none that is infinite."""
    return 0 if algorithm == "adams" else grid.first


def _leads_out(grid: Grid, i: int) -> bool:
    before, start, end = (level.lambda_ for level in grid.levels[i - 1 : i + 2])
    return abs(end - start) > max(LONG, LONGER * abs(start - before))


def _corrected(grid: Grid, algorithm: Algorithm, steps: list[Step], power: float) -> list[Step]:
    """The same steps, each with the correction of the state it starts from.

    The state that a step of order p made is corrected by the polynomial through p + 1 outputs, the new
    one included. That of a singlestep group is as good as it would become, and the outputs at its
    inner nodes are too far off for a correction to use.
    """
    first = _first(grid, algorithm)
    corrected, base = (
        list(steps),
        0,
    )  # base: index of the level that the present state was made from
    for i in range(1, len(steps)):
        made = steps[i - 1]
        if made.inner:
            continue
        grouped = i > 1 and steps[i - 2].inner
        if base >= first and not grouped:
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


def _step(grid: Grid, algorithm: Algorithm, rule: Rule, i: int, eta: float, power: float) -> Step:
    levels = grid.levels
    transition = grid.transition(algorithm, i, i + 1, eta, power)
    nodes = [grid.distance(algorithm, i, i - age, power) for age in range(1, len(rule))]
    return Step(
        sigma=levels[i].sigma,
        sigma_next=levels[i + 1].sigma,
        state=transition.state,
        outputs=transition.weights(nodes, rule),
        prediction=prediction(algorithm, levels[i]),
        order=len(rule),
        noise=transition.noise,
    )


MULTISTEP_ALGORITHMS = (*ALGORITHMS, "adams")
POWERS = (-2.0, 2.0)
CORRECTORS = ("unic",)
LOWER_ORDER_FINAL = ("auto", "on", "off")


@dataclass(frozen=True, kw_only=True)
class Multistep(Options):
    """Settings of `sample_multistep`, which says what they mean.

    Attributes:
        cfg_pp: the CFG++ form, for which the sampler is given the unconditional predictions.
    """

    algorithm: str = "dpmsolver++"
    order: int = 2
    solver_type: str = "dpmsolver"
    lower_order_final: str = "auto"
    lower_long_steps: bool = False
    corrector: str | None = None
    power: float = 1.0
    cfg_pp: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("algorithm", self.algorithm, MULTISTEP_ALGORITHMS)
        adams = self.algorithm == "adams"
        self._set(solver_type="exact" if adams else solver_type_of(self.solver_type))
        if self.order == 4 and self.solver_type != "exact":
            raise ValueError(
                'order = 4 has exact weights only: set solver_type to "exact" or algorithm to '
                '"adams", or order to 3.'
            )
        self._set(order=order_of(self.order, (1, 2, 3, 4)))
        one_of("lower_order_final", self.lower_order_final, LOWER_ORDER_FINAL)
        one_of("corrector", self.corrector, (None, *CORRECTORS))
        between("power", self.power, *POWERS)
        if self.power != 1.0 and not adams:
            raise ValueError(
                f'power = {self.power:g} is only for algorithm = "adams": leave it out.'
            )
        if self.eta > 0.0 and (self.corrector or adams):
            which = f"corrector = {self.corrector!r}" if self.corrector else 'algorithm = "adams"'
            raise ValueError(f"{which} has no stochastic form: set eta to 0, or choose another.")
        if self.corrector and self.cfg_pp:
            raise ValueError(
                f"corrector = {self.corrector!r} and CFG++ (cfg_pp) exclude each other: switch one "
                "of them off."
            )

    @property
    def needs_unconditional(self) -> bool:
        return self.cfg_pp

    def on(self, schedule: NoiseSchedule) -> Multistep:
        """Long steps are lowered on flows and with noise, where that was measured to be closer."""
        return replace(
            self, lower_long_steps=self.stochastic or isinstance(schedule, RectifiedFlow)
        )

    def plan(self, grid: Grid) -> Plan:
        self.check_direction(grid)
        algorithm: Algorithm = (
            "adams" if self.algorithm == "adams" else algorithm_of(self.algorithm)
        )
        plan = plan_multistep(
            grid,
            algorithm,
            self.order,
            self.solver_type,
            self.lower_order_final,
            self.eta,
            self.lower_long_steps,
            self.corrector is not None,
            self.power,
        )
        return plan.cfg_pp(grid.schedule) if self.cfg_pp else plan
