"""Judges the recommended sampler from a later start: ComfyUI's KSampler with denoise .5.

    python -m dpm_solver_nodes.benchmarks.judge_image_to_image [--processes sd flow3 ...]

The image is a converged one of the problem, the noise another. A scheduler decides how much noise is
added, so each run is measured against the converged images from its own start.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from . import references
from .judge_recommended import mean, sampler_of, sigmas_of
from .problems import JUDGE, PROCESSES, Problem, Process
from .problems.problems import error

SAMPLERS = ("euler", "dpmpp_2m", "uni_pc", "res_multistep", "ipndm")
SCHEDULERS = ("simple", "normal", "karras", "beta", "sgm_uniform")
CALLS = (5, 10, 20)
DENOISE = 0.5
FINE = 300


@cache
def converged(problem: Problem, process: Process, start: float) -> torch.Tensor:
    s = process.s(start)
    return problem.solve(image(problem, process) + s * noise(problem), s, process.s_min, FINE)


def image(problem: Problem, process: Process) -> torch.Tensor:
    return problem.solution(process)


@cache
def noise(problem: Problem) -> torch.Tensor:
    generator = torch.Generator().manual_seed(problem.seed + 1000)
    return torch.randn(problem.noise().shape, generator=generator, dtype=torch.float64)


def distance(
    problem: Problem,
    process: Process,
    sampler: Callable[..., torch.Tensor] | str,
    sigmas: torch.Tensor,
) -> float:
    images, _ = references.result(
        problem, process, sampler, sigmas, noise(problem), image(problem, process)
    )
    return float(error(images, converged(problem, process, float(sigmas[0]))).exp())


def peers(problem: Problem, process: Process, calls: int) -> dict[str, float]:
    found = {}
    for scheduler in SCHEDULERS:
        for sampler in SAMPLERS:
            sigmas = references.host_sigmas(process, sampler, scheduler, calls, DENOISE)
            found[f"{sampler} {scheduler}"] = distance(problem, process, sampler, sigmas)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", nargs="*", default=["sd", "flow3"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything: list[float] = []
    print(f"error / best peer's (that peer; / usual's) at {', '.join(map(str, CALLS))} calls")
    for problem in JUDGE:
        for name in options.processes:
            if name not in problem.processes or problem.values > 10000:
                continue
            process = PROCESSES[name]
            text = []
            for n in CALLS:
                found = peers(problem, process, n)
                top = min(found, key=found.__getitem__)
                total = int(n / DENOISE)
                sigmas = sigmas_of(process, total)[-(n + 1) :]
                value = distance(problem, process, sampler_of(problem, process), sigmas)
                usual: Any = found[" ".join(references.USUAL[process.flow])]
                everything.append(value / found[top])
                text.append(f"{value / found[top]:5.2f} ({top}; {value / usual:.2f})")
            print(f"{problem.name:58s} {name:9s}" + " ".join(text), flush=True)
    print(f"mean {mean(everything):.2f}, worst {max(everything):.2f}")


if __name__ == "__main__":
    main()
