"""Adaptive DPM-Solver-12 and -23, for the noise (DPM-Solver) and for x0 (DPM-Solver++).

DPM-Solver (arXiv 2206.00927), appendix C; `dpm_solver_adaptive` in the authors' code. `embedded` has
the formulas of a step, `step_size` chooses the next step from the error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..checks import at_least, between
from ..grid import Grid
from ..integrate import Caller, levels, run
from ..log import LOG
from ..options import Options, algorithm_of, order_of, solver_type_of
from ..plan import Step
from ..schedules.process import NoiseSchedule
from ..schedules.sigma_lists import log_snr
from .embedded import INNER_NODES, Attempt, EmbeddedPair, attempt
from .multistep import Multistep
from .step_size import AuthorsController, Controller, PIDController

SMALLEST_STEP = 1e-4
"""The smallest step, in lambda_. A smaller one hardly changes a float32 state."""

# When to stop attempting and take the rest in fixed steps. Chosen on the tests' mixture and flow: if
# max_calls just suffices, the run is never cut (tests/samplers/test_adaptive.py), and a small one is
# not used up in the first part of the run.
RESERVE = 0.25
"""If less than this fraction of max_calls is left, a run that would not finish in time is cut."""

FEW = 20
"""If max_calls is smaller than this, such a run is cut at once."""

SLACK = 2.5
"""A run counts as not finishing in time if it needs this many times the calls that are left, at the
present step size: steps may grow again."""


COEFFICIENTS = ("pcoeff", "icoeff", "dcoeff")
MOST_COEFFICIENT = 100.0
"""More, or less than its negative, is no setting of a controller."""


@dataclass(frozen=True, kw_only=True)
class Adaptive(Options):
    """Settings of `sample_adaptive`; see there for their meaning."""

    algorithm: str = "dpmsolver++"
    order: int = 3
    solver_type: str = "dpmsolver"
    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05
    pcoeff: float | None = None
    icoeff: float | None = None
    dcoeff: float | None = None
    accept_safety: float | None = None
    max_calls: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta > 0.0:
            raise ValueError(
                f"eta = {self.eta:g}: the adaptive solver can't add noise; set eta to 0, or take "
                "another sampler."
            )
        if not (isinstance(self.max_calls, int) and self.max_calls >= 1):
            raise ValueError(
                f"max_calls must be a whole number of at least 1, not {self.max_calls!r}."
            )
        at_least("rtol", self.rtol, 0.0)
        at_least("atol", self.atol, 0.0)
        at_least("h_init", self.h_init, 0.0)
        for name in (*COEFFICIENTS, "accept_safety"):
            if (value := getattr(self, name)) is not None:
                most = MOST_COEFFICIENT if name in COEFFICIENTS else 1.0
                between(name, value, -most if name in COEFFICIENTS else 0.0, most)
        if self.rtol == self.atol == 0.0:
            raise ValueError("rtol and atol are both 0: one of them must be above 0.")
        if self.h_init == 0.0:
            raise ValueError("h_init must be above 0.")
        algorithm_of(self.algorithm)
        order = order_of(self.order, tuple(INNER_NODES))
        self._set(order=order, solver_type=solver_type_of(self.solver_type))

    def plan(self, grid: Grid) -> None:
        """None: the steps are chosen during the run."""

    def pair(self, schedule: NoiseSchedule) -> EmbeddedPair:
        return EmbeddedPair(schedule, algorithm_of(self.algorithm), self.order, self.solver_type)

    def controller(self) -> Controller:
        """A step-size controller for one run: k-diffusion's if any of its settings is given."""
        names = (*COEFFICIENTS, "accept_safety")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return PIDController(self.h_init, **given) if given else AuthorsController(self.h_init)


