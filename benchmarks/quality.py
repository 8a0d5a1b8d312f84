"""How far samplers are from the converged solution, by model calls: ours and others'.

    python -m dpm_solver_nodes.benchmarks.quality [--quick] [--seed 1] [--out DIR]

**Measure**: the root mean square distance, per image, to the converged solution of the same ODE from
the same noise; of 64 images, the geometric mean (which ranks), the median and the 90th percentile.
The converged solution goes from sigma_max to the model's sigma_min in 2000 third-order steps, even in
log-SNR, and then denoises once; how far one with half the steps is from it is printed.

**Calls** are counted in the model. A sampler that takes several per step gets as many steps as fit
into the budget; its cell says how many calls were used. A run above its budget has no result.

**Scenarios** (`scenarios.py`): an exact denoiser in closed form, unconditional, guided, and as a flow;
the demo's network, without and with guidance. **Peers** (`peers.py`): all samplers of ComfyUI's menu
with all its schedulers, those of k-diffusion with the same, diffusers' DPM-Solvers and UniPC with
their spacings, each through its own code, in the same run. **Ours** (`pack_samplers.py`): the
catalogue's samplers, with our spacings and ComfyUI's schedulers. On the network only the common
samplers run, and those that are best on the exact denoiser of its kind.

It writes quality.txt, quality.json (every cell) and quality.png. It takes about half an hour on two
cores, and 1 GiB per process; --quick runs a few samplers (QUICK) in under 3 minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import platform
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..lab.metrics import distance
from .measure import Cell, best, measure
from .pack_samplers import ALWAYS, FAMILY, our_candidates
from .peers import COMFY, FAMILIES, Candidate, Omitted
from .report import report
from .scenarios import SCENARIOS, GuidedDenoiser, converged

CALLS = (5, 8, 10, 12, 15, 20, 25)
IMAGES = 64
COMMON = ("dpmpp_2m", "uni_pc", "euler", "ipndm_v", "deis", "res_multistep")
"""Samplers of ComfyUI that run in every scenario, with COMMON_SCHEDULERS."""

COMMON_SCHEDULERS = ("normal", "simple", "karras", "beta")
SHORTLIST = 10

QUICK_SCENARIOS = ("digits", "digits-cfg7.5", "digits-flow")
QUICK_CALLS = (5, 10, 20)
QUICK = (
    *COMMON,
    *("ipndm", "gradient_estimation", "lms", "uni_pc_bh2"),
    *("DPMSolverMultistep 2", "UniPC 3"),
    *("dpm_solver++_2m", "dpm_solver++_3m", "dpm_solver++_3m_exact", *ALWAYS),
)
CANDIDATES = {**FAMILIES, FAMILY: our_candidates}


# --- jobs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """Settings that all runs of a benchmark share."""

    calls: tuple[int, ...]
    images: int
    seed: int


@dataclass(frozen=True)
class Reference:
    """A scenario's converged solution, and the distance of one with half its steps."""

    solution: torch.Tensor
    error: float


@dataclass(frozen=True)
class Job:
    """One sampler of a scenario, with some schedulers or (None) all of them."""

    scenario: str
    family: str
    sampler: str
    schedulers: tuple[str, ...] | None = None


Key = tuple[str, str, str]
"""Family, sampler, scheduler."""


