"""Step-size controllers."""

from __future__ import annotations

import random

import k_diffusion.sampling
import pytest

from dpm_solver_nodes.samplers.solvers.step_size import AuthorsController, PIDController


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(
    ("error", "accept"), [(0.25, True), (1.0, True), (1.0001, False), (8.0, False)]
)
def test_authors_controller_accepts_up_to_one_and_scales_by_the_root_of_the_error(
    error: float, accept: bool, order: int
) -> None:
    # DPM-Solver, appendix C: h <- 0.9 h E^(-1 / order)
    expected = (accept, pytest.approx(0.9 * 0.3 * error ** (-1 / order)))
    assert AuthorsController().decide(error, 0.3, order) == expected


def test_authors_controller_takes_any_step_after_no_error() -> None:
    accept, h = AuthorsController().decide(0.0, 0.3, 2)
    assert accept
    assert h > 1e6


@pytest.mark.parametrize("controller", [AuthorsController, PIDController])
def test_first_step_is_the_papers(controller: type) -> None:
    assert controller().h_init == 0.05


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("coefficients", [(0.0, 1.0, 0.0), (0.4, 0.3, 0.0), (0.2, 0.6, 0.1)])
def test_pid_controller_is_k_diffusions(
    coefficients: tuple[float, float, float], order: int
) -> None:
    theirs = k_diffusion.sampling.PIDStepSizeController(0.05, *coefficients, order=order)
    ours, h = PIDController(0.05, *coefficients), 0.05
    rng = random.Random(0)
    decisions = set()
    for _ in range(200):
        error = 10.0 ** rng.uniform(-3.0, 2.0)
        accept, h = ours.decide(error, h, order)
        assert accept == theirs.propose_step(error)
        assert h == pytest.approx(theirs.h, rel=1e-12)
        decisions.add(accept)
    assert decisions == {True, False}
