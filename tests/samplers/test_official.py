"""Every run of the authors' own implementation, repeated in sigma space (float64)."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
import torch

from dpm_solver_nodes.samplers import sample_adaptive, sample_multistep, sample_singlestep
from dpm_solver_nodes.tests.support.mixture import (
    SIGMA_MIN,
    Mixture,
    cases,
    difference,
    start,
    tensors,
)

MORE = "official_more_public"
METHODS: dict[str, tuple[Any, dict[str, str]]] = {
    "multistep": (sample_multistep, {}),
    "singlestep": (sample_singlestep, {"grouping": "fast"}),
    "singlestep_fixed": (sample_singlestep, {"grouping": "fixed"}),
}
TOLERANCE = 1e-10  # the issue's


def kind_of(case: dict[str, Any]) -> tuple[Any, ...]:
    return case["algorithm"], case["method"], case["order"], case["solver_type"]


GROUPS = {kind: list(group) for kind, group in groupby(sorted(cases(), key=kind_of), key=kind_of)}


def more(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["id"]) for case in cases(MORE) if case["kind"] == kind]


def repeat(
    case: dict[str, Any], lower_order_final: str, x: torch.Tensor, **settings: Any
) -> tuple[torch.Tensor, list[float]]:
    """The result of a case in our sampler, and the sigma of each model call."""
    sampler, method = METHODS[case["method"]]
    settings |= method | {name: case[name] for name in ("algorithm", "order")}
    if case["method"] == "multistep":
        settings["lower_order_final"] = lower_order_final
    if "solver_type" in case:
        settings["solver_type"] = case["solver_type"]
    model = Mixture()
    sigmas = torch.tensor(case["sigmas"], dtype=torch.float64)
    return sampler(model, x, sigmas, disable=True, **settings), model.sigmas


def test_all_660_cases_are_there() -> None:
    assert sum(map(len, GROUPS.values())) == 660


@pytest.mark.parametrize("kind", GROUPS, ids=lambda kind: "-".join(map(str, kind)))
def test_results_and_calls_are_the_authors(kind: tuple[Any, ...]) -> None:
    for case in GROUPS[kind]:
        lowering = "auto" if case["lower_order_final"] else "off"
        result, calls = repeat(case, lowering, start())
        error = difference(result, tensors()[case["id"]])
        assert error <= TOLERANCE, f"{case['id']}: off by {error:.1e} in {case}"
        assert len(calls) == case["nfe"], f"{case['id']}: {len(calls)} calls"
        assert calls == case["sigmas"][:-1], f"{case['id']}: called at {calls}"


@pytest.mark.parametrize("case", more("inversion"))
def test_inversions_are_the_authors(case: dict[str, Any]) -> None:
    result, calls = repeat(case, "off", tensors(MORE)["inversion_start"])
    assert difference(result, tensors(MORE)[case["id"]]) <= TOLERANCE
    assert calls == case["sigmas"][:-1]


@pytest.mark.parametrize("case", more("dynamic_thresholding"))
def test_thresholding_is_the_authors(case: dict[str, Any]) -> None:
    thresholding = (case["ratio"], case["max_val"])
    result, calls = repeat(case, "off", start(), thresholding=thresholding)
    assert difference(result, tensors(MORE)[case["id"]]) <= TOLERANCE
    assert calls == case["sigmas"][:-1]


def adaptive(case: dict[str, Any], *more_sigmas: float) -> tuple[torch.Tensor, list[float]]:
    model = Mixture()
    sigmas = torch.tensor([case["sigma_max"], case["sigma_min"], *more_sigmas], dtype=torch.float64)
    settings = {name: case[name] for name in ("algorithm", "order", "rtol", "atol")}
    result = sample_adaptive(model, start(), sigmas, disable=True, **settings)
    assert isinstance(result, torch.Tensor)
    return result, model.sigmas


@pytest.mark.parametrize("case", more("adaptive"))
def test_adaptive_runs_are_the_authors_call_for_call(case: dict[str, Any]) -> None:
    result, calls = adaptive(case)
    assert len(calls) == case["nfe"]
    assert calls == pytest.approx(case["sigma_calls"], rel=1e-6)
    assert difference(result, tensors(MORE)[case["id"]]) <= 1e-7
    error = (result - tensors(MORE)["ode_solution_sigma_min"]).square().mean().sqrt().item()
    assert error <= 1.5 * case["error_to_ode_solution"]


@pytest.mark.parametrize("case", more("adaptive"))
def test_adaptive_run_to_zero_denoises_once_more(case: dict[str, Any]) -> None:
    above_zero, calls = adaptive(case)
    result, calls_to_zero = adaptive(case, 0.0)
    assert calls_to_zero == [*calls, SIGMA_MIN]
    assert torch.equal(result, Mixture()(above_zero, above_zero.new_full((3,), SIGMA_MIN)))
