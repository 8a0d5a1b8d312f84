"""Judges the recommended sampler on models that it was not fitted on, beside ComfyUI's samplers.

    python -m dpm_solver_nodes.benchmarks.judge_recommended [--tune] [--processes sd flow3 ...]

For each problem of `problems.JUDGE`, process and number of calls: its error over that of the best
ComfyUI sampler x scheduler, and over that of what people use, and the means and worst cases of those
by family. All run through ComfyUI's KSAMPLER, on Stable Diffusion's schedule at its whole times.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch

from ..lab.metrics import distance, geometric_mean
from ..samplers.sample import sample
from ..samplers.solvers.recommended import Recommended
from ..samplers.solvers.recommended_lists import recommended_sigmas
from ..samplers.solvers.rows import LARGEST
from . import references
from .problems import JUDGE, PROCESSES, TUNE, Problem, Process


def sampler_of(problem: Problem, process: Process) -> Callable[..., torch.Tensor]:
    """As a host runs it, which tells it the size of the images."""
    options = Recommended(positions=problem.positions)
    return partial(sample, options, schedule=process.schedule)


def sigmas_of(process: Process, calls: int, positions: int = LARGEST) -> torch.Tensor:
    """As the host would hand them over: at Stable Diffusion's whole times."""
    ends = process.sigma_max, process.sigma_min
    sigmas = recommended_sigmas(process.schedule, *ends, calls, positions)
    if process.whole_times:
        table = references.model_sampling(process).sigmas.double().log()
        inner = torch.tensor(sigmas[:-1], dtype=torch.float64).log()
        nearest = (inner[:, None] - table).abs().argmin(1)
        return torch.cat([table[nearest].exp(), torch.zeros(1, dtype=torch.float64)])
    return torch.tensor(sigmas, dtype=torch.float64)


def ours(problem: Problem, process: Process, calls: int) -> float:
    images, made = references.result(
        problem,
        process,
        sampler_of(problem, process),
        sigmas_of(process, calls, problem.positions),
        problem.noise(),
    )
    assert made == calls
    return distance(images, problem.solution(process))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tune", action="store_true", help="on the problems of the fit instead")
    parser.add_argument("--processes", nargs="*", default=list(PROCESSES))
    parser.add_argument("--families", nargs="*", help="only these kinds of problems")
    parser.add_argument("--calls", nargs="*", type=int, default=list(references.CALLS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    calls = options.calls
    groups: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    print(f"error / best peer's (/ usual's) at {', '.join(map(str, calls))} calls")
    for problem in TUNE if options.tune else JUDGE:
        if options.families and problem.family not in options.families:
            continue
        for name in problem.processes:
            if name not in options.processes:
                continue
            process = PROCESSES[name]
            found = references.errors(problem, process, calls)
            usual = " ".join(references.USUAL[process.flow])
            text = []
            for n in calls:
                value = ours(problem, process, n)
                ratios = (value / min(found[str(n)].values()), value / found[str(n)][usual])
                for group in (f"{problem.family}, {name}", f"{problem.family}, all"):
                    groups[group][n].append(ratios)
                text.append(f"{ratios[0]:5.2f} ({ratios[1]:4.2f})")
            print(f"{problem.name:58s} {name:9s}" + " ".join(text), flush=True)
    print("\nmean and worst over the best peer's, mean over the usual's, by calls and over all")
    for group, cells in sorted(groups.items()):
        text = [
            f"{geometric_mean([a for a, _ in cells[n]]):4.2f} {max(a for a, _ in cells[n]):5.2f}"
            for n in calls
        ]
        both = [pair for n in calls for pair in cells[n]]
        text.append(
            f"| {geometric_mean([a for a, _ in both]):4.2f} {max(a for a, _ in both):5.2f}, "
            f"usual {geometric_mean([b for _, b in both]):4.2f}"
        )
        print(f"{group:24s} " + "  ".join(text))


if __name__ == "__main__":
    main()
