"""Judges the recommended sampler from a later start: ComfyUI's KSampler with denoise .5.

    python -m dpm_solver_nodes.benchmarks.judge_image_to_image [--processes sd flow3 ...]

The image is a converged one of the problem, the noise another. A scheduler decides how much noise is
added, so each run is measured against the converged images from its own start. The less noise, the
less is left to do, so the best peer is one that starts at about as much noise.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch

from ..lab.metrics import distance, geometric_mean
from ..samplers.sample import sample
from ..samplers.solvers.recommended import Recommended
from . import references
from .judge_recommended import sigmas_of
from .problems import JUDGE, PROCESSES, TUNE, Problem, Process

SAMPLERS = ("euler", "dpmpp_2m", "uni_pc", "res_multistep", "ipndm")
SCHEDULERS = ("simple", "normal", "karras", "beta", "sgm_uniform")
CALLS = (5, 10, 20)
DENOISE = 0.5
FINE = 300
ALIKE = 1.5
"""By how much the noise may differ at which a peer starts, in s = sigma / alpha."""

RECOMMENDED = "recommended"


class Peer(NamedTuple):
    error: float
    start: float


@cache
def converged(problem: Problem, process: Process, start: float) -> torch.Tensor:
    s = process.s(start)
    return problem.solve(
        image(problem, process) + s * problem.other_noise(), s, process.s_min, FINE
    )


def image(problem: Problem, process: Process) -> torch.Tensor:
    return problem.solution(process)


def off(
    problem: Problem,
    process: Process,
    sampler: Callable[..., torch.Tensor] | str,
    sigmas: torch.Tensor,
) -> float:
    images, _ = references.result(
        problem, process, sampler, sigmas, problem.other_noise(), image(problem, process)
    )
    return distance(images, converged(problem, process, float(sigmas[0])))


def own(problem: Problem, process: Process, calls: int) -> tuple[Recommended, torch.Tensor]:
    """The recommended sampler and sigmas that a KSampler runs, for an image of this size."""
    sampling = references.model_sampling(process)
    from ..hosts.comfyui.model import ComfyModel  # needs ComfyUI, which is imported by then

    model = ComfyModel(sampling)
    sigmas = torch.tensor(model.sigmas(RECOMMENDED, calls, DENOISE), dtype=torch.float64)
    options, sigmas = model.sized(Recommended(), torch.empty(1, 1, problem.positions), sigmas)
    assert isinstance(options, Recommended)
    return options, sigmas


def starts(process: Process, calls: int) -> dict[str, float]:
    """Where lists for so many calls start."""
    found = {
        "ours": float(own(JUDGE[0], process, calls)[1][0]),
        "the end of ours for a whole run": float(sigmas_of(process, int(calls / DENOISE))[calls]),
    }
    for scheduler in SCHEDULERS:
        sigmas = references.host_sigmas(process, "euler", scheduler, calls, DENOISE)
        found[scheduler] = float(sigmas[0])
    return found


def peers(problem: Problem, process: Process, calls: int) -> dict[str, Peer]:
    found = {}
    for scheduler in SCHEDULERS:
        for sampler in SAMPLERS:
            sigmas = references.host_sigmas(process, sampler, scheduler, calls, DENOISE)
            value = off(problem, process, sampler, sigmas)
            if math.isfinite(value):
                found[f"{sampler} {scheduler}"] = Peer(value, process.s(float(sigmas[0])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", nargs="*", default=["sd", "flow3"])
    parser.add_argument("--tune", action="store_true", help="on the problems of the fit instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ratios: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name in arguments.processes:
        for at, start in starts(PROCESSES[name], CALLS[-1]).items():
            print(f"{name}: {at} starts at sigma {start:.2f}")
    print(f"error / best peer's that starts alike, / usual's at {', '.join(map(str, CALLS))} calls")
    for problem in TUNE if arguments.tune else JUDGE:
        for name in arguments.processes:
            if name not in problem.processes or problem.values > 10000:
                continue
            process = PROCESSES[name]
            text = []
            for n in CALLS:
                found = peers(problem, process, n)
                options, sigmas = own(problem, process, n)
                sampler = partial(sample, options, schedule=process.schedule)
                value = off(problem, process, sampler, sigmas)
                start = process.s(float(sigmas[0]))
                alike = {
                    name: peer.error
                    for name, peer in found.items()
                    if abs(math.log(peer.start / start)) < math.log(ALIKE)
                }
                top = min(alike, key=alike.__getitem__)
                best = min(peer.error for peer in found.values())
                usual = found[" ".join(references.USUAL[process.flow])].error
                ratios[name].append((value / alike[top], value / best, value / usual))
                text.append(f"{value / alike[top]:5.2f} ({top}), {value / usual:.2f}")
            print(f"{problem.name:58s} {name:9s}" + "; ".join(text), flush=True)
    for name, found_ratios in ratios.items():
        columns = zip(*found_ratios, strict=True)
        said = [
            f"{over} mean {geometric_mean(column):.2f}, worst {max(column):.2f}"
            for over, column in zip(("alike", "any", "the usual"), columns, strict=True)
        ]
        print(f"{name}: over the best peer that starts {said[0]}; over {said[1]}; over {said[2]}")


if __name__ == "__main__":
    main()