class AdaptiveInfo(dict):
    """What an adaptive run did: nfe, accepted, rejected, and sigmas, those of the accepted states.

    It is a dict, as in k-diffusion; its keys can be read as attributes too.
    """

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class Progress:
    """Turns lambda_ into the callback's i, which never falls and ends at the panel's last step.

    Attributes:
        start, end: lambda_ at both ends of the run.
        steps: how many of the panel's steps the run stands for.
    """

    start: float
    end: float
    steps: int
    index: int = 0

    def at(self, lambda_: float) -> int:
        way = self.end - self.start
        done = (lambda_ - self.start) / way if way else 1.0
        self.index = max(self.index, math.floor(done * self.steps + 1e-9) - 1)
        return self.index


def ends(sigmas: Sequence[float], schedule: NoiseSchedule) -> tuple[float, float, bool]:
    """The first sigma, the last one above zero, and whether to denoise there."""
    if sigmas[-1] > 0.0:
        return sigmas[0], sigmas[-1], False
    last = min((sigma for sigma in sigmas if sigma > 0.0), default=0.0)
    return sigmas[0], min(last, schedule.sigma_min or last), True


def flow_start(rtol: float, atol: float) -> float:
    """Where the first adaptive step starts on a flow's list from 1, whose lambda_ is minus infinity.

    An Euler step leads there. Its local error is about (1 - sigma)^2 / 2, which is far below the
    tolerance, down to 5e-9. Sigmas nearer to 1 would count as 1 (grid.NEARLY_EQUAL).
    """
    return 1.0 - max(0.1 * math.sqrt(min(max(rtol, atol), 1.0)), 1e-4)


def runs_short(calls: int, max_calls: int, order: int, steps: float, judged: bool) -> bool:
    """Whether to stop attempting and take the rest in fixed steps.

    Args:
        calls: how many calls are left.
        steps: how many more steps the run takes at the present step size.
        judged: whether that size comes from a measured error, and not from h_init.
    """
    # After any attempt but the last, enough calls for one more must be left: it may be rejected.
    if calls < order * min(math.ceil(steps), 2):
        return True
    # Spreading the calls that are left evenly is better than running out of them.
    reserve = max_calls if max_calls < FEW else RESERVE * max_calls
    return judged and calls < reserve and SLACK * calls < order * steps


REST = Multistep()
"""The solver for fixed steps: it interpolates x0, and so stays within bounds at any step size."""


