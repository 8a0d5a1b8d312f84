"""The two formulas of an adaptive step, of neighbouring orders, and one attempt at such a step.

DPM-Solver (arXiv 2206.00927), appendix C: an attempt is one singlestep group of the given order. A
solution of the order below is embedded in the same model calls, and the difference of the two, on the
variance-preserving scale, is the error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..coefficients import Algorithm
from ..grid import Grid
from ..integrate import Caller, advance, levels, model_output
from ..plan import Step
from ..schedules.process import NoiseSchedule
from .singlestep import group

INNER_NODES = {2: (0.5,), 3: (1.0 / 3.0, 2.0 / 3.0)}
"""Order -> inner nodes of an attempt as fractions of h, as published."""


@dataclass(frozen=True)
class EmbeddedPair:
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
        return group(self.algorithm, self.solver_type, grid.levels)

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


class Call(NamedTuple):
    """A model call: its state, its sigma as a scalar, and the denoised output."""

    x: torch.Tensor
    sigma: torch.Tensor
    denoised: torch.Tensor


class Attempt(NamedTuple):
    """The result of an attempted step.

    Attributes:
        high, low: the solutions of the two orders.
        inner, last: the model calls at the first and at the last inner node.
        sigma_inner: the sigma of `inner`.
    """

    high: torch.Tensor
    low: torch.Tensor
    inner: Call
    last: Call
    sigma_inner: float

    def first_order(self, schedule: NoiseSchedule, sigma_next: float) -> torch.Tensor:
        """The solution by two first-order steps through the first inner node, without a further call.

        It stays within bounds at any step size; a solution of higher order may not.
        """
        step = Grid.of((self.sigma_inner, sigma_next), schedule).limit_step(0)
        return advance(step.combination, self.inner.x, (self.inner.denoised,))


def attempt(
    pair: EmbeddedPair,
    caller: Caller,
    x: torch.Tensor,
    sigma: float,
    sigma_next: float,
    i: int,
) -> Attempt:
    """Attempt a step. Report each of its calls but the last to the callback, as number i.

    The last one is left to the caller, who reports it after judging the attempt.
    """
    steps, embedded = pair.plan(sigma, sigma_next)
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
