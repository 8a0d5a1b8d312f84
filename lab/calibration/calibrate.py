"""Calibrate a solver on a model: find its sigmas and its weights for few steps.

1. A teacher solves the ODE for some noises on a fine list of sigmas; its states are kept
   (`teacher`).
2. A search chooses the student's sigmas among the teacher's, without calling the model
   (`surrogate`). The recommended sigmas are tried, too.
3. The student runs on the model. Step by step its weights are fitted so that its state comes close to
   the teacher's next one (`fit`). So they are fitted on its own states, errors included.
4. The result is measured on other noises, against solvers without calibration (`measure`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from ...samplers import NoiseSchedule, RectifiedFlow
from ...samplers.integrate import Denoiser
from ...samplers.sample import sample_calibrated
from ...samplers.solvers.fitted import MOST_CALLS, Calibration, Fitted
from ...samplers.solvers.recommended import recommended_sigmas
from ..metrics import distance
from .cost import check_memory, cost
from .fit import SLOPES, Student, fit
from .model import Model, NotFiniteError, Tick
from .surrogate import SPREADS, Surrogate, moves, nearest, search
from .teacher import TEACHER, Records, teach

CALIBRATED = "calibrated"
"""The calibrated solver's name among the errors."""

Rival = Callable[[Denoiser, torch.Tensor], torch.Tensor]
"""A solver without calibration: (model, starts) -> images."""


