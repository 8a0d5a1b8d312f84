"""How close every solver comes: ours, ComfyUI's and diffusers', each on the list that suits it best.

    python -m dpm_solver_nodes.benchmarks.judge_catalogue [--processes sd flow3] [--calls 8 15 25]

For each problem of `problems.JUDGE` and number of model calls the error of each solver on the best of
its lists, which no user can know beforehand, over that of the best sampler x scheduler of ComfyUI's.
A table shows the geometric means over the problems, closest first. Its rows for ComfyUI's nodes (Align
Your Steps, GITS, OptimalSteps) hold the best of ComfyUI's samplers on their list.

All run from the same noise, each through its own program's code. Left out are adaptive and CFG++
solvers, which solve no ODE in fixed steps, and stochastic ones that have no form without noise. A
calibration takes minutes for each problem: see `calibration_transfer.py`. RES4LYF's samplers take part
where a clone of it is given: see `res4lyf.py`.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ..lab.metrics import distance, geometric_mean
from ..samplers.catalog import CATALOG
from ..samplers.sample import sample
from ..samplers.schedules.sigma_lists import SPACINGS
from ..samplers.solvers.recommended import Recommended
from . import diffusers_peers, references, res4lyf
from .comfyui_import import comfyui_importable, host
from .judge_recommended import ours
from .problems import JUDGE, PROCESSES, Problem, Process

OURS = [entry for entry in CATALOG if not (entry.stochastic or entry.cfg_pp or entry.adaptive)]
WITHOUT_NOISE: dict[str, dict[str, Callable[[Any], Any]]] = {
    "sa_solver": {"tau_func": lambda _sigma: 0.0},
    "er_sde": {"noise_scaler": lambda s: s},
}
"""ComfyUI's stochastic samplers that have a form without noise, which solves the ODE."""

DIFFUSERS = ("sd", "flow1", "flow3", "flow6", "flow12")
"""Processes that diffusers' samplers run on."""


def lists(process: Process, calls: int) -> Iterator[torch.Tensor]:
    """Our spacings, and ComfyUI's schedulers that have a list of so many steps."""
    sampling = references.model_sampling(process)
    from ..hosts.comfyui.model import ComfyModel  # needs ComfyUI, which is imported by then

    model = ComfyModel(sampling)
    for spacing in SPACINGS:
        yield torch.tensor(model.sigmas(spacing, calls), dtype=torch.float64)
    for scheduler in host().samplers.SCHEDULER_NAMES:
        sigmas = references.host_sigmas(process, "euler", scheduler, calls)
        if len(sigmas) == calls + 1:
            yield sigmas


def node_lists(process: Process, calls: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The lists of ComfyUI's nodes for such models, which were found for real ones of theirs."""
    with comfyui_importable(["--cpu"]):
        from comfy_extras.nodes_align_your_steps import AlignYourStepsScheduler
        from comfy_extras.nodes_gits import GITSScheduler
        from comfy_extras.nodes_optimalsteps import OptimalStepsScheduler
    nodes = {
        "sd": (
            (AlignYourStepsScheduler, ("SD1", "SDXL")),
            (GITSScheduler, (1.2,)),
        ),
        "flow3": ((OptimalStepsScheduler, ("FLUX", "Wan", "Chroma")),),
    }
    for node, settings in nodes.get(process.name, ()):
        for setting in settings:
            (sigmas,) = node.execute(setting, calls, 1.0).args
            yield f"{node.__name__.removesuffix('Scheduler')} {setting}", sigmas.double()


def errors(problem: Problem, process: Process, calls: int) -> dict[str, float]:
    """Solver -> its error on the best of its lists."""
    found: dict[str, float] = defaultdict(lambda: math.inf)

    def keep(name: str, images: torch.Tensor, made: int) -> None:
        value = distance(images, problem.solution(process))
        if made <= calls and math.isfinite(value):
            found[name] = min(found[name], value)

    for entry in OURS:
        if isinstance(entry.options, Recommended):
            found[f"ours {entry.label}"] = ours(problem, process, calls)
            continue
        options = entry.options.on(process.schedule)
        run = partial(sample, options, schedule=process.schedule)
        for sigmas in lists(process, calls):
            keep(
                f"ours {entry.label}",
                *references.result(problem, process, run, sigmas, problem.noise()),
            )
    for cell, value in references.errors(problem, process, [calls])[str(calls)].items():
        name = f"ComfyUI {cell.split()[0]}"
        found[name] = min(found[name], value)
    for name, noiseless in WITHOUT_NOISE.items():
        run = partial(getattr(host().samplers.k_diffusion_sampling, f"sample_{name}"), **noiseless)
        for scheduler in host().samplers.SCHEDULER_NAMES:
            sigmas = references.host_sigmas(process, name, scheduler, calls)
            made = references.result(problem, process, run, sigmas, problem.noise())
            keep(f"ComfyUI {name} without noise", *made)
    for name, sigmas in node_lists(process, calls):
        for sampler in references.SAMPLERS:
            made = references.result(problem, process, sampler, sigmas, problem.noise())
            keep(f"ComfyUI, the best on {name}", *made)
    for name, images, calls_made in res4lyf.results(problem, process, calls):
        keep(name, images, calls_made)
    if process.name in DIFFUSERS:
        for name, _, kind, settings in diffusers_peers.candidates(process):
            keep(
                f"diffusers {name}",
                *diffusers_peers.result(problem, process, kind, settings, calls),
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", nargs="*", default=["sd", "flow3"])
    parser.add_argument("--calls", nargs="*", type=int, default=[8, 15, 25])
    parser.add_argument("--problems", nargs="*", type=int, help="numbers in the list to judge on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    problems = [JUDGE[k] for k in options.problems] if options.problems else JUDGE
    for process in (PROCESSES[name] for name in options.processes):
        ratios: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for problem in problems:
            if process.name not in problem.processes:
                continue
            for calls in options.calls:
                best = references.best(problem, process, calls)
                for name, value in errors(problem, process, calls).items():
                    ratios[name][calls].append(value / best)
            print(f"{process.name}: {problem.name} done", flush=True)
        means = {
            name: [geometric_mean(by_calls[n]) for n in options.calls]
            for name, by_calls in ratios.items()
        }
        print(
            f"\n{process.name}, over ComfyUI's best{'':20s}"
            + "".join(f"{n:>9d}" for n in options.calls)
        )
        for name in sorted(means, key=lambda name: geometric_mean(means[name])):
            print(f"{name:44s}" + "".join(f"{value:9.2f}" for value in means[name]))


if __name__ == "__main__":
    main()
