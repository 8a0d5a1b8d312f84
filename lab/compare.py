"""Samplers side by side: the same start, several numbers of model calls, one reference.

A `Candidate` is anything that makes a latent from a list of sigmas. `prepare` finds out, without
calling the model, how many of its steps fit into each number of model calls. `run` then runs the
candidates one by one, counts the calls really made, and measures each result's distance to the
reference.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..samplers.checks import escaped
from .metrics import MOST_CALLS, Meter, TooManyCallsError, distance, most_steps

Sigmas = torch.Tensor | Sequence[float]
Passing = tuple[type[BaseException], ...]

SAME_START = 0.01
"""Lists whose first sigmas differ by more than this fraction start at different noise levels."""

MOST_RUNS = 120
"""The most runs in a comparison; their grid of pictures then takes no more than about 1 GiB."""

MOST_IMAGES = 6
"""The most images of a batch that are kept for the grid."""

MOST_BYTES = 2**32
"""The most memory that the latents kept for the grid may take."""

REASON_LENGTH, LABEL_LENGTH, LONGEST_TEXT = 160, 100, 200


@dataclass(frozen=True)
class Candidate:
    """A sampler with a scheduler or a list of sigmas.

    Attributes:
        label: its name in tables and pictures.
        sample: (sigmas, meter) -> latent, [batch, ...] of any rank. It must start from the
            same noise every time, and call the meter at each model call.
        spaced: steps -> a list of sigmas.
        listed: a fixed list of sigmas in its place; the candidate is then run only once.
    """

    label: str
    sample: Callable[[Sigmas, Meter], torch.Tensor]
    spaced: Callable[[int], Sigmas]
    listed: Sigmas | None = None

    def __post_init__(self) -> None:
        escape_fields(self, "label")


@dataclass(frozen=True)
class Job:
    """A run that is still to be made.

    Attributes:
        row: index of its candidate.
        budget: the number of calls that it is meant for; None if the candidate is run only once.
        sigmas: empty if it can't be run; `failure` then says why.
        calls: how many model calls it will make; an estimate if the sampler chooses its own steps.
        chooses: whether the sampler chooses its own steps.
    """

    candidate: Candidate
    row: int
    budget: int | None
    sigmas: Sigmas = ()
    calls: int = 0
    chooses: bool = False
    failure: str = ""


@dataclass(frozen=True)
class Cell:
    """The result of a run.

    Attributes:
        calls: model calls that were made; 0 if nothing ran.
        seconds: wall clock time of the sampling.
        error: distance to the reference (see `metrics.distance`); NaN if the run failed.
        failure: why the run failed, a sentence; otherwise empty.
        note: a caution about the error, a sentence; mostly empty.
        latent: the first MOST_IMAGES of its images.
    """

    label: str
    row: int
    budget: int | None
    calls: int = 0
    seconds: float = 0.0
    error: float = math.nan
    failure: str = ""
    note: str = ""
    latent: torch.Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        escape_fields(self, "label", "failure", "note")


@dataclass(frozen=True)
class Reference:
    """The latent that errors are measured against, on the CPU, and how it was made."""

    label: str
    calls: int
    seconds: float
    sigma_start: float
    latent: torch.Tensor = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        escape_fields(self, "label")


def escape_fields(frozen: object, *fields: str) -> None:
    """Make the texts in these fields safe: they come from outside, and go into tables and pictures."""
    for name in fields:
        object.__setattr__(frozen, name, escaped(getattr(frozen, name), LONGEST_TEXT))


def prepare(
    candidates: Sequence[Candidate], budgets: Sequence[int], passing: Passing = ()
) -> list[Job]:
    """The runs to make, candidate by candidate. Dry runs find out the numbers of steps.

    A sampler that calls the model more than once a step gets as many steps as fit into the budget. A
    sampler that chooses its own steps, or has its own list, is run once.

    Args:
        budgets: numbers of model calls, rising.
        passing: exceptions that end the whole comparison (the host's interrupt).

    Raises:
        ValueError: there would be more than MOST_RUNS.
    """
    check_size(candidates, budgets)
    return [
        job
        for row, candidate in enumerate(candidates)
        for job in _jobs(candidate, row, sorted(set(budgets)), passing)
    ]


def check_size(candidates: Sequence[Candidate], budgets: Sequence[int], bytes_: int = 0) -> None:
    """Raise ValueError if a comparison is larger than MOST_RUNS or MOST_BYTES.

    Args:
        bytes_: memory of the latents that are kept of each run.
    """
    columns = len(set(budgets))
    runs = sum(1 if candidate.listed is not None else columns for candidate in candidates)
    most = min(MOST_RUNS, MOST_BYTES // max(bytes_, 1))
    if runs > most:
        raise ValueError(
            f"{len(candidates)} candidates at {columns} numbers of calls are {runs} runs, and the "
            f"most at this size is {most}: take fewer candidates or numbers of calls"
            + (", or a smaller latent_image." if most < MOST_RUNS else ".")
        )


def _jobs(
    candidate: Candidate, row: int, budgets: Sequence[int], passing: Passing
) -> Iterator[Job]:
    try:
        if candidate.listed is not None:
            calls, chooses = _dry(candidate, candidate.listed, passing)
            yield Job(candidate, row, None, candidate.listed, calls, chooses)
            return
        dry = _DryRuns(candidate, passing)
        if dry.chooses(budgets):
            most = budgets[-1]
            yield Job(candidate, row, None, dry.sigmas(most), dry(most), chooses=True)
            return
    except passing:
        raise
    except Exception as error:
        yield Job(candidate, row, budgets[0], failure=reason(error))
        return
    for budget in budgets:
        try:
            steps = dry.fit(budget)
            yield Job(candidate, row, budget, dry.sigmas(steps), dry(steps))
        except passing:
            raise
        except Exception as error:
            yield Job(candidate, row, budget, failure=reason(error))


class _DryRuns:
    """How many model calls a candidate makes in a number of steps. Each is found out only once."""

    def __init__(self, candidate: Candidate, passing: Passing) -> None:
        self._candidate = candidate
        self._passing = passing
        self._lists: dict[int, Sigmas] = {}
        self._calls: dict[int, int] = {}
        self._endless = False

    def sigmas(self, steps: int) -> Sigmas:
        if steps not in self._lists:
            self._lists[steps] = self._candidate.spaced(steps)
        return self._lists[steps]

    def __call__(self, steps: int) -> int:
        if steps not in self._calls:
            calls, endless = _dry(self._candidate, self.sigmas(steps), self._passing)
            self._calls[steps], self._endless = calls, self._endless or endless
        return self._calls[steps]

    def chooses(self, budgets: Sequence[int]) -> bool:
        """Whether the number of calls hardly depends on the number of steps."""
        few, many = budgets[0], max(budgets[-1], 2 * budgets[0])
        return self(many) - self(few) < (many - few) / 2 or self._endless

    def fit(self, budget: int) -> int:
        """The largest number of steps that takes at most `budget` calls.

        Raises:
            ValueError: even one step takes more.
        """
        steps = most_steps(budget, self)
        if not steps:
            raise ValueError(f"it takes at least {self(1)} model calls.")
        return steps


def _dry(candidate: Candidate, sigmas: Sigmas, passing: Passing) -> tuple[int, bool]:
    """The calls of a run without the model, and whether it was stopped as it would not end.

    A sampler that chooses its own steps may not end. If the run fails on the zeros it gets instead of
    model outputs, one call per step is assumed.
    """
    steps = max(len(sigmas) - 1, 0)
    meter = Meter(dry=True, limit=20 * steps + 200)
    try:
        candidate.sample(sigmas, meter)
    except passing:
        raise
    except TooManyCallsError:
        return meter.calls, True
    except Exception:
        return steps, False
    return meter.calls, False


def find_reference(
    candidate: Candidate,
    calls: int,
    passing: Passing = (),
    on_call: Callable[[int], object] | None = None,
) -> Reference:
    """Run a candidate with many calls, as the reference for the others.

    Raises:
        RuntimeError: the run failed, or its result is not finite.
    """
    (job, *_) = _jobs(candidate, 0, [calls], passing)
    meter = Meter(on_call=on_call)
    began = time.perf_counter()
    failure, latent = job.failure, None
    if not failure:
        latent, failure = _sample(candidate, job.sigmas, meter, passing)
    if latent is None or failure:
        raise RuntimeError(
            f"The reference ({candidate.label}) could not be made: {failure} Fix this, or connect "
            "another reference_sampler."
        )
    seconds = time.perf_counter() - began
    return Reference(candidate.label, meter.calls, seconds, _start(job.sigmas), latent)


def run(
    jobs: Iterable[Job],
    reference: Reference,
    passing: Passing = (),
    on_call: Callable[[Job, int], object] | None = None,
) -> Iterator[Cell]:
    """Run the jobs one by one. If one fails, its cell says why, and the others still run.

    Args:
        passing: exceptions that end the whole comparison (the host's interrupt). Exceptions that
            don't derive from `Exception` always do.
        on_call: called with the job and its number of model calls so far.
    """
    for job in jobs:
        cell = Cell(job.candidate.label, job.row, job.budget, failure=job.failure)
        if job.failure:
            yield cell
            continue

        def told(calls: int, job: Job = job) -> None:
            if on_call is not None:
                on_call(job, calls)

        meter = Meter(on_call=told)
        began = time.perf_counter()
        latent, failure = _sample(job.candidate, job.sigmas, meter, passing)
        cell = replace(
            cell, calls=meter.calls, seconds=time.perf_counter() - began, failure=failure
        )
        if latent is not None and not failure:
            try:
                error = distance(latent, reference.latent)
                note = _note(job.sigmas, reference)
                shown = latent[:MOST_IMAGES].clone()
                cell = replace(cell, error=error, latent=shown, note=note)
            except ValueError as problem:
                cell = replace(cell, failure=reason(problem))
        yield cell


def _sample(
    candidate: Candidate, sigmas: Sigmas, meter: Meter, passing: Passing
) -> tuple[torch.Tensor | None, str]:
    """The latent, on the CPU (the copy waits for the device), and why it failed, if so."""
    try:
        latent = candidate.sample(sigmas, meter).cpu()
    except passing:
        raise
    except Exception as error:
        return None, reason(error)
    if not bool(torch.isfinite(latent).all()):
        return None, "its result holds NaN or infinity."
    return latent, ""


def _start(sigmas: Sigmas) -> float:
    return float(sigmas[0]) if len(sigmas) else math.nan


def _note(sigmas: Sigmas, reference: Reference) -> str:
    start = _start(sigmas)
    if abs(start - reference.sigma_start) <= SAME_START * reference.sigma_start:
        return ""
    return (
        f"starts at sigma {start:.4g}, the reference at {reference.sigma_start:.4g}: "
        "they start at different noise levels, so part of the error is not the sampler's."
    )


def reason(error: BaseException) -> str:
    """The error's message, in one short line."""
    text = escaped(" ".join(str(error).split()))
    if not isinstance(error, ValueError | RuntimeError | NotImplementedError) or not text:
        text = f"{type(error).__name__}: {text}" if text else f"{type(error).__name__}."
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 4].rstrip() + " ..."


def parse_calls(text: str) -> list[int]:
    """Read numbers of model calls, as people write them: "5, 8, 10".

    Returns:
        The numbers, rising and without repetitions.

    Raises:
        ValueError: the text holds something else, or nothing.
    """
    parts = text.replace(",", " ").replace(";", " ").split()
    if not parts:
        raise ValueError('calls is empty: write numbers of model calls, such as "5, 10, 20".')
    for part in parts:
        whole = part.isascii() and part.isdigit() and len(part) <= 9
        if not (whole and 1 <= int(part) <= MOST_CALLS):
            raise ValueError(
                f'calls holds "{escaped(part, 40)}", which is no number of model calls: write whole '
                f'numbers from 1 to {MOST_CALLS} with commas between them, such as "5, 10, 20".'
            )
    return sorted({int(part) for part in parts})


def distinct(labels: Sequence[str]) -> list[str]:
    """The labels, with a number added to each that occurred before."""
    seen: set[str] = set()
    result = []
    for label in labels:
        name, count = label, 1
        while name in seen:
            count += 1
            name = f"{label} ({count})"
        seen.add(name)
        result.append(name)
    return result
