"""What calibrated sigmas bring to samplers that have their own weights.

    python -m dpm_solver_nodes.benchmarks.calibrated_sigmas [--calls 8 12] [--processes sd flow3]

For exact models that the recommended sampler is judged on, and for each of SAMPLERS: its error on the
sigmas that DPM-Solver Calibrate finds for it, beside its error on the best of ComfyUI's schedulers and
on the one that people use, on noises that none was fitted on. Errors are geometric means over 12
images of the root mean square distance to the converged image.
"""

from __future__ import annotations

import argparse
import math
from types import SimpleNamespace
from typing import Any

import torch

from ..lab.calibration import calibrate
from ..lab.calibration.sampler import Sampler
from ..lab.calibration.teacher import TEACHER, teacher_sigmas
from ..lab.metrics import distance, geometric_mean
from ..samplers.solvers.fitted import Fitted
from . import references
from .comfyui_import import host
from .problems import JUDGE, PROCESSES, Problem, Process
from .problems.images import model_of, shape_of

SAMPLERS = ("euler", "dpmpp_2m", "res_multistep", "uni_pc")
SEEDS, HELD_OUT, JUDGED, FINE = 20, 8, 12, 400


def sampler_of(name: str, process: Process) -> Sampler:
    """A sampler of ComfyUI's."""
    function = host().samplers.sampler_object(name).sampler_function
    sampling = references.model_sampling(process)
    inner = SimpleNamespace(model_sampling=sampling)
    inner.inner_model = SimpleNamespace(model_sampling=sampling)
    inner.model_patcher = SimpleNamespace(get_model_object=lambda _: sampling)

    class Seen:
        """A model with the attributes that samplers read from a guider."""

        inner_model = inner

        def __init__(self, model: Any) -> None:
            self.model = model

        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> Any:
            return self.model(x, sigma)

    return lambda model, x, sigmas: function(Seen(model), x, sigmas.clone(), {}, None, True)


def lists_of(process: Process, name: str, calls: int) -> dict[str, torch.Tensor]:
    """Scheduler -> its list, if it has so many sigmas."""
    made = {
        scheduler: references.host_sigmas(process, name, scheduler, calls).float()
        for scheduler in host().samplers.SCHEDULER_NAMES
    }
    return {scheduler: sigmas for scheduler, sigmas in made.items() if len(sigmas) == calls + 1}


def measured(
    problem: Problem, process: Process, calls: tuple[int, ...]
) -> dict[tuple[str, int], tuple[float, str, float, float]]:
    """(sampler, calls) -> its error on calibrated sigmas, the best scheduler, and the two others'."""
    shape = shape_of(problem)
    assert shape is not None
    model = model_of(problem, process, shape)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(SEEDS + HELD_OUT + JUDGED, *shape, generator=generator)
    start = noise if process.flow else noise * math.hypot(1.0, process.sigma_max)
    fit, held_out, judged = start.split([SEEDS, HELD_OUT, JUDGED])
    schedule, ends = process.schedule, (process.sigma_max, process.sigma_min)
    fine = [*teacher_sigmas(schedule, *ends, FINE), 0.0]
    solution = TEACHER(model, judged, fine, schedule=schedule)
    usual = references.USUAL[process.flow][1]
    found: dict[tuple[str, int], tuple[float, str, float, float]] = {}
    for name in SAMPLERS:
        sampler = sampler_of(name, process)
        lists = {n: lists_of(process, name, n) for n in calls}
        settings = calibrate.Settings(
            schedule,
            teacher_sigmas(schedule, *ends),
            calls,
            budget=12000 * len(calls),
            batch=4,  # as in the node
            sampler=sampler,
            fitted=Fitted(sampler=name),
            lists=lambda n, lists=lists: [each.tolist() for each in lists[n].values()],  # type: ignore[misc]
        )
        results = calibrate.calibrate([model], fit, held_out, lambda _: {}, settings)
        for n, result in zip(calls, results, strict=True):
            own = torch.tensor(result.calibration.sigmas)
            errors = {
                scheduler: distance(sampler(model, judged, sigmas), solution)
                for scheduler, sigmas in lists[n].items()
            }
            best = min(errors, key=errors.__getitem__)
            error = distance(sampler(model, judged, own), solution)
            found[name, n] = error, best, errors[best], errors[usual]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", nargs="*", type=int, default=[8, 12])
    parser.add_argument("--processes", nargs="*", default=["sd", "flow3"])
    parser.add_argument("--problems", nargs="*", type=int, help="numbers in the list to judge on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios: dict[str, list[tuple[float, float]]] = {}
    problems = [JUDGE[k] for k in options.problems] if options.problems else JUDGE
    for problem in problems:
        if shape_of(problem) is None:
            continue
        for process in (PROCESSES[name] for name in options.processes):
            if process.name not in problem.processes:
                continue
            for (name, n), (error, best, of_best, of_usual) in measured(
                problem, process, tuple(options.calls)
            ).items():
                ratios.setdefault(name, []).append((error / of_best, error / of_usual))
                print(
                    f"{problem.name:56s} {process.name:6s} {name:14s} {n:2d}: {error:.4f}, "
                    f"{error / of_best:.2f} of {best}, {error / of_usual:.2f} of the usual list",
                    flush=True,
                )
    for name, pairs in ratios.items():
        best_ones, usual_ones = ([pair[k] for pair in pairs] for k in (0, 1))
        print(
            f"{name}: {geometric_mean(best_ones):.2f} of its best scheduler's error in the mean, "
            f"{max(best_ones):.2f} at worst; {geometric_mean(usual_ones):.2f} of the usual list's"
        )


if __name__ == "__main__":
    main()