def reference(name: str, setting: Setting) -> Reference:
    _quiet()
    scenario = SCENARIOS[name]
    noise = scenario.noise(setting.images, setting.seed)
    with torch.inference_mode():
        solution, half = (
            converged(scenario, noise, steps) for steps in (scenario.fine, scenario.fine // 2)
        )
    return Reference(solution, distance(half, solution))


def run(job: Job, setting: Setting, solution: torch.Tensor) -> list[Cell]:
    _quiet()
    scenario = SCENARIOS[job.scenario]
    noise = scenario.noise(setting.images, setting.seed)
    found, _ = candidates(job.scenario, job.family)
    model = _model(job.scenario)
    return [
        cell
        for candidate in found
        if candidate.sampler == job.sampler
        and (job.schedulers is None or candidate.scheduler in job.schedulers)
        for cell in measure(scenario, candidate, setting.calls, model, noise, solution)
    ]


@cache
def candidates(scenario: str, family: str) -> tuple[list[Candidate], list[Omitted]]:
    return CANDIDATES[family](SCENARIOS[scenario])


@cache
def _model(scenario: str) -> GuidedDenoiser:
    return SCENARIOS[scenario].make()


@cache
def _quiet() -> None:
    """One thread, as small models on few cores are fastest, and no warnings of others."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")


def all_jobs(scenario: str, only: Sequence[str] | None) -> list[Job]:
    """Every sampler with each of its schedulers; those in `only`, if given."""
    samplers = (
        (family, candidate.sampler)
        for family in CANDIDATES
        for candidate in candidates(scenario, family)[0]
    )
    return [
        Job(scenario, family, sampler)
        for family, sampler in dict.fromkeys(samplers)
        if only is None or sampler in only
    ]


def leading_jobs(
    scenario: str, leaders: Iterable[Sequence[Cell]], only: Sequence[str] | None
) -> list[Job]:
    """The common samplers, and those that were best in scenarios that have run.

    Args:
        leaders: the cells of each of these scenarios.
    """
    keys = [(COMFY, name, scheduler) for name in COMMON for scheduler in COMMON_SCHEDULERS]
    for cells in leaders:
        ours = [cell for cell in cells if cell.family == FAMILY]
        peers = [cell for cell in cells if cell.family != FAMILY]
        keys += [*shortlist(peers, SHORTLIST), *shortlist(ours, SHORTLIST)]
    known = {
        (family, candidate.sampler, candidate.scheduler)
        for family in CANDIDATES
        for candidate in candidates(scenario, family)[0]
    }
    keys += sorted(key for key in known if key[0] == FAMILY and key[1] in ALWAYS)
    schedulers: dict[tuple[str, str], list[str]] = {}
    for family, sampler, scheduler in dict.fromkeys(keys):
        if (family, sampler, scheduler) in known and (only is None or sampler in only):
            schedulers.setdefault((family, sampler), []).append(scheduler)
    return [Job(scenario, *who, tuple(names)) for who, names in schedulers.items()]


def shortlist(cells: Sequence[Cell], most: int) -> list[Key]:
    """The best of each budget, then those whose log errors are on average nearest to the best."""
    budgets = {cell.calls: best(c for c in cells if c.calls == cell.calls) for cell in cells}
    winners = [_key(cell) for cell in budgets.values() if cell is not None]
    ratios: dict[Key, list[float]] = {}
    for cell in cells:
        least = budgets[cell.calls]
        if least is not None and cell.mean is not None:
            ratios.setdefault(_key(cell), []).append(math.log(cell.mean / (least.mean or 1.0)))
    complete = {
        key: statistics.fmean(found) for key, found in ratios.items() if len(found) == len(budgets)
    }
    ranked = sorted(complete, key=lambda key: (complete[key], key))
    return list(dict.fromkeys([*winners, *ranked]))[:most]


def _key(cell: Cell) -> Key:
    return cell.family, cell.sampler, cell.scheduler


# --- running ---------------------------------------------------------------------------------------

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers:
    """Runs functions in processes of their own or, if it is one at a time, in this process."""

    def __init__(self, jobs: int) -> None:
        self.pool = (
            ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) if jobs > 1 else None
        )

    def map(
        self, function: Callable[..., Result], tasks: Mapping[Task, Sequence[Any]]
    ) -> Iterator[tuple[Task, Result]]:
        """The tasks' results in the order in which they come."""
        if self.pool is None:
            for task, arguments in tasks.items():
                yield task, function(*arguments)
            return
        futures = {self.pool.submit(function, *arguments): t for t, arguments in tasks.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def benchmark(
    names: Sequence[str],
    setting: Setting,
    workers: Workers,
    only: Sequence[str] | None = None,
    say: Callable[[str], object] = print,
) -> tuple[dict[str, Reference], list[Cell]]:
    """All cells of some scenarios, their leaders' among them, in the order of the candidates."""
    started = time.perf_counter()
    full = [name for name in names if not SCENARIOS[name].leaders]
    led = [name for name in names if SCENARIOS[name].leaders]
    references: dict[str, Reference] = {}
    for name, found in workers.map(reference, {name: (name, setting) for name in names}):
        references[name] = found
        say(f"{name}: the converged solution, to {found.error:.1e}")

    cells: dict[str, list[Cell]] = {name: [] for name in names}

    def sweep(jobs: Sequence[Job]) -> None:
        tasks = {job: (job, setting, references[job.scenario].solution) for job in jobs}
        for i, (job, found) in enumerate(workers.map(run, tasks), 1):
            cells[job.scenario] += found
            minutes = (time.perf_counter() - started) / 60.0
            say(f"{minutes:5.1f} min, {i}/{len(jobs)} {job.scenario}: {job.family} {job.sampler}")

    sweep([job for name in full for job in all_jobs(name, only)])
    jobs: list[Job] = []
    for name in led:
        leaders = [cells[leader] for leader in SCENARIOS[name].leaders if leader in cells]
        jobs += leading_jobs(name, leaders, only)
    sweep(jobs)
    order = {
        (name, family, candidate.sampler, candidate.scheduler): i
        for name in names
        for family in CANDIDATES
        for i, candidate in enumerate(candidates(name, family)[0])
    }
    families = list(CANDIDATES)
    flat = [cell for name in names for cell in cells[name]]
    flat.sort(
        key=lambda cell: (
            names.index(cell.scenario),
            families.index(cell.family),
            order[(cell.scenario, *_key(cell))],
        )
    )
    return references, flat


def omitted(names: Sequence[str], only: Sequence[str] | None) -> list[Omitted]:
    found = {item: None for name in names for f in CANDIDATES for item in candidates(name, f)[1]}
    return [item for item in found if only is None or item.sampler in only]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Errors of samplers by model calls.")
    parser.add_argument("--scenarios", nargs="+", choices=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--samplers", nargs="+", metavar="NAME", help="ours and others' (all)")
    parser.add_argument("--calls", nargs="+", type=int, metavar="N")
    parser.add_argument("--images", type=int, default=IMAGES, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="only some samplers")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", metavar="DIR")
    options = parser.parse_args(arguments)
    if min(options.images, options.jobs, *(options.calls or [1])) < 1:
        parser.error("--images, --jobs and --calls must be 1 or more")
    names = options.scenarios or list(QUICK_SCENARIOS if options.quick else SCENARIOS)
    calls = options.calls or (QUICK_CALLS if options.quick else CALLS)
    only = options.samplers or (QUICK if options.quick else None)
    setting = Setting(tuple(sorted(set(calls))), options.images, options.seed)

    _quiet()
    started = time.perf_counter()
    workers = Workers(options.jobs)
    try:
        references, cells = benchmark(
            names, setting, workers, only, lambda line: print(line, flush=True)
        )
    finally:
        workers.close()
    minutes = (time.perf_counter() - started) / 60.0
    converged_to = {name: found.error for name, found in references.items()}
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    title = (
        f"{setting.images} images, seed {setting.seed}, {versions}; "
        f"{minutes:.1f} min in {options.jobs} process(es)"
    )
    unused = omitted(names, only)
    text = report(title, cells, unused, converged_to)
    print("", text, sep="\n")

    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "quality.txt").write_text(text + "\n")
    content = {
        "setting": asdict(setting),
        "versions": versions,
        "minutes": minutes,
        "scenarios": {
            name: {"title": SCENARIOS[name].title, "converged to": error}
            for name, error in converged_to.items()
        },
        "omitted": [asdict(item) for item in unused],
        "cells": [asdict(cell) for cell in cells],
    }
    (options.out / "quality.json").write_text(json.dumps(content, indent=1) + "\n")
    from .plots import plot  # imported late: table and file don't need matplotlib

    plot(cells, options.out / "quality.png")


if __name__ == "__main__":
    # A signal raises an exception, so that the workers end, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
