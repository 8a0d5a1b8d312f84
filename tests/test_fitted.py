"""The recommended sampler's data, and the sigmas and plans that are made of it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from dpm_solver_nodes.benchmarks.fit_recommended import multistep_2m, run
from dpm_solver_nodes.benchmarks.problems import PROCESSES
from dpm_solver_nodes.benchmarks.problems.problems import digits, error, fields
from dpm_solver_nodes.samplers import RectifiedFlow, VarianceExploding
from dpm_solver_nodes.samplers.drive import Caller
from dpm_solver_nodes.samplers.drive import run as run_plan
from dpm_solver_nodes.samplers.fitted import (
    Row,
    fitted_sigmas,
    kind_of,
    plan_fitted,
    row_of,
    rows,
    stretched,
)
from dpm_solver_nodes.samplers.plan import Grid

KINDS = ("flow", "diffusion")
CALLS = (1, 2, 3, 4, 5, 7, 8, 11, 16, 30, 45, 60, 150)


def schedule_of(process):
    return RectifiedFlow() if process.flow else VarianceExploding()


def sampled(problem, process, calls):
    schedule = schedule_of(process)
    sigmas = fitted_sigmas(schedule, process.sigma_max, process.sigma_min, calls)
    plan = plan_fitted(
        Grid.of(sigmas, schedule), row_of(kind_of(schedule, process.sigma_max), calls)
    )
    start = process.start(problem.noise()) * process.alpha(process.sigma_max)

    def model(x, sigma, **_):
        alpha = process.alpha(float(sigma[0]))
        return problem.model(x / alpha, float(sigma[0]) / alpha)

    with Caller(model, calls, None, None, disable=True) as caller:
        return run_plan(plan, caller, start)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_solvers(kind):
    for calls, row in rows(kind).items():
        assert row.calls == len(row.slope) == len(row.curvature) == calls
        assert all(later < sooner for sooner, later in pairwise(row.s))
        assert all(map(math.isfinite, (*row.slope, *row.curvature)))
        assert row.slope[0] == 0.0 and row.curvature[:2] == (0.0, 0.0)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=list(PROCESSES))
@pytest.mark.parametrize("calls", CALLS)
def test_sigmas_fall_within_the_models_range(process, calls):
    sigmas = fitted_sigmas(schedule_of(process), process.sigma_max, process.sigma_min, calls)
    assert len(sigmas) == calls + 1
    assert sigmas[0] == process.sigma_max and sigmas[-1] == 0.0
    assert all(later < sooner for sooner, later in pairwise(sigmas))
    assert calls == 1 or sigmas[-2] >= process.sigma_min * (1.0 - 1e-9)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=list(PROCESSES))
@pytest.mark.parametrize("calls", CALLS)
def test_a_constant_image_is_reached_exactly(process, calls):
    schedule = schedule_of(process)
    sigmas = fitted_sigmas(schedule, process.sigma_max, process.sigma_min, calls)
    plan = plan_fitted(
        Grid.of(sigmas, schedule), row_of(kind_of(schedule, process.sigma_max), calls)
    )
    assert len(plan.steps) == calls
    for step in plan.steps:
        ends = schedule.alpha(step.sigma_next), schedule.alpha(step.sigma)
        assert ends[0] == pytest.approx(step.state * ends[1] + sum(step.outputs), abs=1e-12)
        assert step.state * step.sigma == pytest.approx(step.sigma_next, abs=1e-12)


def test_the_plan_is_the_solver_that_was_fitted():
    """The fit's own run and the plan's give the same image."""
    problem = fields((16, 16), 2.0, 3.0, 5)
    for kind, process in (("flow", PROCESSES["flow3"]), ("diffusion", PROCESSES["sd"])):
        solver = multistep_2m(process.flow, 8)
        solver.gains[2:, 1] = 0.4
        slope, curvature = solver.gains.T.tolist()
        row = Row(tuple(solver.levels.exp().tolist()), tuple(slope), tuple(curvature))
        schedule = schedule_of(process)
        sigmas = [*(s / (1.0 + s) if process.flow else s for s in row.s), 0.0]
        plan = plan_fitted(Grid.of(sigmas, schedule), row)
        z = process.start(problem.noise())

        def model(x, sigma, schedule=schedule, **_):
            alpha = schedule.alpha(float(sigma[0]))
            return problem.model(x / alpha, float(sigma[0]) / alpha)

        with Caller(model, 8, None, None, disable=True) as caller:
            planned = run_plan(plan, caller, z * schedule.alpha(sigmas[0]))
        assert torch.allclose(planned, run(problem.model, z, solver), rtol=1e-6, atol=1e-8), kind


@pytest.mark.parametrize("process", ["flow3", "sd", "edm", "zero-snr"])
@pytest.mark.parametrize(
    "make", [lambda: fields((24, 24), 2.3, 6.0, 3), lambda: digits(0.3, 5.0, 3)]
)
def test_more_calls_come_closer(process, make):
    """On models that are in no fit, at each number of calls up to 60."""
    problem, kind = make(), PROCESSES[process]
    solution = problem.solution(kind)
    errors = [float(error(sampled(problem, kind, n), solution).exp()) for n in range(3, 61, 3)]
    for sooner, later in pairwise(errors):
        assert later < 1.1 * sooner or later < 2e-3
    assert errors[-1] < 0.02 * errors[0]


def test_stretching_to_the_same_number_changes_nothing():
    for kind in KINDS:
        for calls, row in rows(kind).items():
            if calls > 3:
                again = stretched(row, calls)
                assert again.s == pytest.approx(row.s) and again.slope == pytest.approx(row.slope)
