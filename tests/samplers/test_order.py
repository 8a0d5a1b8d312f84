"""Order of convergence, fitted in float64 on the exact mixture with lowering off."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dpm_solver_nodes.samplers import (
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    sample_multistep,
    sample_singlestep,
)
from dpm_solver_nodes.samplers.catalog import CATALOG
from dpm_solver_nodes.samplers.sample import sample
from dpm_solver_nodes.samplers.schedules.sigma_lists import log_snr
from dpm_solver_nodes.samplers.solvers.multistep import Multistep
from dpm_solver_nodes.tests.support.mixture import (
    SIGMA_MAX,
    SIGMA_MIN,
    Mixture,
    Sampler,
    start,
    tensors,
)

STEPS = (480, 960, 1920)  # the issue's
FLOW_STEPS = (240, 480, 960)
WITHIN = 0.2  # the issue's
ALGORITHMS = ("dpmsolver++", "dpmsolver")
multistep: Sampler = partial(sample_multistep, lower_order_final="off")
fixed: Sampler = partial(sample_singlestep, grouping="fixed")
# sampler, solver type, order asked for -> order of convergence claimed
CLAIMS = {
    (multistep, "dpmsolver", 1): 1,
    (multistep, "dpmsolver", 2): 2,
    (multistep, "dpmsolver", 3): 2,  # its D2 is half the second derivative
    (multistep, "taylor", 2): 2,
    (multistep, "taylor", 3): 2,
    (multistep, "exact", 1): 1,
    (multistep, "exact", 2): 2,
    (multistep, "exact", 3): 3,
    (fixed, "dpmsolver", 1): 1,
    (fixed, "dpmsolver", 2): 2,
    (fixed, "dpmsolver", 3): 3,
    (fixed, "taylor", 2): 2,
    (fixed, "taylor", 3): 3,
}
# The same with the corrector: algorithm, solver type, order asked for -> order claimed.
CORRECTED = {
    ("dpmsolver++", "dpmsolver", 1): 2,
    ("dpmsolver++", "dpmsolver", 2): 3,
    ("dpmsolver++", "dpmsolver", 3): 3,
    ("dpmsolver++", "exact", 2): 3,
    ("dpmsolver++", "exact", 3): 4,
    ("dpmsolver", "exact", 1): 2,
    ("dpmsolver", "exact", 2): 3,
    ("dpmsolver", "exact", 3): 4,
    ("adams", "exact", 1): 2,
    ("adams", "exact", 2): 3,
}
claims = pytest.mark.parametrize(
    ("sampler", "solver_type", "order", "claim"),
    [(*key, claim) for key, claim in CLAIMS.items()],
    ids=["-".join(("multistep" if s is multistep else "fixed", t, str(o))) for s, t, o in CLAIMS],
)

FLOW = RectifiedFlow()
FLOW_START, FLOW_END, FLOW_SHAPE = 0.99, 0.02, (2, 3)


@cache
def flow_start() -> torch.Tensor:
    return torch.randn(
        1, *FLOW_SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


@cache
def flow_solution() -> torch.Tensor:
    """dx / dsigma = (x - x0) / sigma from FLOW_START to FLOW_END."""
    model = Mixture(FLOW, FLOW_SHAPE)

    def velocity(sigma: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat).reshape(1, *FLOW_SHAPE)
        return ((x - model(x, x.new_full((1,), sigma))) / sigma).flatten().numpy()

    y0 = flow_start().flatten().numpy()
    solution = solve_ivp(velocity, (FLOW_START, FLOW_END), y0, "DOP853", rtol=1e-12, atol=1e-12)
    return torch.from_numpy(solution.y[:, -1]).reshape(1, *FLOW_SHAPE)


def fitted_order(
    sampler: Sampler,
    x: torch.Tensor,
    schedule: NoiseSchedule,
    ends: tuple[float, float],
    solution: torch.Tensor,
    steps: tuple[int, ...] = STEPS,
    **settings: Any,
) -> float:
    errors = []
    for n in steps:
        sigmas = log_snr(schedule, *ends, n)
        model = Mixture(schedule, tuple(x.shape[1:]))
        result = sampler(model, x, sigmas, disable=True, schedule=schedule, **settings)
        errors.append((result - solution).square().mean().sqrt().item())
    slope, _ = np.polyfit(np.log(steps), np.log(errors), 1)
    return -slope


def on_the_data(sampler: Sampler, **settings: Any) -> float:
    solution = tensors("official_more_public")["ode_solution_sigma_min"]
    ends = (SIGMA_MAX, SIGMA_MIN)
    return fitted_order(sampler, start(), VarianceExploding(), ends, solution, **settings)


@claims
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_order_of_convergence_is_the_claimed_one(
    algorithm: str, sampler: Sampler, solver_type: str, order: int, claim: int
) -> None:
    settings: dict[str, Any] = {"algorithm": algorithm, "solver_type": solver_type, "order": order}
    assert on_the_data(sampler, **settings) == pytest.approx(claim, abs=WITHIN)


@claims
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_order_of_convergence_holds_on_flows(
    algorithm: str, sampler: Sampler, solver_type: str, order: int, claim: int
) -> None:
    settings: dict[str, Any] = {"algorithm": algorithm, "solver_type": solver_type, "order": order}
    ends = (FLOW_START, FLOW_END)
    fitted = fitted_order(
        sampler, flow_start(), FLOW, ends, flow_solution(), FLOW_STEPS, **settings
    )
    assert fitted == pytest.approx(claim, abs=WITHIN)


@pytest.mark.parametrize("flow", [False, True], ids=["ve", "flow"])
@pytest.mark.parametrize(("algorithm", "solver_type", "order"), CORRECTED)
def test_the_corrector_wins_an_order(
    algorithm: str, solver_type: str, order: int, flow: bool
) -> None:
    settings: dict[str, Any] = {"algorithm": algorithm, "solver_type": solver_type, "order": order}
    settings["corrector"] = "unic"
    if flow:
        ends = (FLOW_START, FLOW_END)
        fitted = fitted_order(
            multistep, flow_start(), FLOW, ends, flow_solution(), FLOW_STEPS, **settings
        )
    else:
        fitted = on_the_data(multistep, **settings)
    claim = CORRECTED[algorithm, solver_type, order]
    assert fitted == pytest.approx(claim, abs=WITHIN)


@pytest.mark.parametrize("power", [0.3, -0.4])
@pytest.mark.parametrize("corrector", [None, "unic"])
def test_adams_keeps_its_order_in_any_power_of_sigma(corrector: str | None, power: float) -> None:
    settings: dict[str, Any] = {"algorithm": "adams", "order": 2, "power": power}
    fitted = on_the_data(multistep, corrector=corrector, **settings)
    assert fitted == pytest.approx(3 if corrector else 2, abs=WITHIN)


ODE = [entry for entry in CATALOG if entry.order and not entry.stochastic]


@pytest.mark.parametrize("entry", ODE, ids=lambda entry: entry.id)
def test_catalogue_claims_the_fitted_order(entry: Any) -> None:
    options = entry.options
    if isinstance(options, Multistep):
        options = replace(options, lower_order_final="off")
    assert on_the_data(partial(sample, options)) == pytest.approx(entry.order, abs=WITHIN)


def test_fast_singlestep_of_order_3_ends_without_losing_an_order_where_its_last_group_has_2() -> (
    None
):
    # N % 3 = 2 has no short group that costs an order
    errors = {}
    for steps in (302, 602):
        sigmas = log_snr(VarianceExploding(), SIGMA_MAX, SIGMA_MIN, steps)
        result = sample_singlestep(Mixture(), start(), sigmas, disable=True, order=3)
        solution = tensors("official_more_public")["ode_solution_sigma_min"]
        errors[steps] = (result - solution).square().mean().sqrt().item()
    fitted = math.log(errors[302] / errors[602]) / math.log(602 / 302)
    assert fitted == pytest.approx(3.0, abs=WITHIN)
