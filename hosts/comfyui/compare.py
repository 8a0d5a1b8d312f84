"""What the Solver Compare node runs: any SAMPLERs through a guider, and their errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.model_management
import comfy.samplers
import numpy as np
import torch

from ...lab import compare, grid, plots, sheet, table
from ...lab.compare import Candidate, Cell, Job, Reference
from ...lab.memory import Fingerprint, Memory
from ...lab.report import Report
from ...samplers.log import LOG
from . import reports
from .candidates import ListedCandidate, at_least_one_step, candidate_of, candidates, name_of
from .guiding import Bench
from .pictures import PASSING, Pictures, as_image
from .progress import Progress

REFERENCE_SAMPLER = "dpm_solver++_3m_exact"
REFERENCE_SCHEDULER = "dpm_solver_log_snr"
_references: Memory[Reference] = Memory(most=4)


@dataclass(frozen=True)
class Comparison:
    """The results; the budgets are the columns."""

    cells: list[Cell]
    budgets: list[int]
    reference: Reference
    kept: bool


def compare_all(
    bench: Bench,
    chosen: Sequence[Candidate],
    budgets: list[int],
    reference: Candidate,
    reference_calls: int,
    key: Fingerprint,
    node_id: str | None = None,
) -> Comparison:
    """Run every candidate at every number of calls. First log how many calls that will take.

    Args:
        key: the fingerprint of all that the reference depends on.

    Raises:
        RuntimeError: the reference failed.
    """
    jobs = compare.prepare(chosen, budgets, PASSING)
    known = _references.get(key)
    for_jobs = sum(job.calls for job in jobs)
    for_reference = 0 if known else _calls_of(reference, reference_calls)
    open_end = any(job.chooses for job in jobs)
    progress = Progress(node_id, for_jobs + for_reference, open_end)
    source = "the reference is kept from an earlier run" if known else "and for the reference"
    announcement = (
        f"Solver Compare: {'at least ' if open_end else ''}{for_jobs + for_reference} model calls "
        f"to make: {for_jobs} for {len(chosen)} candidates, {source}"
        + ("." if known else f" {for_reference}.")
    )
    LOG.info(announcement)
    progress.say(announcement)
    if known is None:
        found = compare.find_reference(
            reference, reference_calls, PASSING, lambda n: progress.call("the reference", n)
        )
        progress.finish(found.calls, for_reference)
        _references.put(key, found)
    else:
        found = known
    cells = list(_run(jobs, found, progress))
    progress.end()
    return Comparison(cells, budgets, found, known is not None)


def _run(jobs: Sequence[Job], reference: Reference, progress: Progress) -> Iterator[Cell]:
    def told(job: Job, calls: int) -> None:
        progress.call(job.candidate.label, calls)

    cells = compare.run(jobs, reference, PASSING, told)
    for number, (job, cell) in enumerate(zip(jobs, cells, strict=True), 1):
        progress.finish(cell.calls, job.calls)
        outcome = cell.failure or f"error {table.short(cell.error)}, {cell.seconds:.2f} s"
        LOG.info(
            f"Solver Compare {number}/{len(jobs)}: {cell.label}, {cell.calls} calls: {outcome}"
        )
        yield cell


def _calls_of(candidate: Candidate, budget: int) -> int:
    (job, *_) = compare.prepare([candidate], [budget], PASSING)
    return job.calls


def reference_of(
    bench: Bench, sampler: Any = None, sigmas: torch.Tensor | None = None
) -> tuple[Candidate, list[Any]]:
    """The candidate for the reference, and all that its result depends on besides the bench.

    Args:
        sampler: replaces REFERENCE_SAMPLER.
        sigmas: replace those of REFERENCE_SCHEDULER.
    """
    if sigmas is not None:
        at_least_one_step("reference_sigmas", sigmas)
    name = REFERENCE_SAMPLER if sampler is None else name_of(sampler)
    where = REFERENCE_SCHEDULER if sigmas is None else "own sigmas"
    depends_on: list[Any] = [sigmas]
    if sampler is None:
        sampler = comfy.samplers.sampler_object(REFERENCE_SAMPLER)
    else:
        depends_on += [type(sampler).__qualname__, vars(sampler)]
    candidate = candidate_of(bench, f"{name} {where}", sampler, REFERENCE_SCHEDULER, None, sigmas)
    return candidate, depends_on


class Outputs(NamedTuple):
    """The outputs of the node, and the saved picture as the host's page shows it."""

    plot: torch.Tensor
    grid: torch.Tensor
    table: str
    csv: str
    shown: list[dict[str, str]]


def solver_compare(
    bench: Bench,
    text: str,
    entries: Sequence[ListedCandidate],
    calls: str,
    reference_calls: int,
    vae: Any = None,
    reference_sampler: Any = None,
    reference_sigmas: torch.Tensor | None = None,
    filename_prefix: str = "",
    node_id: str | None = None,
) -> Outputs:
    """Run the Solver Compare node.

    Raises:
        ValueError: an input is out of its range or doesn't fit the others.
        ImportError: matplotlib is missing.
        RuntimeError: the reference failed.
    """
    plots.require()  # before the model calls, not after
    place = reports.place(filename_prefix)
    budgets = compare.parse_calls(calls)
    chosen = candidates(bench, text, entries)
    compare.check_size(chosen, budgets, bench.shown_bytes)
    reference, depends_on = reference_of(bench, reference_sampler, reference_sigmas)
    key = bench.fingerprint(reference_calls, *depends_on)
    result = compare_all(bench, chosen, budgets, reference, reference_calls, key, node_id)
    pictures = Pictures(bench, vae)
    shown = _Shown(result, pictures)
    plot = plots.convergence(result.cells, budgets, result.reference)
    words = table.text(result.cells, budgets, result.reference, result.kept)
    images: list[dict[str, str]] = []
    if place is not None:
        decoded = shown.reference if pictures.decoded else None
        setup = reports.setup_of(bench, place.name, decoded)
        report = Report(setup, result.cells, budgets, result.reference)
        grid_ = shown.grid(report.cells) if pictures.decoded else None
        said, images = reports.save(place, report, sheet.sheet(report, plot, grid_))
        words = f"{words}\n\n{said}"
    return Outputs(
        as_image(plot),
        as_image(shown.grid(result.cells)),
        words,
        table.as_csv(result.cells),
        images,
    )


class _Shown:
    """The images of a comparison, decoded only once."""

    def __init__(self, result: Comparison, pictures: Pictures) -> None:
        self._result = result
        self._mosaics = {
            i: grid.mosaic(pictures(cell.latent))
            for i, cell in enumerate(result.cells)
            if cell.latent is not None
        }
        self.reference = pictures(result.reference.latent)
        self._remark = pictures.remark

    def grid(self, cells: Sequence[Cell]) -> np.ndarray:
        """The grid of these cells, which are the comparison's, or the same with other texts."""
        result = self._result
        return grid.grid(
            cells, result.budgets, self._mosaics, result.reference, self.reference, self._remark
        )
