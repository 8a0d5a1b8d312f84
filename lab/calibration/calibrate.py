"""Calibrate a solver on a model: find its sigmas and its weights for few steps.

1. A teacher solves the ODE for some noises on a fine list of sigmas, which is refined until the images
   don't change any more; its states are kept (`teacher`).
2. A search chooses the student's sigmas among the teacher's, without calling the model
   (`surrogate`). The recommended sigmas are tried, too.
3. The student runs on the model. Step by step its weights are fitted so that its state comes close to
   the teacher's next one (`fit`). So they are fitted on its own states, errors included. For a sampler
   that has its own weights only the sigmas are searched, with that sampler's code (`sampler`).
4. The result is measured on other noises, against solvers without calibration (`measure`).

Several numbers of calls share the teacher, and several prompts share the noises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch

from ...samplers import NoiseSchedule, RectifiedFlow
from ...samplers.integrate import Denoiser
from ...samplers.sample import sample_calibrated
from ...samplers.solvers.fitted import MOST_CALLS, Calibration, Fitted
from ...samplers.solvers.recommended_lists import recommended_sigmas
from ...samplers.solvers.rows import positions_of
from ..metrics import distance
from . import sampler as of_sampler
from .cost import Cost, check_memory, cost
from .fit import SLOPES, Student, fit
from .model import Model, NotFiniteError, Tick
from .sampler import BANDS, Sampler, SamplerSurrogate
from .surrogate import SPREADS, Predicts, Surrogate, moves, nearest, search
from .teacher import Records, Solved, Whole, refinements, solve, teach, together

CALIBRATED = "calibrated"
"""The calibrated solver's name among the errors."""

ROUNDS, LIKELY = 4, 2
"""How often sigmas for a sampler are searched, each time from so many of the host's lists, too; the
likeliest of these is tried itself."""

Rival = Callable[[Denoiser, torch.Tensor], torch.Tensor]
"""A solver without calibration: (model, starts) -> images."""


