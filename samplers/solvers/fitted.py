"""Solvers calibrated on a model: sigmas and weights that belong together, as data.

`lab.calibration` makes a calibration for a model, a guidance and a number of calls. It is a list of
sigmas and, for each step, the weights of the state and of the last slopes, dx / dsigma = (x - x0) /
sigma. It runs as any other plan does. The weights hold only for their sigmas; a run may start at a
later sigma of the list, as in image to image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..coefficients import EXACT
from ..grid import LARGEST, SMALLEST, Grid
from ..options import Options
from ..plan import Plan, Step, Weights, prediction
from ..schedules.process import NoiseSchedule, RectifiedFlow, VarianceExploding

FEW_CALLS = 8
"""With fewer calls than this, weights that are not fitted are first order: on such long steps second
order measured worse (benchmarks/calibration_transfer.py)."""

POWER = 0.1
"""Weights that are not fitted come from polynomials in this power of sigma."""

SAME_SIGMA = 1e-4
"""The largest relative difference between a host's sigma and the list's: hosts round to float32."""

FURTHEST = 20.0
"""The smallest half log-SNR, negated: all below is noise only, and a flow's 1 has minus infinity."""

MOST_CALLS = 100

LARGEST_WEIGHT = 1e6
"""The largest weight of a state, and of a slope in units of the largest sigma."""

MOST_AMPLIFIED = 1e6
"""How large a state may become relative to max(1, its sigma), with model outputs of at most 1."""

SCHEDULES: dict[str, type[NoiseSchedule]] = {
    "diffusion": VarianceExploding,
    "flow": RectifiedFlow,
}


@dataclass(frozen=True)
class Fitted:
    """What a calibration was fitted on, and its errors. Hosts check by it whether it fits a model.

    Attributes:
        model: the name of the model's class in the host.
        guidance: its scale, or None if the guider has none.
        seeds: how many noises it was fitted on.
        model_calls: single-image model calls that the fit took.
        errors: solver -> its error on held-out seeds: the geometric mean over images of the root
            mean square distance to the converged image.
        stopped: the calibration was stopped early, and its errors were not measured.
        sampler: the name in the host of a sampler that has its own weights, if the sigmas are for one.
        shape: of the latent: channels, then its axes.
        shift: of a flow's times in the host, or None.
        prompts: how many it was fitted on.
        unconverged: how many images did not converge; they were left out unless they were most.
        version: of this pack.
        fingerprint: of the model's weights, or "".
    """

    model: str = ""
    guidance: float | None = None
    seeds: int = 0
    model_calls: int = 0
    errors: Mapping[str, float] = field(default_factory=dict)
    stopped: bool = False
    sampler: str = ""
    shape: tuple[int, ...] = ()
    shift: float | None = None
    prompts: int = 1
    unconverged: int = 0
    version: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class Calibration:
    """Sigmas and weights of a solver, checked so that a run can start from each of the sigmas.

    Attributes:
        kind: a key of SCHEDULES.
        sigmas: n + 1 sigmas, falling, the last one 0.
        steps: n steps, each with the weights of the state and of the last slopes, the newest first.
            Empty for a sampler that has its own weights, `fitted.sampler`.
        fitted: what it was fitted on.

    Raises:
        ValueError: the parts don't make a solver.
    """

    kind: str
    sigmas: tuple[float, ...]
    steps: tuple[Weights, ...]
    fitted: Fitted = Fitted()

    def __post_init__(self) -> None:
        self._check_sigmas()
        self._check_weights()
        self._check_states()

    def _check_sigmas(self) -> None:
        if self.kind not in SCHEDULES:
            raise ValueError(
                f"it is for a model of the type {self.kind[:20]!r}, not {' or '.join(SCHEDULES)}."
            )
        if not all(map(math.isfinite, self.sigmas)):
            raise ValueError("it holds a sigma that is not finite.")
        if not self.steps and self.fitted.sampler:
            if not 2 <= len(self.sigmas) <= MOST_CALLS + 1:
                raise ValueError(f"it has {len(self.sigmas)} sigmas.")
        elif not 1 <= len(self.steps) == len(self.sigmas) - 1 <= MOST_CALLS:
            raise ValueError(f"it has {len(self.sigmas)} sigmas for {len(self.steps)} steps.")
        largest = min(LARGEST, self.schedule().sigma_limit)
        in_range = all(SMALLEST <= sigma <= largest for sigma in self.sigmas[:-1])
        if self.sigmas[-1] != 0.0 or not in_range:
            raise ValueError("its sigmas must lie within the model's range and end at 0.")
        if any(
            later >= sooner for sooner, later in zip(self.sigmas, self.sigmas[1:], strict=False)
        ):
            raise ValueError("its sigmas do not fall.")
        for given in (
            self.sigmas,
            np.array(self.sigmas, np.float32).tolist(),
        ):  # hosts round them so
            if len(Grid.of(given, self.schedule()).levels) < len(self.sigmas):
                raise ValueError("two of its sigmas are too near to each other.")

    def _check_weights(self) -> None:
        largest = max(1.0, self.sigmas[0])
        for i, step in enumerate(self.steps):
            if not 1 <= len(step.outputs) <= i + 1:
                raise ValueError("a step uses model outputs from before the start.")
            relative = [step.state, *(weight / largest for weight in step.outputs)]
            if not all(abs(weight) <= LARGEST_WEIGHT for weight in relative):
                raise ValueError(f"a weight of step {i + 1} is too large or not finite.")
            if not any(relative):
                raise ValueError(f"all weights of step {i + 1} are 0.")

    def _check_states(self) -> None:
        for first in range(len(self.steps)):
            if not amplification(self.plan(self.schedule(), first)) <= MOST_AMPLIFIED:
                start = f" from sigma {self.sigmas[first]:.4g} on" if first else ""
                raise ValueError(f"its weights let an image grow without bound{start}.")

    @property
    def calls(self) -> int:
        return len(self.sigmas) - 1

    def schedule(self) -> NoiseSchedule:
        return SCHEDULES[self.kind]()

    def fits(self, schedule: NoiseSchedule) -> None:
        """Raise ValueError if the model has another noise schedule."""
        if not isinstance(schedule, SCHEDULES[self.kind]):
            wanted = "a flow model" if self.kind == "flow" else "a noise- or v-prediction model"
            raise ValueError(
                f"This calibration was made for {wanted}, which the loaded model is not: choose a "
                "calibration made for this model, or calibrate again."
            )

    def start(self, sigmas: Sequence[float]) -> int:
        """Index of the calibrated sigma at which a run with these sigmas starts.

        Raises:
            ValueError: the sigmas are not the last ones of the calibrated list.
        """
        first = len(self.sigmas) - len(sigmas)
        same = first >= 0 and all(
            abs(given - own) <= SAME_SIGMA * own
            for given, own in zip(sigmas, self.sigmas[first:], strict=True)
        )
        if not same or len(sigmas) < 2:
            raise ValueError(
                "sigmas are not those of this calibration, and its weights hold only for them: "
                "connect the SIGMAS output that belongs to this SAMPLER (or its last part)."
            )
        return first

    def nearest(self, sigma: float) -> int:
        """Index of the calibrated sigma above 0 that is nearest to this one in lambda_."""
        schedule = self.schedule()

        def lambda_(sigma: float) -> float:
            return max(schedule.lambda_(sigma), -FURTHEST)  # a flow's 1 has none

        distances = [abs(lambda_(own) - lambda_(sigma)) for own in self.sigmas[:-1]]
        return distances.index(min(distances))

    def plan(self, schedule: NoiseSchedule, first: int = 0) -> Plan:
        """The plan of a run that starts at sigma number `first`.

        If a step's weights need outputs from before that, it takes exact weights instead.

        Raises:
            ValueError: it holds only sigmas.
        """
        if not self.steps:
            raise ValueError(
                f"This calibration holds only sigmas, for the sampler {self.fitted.sampler}: run that "
                "sampler with them."
            )
        entry_order = 1 if self.calls < FEW_CALLS else 2
        grid = Grid.of(self.sigmas, schedule)
        steps = []
        for i in range(first, self.calls):
            weights = self.steps[i]
            if len(weights.outputs) > i - first + 1:
                weights = exact_weights(schedule, self.sigmas[first : i + 2], entry_order)
            start, end = grid.levels[i : i + 2]
            of_slope, order = prediction("adams", start), len(weights.outputs)
            steps.append(Step(start.sigma, end.sigma, *weights, of_slope, order))
        return Plan(tuple(steps))


