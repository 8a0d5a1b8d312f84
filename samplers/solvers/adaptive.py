"""Adaptive DPM-Solver-12 and -23, for the noise (DPM-Solver) and for x0 (DPM-Solver++).

DPM-Solver (arXiv 2206.00927), appendix C; `dpm_solver_adaptive` in the authors' code. Each attempt is
one singlestep group of the given order. A solution of the order below is embedded in the same model
calls, and the difference of the two, on the variance-preserving scale, is the error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..checks import at_least
from ..coefficients import Algorithm
from ..integrate import Caller, advance, levels, model_output, run
from ..log import LOG
from ..options import Options, algorithm_of, order_of, solver_type_of
from ..plan import Grid, Step
from ..schedules.process import NoiseSchedule
from ..schedules.sigma_lists import log_snr
from .multistep import plan_multistep
from .singlestep import group
from .step_size import AuthorsController, Controller, PIDController

INNER_NODES = {2: (0.5,), 3: (1.0 / 3.0, 2.0 / 3.0)}
"""Order -> inner nodes of an attempt as parts of h, as published."""

SMALLEST_STEP = 1e-4
"""In lambda_. Below it a float32 state hardly changes."""

# When to cut a run short. Chosen on the mixture and flow of the tests such that a budget that is just
# enough is never cut (tests/test_adaptive.py), and that a small one is not spent on the first stretch.
RESERVE = 0.25
"""The part of max_calls from which on a run that would not arrive in time is cut short."""

FEW = 20
"""With fewer calls than this in all, such a run is cut short at once."""

SLACK = 2.5
"""By which factor the calls must be too few at the present step size, for it may grow again."""


class AdaptiveInfo(dict):
    """What an adaptive run did: nfe, accepted, rejected, and sigmas, the list of accepted states.

    A dict, as k-diffusion returns one; its keys can be read as attributes too.
    """

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Solver:
    """The pair of formulas an adaptive run uses."""

    schedule: NoiseSchedule
    algorithm: Algorithm
    order: int
    solver_type: str

    def plan(self, sigma: float, sigma_next: float) -> tuple[tuple[Step, ...], Step]:
        """The steps of an attempt, and the embedded step of the order below.

        The embedded step takes the base state and the oldest outputs of the attempt.
        """
        start, end = self.schedule.lambda_(sigma), self.schedule.lambda_(sigma_next)
        inner = [start + r * (end - start) for r in INNER_NODES[self.order]]
        sigmas = (sigma, *(self.schedule.sigma(lambda_) for lambda_ in inner), sigma_next)
        embedded = (*sigmas[: self.order - 1], sigma_next)
        return self._group(sigmas), self._group(embedded)[-1]

    def _group(self, sigmas: tuple[float, ...]) -> tuple[Step, ...]:
        grid = Grid.of(sigmas, self.schedule)
        return group(grid, self.algorithm, self.solver_type, 0, len(sigmas) - 1)

    def error(
        self,
        high: torch.Tensor,
        low: torch.Tensor,
        previous: torch.Tensor,
        sigma: float,
        rtol: float,
        atol: float,
    ) -> float:
        """The worst image's root mean square of (high - low) in units of the tolerance.

        Args:
            high, low: the two solutions at sigma, [batch, ...].
            previous: the last accepted lower solution, on the variance-preserving scale.
            rtol, atol: tolerances on that scale.
        """
        scale = 1.0 / self.schedule.scale(sigma)
        size = torch.maximum((low * scale).abs_(), previous.abs()).mul_(rtol)
        tolerance = size.clamp_(min=max(atol, torch.finfo(size.dtype).tiny))
        difference = (high - low).mul_(scale).div_(tolerance)
        return difference.reshape(len(high), -1).square_().mean(1).sqrt_().max().item()


@dataclass
class Progress:
    """The callback's i from the way done: never backwards, and the panel's last step at the end.

    Attributes:
        start, end: lambda_ at both ends of the way.
        steps: how many of the panel's steps stand for the way.
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
    """Where to start, where to end above zero, and whether to denoise there."""
    if sigmas[-1] > 0.0:
        return sigmas[0], sigmas[-1], False
    last = min((sigma for sigma in sigmas if sigma > 0.0), default=0.0)
    return sigmas[0], min(last, schedule.sigma_min or last), True