class AdaptiveRun:
    """A run from the first sigma of a list to its end, in steps that the controller chooses.

    Args:
        options: the settings.
        caller: calls the model.
        x: the state at the first sigma, [batch, ...], at least float32.
        grid: a list of sigmas; only its ends are used.
    """

    def __init__(self, options: Adaptive, caller: Caller, x: torch.Tensor, grid: Grid) -> None:
        schedule = grid.schedule
        self.options, self.caller, self.x, self.schedule = options, caller, x, schedule
        self.pair, self.controller = options.pair(schedule), options.controller()
        sigma, self.sigma_end, self.denoises = ends(grid.sigmas, schedule)
        self.budget = options.max_calls - self.denoises
        self.path = [sigma]
        self.rejected = 0
        self.at_limit = math.isinf(schedule.lambda_(sigma)) and sigma != self.sigma_end
        near_limit = flow_start(options.rtol, options.atol)
        self.first = max(near_limit, self.sigma_end) if self.at_limit else sigma
        self.end = schedule.lambda_(self.sigma_end)
        steps = caller.total - self.denoises
        self.progress = Progress(schedule.lambda_(self.first), self.end, steps)

    def run(self) -> tuple[torch.Tensor, AdaptiveInfo]:
        """Run to the end.

        Returns:
            The last state, a tensor that nothing else holds, and what was done.

        Raises:
            RuntimeError: the model returned NaN or infinity.
        """
        if self.at_limit:
            direct = self.first == self.sigma_end and self.budget > 0
            if direct or self.budget > self.options.order:
                self._take_fixed_steps((self.path[-1], self.first))
        self.previous = self.x / self.schedule.scale(self.path[-1])
        self.h = self.controller.h_init
        while self.path[-1] != self.sigma_end and self._goes_on():
            pass
        accepted = len(self.path) - 1
        if self.denoises:
            self._denoise()
        elif self.caller.nfe == 0:
            self.x = self.x.clone()  # the caller's own
        if not torch.isfinite(self.x).all():
            raise RuntimeError(NOT_FINITE.format(self.path[-1]))
        info = {"accepted": accepted, "rejected": self.rejected, "sigmas": self.path}
        return self.x, AdaptiveInfo(nfe=self.caller.nfe, **info)

    def _goes_on(self) -> bool:
        """Attempt a step, or take the rest in fixed steps; False if the run is then at its end."""
        sigma, calls = self.path[-1], self.budget - self.caller.nfe
        start = self.schedule.lambda_(sigma)
        way = abs(self.end - start)
        if way < SMALLEST_STEP and calls > 0:
            self._take_fixed_steps((sigma, self.sigma_end))
            return False
        h = max(self.h, SMALLEST_STEP)
        if h > way - SMALLEST_STEP:  # leave no rest too small for a step of its own
            h = way
        judged = len(self.path) > 1 + self.at_limit or self.rejected > 0
        limits = self.options.max_calls, self.options.order
        if math.isinf(way) or runs_short(calls, *limits, way / h, judged):
            rest = f"in the {calls} calls that are left" if calls > 0 else "by denoising from there"
            self._warn(f"the rest is taken {rest}")
            if calls > 0:
                between = log_snr(self.schedule, sigma, self.sigma_end, calls, self.first)
                self._take_fixed_steps(between)
            return False
        signed = math.copysign(h, self.end - start)
        target = self.sigma_end if h == way else self.schedule.sigma(start + signed)
        at = self.progress.at(start)
        self._judge(attempt(self.pair, self.caller, self.x, sigma, target, at), target, h)
        return True

    def _judge(self, trial: Attempt, target: float, h: float) -> None:
        """Accept an attempt at a step of h to the sigma `target`, or reject it."""
        rtol, atol, order = self.options.rtol, self.options.atol, self.options.order
        error = self.pair.error(trial.high, trial.low, self.previous, target, rtol, atol)
        if not math.isfinite(error):
            raise RuntimeError(NOT_FINITE.format(self.path[-1]))
        accepted, self.h = self.controller.decide(error, h, order)
        if accepted:
            self.x, self.previous = trial.high, trial.low / self.schedule.scale(target)
            self.path.append(target)
        elif self.budget - self.caller.nfe < order:
            self._warn("the last step is taken at first order")
            self.x = trial.first_order(self.schedule, target)
            self.path.append(target)
        else:
            self.rejected += 1
        # The attempt's last call is reported only now, when the progress is known.
        self.caller.report(self.progress.at(self.schedule.lambda_(self.path[-1])), *trial.last)

    def _take_fixed_steps(self, sigmas: Sequence[float]) -> None:
        def done(_: int, step: Step) -> int:
            return self.progress.at(self.schedule.lambda_(step.sigma_next))

        plan = REST.plan(Grid.of(sigmas, self.schedule))
        self.path.extend(sigmas[1:])
        self.x = run(plan, self.caller, self.x, index=done)

    def _denoise(self) -> None:
        """Take the last step, to 0."""
        ((scalar, batch),) = levels(self.x, self.path[-1:])
        denoised = self.caller.denoise(self.x, batch)
        self.caller.report(self.caller.total - 1, self.x, scalar, denoised)
        self.x = denoised.to(self.x.dtype, copy=True)
        self.path.append(0.0)

    def _warn(self, outcome: str) -> None:
        LOG.warning(
            f"DPM-Solver Adaptive: max_calls = {self.options.max_calls} ran short at sigma = "
            f"{self.path[-1]:.4g}: {outcome}. Raise max_calls, or raise rtol for fewer calls."
        )


NOT_FINITE = (
    "The model returned NaN or infinity near sigma = {:.4g}, so the adaptive solver can't choose "
    "its steps: run the model in a higher precision (float32 or bfloat16), or check its weights."
)