@dataclass(frozen=True)
class Settings:
    """Settings of a calibration.

    Attributes:
        schedule: the model's noise schedule.
        sigmas: the teacher's sigmas; see `teacher_sigmas`.
        calls: the model calls of the solvers to make; each list has calls + 1 sigmas, the last one 0.
        budget: how many single-image model calls the calibration may make.
        batch: how many images a model call has; no more are on the device at any time.
        device: where the model is called; by default the device of the starts. Everything else is
            computed on the CPU, in at most MOST_BYTES and 0.5 GiB of memory.
        slopes: how many slopes a step may use.
        sampler: the sampler to find sigmas for; None to fit weights, too. See `check_sampler`.
        lists: for a sampler, calls -> lists of sigmas to begin with, as the host's schedulers make.
        whole: see `teacher.Whole`.
        fitted: what to write into the calibration besides what is found here.
        tick: called after every model call with its number of images and its purpose; and during
            the search, with 0 images.
        keep: called with each calibration that is better than the earlier ones for its number of
            calls. It is not measured yet; an interrupt then loses nothing.

    Raises:
        ValueError: there are no calls, or too few or too many for this number of sigmas.
    """

    schedule: NoiseSchedule
    sigmas: Sequence[float]
    calls: Sequence[int]
    budget: int = 12000
    batch: int = 4
    device: torch.device | str | None = None
    slopes: int = SLOPES
    sampler: Sampler | None = None
    lists: Callable[[int], Sequence[Sequence[float]]] = lambda calls: ()
    whole: Whole = list
    fitted: Fitted = Fitted()  # noqa: RUF009  # frozen
    tick: Tick = lambda images, doing: None
    keep: Callable[[Calibration], object] = lambda calibration: None
    refined: tuple[tuple[float, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        most = min(len(self.sigmas) // 2, MOST_CALLS)
        for calls in self.calls or (0,):
            if not 1 <= calls <= most:
                raise ValueError(f"calls must be a whole number from 1 to {most}, not {calls!r}.")
        object.__setattr__(self, "refined", refinements(self.sigmas, self.whole))

    def cost(self, seeds: int, held_out: int, rivals: int) -> Cost:
        """What a calibration on so many noises costs; see `cost.cost`."""
        return cost(self.budget, self.calls, seeds, held_out, self.refined, rivals)


class Result(NamedTuple):
    """The result of `calibrate` for one number of calls.

    Attributes:
        calibration: the solver, with the errors that were measured on held-out noises.
        best: the name of the solver with the smallest error: CALIBRATED, unless a rival is closer.
    """

    calibration: Calibration
    best: str


@torch.no_grad()
def calibrate(
    models: Sequence[Denoiser],
    starts: torch.Tensor,
    held_out: torch.Tensor,
    rivals: Callable[[int], Mapping[str, Rival]],
    settings: Settings,
) -> tuple[Result, ...]:
    """Calibrate solvers on a model, one for each number of calls.

    Args:
        models: `model(x, sigma)` -> denoised, one for each prompt.
        starts: [seeds, ...], noises at sigmas[0] to fit on; noise k is for prompt k % len(models).
        held_out: [any, ...], other noises to measure on.
        rivals: calls -> solvers to measure against, by name; the same number for all.

    Raises:
        ValueError: the budget is too small, or the latents take more than MOST_BYTES.
        NotFiniteError: the model returned NaN or infinity.
    """
    schedule, lists = settings.schedule, settings.refined
    counts = len(starts), len(held_out)
    against = {calls: rivals(calls) for calls in settings.calls}
    plan = settings.cost(*counts, max(map(len, against.values())))
    check_memory(starts[0].numel(), *counts, settings.slopes)
    device = starts.device if settings.device is None else settings.device
    model = Model(models, settings.batch, settings.tick, device)
    starts, held_out = starts.cpu(), held_out.cpu()

    model.doing = "solving finely"
    # The noises to fit on may be refined by their share, and the others by what is left.
    bands = 1 if settings.sampler is None else BANDS
    of_fit = (plan.teacher + plan.refined) * counts[0] // sum(counts)
    records = teach(model, starts, lists, schedule, of_fit, bands)
    limit = plan.teacher + plan.refined
    parts = held_out.split(model.part)
    converged = together(
        [solve(model, part, lists, schedule, records.kept, limit) for part in parts]
    )
    unconverged = records.solved.unconverged + converged.unconverged
    known = replace(settings.fitted, prompts=len(models), unconverged=unconverged)
    settings = replace(settings, fitted=known)

    trials = plan.trials_after(model.meter.images)
    students: list[Student] = []
    for calls in settings.calls:
        model.doing = f"choosing sigmas and weights for {calls} calls"
        students.append(best_student(model, records, settings, calls, trials))

    model.doing = "measuring on other noises"
    results: list[Result] = []
    for calls, student in zip(settings.calls, students, strict=True):
        found = _calibration(student, records, settings, model.meter.images)
        sigmas, own = torch.tensor(found.sigmas), settings.sampler
        solver: Rival = partial(
            sample_calibrated,
            sigmas=found.sigmas,
            calibration=found,
            schedule=schedule,
            disable=True,
        )
        if own is not None:
            solver = partial(_on_sigmas, own, sigmas)
        solvers = {CALIBRATED: solver, **against[calls]}
        errors = measure(solvers, model, held_out, converged, records)
        known = replace(found.fitted, errors=errors, model_calls=model.meter.images)
        found = replace(found, fitted=known)
        results.append(Result(found, min(errors, key=errors.__getitem__)))
    return tuple(results)


def _on_sigmas(
    sampler: Sampler, sigmas: torch.Tensor, model: Denoiser, x: torch.Tensor
) -> torch.Tensor:
    return sampler(model, x, sigmas.clone())


def _calibration(
    student: Student, records: Records, settings: Settings, model_calls: int
) -> Calibration:
    chosen = (*(records.sigmas[index] for index in student.indices), 0.0)
    kind = "flow" if isinstance(settings.schedule, RectifiedFlow) else "diffusion"
    known = replace(settings.fitted, seeds=len(records.starts), model_calls=model_calls)
    return Calibration(kind, chosen, student.steps, known)


def best_student(
    model: Model, records: Records, settings: Settings, calls: int, trials: int
) -> Student:
    """The best student that was found in so many trials on the model.

    The first ones are on the recommended sigmas, and on those that a search finds; then changes of
    single sigmas are tried, beginning with the best student's.
    """
    points = len(records.sigmas)
    tried: dict[tuple[int, ...], Student] = {}

    def attempt(indices: tuple[int, ...], trial: Callable[[], Student]) -> Student:
        best = min(tried.values(), key=lambda student: student.error, default=None)
        if indices not in tried:
            tried[indices] = trial()
            if best is None or tried[indices].error < best.error:
                settings.keep(_calibration(tried[indices], records, settings, model.meter.images))
        return tried[indices]

    def searched(surrogate: Predicts, *starts: tuple[int, ...]) -> tuple[int, ...]:
        found = [search(surrogate, each, lambda: model.tick(0, model.doing)) for each in starts]
        return min(found, key=surrogate.error)

    even = tuple(round(points * i / calls) for i in range(calls))
    trial: Callable[[tuple[int, ...]], Student]
    if settings.sampler is None:
        trial = partial(fit, model, records, settings.schedule, slopes=settings.slopes)
        ends = records.sigmas[0], records.sigmas[-1]
        positions = positions_of(records.starts.shape)
        recommended = recommended_sigmas(settings.schedule, *ends, calls, positions)[:-1]
        first = nearest(records.sigmas, recommended)
        attempt(first, partial(trial, first))
        for spread in SPREADS:
            of_weights = Surrogate(records, settings.schedule, calls, settings.slopes, spread)
            found = searched(of_weights, even)
            attempt(found, partial(trial, found))
    else:
        surrogate = SamplerSurrogate(records, settings.schedule, calls, settings.sampler)
        trial = partial(of_sampler.run, model, surrogate)
        lists = [nearest(records.sigmas, list_[:calls]) for list_ in settings.lists(calls)]
        hosts = [(0, *indices[1:]) for indices in lists]  # some of the host's start later
        for _ in range(ROUNDS):  # the surrogate learns from each trial
            likely = sorted(hosts, key=surrogate.error)[:LIKELY]
            best = sorted(tried, key=lambda indices: tried[indices].error)[:1]
            found = searched(surrogate, even, *likely, *best)
            untried = [host for host in sorted(hosts, key=surrogate.error) if host not in tried]
            for indices in (found, *untried[:1]):
                if len(tried) < trials:
                    attempt(indices, partial(trial, indices))
    best_one = min(tried.values(), key=lambda student: student.error)
    waiting = moves(best_one, points)
    while len(tried) < trials and waiting:
        indices = waiting.pop(0)
        if indices in tried:
            continue
        student = attempt(indices, partial(trial, indices))
        if student.error < best_one.error:
            best_one, waiting = student, moves(student, points)
    return best_one


def measure(
    solvers: Mapping[str, Rival],
    model: Model,
    starts: torch.Tensor,
    converged: Solved,
    records: Records,
) -> dict[str, float]:
    """Each solver's distance to the converged images; infinite if its result is not finite.

    Raises:
        NotFiniteError: no solver's result is finite.
    """
    errors: dict[str, float] = {}
    counted = converged.converged
    for name, solver in solvers.items():
        try:
            ends = torch.cat([records.of(solver(model, part)) for part in starts.split(model.part)])
            errors[name] = distance(ends[counted], converged.ends[counted])
        except NotFiniteError:  # this solver is useless here; measure the others
            errors[name] = math.inf
            if len(errors) == len(solvers) and set(errors.values()) == {math.inf}:
                raise
    return errors
