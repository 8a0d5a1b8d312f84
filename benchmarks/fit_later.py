"""Fits the recommended sampler for image to image: sigmas and step weights from a later start.

    python -m dpm_solver_nodes.benchmarks.fit_later 0.003|0.029 [--starts 3 1.61 ...] [--calls ...]

The solver, the models and the aim are those of `fit_recommended.py`; a run begins at a converged image
of the model with noise of the start's strength. Its unit is not a peer's error, since hosts' lists
start elsewhere, but that of the best of twelve plain multistep solvers on Karras' spacing. Starts are
fitted from STARTS[0] outwards, and mostly begin with their neighbour's solver, so that a start between
two of them can take a mean. The models end at one of ENDS. Results go to the file of the sampler's
data, where rows that are not asked for stay. 30 and 0.35, which few runs start near, were fitted with
--calls 8 6 5 4 3 2 10 12 16 20 30.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch

from ..lab.metrics import distance
from ..samplers.solvers.later_rows import DATA, ENDS
from ..samplers.solvers.rows import share_of
from .fit_recommended import SHARPNESS, Case, Pair, Solver, descend, mixed, run, stretched, written
from .problems import CHECK, PROCESSES, TUNE, Problem, Process

PROCESS = dict(zip(ENDS, ("flow3", "sd"), strict=True))
STARTS = (1.61, 3.0, 1.1, 5.5, 0.65, 10.0, 30.0, 0.35)
"""s = sigma / alpha. Stable Diffusion is at the first at a denoise of 0.5, a flow of shift 3 at the
second."""

ORDER = (8, 6, 5, 4, 3, 2, 7, 9, 10, 11, 12, 14, 16, 20, 30)
ITERATIONS = 40
FINE = 150
"""Steps of the converged solution, which is far less of a way than from noise alone."""

ALL_UP_TO = 8
"""With so few calls a fit begins with each of several solvers; with more, with the closest."""

PLAIN = tuple(itertools.product((0.03, 0.06, 0.12), (3.0, 7.0), (0.0, 0.5)))
"""The last s, rho and gain of the curvature of each of the plain solvers."""


@cache
def begun(problem: Problem, process: Process, start: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The state at a later start, and the converged images from there."""
    z = problem.solution(process) + start * problem.other_noise()
    return z, problem.solve(z, start, process.s_min, FINE)


def plain(start: float, calls: int, last: float, rho: float, curvature: float) -> Solver:
    """A multistep solver on Karras' spacing in s."""
    ends = start ** (1.0 / rho), last ** (1.0 / rho)
    s = [(ends[0] + (ends[1] - ends[0]) * i / (calls - 1)) ** rho for i in range(calls)]
    gains = torch.zeros(calls, 2, dtype=torch.float64)
    gains[1:-1, 0] = 1.0
    gains[2:-1, 1] = curvature
    return Solver(torch.tensor(s, dtype=torch.float64).log(), gains, pure=False)


def case(problem: Problem, process: Process, start: float, calls: int) -> Case:
    z, solution = begun(problem, process, start)
    one = Case(problem.model, share_of(problem.positions), z, solution, 1.0)
    solvers = [plain(start, calls, *settings) for settings in PLAIN]
    unit = min(distance(run(one.model, z, solver), solution) for solver in solvers)
    return replace(one, reference=unit)


def moved(solver: Solver, start: float) -> Solver:
    """A solver drawn out, or pressed together, to begin at another start and end where it did."""
    first, last = float(solver.levels[0]), float(solver.levels[-1])
    scale = (math.log(start) - last) / (first - last)
    return Solver(last + scale * (solver.levels - last), solver.gains, solver.pure)


def begin_with(rows: dict[float, dict[int, Pair]], start: float, calls: int) -> list[Pair]:
    """The solvers that a fit may begin with: those of neighbours, and a plain one."""
    found: list[Pair] = [(plain(start, calls, 0.06, 5.0, 0.3),) * 2]
    here, known = rows.get(start, {}), [other for other in rows if calls in rows[other]]
    if known:
        nearest = min(known, key=lambda other: abs(math.log(other / start)))
        small, large = rows[nearest][calls]
        found.append((moved(small, start), moved(large, start)))
    if here:
        small, large = here[min(here, key=lambda n: abs(math.log(n / calls)))]
        found.append((stretched(small, calls), stretched(large, calls)))
    return found


def read(end: str) -> dict[float, dict[int, Pair]]:
    """Start -> calls -> its solvers."""
    data = json.loads(DATA.read_text()) if DATA.exists() else {}

    def solver(row: dict[str, list[float]]) -> Solver:
        gains = torch.tensor([row["slope"], row["curvature"]], dtype=torch.float64).T
        return Solver(torch.tensor(row["s"], dtype=torch.float64).log(), gains, pure=False)

    return {
        float(start): {
            int(n): (solver(two["small"]), solver(two["large"])) for n, two in rows.items()
        }
        for start, rows in data.get(end, {}).items()
    }


def write(end: str, rows: dict[float, dict[int, Pair]]) -> None:
    data = json.loads(DATA.read_text()) if DATA.exists() else {}
    data[end] = {
        f"{start:g}": {str(calls): written(rows[start][calls]) for calls in sorted(rows[start])}
        for start in sorted(rows)
    }
    lines = json.dumps(data).replace('{"small"', '\n{"small"').replace('"large"', '\n"large"')
    DATA.write_text(lines + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("end", choices=ENDS)
    parser.add_argument("--calls", nargs="*", type=int, default=ORDER)
    parser.add_argument("--starts", nargs="*", type=float, default=STARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    process = PROCESSES[PROCESS[options.end]]
    tune, held_out = (
        [problem for problem in part if process.name in problem.processes] for part in (TUNE, CHECK)
    )
    for start in options.starts:
        begun.cache_clear()
        for calls in options.calls:
            began = time.time()
            cases, others = (
                [case(problem, process, start, calls) for problem in part]
                for part in (tune, held_out)
            )
            rows = read(options.end)
            begins = begin_with(rows, start, calls)
            if calls > ALL_UP_TO:
                begins = [min(begins, key=lambda pair: _near_worst(_ratios(cases, pair)))]
            found, _ = min(
                (descend(cases, pair, ITERATIONS) for pair in begins), key=lambda result: result[1]
            )
            rows.setdefault(start, {})[calls] = found
            write(options.end, rows)
            tuned, check = (_ratios(group, found) for group in (cases, others))
            print(
                f"to {options.end} from {start:g}, {calls:2d} calls: worst {max(tuned):.2f}, mean "
                f"{math.exp(sum(map(math.log, tuned)) / len(tuned)):.3f} | check",
                " ".join(f"{ratio:.3f}" for ratio in check),
                f"| {time.time() - began:.0f} s",
                flush=True,
            )


def _near_worst(ratios: Sequence[float]) -> float:
    return sum(ratio**SHARPNESS for ratio in ratios)


def _ratios(cases: Sequence[Case], pair: Pair) -> list[float]:
    return [math.exp(case.ratio(mixed(pair, case.share))[0]) for case in cases]


if __name__ == "__main__":
    main()
