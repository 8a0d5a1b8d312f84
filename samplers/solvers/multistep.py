"""Multistep solvers of orders 1 to 4: one model call per interval, earlier outputs are reused.

Published weights: DPM-Solver++ (arXiv 2211.01095), algorithm 2 and appendix B, in the authors' code
`multistep_dpm_solver_{second,third}_update`; the noise form is the same with m = noise. The published
third order is of second order (see `coefficients.HALF_CURVATURE`); the "exact" weights reach third.

With eta above 0 they are the same paper's SDE-DPM-Solver and SDE-DPM-Solver++, which k-diffusion calls
2M SDE and, at order 3 with "taylor" weights, 3M SDE. Their weak order is 2 at most.

The corrector is UniC of UniPC (arXiv 2302.04867, algorithm 1) with its integrals exact: the output at
the predicted state, which the next step needs anyway, first makes that state again as an interpolation
in place of an extrapolation. That is one order more at no call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import cast

from ..checks import between, one_of
from ..coefficients import EXACT, HALF_CURVATURE, MIDPOINT, Algorithm, Rule
from ..grid import Grid
from ..options import ALGORITHMS, Options, order_of, solver_type_of
from ..plan import PLANS_KEPT, Plan, Step, Weights, prediction
from ..schedules.process import NoiseSchedule
from .long_steps import FAR, LINEAR, LONG_WITH_NOISE, grows, is_group, reach, reach_2m
from .singlestep import group

RULES: dict[str, tuple[Rule, ...]] = {
    "dpmsolver": (EXACT[:1], MIDPOINT, HALF_CURVATURE),
    "taylor": (EXACT[:1], EXACT[:2], HALF_CURVATURE),
    "exact": (EXACT[:1], EXACT[:2], EXACT[:3], EXACT[:4]),
}
"""Solver type -> the rule of a step of order 1, 2, 3, ...: the published types end with 3."""

FEW_INTERVALS = 10  # "auto" lowers the last orders below this many, as the authors' code does


MULTISTEP_ALGORITHMS = (*ALGORITHMS, "adams")
VARIABLES = ("log_snr", "log_sigma")
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
    variable: str = "log_snr"
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
        one_of("variable", self.variable, VARIABLES)
        if self.variable == "log_sigma" and not self._solves_for_x0:
            raise ValueError(
                'variable = "log_sigma" is only for algorithm = "dpmsolver++" with eta = 0: leave it '
                "out."
            )
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

    @property
    def _solves_for_x0(self) -> bool:
        """Whether it interpolates x0 and adds no noise."""
        return self.algorithm == "dpmsolver++" and self.eta == 0.0

    @property
    def is_2m(self) -> bool:
        """Whether it is DPM-Solver++ 2M as published."""
        return self._solves_for_x0 and self.order == 2 and self.solver_type == "dpmsolver"

    def on(self, schedule: NoiseSchedule) -> Multistep:
        """As hosts' lists need it: long steps are lowered, and 2M interpolates x0 in log sigma, in
        which a flow's 1, where most of them start, has a place."""
        variable = "log_sigma" if self.is_2m else self.variable
        return replace(self, lower_long_steps=True, variable=variable)

    def plan(self, grid: Grid) -> Plan:
        self.check_direction(grid)
        plan = plan_multistep(grid, self)
        return plan.cfg_pp(grid.schedule) if self.cfg_pp else plan


@lru_cache(PLANS_KEPT)
def plan_multistep(grid: Grid, settings: Multistep) -> Plan:
    """Plan a multistep run: n calls for n intervals.

    The first steps have the order that the outputs so far allow. "exact" at order 3 would lose an
    order by starting with an Euler step, so it takes its first two intervals as one second-order
    singlestep group instead, within the same calls; with the corrector, which wins another order, its
    first three as one of third order. "adams" always starts with an Euler step, as those who use it
    expect: it converges at order 2 at most, with the corrector at 3.

    Where lambda_ is infinite all of an SDE's noise is fresh: in the exact limit nothing is left of the
    state at a flow's 1 for any eta above 0.
    """
    algorithm = cast(Algorithm, settings.algorithm)
    exact_start = settings.solver_type == "exact" and settings.order > 2 and algorithm != "adams"
    grouped_start = 2 + (settings.corrector is not None) if exact_start else 0
    careful = settings.lower_order_final != "off"
    limited = careful and (settings.lower_long_steps or exact_start)
    given = grid.levels
    if settings.variable == "log_sigma":
        grid = grid.in_log_sigma()
    lengths = [abs(end.lambda_ - begin.lambda_) for begin, end in pairwise(grid.levels)]
    start, intervals = _first(grid, algorithm), grid.intervals

    steps: list[Step] = []
    for i, end in enumerate(grid.levels[1:]):
        eta = settings.eta_to(end.sigma)
        if i < start or i >= intervals:
            steps.append(grid.limit_step(i, 0.0 if eta else 1.0))
            continue
        highest = _highest_order(settings, intervals, i)
        so_far = i - start + 1  # intervals, this one included
        if 2 <= so_far <= min(grouped_start, highest) and not (
            limited and not is_group(algorithm, grid.levels[start : i + 2])
        ):
            levels = grid.levels[start : i + 2]
            steps[start:] = group(algorithm, settings.solver_type, levels, _constant(eta))
            continue
        # Outputs from where lambda_ is infinite are worth nothing: the polynomial can't reach there.
        order, share = min(highest, so_far), 1.0
        if limited and order > 1:
            known, ahead = lengths[i - 1 : i + 1]
            if settings.is_2m:
                share = reach_2m(known, ahead, given[i], given[i + 1])
            elif not eta or ahead > LONG_WITH_NOISE * known:
                share = reach(FAR[algorithm], known, ahead)
            if share < LINEAR:
                order = 2
        rule = RULES[settings.solver_type][order - 1]
        steps.append(_step(grid, settings, rule, i, eta, share))
    if settings.corrector:
        steps = _corrected(grid, algorithm, steps, settings.power, careful)
    return grid.plan(steps)


def _constant(eta: float) -> Callable[[float], float]:
    return lambda h: eta


def _highest_order(settings: Multistep, intervals: int, i: int) -> int:
    """The order that interval i of so many may have, by `lower_order_final`."""
    lowered = settings.lower_order_final == "on" or (
        settings.lower_order_final == "auto"
        and intervals < FEW_INTERVALS
        and not (settings.lower_long_steps and settings.is_2m)
    )
    return min(settings.order, intervals - i) if lowered else settings.order


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


def _step(grid: Grid, settings: Multistep, rule: Rule, i: int, eta: float, share: float) -> Step:
    algorithm, power = cast(Algorithm, settings.algorithm), settings.power
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
