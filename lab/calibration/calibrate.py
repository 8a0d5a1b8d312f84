"""Calibrate a solver on a model: where to put few steps, and with which weights.

1. A teacher solves the ODE for some noises on a fine list of sigmas; its states are kept
   (`teacher`).
2. A search chooses the student's sigmas among the teacher's without calling the model
   (`surrogate`); the recommended ones are tried beside them.
3. The student runs on the model; step by step its weights are fitted so that it meets the
   teacher's next state (`fit`). It thereby learns from its own states, errors included.
4. What it gains is measured on noises that it has not seen, against solvers without calibration
   (`measure`).
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
"""Name of the calibrated solver among the errors."""

Rival = Callable[[Denoiser, torch.Tensor], torch.Tensor]
"""A solver without calibration: (model, starts) -> images."""


@dataclass(frozen=True)
class Settings:
    """What is to be calibrated, and how.

    Attributes:
        schedule: of the model.
        sigmas: the teacher's; see `teacher_sigmas`.
        calls: of the solver; its list has calls + 1 sigmas, the last one 0.
        budget: single-image model calls that may be made.
        batch: images in a model call, and at any time on the device.
        device: where the model is called; by default where the starts are. All else is computed in
            the main memory, of which it takes at most MOST_BYTES and 0.5 GiB.
        slopes: how many of them a step may use.
        fitted: what to write into the calibration besides what is found here.
        tick: told after every model call: how many images it had, and what it is for; and while it
            searches, with 0 images.
        keep: given each calibration that is better than those before, not yet measured, so that an
            interrupt loses nothing.

    Raises:
        ValueError: there are too many calls for these sigmas, or none.
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
    """What `calibrate` found.

    Attributes:
        calibration: with the errors that were measured on held-out noises.
        best: the name of the solver with the least of them; CALIBRATED unless a rival is closer.
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
        held_out: [any, ...], others to measure on.
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
    # One after the other: an image has the same place in its batch whenever it is run, as a host may
    # give the images of a batch a prompt each.
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
    """Take the recommended sigmas, and those that a search without the model finds under each of
    SPREADS; then try moves from the best of them on the model."""
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
    """Each solver's distance to the converged images, infinite where it leads to no number.

    Raises:
        NotFiniteError: all of them do.
    """
    errors: dict[str, float] = {}
    for name, solver in solvers.items():
        try:
            errors[name] = distance(_ends(solver, model, starts, records), converged)
        except NotFiniteError:  # a solver that leads there has lost; the others are measured
            errors[name] = math.inf
            if len(errors) == len(solvers) and set(errors.values()) == {math.inf}:
                raise
    return errors


def _ends(solver: Rival, model: Model, starts: torch.Tensor, records: Records) -> torch.Tensor:
    """[S, d]: the numbers that are kept of what a solver ends with, batch by batch."""
    return torch.cat([records.of(solver(model, part)) for part in starts.split(model.batch)])