def flow_start(rtol: float, atol: float) -> float:
    """Where to begin on a flow that starts at sigma = 1, whose lambda_ is minus infinity.

    One Euler step leads there. Its local error is about (1 - sigma)^2 / 2, and this keeps it far below
    the tolerance, down to 5e-9. Nearer to 1, sigmas would count as 1 (plan.NEARLY_EQUAL).
    """
    return 1.0 - max(0.1 * math.sqrt(min(max(rtol, atol), 1.0)), 1e-4)


def runs_short(calls: int, max_calls: int, order: int, steps: float, judged: bool) -> bool:
    """Whether to stop attempting and take the rest of the way in fixed steps.

    Args:
        calls: left for the way.
        steps: that the way takes at the present step size.
        judged: whether that size comes from an error already, and not from h_init.
    """
    # After any attempt but the last, enough calls for one more must be left: it may be rejected.
    if calls < order * min(math.ceil(steps), 2):
        return True
    # It is better to spread what is left evenly than to arrive with none.
    reserve = max_calls if max_calls < FEW else RESERVE * max_calls
    return judged and calls < reserve and SLACK * calls < order * steps


class Call(NamedTuple):
    """A model call: its state, its sigma as a scalar, and the denoised output."""

    x: torch.Tensor
    sigma: torch.Tensor
    denoised: torch.Tensor


class Attempt(NamedTuple):
    """What an attempted step came to.

    Attributes:
        high, low: the solutions of the two orders.
        inner, last: the call at the first inner node, and the last one.
        sigma_inner: of the former.
    """

    high: torch.Tensor
    low: torch.Tensor
    inner: Call
    last: Call
    sigma_inner: float

    def first_order(self, schedule: NoiseSchedule, sigma_next: float) -> torch.Tensor:
        """Two first-order steps through the first inner node, from the outputs that are there.

        They stay within bounds at any step size, which a solution of higher order may not.
        """
        step = Grid.of((self.sigma_inner, sigma_next), schedule).limit_step(0)
        return advance(step.combination, self.inner.x, (self.inner.denoised,))


def attempt(
    solver: Solver,
    caller: Caller,
    x: torch.Tensor,
    sigma: float,
    sigma_next: float,
    i: int,
) -> Attempt:
    """Try a step; all its calls but the last, whose outcome is to be judged, are reported as i."""
    steps, embedded = solver.plan(sigma, sigma_next)
    state, outputs = x, list[torch.Tensor]()
    sigmas = levels(x, [step.sigma for step in steps])
    for stage, (step, (scalar, batch)) in enumerate(zip(steps, sigmas, strict=True)):
        call = Call(state, scalar, caller.denoise(state, batch))
        if step.inner:
            caller.report(i, *call)
        if stage == 1:
            inner = call
        outputs.insert(0, model_output(step, state, call.denoised))
        state = advance(step.combination, x, outputs)
    return Attempt(
        state, advance(embedded.combination, x, outputs[1:]), inner, call, steps[1].sigma
    )


