"""How `samplers/solvers/recommended.py` was found, on the models of `scenarios.py`.

    python -m dpm_solver_nodes.benchmarks.recommended

For each kind of model and number of calls it fits a density of sigmas (`spacing.dense`), and to Adams'
solvers their power of sigma, to every solver there, and prints those with the least loss as rows of
the table, after them their errors over those of the best of YARDSTICKS in the same run, scenario by
scenario. What is minimised is close to the worst of these ratios (their mean in the power POWER), each
over what is aimed at (AIM), so that a row is the best compromise of an exact denoiser and a trained
network, with and without guidance. The noises are not those of the quality benchmark. Each number of
calls takes some minutes per solver; --calls, --kinds and --solvers choose.
Needs scipy, which is one of the tests' requirements.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from scipy.optimize import minimize

from ..lab.metrics import distance
from ..samplers import sample_multistep
from ..samplers.schedules.sigma_lists import Density, dense
from ..samplers.solvers.multistep import POWERS
from ..samplers.solvers.recommended import SOLVERS, Recommendation
from . import digits
from .measure import best, measure
from .peers import COMFY, comfy_candidates
from .scenarios import SCENARIOS, Counted, GuidedDenoiser, Scenario, converged

IMAGES, SEED = 12, 1
CALLS = (5, 6, 8, 10, 12, 15, 20, 25, 30)
EVALUATIONS = 110
SHOWN = 3
POWER = 6.0
MANY, AIM = 15, 0.4
"""From so many calls on, errors on exact denoisers are to be AIM of the yardstick's."""

STARTS = ((0.2, Density(1.0, 0.4, -0.1, 0.1)), (1.1, Density(-0.5, 0.6, 1.2, 0.2)))
"""Powers and densities that the search starts from."""

YARDSTICKS = {
    (sampler, scheduler)
    for sampler in ("ipndm_v", "ipndm", "deis", "uni_pc", "dpmpp_2m", "gradient_estimation")
    for scheduler in ("karras", "beta", "simple")
}
"""Of ComfyUI's samplers and schedulers, those that are among the best on all of these models."""

FREE_FLOW = replace(
    SCENARIOS["digits-flow"],
    name="digits-flow-free",
    title="exact digits, flow of shift 3, unconditional",
    guidance=0.0,
    make=partial(digits.ExactDenoiser, True),
)
ON: Mapping[str, tuple[Scenario, ...]] = {
    "diffusion": tuple(scenario for scenario in SCENARIOS.values() if not scenario.flow),
    "flow": (SCENARIOS["digits-flow"], FREE_FLOW),
}


@dataclass(frozen=True)
class Problem:
    """A model, starts, and where they end by the converged solution."""

    scenario: Scenario
    model: GuidedDenoiser
    noise: torch.Tensor
    end: torch.Tensor

    def error(self, choice: Recommendation, calls: int) -> float:
        ends = self.scenario.sigma_max, self.scenario.sigma_min
        made = sample_multistep(
            Counted(self.model),
            self.scenario.start(self.noise),
            [*dense(choice.density, *ends, calls - 1), 0.0],
            schedule=self.scenario.schedule,
            disable=True,
            **choice.settings,
        )
        return distance(made, self.end)

    def yardstick(self, calls: int) -> float:
        """The error of the best of YARDSTICKS."""
        cells = (
            cell
            for candidate in comfy_candidates(self.scenario)[0]
            if (candidate.sampler, candidate.scheduler) in YARDSTICKS
            for cell in measure(
                self.scenario, candidate, (calls,), self.model, self.noise, self.end
            )
        )
        least = best(cells)
        if least is None or least.mean is None:
            raise RuntimeError(f"{COMFY} has no result for {self.scenario.name} at {calls} calls")
        return least.mean


@cache
def problems(kind: str) -> tuple[Problem, ...]:
    torch.set_num_threads(1)
    found = []
    for scenario in ON[kind]:
        noise = scenario.noise(IMAGES, SEED)
        end = converged(scenario, noise, scenario.fine // 2)
        found.append(Problem(scenario, scenario.make(), noise, end))
    return tuple(found)


def fitted(
    kind: str, calls: int, solver: str, start: tuple[float, Density], yardsticks: Sequence[float]
) -> tuple[float, Recommendation, list[float]]:
    """The best choice of a solver that is found from a start: its loss, itself, its ratios."""
    exact = [problem.scenario.name.startswith("digits") for problem in problems(kind)]
    aims = np.array([AIM if calls >= MANY and digits else 1.0 for digits in exact])

    def choice_of(numbers: np.ndarray) -> Recommendation:
        power, *density = np.round(numbers, 2).tolist()
        power = min(max(power, POWERS[0]), POWERS[1])
        return Recommendation(solver, Density(*density), power if "adams" in solver else None)

    def ratios(choice: Recommendation) -> list[float]:
        pairs = zip(problems(kind), yardsticks, strict=True)
        return [problem.error(choice, calls) / yardstick for problem, yardstick in pairs]

    def loss(numbers: np.ndarray) -> float:
        found = np.array(ratios(choice_of(numbers))) / aims
        return float(np.log((found**POWER).mean()) / POWER)

    with torch.inference_mode():
        first = np.array([start[0], *start[1]])
        simplex = first + np.vstack([np.zeros(5), np.diag([0.3, 0.5, 0.5, 0.5, 0.4])])
        options = {"maxfev": EVALUATIONS, "initial_simplex": simplex}
        found = minimize(loss, first, method="Nelder-Mead", options=options)
        choice = choice_of(found.x)
        return found.fun, choice, ratios(choice)


def rows(pool: ProcessPoolExecutor, kind: str, calls: int, solvers: Sequence[str]) -> Iterator[str]:
    """The best choices for a kind of model and a number of calls, each with its ratios."""
    with torch.inference_mode():
        yardsticks = [problem.yardstick(calls) for problem in problems(kind)]
    tasks = [
        pool.submit(fitted, kind, calls, solver, start, yardsticks)
        for solver, start in itertools.product(solvers, STARTS)
    ]
    found = sorted((task.result() for task in tasks), key=lambda result: result[0])
    for _, choice, ratios in found[:SHOWN]:
        numbers = " ".join(f"{ratio:.2f}" for ratio in ratios)
        yield (
            f"{kind} {calls}: {choice.solver}, {tuple(choice.density)}, {choice.power}  # {numbers}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=list(ON), choices=list(ON))
    parser.add_argument("--calls", nargs="+", type=int, default=list(CALLS))
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), choices=list(SOLVERS))
    parser.add_argument("--jobs", type=int, default=2, help="processes (%(default)s)")
    options = parser.parse_args(arguments)
    with ProcessPoolExecutor(options.jobs) as pool:
        for kind, calls in itertools.product(options.kinds, options.calls):
            print(*rows(pool, kind, calls, options.solvers), sep="\n", flush=True)


if __name__ == "__main__":
    main()