def amplification(plan: Plan) -> float:
    """How large a state can become, relative to max(1, its sigma), if each of the model's outputs is
    at most 1 and the start is at most max(1, its sigma).

    Each state is a linear combination of the start and the outputs; the sum of its absolute weights
    is the bound.
    """
    calls = len(plan.steps)
    x = np.zeros(calls + 1)
    x[0] = max(1.0, plan.steps[0].sigma)
    slopes: list[np.ndarray] = []
    sizes: list[float] = []
    with np.errstate(over="ignore", invalid="ignore"):
        for i, step in enumerate(plan.steps):
            of_state, of_denoised = step.prediction
            slope = of_state * x
            slope[i + 1] += of_denoised
            slopes.insert(0, slope)
            del slopes[plan.memory :]
            x = step.state * x
            for weight, one in zip(step.outputs, slopes, strict=False):
                x += weight * one
            sizes.append(np.abs(x).sum() / max(1.0, step.sigma_next))
    return float(np.max(sizes))  # NaN if one is


def exact_weights(schedule: NoiseSchedule, sigmas: Sequence[float], order: int) -> Weights:
    """Adams' exact weights for the last step of a list, of this order if the list is long enough."""
    grid = Grid.of(sigmas, schedule)
    last = len(grid.levels) - 2
    if grid.levels[-1].sigma == 0.0:
        return Weights(1.0, (-grid.levels[last].sigma,))
    usable = range(max(0, last + 1 - order), last)
    nodes = [grid.distance("adams", last, j, POWER) for j in reversed(usable)]
    transition = grid.transition("adams", last, last + 1, power=POWER)
    return Weights(transition.state, transition.weights(nodes, EXACT))


@dataclass(frozen=True, kw_only=True)
class Calibrated(Options):
    """Settings of `sample_calibrated`: the calibration."""

    calibration: Calibration

    def on(self, schedule: NoiseSchedule) -> Calibrated:
        self.calibration.fits(schedule)
        return self

    def plan(self, grid: Grid) -> Plan:
        self.calibration.fits(grid.schedule)
        return self.calibration.plan(grid.schedule, self.calibration.start(grid.sigmas))
