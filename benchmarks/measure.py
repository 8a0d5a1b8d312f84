"""How `quality.py` measures: errors of a run, calls within a budget, the best of many."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..lab.metrics import geometric_mean, most_steps, rms
from .peers import Candidate, Run
from .scenarios import Blank, Counted, GuidedDenoiser, Scenario


@dataclass(frozen=True)
class Cell:
    """A candidate in a scenario at a budget of model calls.

    Attributes:
        calls: the budget.
        used: the calls really made; 0 if it wasn't run.
        steps: the number of steps in a host's panel.
        mean: geometric mean over images of the root mean square distance; None without a result.
        median, p90: median and 90th percentile of the same.
        seconds: duration of the run.
        reason: why there is no result, or "".
    """

    scenario: str
    family: str
    sampler: str
    scheduler: str
    calls: int
    used: int = 0
    steps: int = 0
    mean: float | None = None
    median: float | None = None
    p90: float | None = None
    seconds: float = 0.0
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.sampler}, {self.scheduler}"


def summary(errors: torch.Tensor) -> tuple[float, float, float]:
    """Geometric mean, median and 90th percentile of the errors of some images."""
    tiny = torch.finfo(errors.dtype).tiny
    mean = geometric_mean(errors.clamp_min(tiny))
    return mean, statistics.median(errors.tolist()), torch.quantile(errors, 0.9).item()


def count(scenario: Scenario, candidate: Candidate) -> Callable[[int], int]:
    """The candidate's calls by steps, each counted once with a model that costs nothing."""
    noise = scenario.noise(1, 0)
    known: dict[int, int] = {}

    def calls_of(steps: int) -> int:
        if steps not in known:
            model = Counted(Blank())
            candidate.prepare(scenario, steps)(model, noise)
            known[steps] = model.meter.calls
        return known[steps]

    return calls_of


def measure(
    scenario: Scenario,
    candidate: Candidate,
    budgets: Sequence[int],
    model: GuidedDenoiser,
    noise: torch.Tensor,
    solution: torch.Tensor,
) -> list[Cell]:
    """The candidate's cells, one for each budget. A failure is a cell that says why."""
    who = (scenario.name, candidate.family, candidate.sampler, candidate.scheduler)
    calls_of = count(scenario, candidate)

    def at(calls: int, steps: int) -> Cell:
        run = candidate.prepare(scenario, steps)
        return _cell(who, calls, steps, run, model, noise, solution)

    cells: list[Cell] = []
    for calls in budgets:
        try:
            # A sampler of one call per step needs no count for other numbers of steps. Counting takes
            # time if the sampler draws noise.
            steady = bool(cells) and cells[-1].used == cells[-1].steps == cells[-1].calls
            cell = at(calls, calls) if candidate.as_asked or steady else None
            if cell is None or (steady and cell.used != calls and not candidate.as_asked):
                steps = most_steps(calls, calls_of)
                cell = (
                    at(calls, steps)
                    if steps
                    else Cell(*who, calls, reason="takes more calls even in one step")
                )
        except Exception as error:  # of any type: it is another program's code
            words = f"{type(error).__name__}: {error}".splitlines()[0]
            cell = Cell(*who, calls, reason=words)
        cells.append(cell)
    return cells


def _cell(
    who: tuple[str, str, str, str],
    calls: int,
    steps: int,
    run: Run,
    model: GuidedDenoiser,
    noise: torch.Tensor,
    solution: torch.Tensor,
) -> Cell:
    counted, started = Counted(model), time.perf_counter()
    with torch.inference_mode():
        result = run(counted, noise)
    seconds = time.perf_counter() - started
    common: dict[str, Any] = {"used": counted.meter.calls, "steps": steps, "seconds": seconds}
    if counted.meter.calls > calls:
        return Cell(*who, calls, **common, reason=f"takes {counted.meter.calls} calls")
    if not result.isfinite().all():
        return Cell(*who, calls, **common, reason="the result is not finite")
    mean, median, p90 = summary(rms(result, solution))
    return Cell(*who, calls, **common, mean=mean, median=median, p90=p90)


def best(cells: Iterable[Cell]) -> Cell | None:
    """The cell with the smallest geometric mean, among those with a result."""
    return min(
        (cell for cell in cells if cell.mean is not None),
        key=lambda cell: (cell.mean, cell.name),
        default=None,
    )
