"""How far Solver Compare's reference is itself from the solution, on exact stand-ins.

    python -m dpm_solver_nodes.benchmarks.reference_error

Printed are the distances of the reference (3M exact, even in log-SNR) by its number of calls, and that
of euler + simple at 20 calls, which people use. Distances smaller than the reference's say little.
"""

from __future__ import annotations

from functools import partial

import torch

from ..lab.metrics import distance
from ..samplers.sample import sample
from ..samplers.schedules.sigma_lists import flow_first, log_snr
from ..samplers.solvers.multistep import Multistep
from .problems import PROCESSES, Process
from .problems.problems import fields
from .references import host_sigmas, result

CALLS = (60, 80, 100, 200, 400)
REFERENCE = Multistep(order=3, solver_type="exact")
MODELS = {
    "flow3": (fields((64, 64), 2.5, 4.0, 11, images=4), fields((64, 64), 2.4, 1.0, 13, images=4)),
    "flow6": (fields((64, 64), 2.2, 5.0, 12, images=4),),
    "sd": (fields((64, 64), 2.2, 7.0, 14, images=4),),
}


def sigmas(process: Process, calls: int) -> torch.Tensor:
    """Those of the host's scheduler dpm_solver_log_snr."""
    shift, intervals = process.shift, calls - 1
    first = flow_first(lambda t: shift * t / (1.0 + (shift - 1.0) * t), 1.0, intervals)
    ends = process.sigma_max, process.sigma_min
    above_zero = log_snr(process.schedule, *ends, intervals, *([first] if process.flow else []))
    return torch.tensor([*above_zero, 0.0], dtype=torch.float64)


def main() -> None:
    torch.set_num_threads(1)
    for name, problems in MODELS.items():
        process = PROCESSES[name]
        reference = partial(sample, REFERENCE, schedule=process.schedule)
        for problem in problems:
            noise, solution = problem.noise(), problem.solution(process)
            cells = []
            for calls in CALLS:
                images, made = result(problem, process, reference, sigmas(process, calls), noise)
                assert made == calls
                cells.append(f"{calls} {distance(images, solution):.5f}")
            usual, _ = result(
                problem, process, "euler", host_sigmas(process, "euler", "simple", 20), noise
            )
            last = f"euler simple 20 {distance(usual, solution):.4f}"
            print(f"{name} {problem.name}: {', '.join(cells)}; {last}", flush=True)


if __name__ == "__main__":
    main()
