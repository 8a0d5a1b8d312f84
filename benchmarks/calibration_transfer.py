"""How accurate a calibration is at other guidance, for other classes, and in image to image.

    python -m dpm_solver_nodes.benchmarks.calibration_transfer

Calibrates for 5, 8 and 10 calls on three classes and the guidance of each guided scenario of
`quality.py`, and measures, on 64 images of the other classes: the same guidance, 30 percent less and
more, and image to image from a start a third down the list, at one of the calibrated sigmas. Each
number is the geometric mean over images of the distance to the converged solution of the same ODE. The
recommended sampler and DPM++ 2M on Karras' sigmas are measured, too, at the same number of calls. It
takes about five minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ..lab.calibration.teacher import TEACHER, teacher_sigmas
from ..lab.metrics import distance
from ..samplers import sample_multistep
from ..samplers.sample import sample_recommended
from ..samplers.solvers.recommended_lists import recommended_sigmas
from . import digits, pack_samplers
from .scenarios import SCENARIOS, Counted, DemoDenoiser, GuidedDenoiser, Scenario

IMAGES, SEED = 64, 0
CALLS = (5, 8, 10)
FINE = 400
OTHER_CLASSES = tuple(k for k in range(10) if k not in pack_samplers.FIT_CLASSES)


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


def guided(scenario: Scenario, guidance: float) -> GuidedDenoiser:
    """The scenario's model at a guidance of its own, for the other classes."""
    if scenario.name.startswith("demo"):
        return DemoDenoiser(guidance, OTHER_CLASSES)
    return digits.ExactDenoiser(scenario.flow, guidance, OTHER_CLASSES)


def karras(scenario: Scenario, start: float, calls: int) -> list[float]:
    """Sigmas from start to sigma_min, evenly spaced in the seventh root of sigma, and 0."""
    ends = start ** (1.0 / 7.0), scenario.sigma_min ** (1.0 / 7.0)
    steps = [i / max(calls - 1, 1) for i in range(calls)]
    return [*((ends[0] + (ends[1] - ends[0]) * step) ** 7 for step in steps), 0.0]


def converged(scenario: Scenario, model: Counted, x: torch.Tensor, start: float) -> torch.Tensor:
    fine = teacher_sigmas(scenario.schedule, start, scenario.sigma_min, FINE)
    return TEACHER(model, x, [*fine, 0.0], schedule=scenario.schedule)


def results(scenario: Scenario, calls: int) -> Iterator[tuple[str, int, dict[str, float]]]:
    """For each case its name, the number of calls made, and each solver's error."""
    sampler, own = pack_samplers.calibrated(scenario, calls)
    schedule = scenario.schedule
    noise = scenario.noise(IMAGES, SEED)
    for case in CASES:
        model = Counted(guided(scenario, scenario.guidance * case.guidance))
        list_, x = list(own), scenario.start(noise)
        if case.late:
            list_ = list_[max(1, calls // 3) :]
            clean = converged(scenario, model, x, scenario.sigma_max)
            other = scenario.noise(IMAGES, SEED + 1)
            x = schedule.alpha(list_[0]) * clean + list_[0] * other
        left, start = len(list_) - 1, list_[0]
        solvers: dict[str, tuple[pack_samplers.Sampler, pack_samplers.Sigmas]] = {
            "calibrated": (sampler, list_),
            "recommended": (
                partial(sample_recommended, schedule=schedule),
                recommended_sigmas(schedule, start, scenario.sigma_min, left),
            ),
            "DPM++ 2M Karras": (
                partial(sample_multistep, schedule=schedule),
                karras(scenario, start, left),
            ),
        }
        solution = converged(scenario, model, x, start)
        yield (
            case.name,
            left,
            {
                name: distance(solver(model, x, sigmas, disable=True), solution)
                for name, (solver, sigmas) in solvers.items()
            },
        )


def main() -> None:
    for scenario in SCENARIOS.values():
        if not scenario.guidance:
            continue
        print(f"\n{scenario.title}\n{'':24s}{'calls':>6s}", end="")
        heads = ("calibrated", "recommended", "DPM++ 2M Karras")
        print("".join(f"{head:>17s}" for head in heads))
        for calls in CALLS:
            for name, left, errors in results(scenario, calls):
                row = "".join(f"{errors[head]:17.4f}" for head in heads)
                print(f"{name:24s}{left:6d}{row}", flush=True)


if __name__ == "__main__":
    main()
