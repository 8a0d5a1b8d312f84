"""Judges the recommended sampler on the host's own schedulers, instead of on its own sigmas.

    python -m dpm_solver_nodes.benchmarks.judge_other_lists [--tune] [--2m] [--processes sd flow3 ...]

For each process, scheduler and number of calls: its error over that of the best of RIVALS on the same
list, and over Euler's; means and worst cases over the problems of `problems.JUDGE`. With --2m it is
DPM++ 2M that is judged.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..lab.metrics import distance, geometric_mean
from ..samplers.sample import sample
from ..samplers.solvers.multistep import Multistep
from . import references
from .judge_recommended import sampler_of
from .problems import JUDGE, PROCESSES, TUNE, Problem, Process

RIVALS = ("dpmpp_2m", "uni_pc", "uni_pc_bh2", "res_multistep", "ipndm")
SCHEDULERS = ("simple", "sgm_uniform", "normal", "beta", "karras")
CALLS = {False: (8, 15, 25), True: (8, 14, 30)}
"""With --tune or without: where errors of the host's samplers are kept."""

Ratios = tuple[float, float]
MadeBy = Callable[[Problem, Process], Callable[..., torch.Tensor]]


def sampler_2m(_: Problem, process: Process) -> Callable[..., torch.Tensor]:
    options = Multistep().on(process.schedule)
    return partial(sample, options, schedule=process.schedule)


def ratios(
    problem: Problem, process: Process, calls: Sequence[int], made_by: MadeBy
) -> dict[tuple[str, int], Ratios]:
    """Scheduler and calls -> error over the best rival's, and over Euler's."""
    found = references.errors(problem, process, calls)
    result = {}
    for scheduler in SCHEDULERS:
        for n in calls:
            sigmas = references.host_sigmas(process, "euler", scheduler, n)
            if len(sigmas) != n + 1:
                continue
            sampler = made_by(problem, process)
            images, _ = references.result(problem, process, sampler, sigmas, problem.noise())
            value = distance(images, problem.solution(process))
            cells = found[str(n)]
            best = min(
                cells[f"{one} {scheduler}"] for one in RIVALS if f"{one} {scheduler}" in cells
            )
            result[scheduler, n] = value / best, value / cells[f"euler {scheduler}"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tune", action="store_true", help="on the problems of the fit instead")
    parser.add_argument("--processes", nargs="*", default=["sd", "zero-snr", "flow3"])
    parser.add_argument("--2m", dest="made_by", action="store_const", const=sampler_2m)
    parser.set_defaults(made_by=sampler_of)
    options = parser.parse_args()
    torch.set_num_threads(1)
    groups: dict[str, list[Ratios]] = defaultdict(list)
    for problem in TUNE if options.tune else JUDGE:
        for name in options.processes:
            if name not in problem.processes or problem.values > 10000:
                continue
            made = ratios(problem, PROCESSES[name], CALLS[options.tune], options.made_by)
            for (scheduler, n), pair in made.items():
                for group in (f"{name} {scheduler} {n}", f"{name} {scheduler}", name):
                    groups[group].append(pair)
    print("over the best rival's: mean, worst, share above 1.1; over Euler's: mean, worst")
    for group, pairs in groups.items():
        best, euler = zip(*pairs, strict=True)
        print(
            f"{group:28s} {geometric_mean(best):5.2f} {max(best):6.2f} "
            f"{sum(value > 1.1 for value in best) / len(best):4.0%}   "
            f"{geometric_mean(euler):5.2f} {max(euler):6.2f}"
        )


if __name__ == "__main__":
    main()
