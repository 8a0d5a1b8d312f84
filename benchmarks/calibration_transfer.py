"""How accurate a calibration is at other guidance, for other classes, and in image to image.

    python -m dpm_solver_nodes.benchmarks.calibration_transfer [--problems 3 7 11]

Calibrates for 5, 8 and 10 calls on four classes and the guidance of each problem, as DPM-Solver
Calibrate does, and measures on images of six other classes: the same guidance, 30 percent less and
more, and image to image from one of the calibrated sigmas, a third down the list. Each number is the
geometric mean over images of the distance to the converged images. The recommended sampler and DPM++
2M on Karras' sigmas are measured, too, at the same number of calls. The problems are numbers in
`problems.JUDGE`: a field, photographs, and digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..lab.calibration import calibrate
from ..lab.calibration.teacher import TEACHER, teacher_sigmas
from ..lab.metrics import distance
from ..samplers.sample import sample, sample_calibrated
from ..samplers.solvers.fitted import Calibration
from ..samplers.solvers.multistep import Multistep
from ..samplers.solvers.recommended import Recommended
from ..samplers.solvers.recommended_lists import later_sigmas, recommended_sigmas
from .problems import JUDGE, PROCESSES, Problem, Process
from .problems.images import model_of, shape_of

CALLS, PROBLEMS = (5, 8, 10), (3, 7, 11)
SEEDS, HELD_OUT, CLASSES, IMAGES = 20, 8, 4, 10
FINE = 400

Sampler = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """How a calibration is tested: guidance as a multiple of the fit's, and where the run starts."""

    name: str
    guidance: float = 1.0
    late: bool = False


CASES = (
    Case("as fitted"),
    Case("guidance - 30 %", guidance=0.7),
    Case("guidance + 30 %", guidance=1.3),
    Case("image to image", late=True),
)


def guided(problem: Problem, process: Process, guidance: float) -> Any:
    """The problem's model with a multiple of its guidance."""
    denoiser: Any = problem.make()
    denoiser.guidance *= guidance
    return model_of(problem, process, _shape(problem), denoiser)


def _shape(problem: Problem) -> tuple[int, ...]:
    shape = shape_of(problem)
    assert shape is not None, "a problem whose images are squares"
    return shape


def noises(problem: Problem, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *_shape(problem), generator=generator, dtype=torch.float64)


def calibrated(problem: Problem, process: Process, calls: Sequence[int]) -> list[Calibration]:
    """Calibrations for these numbers of calls. A batch has images of the first CLASSES classes."""
    schedule, ends = process.schedule, (process.sigma_max, process.sigma_min)
    starts = noises(problem, SEEDS + HELD_OUT, 1000) * process.sigma_max
    settings = calibrate.Settings(
        schedule,
        teacher_sigmas(schedule, *ends),
        calls,
        budget=12000 * len(calls),
        batch=CLASSES,
    )
    model = guided(problem, process, 1.0)
    results = calibrate.calibrate([model], starts[:SEEDS], starts[SEEDS:], lambda _: {}, settings)
    return [result.calibration for result in results]


def karras(process: Process, start: float, calls: int) -> list[float]:
    """Sigmas from start to sigma_min, evenly spaced in the seventh root of sigma, and 0."""
    ends = start ** (1.0 / 7.0), process.sigma_min ** (1.0 / 7.0)
    steps = [i / max(calls - 1, 1) for i in range(calls)]
    return [*((ends[0] + (ends[1] - ends[0]) * step) ** 7 for step in steps), 0.0]


def converged(process: Process, model: Any, x: torch.Tensor, start: float) -> torch.Tensor:
    fine = teacher_sigmas(process.schedule, start, process.sigma_min, FINE)
    return TEACHER(model, x, [*fine, 0.0], schedule=process.schedule)


def results(
    problem: Problem, process: Process, found: Calibration
) -> Iterator[tuple[str, int, dict[str, float]]]:
    """For each case its name, the number of calls made, and each solver's error."""
    schedule, low = process.schedule, process.sigma_min
    run: dict[str, Sampler] = {
        "calibrated": partial(sample_calibrated, calibration=found, schedule=schedule),
        "recommended": partial(sample, Recommended(positions=problem.positions), schedule=schedule),
        "DPM++ 2M Karras": partial(sample, Multistep(), schedule=schedule),
    }
    noise, other = (noises(problem, IMAGES, seed) for seed in (0, 1))
    for case in CASES:
        model = guided(problem, process, case.guidance)
        own = list(found.sigmas)
        x = noise * process.sigma_max
        if case.late:
            own = own[max(1, found.calls // 3) :]
            clean = converged(process, model, x, process.sigma_max)
            x = schedule.alpha(own[0]) * clean + own[0] * other
        start, left = own[0], len(own) - 1
        lists = {
            "calibrated": own,
            "recommended": later_sigmas(schedule, start, low, left, problem.positions)
            if case.late
            else recommended_sigmas(schedule, start, low, left, problem.positions),
            "DPM++ 2M Karras": karras(process, start, left),
        }
        solution = converged(process, model, x, start)[CLASSES:]
        errors = {
            name: distance(run[name](model, x, sigmas, disable=True)[CLASSES:], solution)
            for name, sigmas in lists.items()
        }
        yield case.name, left, errors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--problems", nargs="*", type=int, default=PROBLEMS)
    parser.add_argument("--processes", nargs="*", default=["sd", "flow3"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for problem in (JUDGE[k] for k in options.problems):
        for process in (PROCESSES[name] for name in options.processes):
            print(f"\n{problem.name}, {process.name}\n{'':24s}{'calls':>6s}", end="")
            print(f"{'calibrated':>17s}{'recommended':>17s}{'DPM++ 2M Karras':>17s}")
            for found in calibrated(problem, process, CALLS):
                for name, left, errors in results(problem, process, found):
                    row = "".join(f"{value:17.4f}" for value in errors.values())
                    print(f"{name:24s}{left:6d}{row}", flush=True)


if __name__ == "__main__":
    main()
