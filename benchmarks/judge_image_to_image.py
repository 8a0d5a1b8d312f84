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
DENOISE, LOWER = 0.5, 0.3
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


def own_sigmas(process: Process, calls: int, denoise: float = DENOISE) -> torch.Tensor:
    """The end of the recommended list that KSampler takes."""
    return sigmas_of(process, int(calls / denoise))[-(calls + 1) :]


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
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in options.processes}
    for name in options.processes:
        process = PROCESSES[name]
        for denoise in (LOWER, DENOISE):
            starts = [float(own_sigmas(process, n, denoise)[0]) for n in CALLS]
            print(f"{name} starts at denoise {denoise} at sigma", *(f"{s:.2f}" for s in starts))
        simple = float(references.host_sigmas(process, "euler", "simple", CALLS[-1], DENOISE)[0])
        print(f"{name} starts with simple at denoise {DENOISE} at sigma {simple:.2f}")
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
                sigmas = own_sigmas(process, n)
                value = distance(problem, process, sampler_of(problem, process), sigmas)
                usual: Any = found[" ".join(references.USUAL[process.flow])]
                ratios[name].append((value / found[top], value / usual))
                text.append(f"{value / found[top]:5.2f} ({top}; {value / usual:.2f})")
            print(f"{problem.name:58s} {name:9s}" + " ".join(text), flush=True)
    for name, pairs in ratios.items():
        best, usually = zip(*pairs, strict=True)
        print(
            f"{name}: over the best peer mean {mean(best):.2f}, worst {max(best):.2f}; over the usual "
            f"mean {mean(usually):.2f}, worst {max(usually):.2f}"
        )


if __name__ == "__main__":
    main()
