"""The recommended sampler: its row by calls and kind, its sigmas, and what it runs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dpm_solver_nodes.samplers import (
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    sample_multistep,
)
from dpm_solver_nodes.samplers.plan import Grid
from dpm_solver_nodes.samplers.sample import sample_recommended
from dpm_solver_nodes.samplers.solvers.multistep import Multistep
from dpm_solver_nodes.samplers.solvers.recommended import (
    SOLVERS,
    TABLE,
    Recommended,
    recommended,
    recommended_sigmas,
)
from dpm_solver_nodes.tests.support.mixture import Mixture, difference, start

VE, FLOW = VarianceExploding(), RectifiedFlow()
both_kinds = pytest.mark.parametrize("schedule", [VE, FLOW], ids=["diffusion", "flow"])
RANGES = {
    "SD": (VE, 14.6146, 0.0292),
    "EDM": (VE, 80.0, 0.002),
    "zsnr": (VE, 4518.0, 0.0292),
    "cascade": (VE, 500.0, 0.01),
    "flow 1": (FLOW, 1.0, 0.001),
    "flow 3": (FLOW, 1.0, 0.003),
    "flow 12": (FLOW, 1.0, 0.0119),
    "flow below 1": (FLOW, 0.999, 0.0005),
}


@both_kinds
def test_every_row_is_a_solver_that_there_is(schedule: NoiseSchedule) -> None:
    rows = TABLE["flow" if schedule == FLOW else "diffusion"]
    for calls, row in rows.items():
        assert recommended(schedule, calls) == row
        assert row.solver in SOLVERS and row.settings["lower_order_final"] == "off"
        assert all(map(math.isfinite, row.density)) and row.density.last >= 0.0


@both_kinds
def test_between_rows_the_nearest_by_ratio_is_taken(schedule: NoiseSchedule) -> None:
    rows = TABLE["flow" if schedule == FLOW else "diffusion"]
    for fewer, more in itertools.pairwise(sorted(rows)):
        for calls in range(fewer, more + 1):
            nearer = fewer if calls / fewer <= more / calls else more
            assert recommended(schedule, calls) == rows[nearer]
    assert recommended(schedule, 0) == recommended(schedule, 1) == rows[min(rows)]
    assert recommended(schedule, 10_000) == rows[max(rows)]


@pytest.mark.parametrize(("schedule", "first", "last"), RANGES.values(), ids=RANGES)
def test_sigmas_fall_from_the_first_to_zero(
    schedule: NoiseSchedule, first: float, last: float
) -> None:
    for calls in range(1, 61):
        sigmas = recommended_sigmas(schedule, first, last, calls)
        assert len(sigmas) == calls + 1
        assert sigmas[0] == first and sigmas[-1] == 0.0
        assert all(a > b for a, b in itertools.pairwise(sigmas))
        assert sigmas[-2] >= last * (1.0 - 1e-9)


@both_kinds
@pytest.mark.parametrize("calls", [1, 2, 5, 8, 12, 20, 40])
def test_it_is_multistep_with_the_rows_settings(schedule: NoiseSchedule, calls: int) -> None:
    sigmas = recommended_sigmas(
        schedule, *((14.6, 0.03) if schedule == VE else (1.0, 0.003)), calls
    )
    settings = recommended(schedule, calls).settings
    x = start() if schedule == VE else start() / 14.6
    seen: list[int] = []
    model = Mixture()
    given = torch.tensor(sigmas, dtype=torch.float64)
    ours = sample_recommended(
        model,
        x,
        given,
        callback=lambda report: seen.append(report["i"]),
        disable=True,
        schedule=schedule,
    )
    theirs = sample_multistep(Mixture(), x, given, disable=True, schedule=schedule, **settings)
    assert difference(ours, theirs) == 0.0
    assert model.sigmas == sigmas[:-1] and seen == list(range(calls))
    grid = Grid.of(given, schedule)
    assert Recommended().plan(grid) == Multistep(**settings).plan(grid)


def test_without_a_schedule_it_is_diffusion() -> None:
    sigmas = recommended_sigmas(VE, 14.6, 0.03, 8)
    results = [
        sample_recommended(Mixture(), start(), sigmas, disable=True, schedule=schedule)
        for schedule in (None, VE)
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize("sigmas", [[], [1.0, 2.0, 0.5], [1.0, -1.0]])
def test_lists_that_lead_nowhere_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="sigma"):
        sample_recommended(Mixture(), start(), sigmas, disable=True)


def test_one_sigma_gives_the_start_back() -> None:
    assert torch.equal(sample_recommended(Mixture(), start(), [14.6], disable=True), start())