def run_adaptive(
    caller: Caller,
    x: torch.Tensor,
    sigmas: Sequence[float],
    solver: Solver,
    controller: Controller,
    rtol: float,
    atol: float,
    max_calls: int,
) -> tuple[torch.Tensor, AdaptiveInfo]:
    """Integrate from sigmas[0] to the end of the list in steps of the controller's choice.

    Args:
        x: [batch, ...], at least float32.
        sigmas: a checked list, of which only the ends are used.

    Raises:
        RuntimeError: the model returned NaN or infinity.
    """
    schedule, order = solver.schedule, solver.order
    sigma, sigma_end, denoise = ends(sigmas, schedule)
    budget = max_calls - denoise
    at_limit = math.isinf(schedule.lambda_(sigma)) and sigma != sigma_end
    first = max(flow_start(rtol, atol), sigma_end) if at_limit else sigma
    end = schedule.lambda_(sigma_end)
    progress = Progress(schedule.lambda_(first), end, caller.total - denoise)
    path = [sigma]

    def walk(state: torch.Tensor, nodes: Sequence[float]) -> torch.Tensor:
        """Take fixed steps, without control: of x0, which stays within bounds at any step size."""
        plan = plan_multistep(Grid.of(nodes, schedule), "dpmsolver++", 2, "dpmsolver", "auto")
        path.extend(nodes[1:])

        def done(_: int, step: Step) -> int:
            return progress.at(schedule.lambda_(step.sigma_next))

        return run(plan, caller, state, index=done)

    if at_limit and (budget > order or (first == sigma_end and budget > 0)):
        x = walk(x, (sigma, first))
    previous = x / schedule.scale(path[-1])
    h = controller.h_init
    rejected = 0
    while path[-1] != sigma_end:
        sigma, calls = path[-1], budget - caller.nfe
        start = schedule.lambda_(sigma)
        way = abs(end - start)
        if way < SMALLEST_STEP and calls > 0:
            x = walk(x, (sigma, sigma_end))
            break
        h = max(h, SMALLEST_STEP)
        if h > way - SMALLEST_STEP:  # leave no remnant too small for a step of its own
            h = way
        judged = len(path) > 1 + at_limit or rejected > 0
        if math.isinf(way) or runs_short(calls, max_calls, order, way / h, judged):
            rest = f"in the {calls} that are left" if calls > 0 else "by denoising from there"
            _warn(max_calls, sigma, f"the rest of the way is taken {rest}")
            if calls > 0:
                x = walk(x, log_snr(schedule, sigma, sigma_end, calls, first))
            break
        target = sigma_end if h == way else schedule.sigma(start + math.copysign(h, end - start))
        trial = attempt(solver, caller, x, sigma, target, progress.at(start))
        error = solver.error(trial.high, trial.low, previous, target, rtol, atol)
        if not math.isfinite(error):
            raise RuntimeError(NOT_FINITE.format(sigma))
        accept, h = controller.decide(error, h, order)
        if accept:
            x, previous = trial.high, trial.low / schedule.scale(target)
            path.append(target)
        elif budget - caller.nfe < order:
            _warn(max_calls, sigma, "the last step is taken at first order")
            x = trial.first_order(schedule, target)
            path.append(target)
        else:
            rejected += 1
        # The attempt's last call is reported when it is known how far it led.
        caller.report(progress.at(schedule.lambda_(path[-1])), *trial.last)
        del trial  # not held during the next one
    accepted = len(path) - 1
    if denoise:
        ((scalar, batch),) = levels(x, path[-1:])
        denoised = caller.denoise(x, batch)
        caller.report(caller.total - 1, x, scalar, denoised)
        x = denoised.to(x.dtype, copy=True)
        path.append(0.0)
    if caller.nfe == 0:
        x = x.clone()  # the caller's own
    if not torch.isfinite(x).all():
        raise RuntimeError(NOT_FINITE.format(path[-1]))
    info = AdaptiveInfo(nfe=caller.nfe, accepted=accepted, rejected=rejected, sigmas=path)
    return x, info


NOT_FINITE = (
    "The model returned NaN or infinity near sigma = {:.4g}, so the adaptive solver has no error to "
    "go by: run the model in a higher precision (float32 or bfloat16), or check its weights."
)


def _warn(max_calls: int, sigma: float, outcome: str) -> None:
    LOG.warning(
        f"DPM-Solver Adaptive: max_calls = {max_calls} ran short at sigma = {sigma:.4g}: {outcome}. "
        "Raise max_calls, or raise rtol for fewer calls."
    )


@dataclass(frozen=True, kw_only=True)
class Adaptive(Options):
    """Settings of `sample_adaptive`, which says what they mean."""

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
                f"eta = {self.eta:g}: the adaptive solver has no stochastic form; set eta to 0, or "
                "take another sampler."
            )
        if not (isinstance(self.max_calls, int) and self.max_calls >= 1):
            raise ValueError(
                f"max_calls must be a whole number of at least 1, not {self.max_calls!r}."
            )
        at_least("rtol", self.rtol, 0.0)
        at_least("atol", self.atol, 0.0)
        at_least("h_init", self.h_init, 0.0)
        if self.rtol == self.atol == 0.0:
            raise ValueError("rtol and atol are both 0: one of them must be above 0.")
        if self.h_init == 0.0:
            raise ValueError("h_init must be above 0.")
        algorithm_of(self.algorithm)
        order = order_of(self.order, tuple(INNER_NODES))
        self._set(order=order, solver_type=solver_type_of(self.solver_type))

    def plan(self, grid: Grid) -> None:
        """There is none beforehand."""

    def solver(self, schedule: NoiseSchedule) -> Solver:
        return Solver(schedule, algorithm_of(self.algorithm), self.order, self.solver_type)

    def controller(self) -> Controller:
        """A step-size controller for one run: k-diffusion's if any of its settings is given."""
        names = ("pcoeff", "icoeff", "dcoeff", "accept_safety")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return PIDController(self.h_init, **given) if given else AuthorsController(self.h_init)
