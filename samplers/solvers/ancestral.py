"""Ancestral solvers: an ODE step that goes too far down, and noise that comes back up.

k-diffusion's `sample_euler_ancestral` (order 1) and `sample_dpmpp_2s_ancestral` (order 2), and on
flows ComfyUI's forms of them ("RF"). A step from sigma_s to sigma_t solves the ODE down to a lower
sigma, where less of the noise is left, and adds noise for sigma_t. So it differs from a step of the
SDE (`singlestep`) at order 2: its inner node has no noise of its own.

A step of order 2 covers two intervals in two calls. Its inner node lies in the middle, in lambda_, of
the start and the lower sigma. With eta = 1 on variance exploding that is sigma_t itself.

With CFG++, as for all solvers here, guidance moves each new state by the difference of the newest
call's outputs. ComfyUI's `sample_dpmpp_2s_ancestral_cfg_pp` takes the guided output of the first call
and the unconditional one of the second: even without guidance it does not come to the same image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ..checks import between
from ..coefficients import Level
from ..grid import Grid
from ..options import Options, order_of
from ..plan import PLANS_KEPT, Plan, Step
from ..schedules.process import NoiseSchedule, RectifiedFlow
from .long_steps import grows
from .singlestep import group_sizes


@dataclass(frozen=True, kw_only=True)
class Ancestral(Options):
    """Settings of `sample_ancestral`, which says what they mean.

    Attributes:
        cfg_pp: the CFG++ form, for which the sampler is given the unconditional predictions.
    """

    order: int = 2
    eta: float = 1.0
    cfg_pp: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(order=order_of(self.order, (1, 2)))
        between("eta of an ancestral solver", self.eta, 0.0, 1.0)

    @property
    def needs_unconditional(self) -> bool:
        return self.cfg_pp

    def plan(self, grid: Grid) -> Plan:
        self.check_direction(grid)
        plan = plan_ancestral(grid, self)
        return plan.cfg_pp(grid.schedule) if self.cfg_pp else plan


@lru_cache(PLANS_KEPT)
def plan_ancestral(grid: Grid, settings: Ancestral) -> Plan:
    """Plan an ancestral run: n calls for n intervals, in pairs at order 2.

    A step from where lambda_ is infinite has order 1, and so has the last one if their number is odd.
    """

    def share(start: Level, end: Level) -> float:
        return kept_share(grid.schedule, start, end, settings.eta_to(end.sigma))

    def single(i: int) -> Step:
        start, end = grid.levels[i : i + 2]
        return grid.limit_step(i, share(start, end))

    steps: list[Step] = []
    singles = min(grid.first, grid.intervals)
    sizes = [1] * singles + group_sizes(grid.intervals - singles, settings.order, "fixed")
    for size in sizes:
        i = len(steps)
        start, end = grid.levels[i], grid.levels[i + size]
        if size == 2:
            kept = share(start, end)
            node = grid.level_at((start.lambda_ + end.lambda_ - math.log(kept)) / 2.0)
            if not grows("dpmsolver++", start, node):
                steps += pair(start, node, end, kept)
                continue
        steps += map(single, range(i, i + size))
    steps += map(grid.limit_step, range(len(steps), len(grid.levels) - 1))
    return grid.plan(steps)


def kept_share(schedule: NoiseSchedule, start: Level, end: Level, eta: float) -> float:
    """The share of the noise at the end of a step that is the state's own; the rest is fresh.

    With s = sigma / alpha, the ODE goes down to s_down, and the share is s_down / s_t.
    """
    if isinstance(schedule, RectifiedFlow):  # ComfyUI's: linear in sigma
        down = end.sigma * (1.0 + eta * (end.sigma / start.sigma - 1.0))
        return min(down / (1.0 - down) * end.alpha / end.sigma, 1.0)  # rounding may pass 1
    # The root of 1 - eta^2 (1 - (end / start)^2), in a form in which nothing cancels.
    return math.sqrt((1.0 - eta) * (1.0 + eta) + (eta * end.sigma / start.sigma) ** 2)


def pair(start: Level, node: Level, end: Level, kept: float) -> tuple[Step, Step]:
    """The two steps of order 2: to the inner node by order 1, and by its output to the end."""
    to_node, state = node.sigma / start.sigma, kept * end.sigma / start.sigma
    return (
        Step(
            start.sigma,
            node.sigma,
            to_node,
            (node.alpha - start.alpha * to_node,),
            inner=True,
        ),
        Step(
            node.sigma,
            end.sigma,
            state,
            (end.alpha - start.alpha * state,),
            order=2,
            noise=end.sigma * math.sqrt(1.0 - kept * kept),
        ),
    )
