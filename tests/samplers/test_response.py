"""Gains for sigmas that are not quite a row's: the run keeps its response to Gaussian images."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dpm_solver_nodes.samplers import RectifiedFlow, VarianceExploding
from dpm_solver_nodes.samplers.sample import sample
from dpm_solver_nodes.samplers.solvers.later_rows import later_row
from dpm_solver_nodes.samplers.solvers.recommended import Recommended
from dpm_solver_nodes.samplers.solvers.recommended_lists import recommended_sigmas
from dpm_solver_nodes.samplers.solvers.response import VARIANCES, adapted
from dpm_solver_nodes.samplers.solvers.row_weights import weights
from dpm_solver_nodes.samplers.solvers.rows import Row, row_of

SD_LOW = math.log(0.0292)
FLOW = RectifiedFlow(0.003)


def response(row: Row) -> np.ndarray:
    """What a run multiplies a one by, in images of each variance."""
    outputs: list[np.ndarray] = []
    z = np.ones_like(VARIANCES)
    levels = [*map(math.log, row.s), -math.inf]
    for i, s in enumerate(row.s):
        outputs = [VARIANCES / (VARIANCES + s * s) * z, *outputs[:2]]
        c = weights(levels[max(i - 2, 0) : i + 2], row.slope[i], row.curvature[i])
        mixed = outputs[0] + sum(
            w * (outputs[0] - other) for w, other in zip(c, outputs[1:], strict=True)
        )
        left = row.s[i + 1] / s if i + 1 < row.calls else 0.0
        z = mixed + left * (z - mixed)
    return z


def exact(row: Row) -> np.ndarray:
    """The same of the converged run: the solution of dz / ds = (z - D) / s, and D at the low end."""
    low, start = VARIANCES + row.low**2, VARIANCES + row.s[0] ** 2
    return np.sqrt(low / start) * VARIANCES / low


def apart(row: Row, other: Row) -> float:
    """The root mean square of the relative difference of two rows' responses."""
    return float(np.sqrt(np.mean(((response(row) - response(other)) / exact(row)) ** 2)))


@pytest.mark.parametrize("calls", [5, 8, 12, 20])
def test_a_rows_own_levels_have_its_own_gains(calls: int) -> None:
    for row in (row_of("flow", calls), row_of("diffusion", calls)):
        assert adapted(row, tuple(map(math.log, row.s)), math.log(row.low)) is row


@pytest.mark.parametrize(
    ("calls", "at_most", "of_moved"),
    [(5, 7e-3, 0.6), (8, 2e-3, 0.3), (12, 1.5e-3, 0.3), (20, 7e-4, 0.3)],
)
def test_moved_levels_change_the_response_little(
    calls: int, at_most: float, of_moved: float
) -> None:
    """Relative to the exact response, and to what the same move does with the row's own gains."""
    row = row_of("diffusion", calls, 0.0)
    moves = [0.0, *(0.04 * (-1.0) ** i for i in range(calls - 1))]
    levels = tuple(math.log(s) + move for s, move in zip(row.s, moves, strict=True))
    moved = replace(row, s=tuple(map(math.exp, levels)))
    change = apart(row, adapted(row, levels, SD_LOW))
    assert change < at_most
    assert change < of_moved * apart(row, moved)


@pytest.mark.parametrize("calls", [5, 10, 20])
def test_the_sampler_runs_with_the_suited_gains(calls: int) -> None:
    row = later_row(calls, 1.0, math.log(1.61), SD_LOW)
    schedule = VarianceExploding(0.0292)
    variance = torch.tensor(VARIANCES)

    def model(x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        return variance / (variance + sigma[0] ** 2) * x

    x = torch.ones(1, len(VARIANCES), dtype=torch.float64)
    made = sample(Recommended(), model, x, [*row.s, 0.0], disable=True, schedule=schedule)
    suited = adapted(row, tuple(map(math.log, row.s)), SD_LOW)
    assert made[0].numpy() == pytest.approx(response(suited), rel=1e-6)


def test_a_mean_of_two_rows_has_the_mean_of_their_responses() -> None:
    """25 calls are fitted as little as 40; those of 20 and 30 are."""
    row = later_row(25, 0.0, math.log(1.61), SD_LOW)
    row = replace(row, low=0.0292)
    suited = replace(adapted(row, tuple(map(math.log, row.s)), SD_LOW), low=0.0292)
    off = [
        float(np.sqrt(np.mean((response(one) / exact(row) - 1.0) ** 2))) for one in (suited, row)
    ]
    assert off[0] < 0.6 * off[1]


def test_an_unknown_end_changes_nothing() -> None:
    sigmas = recommended_sigmas(FLOW, 1.0, 0.003, 10)
    model = torch.nn.Tanh()
    x = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).reshape(1, 8)
    runs = [
        sample(
            Recommended(),
            lambda x, sigma, **_: model(x),
            x,
            sigmas,
            disable=True,
            schedule=schedule,
        )
        for schedule in (FLOW, RectifiedFlow())
    ]
    assert torch.equal(*runs)
