"""A plan: all that a sampler will do, as data, before the first model call.

In sigma space every solver of the family is a linear combination of a state and a few model outputs,
with weights that depend only on the sigmas. A plan lists these combinations in float64; `integrate`
runs any plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .coefficients import Algorithm, Level
from .schedules.process import NoiseSchedule

DENOISED = (0.0, 1.0)

PLANS_KEPT = 16
"""How many plans each planner keeps: queued runs ask for the same few again and again."""

SUM_TO_ONE = 1e-14
"""How far rounding may move the sum of an average's weights from 1."""

MOST_SHARE = 100.0
"""An output's largest share in an average. Beyond it the weights nearly cancel, and float32 loses
digits."""


class Weights(NamedTuple):
    """The weights of the base state and of the model outputs, the newest first, in a new state."""

    state: float
    outputs: tuple[float, ...]

    @property
    def combination(self) -> Combination:
        terms = tuple((age, weight) for age, weight in enumerate(self.outputs) if weight)
        if len(terms) == 2:
            (newer, weight), (older, weight_older) = terms
            both = weight + weight_older
            is_average = abs(self.state + both - 1.0) < SUM_TO_ONE
            if is_average and abs(weight_older) < MOST_SHARE * abs(both):
                average = Average(newer, older, weight_older / both)
                return Combination(self.state, terms, average)
        return Combination(self.state, terms)


class Step(NamedTuple):
    """One model call, and the state made after it.

    Attributes:
        sigma: where the model is called, on the current state.
        sigma_next: noise level of the state afterwards.
        state: weight of the base state, which is the last state that was not an inner one.
        outputs: weights of the model outputs, the newest first. Empty: the state stays as it is.
        prediction: the model output as (weight of the current state, weight of its denoised):
            (0, 1) is x0, (1 / sigma, -alpha / sigma) is the noise, (1 / sigma, -1 / sigma) the slope.
        order: the formula's order; 0 if the state stays.
        inner: the state made is an intermediate node of a singlestep group.
        noise: standard deviation of the noise that is added; it is the noise of the interval from
            the base state's sigma to sigma_next.
        guidance: weight of this call's (denoised - unconditional); only CFG++ has it.
        correction: makes the base state again, now that this call's output is known: the weights of
            the previous base state and of the outputs. None: the base state stays as it is.
    """

    sigma: float
    sigma_next: float
    state: float
    outputs: tuple[float, ...]
    prediction: tuple[float, float] = DENOISED
    order: int = 1
    inner: bool = False
    noise: float = 0.0
    guidance: float = 0.0
    correction: Weights | None = None

    @property
    def combination(self) -> Combination:
        return Weights(self.state, self.outputs).combination


class Average(NamedTuple):
    """(1 - share) * newer + share * older, of two outputs given by their age."""

    newer: int
    older: int
    share: float


class Combination(NamedTuple):
    """How to compute a state: `Weights` without the zeros.

    Attributes:
        state: weight of the base state.
        terms: age and weight of each output that enters.
        average: of the outputs, if there are two and all weights sum to 1. The result is then
            state * base + (1 - state) * average.
    """

    state: float
    terms: tuple[tuple[int, float], ...]
    average: Average | None = None


@dataclass(frozen=True)
class Plan:
    """The steps of a run, one per model call."""

    steps: tuple[Step, ...]

    @cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """The combination of each step."""
        return tuple(step.combination for step in self.steps)

    @cached_property
    def corrections(self) -> tuple[Combination | None, ...]:
        """The combination of each step's correction; None if it has none."""
        return tuple(step.correction and step.correction.combination for step in self.steps)

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """The sigma of each model call."""
        return tuple(step.sigma for step in self.steps)

    @cached_property
    def memory(self) -> int:
        """How many model outputs must be kept."""
        used = (step.outputs for step in self.steps)
        correcting = (step.correction.outputs for step in self.steps if step.correction)
        return max(map(len, (*used, *correcting)), default=0)

    @cached_property
    def noisy(self) -> bool:
        """Whether any step adds noise."""
        return any(step.noise for step in self.steps)

    def cfg_pp(self, schedule: NoiseSchedule) -> Plan:
        """The same plan with CFG++ (arXiv 2406.08070, equations 14 and 15).

        The solver runs on the unconditional predictions, and alpha * (denoised - unconditional) is
        added to each state. In a step to 0 the guided prediction is the result, as ever.
        """
        return Plan(
            tuple(
                step._replace(guidance=schedule.alpha(step.sigma_next)) if step.sigma_next else step
                for step in self.steps
            )
        )

    def __str__(self) -> str:
        rows = (
            f"{i:4d} {step.sigma:12.6g} {step.sigma_next:12.6g} {step.order:5d}"
            f"{' *' if step.inner else '  '} {step.state:12.6g} {step.noise:12.6g}  "
            + " ".join(f"{weight:12.6g}" for weight in step.outputs)
            + _correction_text(step.correction)
            for i, step in enumerate(self.steps)
        )
        head = "call        sigma   sigma_next order        state        noise  outputs"
        return "\n".join((head, *rows))


def _correction_text(correction: Weights | None) -> str:
    if correction is None:
        return ""
    return f"  corrects {correction.state:.6g} " + " ".join(f"{w:.6g}" for w in correction.outputs)


def prediction(algorithm: Algorithm, level: Level) -> tuple[float, float]:
    """What the algorithm interpolates, at this level; see `Step.prediction` for its format."""
    if algorithm == "dpmsolver++":
        return DENOISED
    return 1.0 / level.sigma, -(1.0 if algorithm == "adams" else level.alpha) / level.sigma
