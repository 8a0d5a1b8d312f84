"""The recommended sampler's weights for lists that are not its own."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from dpm_solver_nodes.samplers import NoiseSchedule, RectifiedFlow, VarianceExploding
from dpm_solver_nodes.samplers.grid import Grid
from dpm_solver_nodes.samplers.sample import sample_recommended
from dpm_solver_nodes.samplers.solvers.any_list import PURE_NOISE, place, plan_list
from dpm_solver_nodes.tests.support.mixture import Mixture, difference, start

VE, FLOW = VarianceExploding(), RectifiedFlow()
SIMPLE = [14.6, 9.0, 5.2, 2.9, 1.6, 0.8, 0.35, 0.03, 0.0]
SHIFTED = [1.0, 0.955, 0.9, 0.833, 0.75, 0.643, 0.5, 0.3, 0.0]


def mean_place(start: float, end: float) -> float:
    """The mean of `place` in which a step in z = x / alpha ends: even in 1 / s."""
    inverse = np.linspace(1.0 / start, 1.0 / end, 200_001)
    return float(place(2.0 / (inverse[1:] + inverse[:-1])).mean())


@pytest.mark.parametrize(
    ("schedule", "sigmas"), [(VE, SIMPLE), (FLOW, SHIFTED)], ids=["diffusion", "flow"]
)
def test_exact_for_images_that_change_evenly_in_place(
    schedule: NoiseSchedule, sigmas: list[float]
) -> None:
    grid = Grid.of(sigmas, schedule)
    levels = [level.sigma / level.alpha for level in grid.levels[1:-1]]
    outputs = place(np.array(levels)).tolist()
    steps = plan_list(grid).steps[1:-1]
    assert [len(step.outputs) for step in steps] == [2, *[3] * (len(steps) - 1)]
    for i, (step, (begin, end)) in enumerate(zip(steps[2:], pairwise(levels[2:]), strict=True), 2):
        drawn = sum(w * d for w, d in zip(step.outputs, outputs[i::-1], strict=False))
        if begin / end < 4.0:  # of a longer step the line is used for a part only
            assert drawn / sum(step.outputs) == pytest.approx(mean_place(begin, end), abs=1e-8)


def test_place_stops_at_both_ends() -> None:
    at = place(np.array([0.0, 0.01, 1.0, 3.0, PURE_NOISE, 1e3 * PURE_NOISE]))
    assert at[1] - at[0] < 1e-3 and at[5] - at[4] < 1e-3
    assert at[3] - at[2] == pytest.approx(math.log(3.0), abs=0.05)


@pytest.mark.parametrize(
    "sigmas", [[5e5, 3e4, 2e4, 14.0, 3.0, 0.5, 0.0], [0.02, 1e-5, 1e-6, 1e-7, 0.0]]
)
def test_levels_without_a_slope_make_no_large_weights(sigmas: list[float]) -> None:
    for step in plan_list(Grid.of(sigmas, VE)).steps:
        assert max(map(abs, step.outputs)) < 4.0 * max(step.sigma, 1.0)


def test_second_order() -> None:
    errors = []
    exact = sample_recommended(Mixture(), start(), even(2000), disable=True)
    for calls in (40, 80):
        errors.append(
            difference(sample_recommended(Mixture(), start(), even(calls), disable=True), exact)
        )
    assert errors[0] / errors[1] > 3.3


def even(calls: int) -> list[float]:
    return [14.6 * (0.1 / 14.6) ** (i / calls) for i in range(calls + 1)]


def test_a_repeated_sigma_is_one_more_call() -> None:
    repeated = [*SIMPLE[:3], SIMPLE[2], *SIMPLE[3:]]
    plan = plan_list(Grid.of(repeated, VE))
    assert len(plan.steps) == len(SIMPLE) and plan.steps[2].outputs == ()