@dataclass(frozen=True)
class Settings:
    """Settings of a calibration.

    Attributes:
        schedule: the model's noise schedule.
        sigmas: the teacher's sigmas; see `teacher_sigmas`.
        calls: the model calls of the solver to make; its list has calls + 1 sigmas, the last one 0.
        budget: how many single-image model calls the calibration may make.
        batch: how many images a model call has; no more are on the device at any time.
        device: where the model is called; by default the device of the starts. Everything else is
            computed on the CPU, in at most MOST_BYTES and 0.5 GiB of memory.
        slopes: how many slopes a step may use.
        fitted: what to write into the calibration besides what is found here.
        tick: called after every model call with its number of images and its purpose; and during
            the search, with 0 images.
        keep: called with each calibration that is better than the earlier ones. It is not measured
            yet; an interrupt then loses nothing.

    Raises:
        ValueError: `calls` is below 1, or too large for this number of sigmas.
    """

    schedule: NoiseSchedule
    sigmas: Sequence[float]
    calls: int
    budget: int = 5000
    batch: int = 4
    device: torch.device | str | None = None
    slopes: int = SLOPES
    fitted: Fitted = Fitted()  # noqa: RUF009  # frozen
    tick: Tick = lambda images, doing: None
    keep: Callable[[Calibration], object] = lambda calibration: None

    def __post_init__(self) -> None:
        most = min(len(self.sigmas) // 2, MOST_CALLS)
        if not 1 <= self.calls <= most:
            raise ValueError(f"calls must be a whole number from 1 to {most}, not {self.calls!r}.")


class Result(NamedTuple):
    """The result of `calibrate`.

    Attributes:
        calibration: the solver, with the errors that were measured on held-out noises.
        best: the name of the solver with the smallest error: CALIBRATED, unless a rival is closer.
    """

    calibration: Calibration
    best: str


@torch.no_grad()
def calibrate(
    model: Denoiser,
    starts: torch.Tensor,
    held_out: torch.Tensor,
    rivals: Mapping[str, Rival],
    settings: Settings,
) -> Result:
    """Calibrate a solver on a model.

    Args:
        model: `model(x, sigma)` -> denoised.
        starts: [seeds, ...], noises at sigmas[0] to fit on.
        held_out: [any, ...], other noises to measure on.
        rivals: solvers to measure against, by name.

    Raises:
        ValueError: the budget is too small, or the latents take more than MOST_BYTES.
        NotFiniteError: the model returned NaN or infinity.
    """
    sigmas, schedule = settings.sigmas, settings.schedule
    counts = len(starts), len(held_out)
    plan = cost(settings.budget, settings.calls, *counts, len(sigmas), len(rivals))
    check_memory(starts[0].numel(), *counts, settings.slopes)
    device = starts.device if settings.device is None else settings.device
    counted = Model(model, settings.batch, settings.tick, device)
    starts, held_out = starts.cpu(), held_out.cpu()

    counted.doing = "solving finely"
    # One after the other, so that an image has the same place in its batch in every run: a host may
    # give each image of a batch a prompt of its own.
    records = teach(counted, starts, sigmas, schedule)
    teacher = partial(TEACHER, sigmas=[*sigmas, 0.0], schedule=schedule)
    converged = _ends(teacher, counted, held_out, records)

    counted.doing = "choosing sigmas and weights"
    student = best_student(counted, records, settings, plan.trials)

    counted.doing = "measuring on other noises"
    found = _calibration(student, records, settings, counted.meter.images)
    solver = partial(
        sample_calibrated, sigmas=found.sigmas, calibration=found, schedule=schedule, disable=True
    )
    errors = measure({CALIBRATED: solver, **rivals}, counted, held_out, converged, records)
    known = replace(found.fitted, errors=errors, model_calls=counted.meter.images)
    return Result(replace(found, fitted=known), min(errors, key=errors.__getitem__))


def _calibration(
    student: Student, records: Records, settings: Settings, model_calls: int
) -> Calibration:
    chosen = (*(records.sigmas[index] for index in student.indices), 0.0)
    kind = "flow" if isinstance(settings.schedule, RectifiedFlow) else "diffusion"
    known = replace(settings.fitted, seeds=len(records.starts), model_calls=model_calls)
    return Calibration(kind, chosen, student.steps, known)


def best_student(model: Model, records: Records, settings: Settings, trials: int) -> Student:
    """Fit students on the recommended sigmas, and on those that a search finds for each of SPREADS.
    Then try changes of single sigmas, beginning with the best student's."""
    schedule, calls, points = settings.schedule, settings.calls, len(records.sigmas)
    even = tuple(round(points * i / calls) for i in range(calls))
    ends = records.sigmas[0], records.sigmas[-1]
    recommended = nearest(records.sigmas, recommended_sigmas(schedule, *ends, calls)[:-1])
    tried: dict[tuple[int, ...], Student] = {}

    def attempt(indices: tuple[int, ...]) -> Student:
        best = min(tried.values(), key=lambda student: student.error, default=None)
        if indices not in tried:
            tried[indices] = fit(model, records, schedule, indices, settings.slopes)
            if best is None or tried[indices].error < best.error:
                settings.keep(_calibration(tried[indices], records, settings, model.meter.images))
        return tried[indices]

    def searched(spread: float) -> tuple[int, ...]:
        surrogate = Surrogate(records, schedule, calls, settings.slopes, spread)
        return search(surrogate, even, lambda: model.tick(0, model.doing))

    starts = [attempt(recommended), *(attempt(searched(spread)) for spread in SPREADS)]
    best = min(starts, key=lambda student: student.error)
    waiting = moves(best, points)
    while len(tried) < trials and waiting:
        indices = waiting.pop(0)
        if indices in tried:
            continue
        student = attempt(indices)
        if student.error < best.error:
            best, waiting = student, moves(student, points)
    return best


def measure(
    solvers: Mapping[str, Rival],
    model: Model,
    starts: torch.Tensor,
    converged: torch.Tensor,
    records: Records,
) -> dict[str, float]:
    """Each solver's distance to the converged images; infinite if its result is not finite.

    Raises:
        NotFiniteError: no solver's result is finite.
    """
    errors: dict[str, float] = {}
    for name, solver in solvers.items():
        try:
            errors[name] = distance(_ends(solver, model, starts, records), converged)
        except NotFiniteError:  # this solver is useless here; measure the others
            errors[name] = math.inf
            if len(errors) == len(solvers) and set(errors.values()) == {math.inf}:
                raise
    return errors


def _ends(solver: Rival, model: Model, starts: torch.Tensor, records: Records) -> torch.Tensor:
    """[S, d]: the kept numbers of a solver's results, computed batch by batch."""
    return torch.cat([records.of(solver(model, part)) for part in starts.split(model.batch)])
