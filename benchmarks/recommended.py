"""How `samplers/recommended.py` was found, on the exact digits of `digits.py`.

    python -m dpm_solver_nodes.benchmarks.recommended

For each kind of model and number of calls it fits a density of sigmas (`spacing.dense`) to every
solver there, and prints those with the least error as rows of the table. The error is the geometric
mean over images of the distance to the converged solution, over scenarios with and without guidance;
its noises are not those of the quality benchmark. Takes about half an hour.
Needs scipy, which is one of the tests' requirements.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize

from ..samplers import NoiseSchedule, RectifiedFlow, VarianceExploding, sample_multistep
from ..samplers.recommended import SOLVERS, Recommendation
from ..samplers.spacing import Density, dense
from . import digits

IMAGES, SEED = 32, 1
CALLS = (4, 5, 6, 8, 10, 12, 15, 20, 25, 30)
EVALUATIONS = 90
SHOWN = 3
STARTS = (Density(0.0, 0.3, 0.3, 0.5), Density(-0.6, 0.7, 1.3, 0.3), Density(0.0, 0.0, -0.8, 1.2))
GUIDANCES = {"diffusion": (0.0, 7.5), "flow": (0.0, 4.0)}

Problem = tuple[digits.Denoiser, torch.Tensor, torch.Tensor]
"""A model, starts, and where they end by the converged solution."""


def ends(kind: str) -> tuple[NoiseSchedule, float, float]:
    """The schedule of a kind of model, and its largest and smallest sigma."""
    if kind == "flow":
        return RectifiedFlow(), 1.0, digits.flow_sigma(0.001)
    levels = digits.diffusion_sigmas()
    return VarianceExploding(), float(levels[-1]), float(levels[0])


def problems(kind: str) -> list[Problem]:
    schedule, sigma_max, sigma_min = ends(kind)
    start = digits.noise(IMAGES, SEED)
    if kind == "diffusion":
        start = start * math.sqrt(1.0 + sigma_max**2)
    fine = dense(Density(0.0, 0.0, 0.0, 0.0), sigma_max, sigma_min, 999)
    found = []
    for guidance in GUIDANCES[kind]:
        model = digits.denoiser(flow=kind == "flow", guidance=guidance)
        settings = {**SOLVERS["adams 3 unic"], "schedule": schedule, "disable": True}
        found.append((model, start, sample_multistep(model, start, [*fine, 0.0], **settings)))
    return found


def errors(kind: str, calls: int, choice: Recommendation, cases: list[Problem]) -> list[float]:
    """Of a solver and a density, on each of the cases."""
    schedule, sigma_max, sigma_min = ends(kind)
    sigmas = [*dense(choice.density, sigma_max, sigma_min, calls - 1), 0.0]
    settings = {**choice.settings, "schedule": schedule, "disable": True}
    return [
        digits.distance(sample_multistep(model, start, sigmas, **settings), end)
        for model, start, end in cases
    ]


def fitted(
    kind: str, calls: int, solver: str, start: Density, cases: list[Problem]
) -> tuple[float, Recommendation]:
    """The best density for a solver that is found from a start, and its error."""

    def error(numbers: np.ndarray) -> float:
        choice = Recommendation(solver, Density(*numbers))
        return float(np.log(errors(kind, calls, choice, cases)).mean())

    simplex = np.array(start) + np.eye(5, 4, -1)
    options = {"maxfev": EVALUATIONS, "initial_simplex": simplex}
    found = minimize(error, start, method="Nelder-Mead", options=options)
    return found.fun, Recommendation(solver, Density(*np.round(found.x, 2).tolist()))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=list(GUIDANCES), choices=list(GUIDANCES))
    parser.add_argument("--calls", nargs="+", type=int, default=list(CALLS))
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), choices=list(SOLVERS))
    options = parser.parse_args(arguments)
    for kind, calls in itertools.product(options.kinds, options.calls):
        cases = problems(kind)
        found = [
            fitted(kind, calls, solver, start, cases)
            for solver, start in itertools.product(options.solvers, STARTS)
        ]
        for _, choice in sorted(found)[:SHOWN]:
            numbers = " ".join(f"{error:.4f}" for error in errors(kind, calls, choice, cases))
            print(
                f"{kind} {calls}: {choice.solver}, {tuple(choice.density)}  # {numbers}", flush=True
            )


if __name__ == "__main__":
    main()
