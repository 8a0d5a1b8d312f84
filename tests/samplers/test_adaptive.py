"""The adaptive solver: tolerances, the batch, the budget of calls, progress, failures."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from functools import cache, partial
from typing import Any

import pytest
import torch

from dpm_solver_nodes.samplers import (
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    sample_adaptive,
    sample_multistep,
)
from dpm_solver_nodes.samplers.schedules.sigma_lists import log_snr
from dpm_solver_nodes.samplers.solvers.adaptive import Adaptive
from dpm_solver_nodes.tests.support.mixture import (
    SIGMA_MAX,
    SIGMA_MIN,
    Mixture,
    Sampler,
    difference,
    start,
    tensors,
)

VE = VarianceExploding()
FLOW = RectifiedFlow()
FLOW_END = 0.05
PAIRS = list(itertools.product(("dpmsolver++", "dpmsolver"), (2, 3)))
pairs = pytest.mark.parametrize(("algorithm", "order"), PAIRS)
adaptive: Sampler = partial(sample_adaptive, disable=True)
WAYS: dict[str, tuple[NoiseSchedule, list[float]]] = {
    "ve": (VE, [SIGMA_MAX, SIGMA_MIN]),
    "ve to zero": (VE, [SIGMA_MAX, SIGMA_MIN, 0.0]),
    "flow": (FLOW, [0.95, FLOW_END]),
    "flow from 1": (FLOW, [1.0, FLOW_END]),
    "flow from 1 to zero": (FLOW, [1.0, FLOW_END, 0.0]),
}
ways = pytest.mark.parametrize("way", WAYS)


def state(schedule: NoiseSchedule) -> torch.Tensor:
    return start() if schedule is VE else start() / SIGMA_MAX


def solution() -> torch.Tensor:
    return tensors("official_more_public")["ode_solution_sigma_min"]


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


def run(way: str, **settings: Any) -> tuple[torch.Tensor, Any]:
    schedule, sigmas = WAYS[way]
    return adaptive(
        Mixture(schedule), state(schedule), sigmas, schedule=schedule, return_info=True, **settings
    )


@cache
def converged(way: str) -> torch.Tensor:
    return run(way, rtol=1e-5, atol=1e-5, max_calls=10_000)[0]


# tolerance


@pairs
def test_a_closer_tolerance_gives_a_closer_result_for_more_calls(
    algorithm: str, order: int
) -> None:
    errors, calls = [], []
    for tolerance in (1e-2, 1e-3, 1e-4):
        settings = {"rtol": tolerance, "atol": tolerance, "algorithm": algorithm, "order": order}
        result, info = run("ve", **settings)
        errors.append(rms(result, solution()))
        calls.append(info.nfe)
    assert sorted(errors, reverse=True) == errors
    assert sorted(calls) == calls
    # local errors of the tolerance, on states of about 1, add up over the steps at most
    assert all(error < 10 * tol for error, tol in zip(errors, (1e-2, 1e-3, 1e-4), strict=True))


@pytest.mark.parametrize("way", ["flow", "flow from 1"])
def test_flows_converge_to_the_solution_of_a_fine_grid(way: str) -> None:
    _, (first, last) = WAYS[way]
    grid = log_snr(FLOW, first, last, 2000, sigma_first=0.9999)
    settings: dict[str, Any] = {
        "order": 3,
        "solver_type": "exact",
        "lower_order_final": "off",
        "disable": True,
    }
    fine = sample_multistep(Mixture(FLOW), state(FLOW), grid, schedule=FLOW, **settings)
    assert rms(converged(way), fine) < 1e-4


@pytest.mark.parametrize(
    ("name", "value"),
    [("pcoeff", math.nan), ("icoeff", "a"), ("dcoeff", math.inf), ("accept_safety", 5.0)],
)
def test_settings_of_the_controller_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a number from "):
        Adaptive(**{name: value})


@pairs
@pytest.mark.parametrize(
    "pid", [{"pcoeff": 0.0}, {"pcoeff": 0.2, "icoeff": 0.6}, {"accept_safety": 0.9}]
)
def test_pid_control_takes_other_steps_and_converges_too(
    pid: dict[str, float], algorithm: str, order: int
) -> None:
    settings: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3, "algorithm": algorithm, "order": order}
    result, info = run("ve", **settings, **pid)
    assert info.sigmas != run("ve", **settings)[1].sigmas
    assert rms(result, solution()) < 1e-2


@pairs
def test_float32_ends_near_the_solution_too(algorithm: str, order: int) -> None:
    model, x = Mixture(dtype=torch.float32), start().float()
    settings: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3, "algorithm": algorithm, "order": order}
    result = adaptive(model, x, [SIGMA_MAX, SIGMA_MIN], **settings)
    assert result.dtype == torch.float32
    assert rms(result, solution()) < 1e-2


@pairs
def test_image_to_image_follows_the_same_solution_from_further_down(
    algorithm: str, order: int
) -> None:
    sigma = 2.0
    grid = log_snr(VE, SIGMA_MAX, sigma, 1000)
    x = sample_multistep(Mixture(), start(), grid, order=3, solver_type="exact", disable=True)
    settings: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3, "algorithm": algorithm, "order": order}
    result = adaptive(Mixture(), x, [sigma, 1.0, 0.3, SIGMA_MIN], **settings)
    assert rms(result, solution()) < 1e-2


# the batch


def unlike(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """For image 0 the linear problem that every solver gets exactly right, for others a hard one."""
    return torch.cat([torch.zeros_like(x[:1]), torch.tanh(3.0 * x[1:] / (1.0 + sigma[0]))])


@pairs
def test_the_worst_image_of_a_batch_decides(algorithm: str, order: int) -> None:
    settings: dict[str, Any] = {
        "algorithm": algorithm,
        "order": order,
        "return_info": True,
        "rtol": 1e-3,
    }
    x = start()[:1]

    def steps(model: Any, batch: int) -> list[float]:
        _, info = adaptive(model, x.repeat(batch, 1, 1, 1), [SIGMA_MAX, SIGMA_MIN], **settings)
        return info.sigmas

    hard = steps(lambda x, sigma: unlike(torch.cat([x, x]), sigma)[1:], 1)
    easy = steps(lambda x, sigma: unlike(x, sigma), 1)
    assert len(easy) < len(hard)
    for batch in (2, 8):

        def many_easy(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros_like(x[:-1]), unlike(x[-2:], sigma)[1:]])

        assert steps(many_easy, batch) == pytest.approx(hard, rel=1e-9)


# the budget


@pairs
@ways
def test_max_calls_is_never_exceeded_and_warned_of_once_where_it_is_short(
    way: str, algorithm: str, order: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"algorithm": algorithm, "order": order}
    unbound, free = run(way, **settings)
    _, sigmas = WAYS[way]
    for max_calls in range(1, 61):
        caplog.clear()
        result, info = run(way, **settings, max_calls=max_calls)
        caught = caplog.records
        said = f"max_calls = {max_calls}: {info.nfe} calls, {free.nfe} when free, {caught}"
        assert info.nfe <= max_calls, said
        assert torch.isfinite(result).all(), said
        assert [one.levelname for one in caught] in ([], ["WARNING"]), said
        if max_calls < free.nfe:
            assert len(caught) == 1, said
        if max_calls >= 2:
            assert info.sigmas[-1] == sigmas[-1], said
        if not caught:
            assert torch.equal(result, unbound), said


def test_every_run_that_is_cut_short_says_so_and_not_only_the_first() -> None:
    code = (
        "import torch\n"
        "from dpm_solver_nodes.samplers import sample_adaptive\n"
        "for _ in range(3):\n"
        "    x = torch.ones(1, 4)\n"
        "    sample_adaptive(lambda x, s: x / 2, x, [9.0, 0.1], max_calls=5, disable=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("max_calls = 5 ran short") == 3, done.stderr


@pairs
def test_a_flow_starts_from_1_at_any_tolerance(algorithm: str, order: int) -> None:
    settings: dict[str, Any] = {"algorithm": algorithm, "order": order, "schedule": FLOW}
    for tolerance in (1e-12, 1e-6, 1.0, 10.0):
        result, info = adaptive(
            Mixture(FLOW),
            state(FLOW),
            [1.0, FLOW_END],
            **settings,
            rtol=tolerance,
            atol=tolerance,
            max_calls=60,
            return_info=True,
        )
        assert torch.isfinite(result).all()
        assert info.sigmas[-1] == FLOW_END


@pairs
@ways
def test_no_warning_where_max_calls_is_exactly_enough(
    way: str, algorithm: str, order: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"algorithm": algorithm, "order": order}
    result, free = run(way, **settings)
    exactly, info = run(way, **settings, max_calls=free.nfe)
    assert not caplog.records
    assert info.nfe == free.nfe
    assert torch.equal(exactly, result)


@pytest.mark.parametrize(("sigmas", "calls"), [([1.0, 0.9995], 1), ([1.0, 0.0], 1)])
def test_no_warning_where_a_flows_euler_step_is_the_whole_way(
    sigmas: list[float], calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = Mixture(FLOW)
    adaptive(model, state(FLOW), sigmas, schedule=FLOW, max_calls=calls)
    assert not caplog.records
    assert len(model.sigmas) == calls


@pairs
@ways
def test_more_calls_are_never_worse_than_a_single_one(way: str, algorithm: str, order: int) -> None:
    errors = [
        rms(run(way, algorithm=algorithm, order=order, max_calls=calls)[0], converged(way))
        for calls in range(1, 41)
    ]
    worse = {calls: error for calls, error in enumerate(errors, 1) if error > errors[0]}
    assert worse == {}


# failures


@pairs
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@ways
def test_a_model_that_returns_no_number_ends_in_one_clear_error(
    way: str, value: float, algorithm: str, order: int
) -> None:
    schedule, sigmas = WAYS[way]
    settings: dict[str, Any] = {"algorithm": algorithm, "order": order}
    last = run(way, **settings)[1].nfe
    for broken in (1, 2, 3, 7, last - 1, last):
        model = Mixture(schedule)

        def breaks(
            x: torch.Tensor, sigma: torch.Tensor, model: Mixture = model, broken: int = broken
        ) -> torch.Tensor:
            denoised = model(x, sigma)
            if len(model.sigmas) >= broken:
                denoised[-1, 0, 0, 0] = value
            return denoised

        with pytest.raises(RuntimeError, match=r"^The model returned NaN or infinity [^\n]+\.$"):
            adaptive(breaks, state(schedule), sigmas, schedule=schedule, **settings)
        assert len(model.sigmas) <= broken + order, f"went on after call {broken}"


@pairs
@ways
@pytest.mark.parametrize("kind", ["noisy", "discontinuous"])
def test_a_model_no_step_is_small_enough_for_ends_within_max_calls(
    kind: str, way: str, algorithm: str, order: int
) -> None:
    schedule, sigmas = WAYS[way]
    generator = torch.Generator().manual_seed(0)

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if kind == "noisy":
            return torch.randn(x.shape, dtype=x.dtype, generator=generator)
        return torch.sign(x - x.mean())

    x, info = adaptive(
        model,
        state(schedule),
        sigmas,
        schedule=schedule,
        algorithm=algorithm,
        order=order,
        rtol=1e-3,
        atol=1e-3,
        max_calls=100,
        return_info=True,
    )
    assert info.nfe <= 100
    assert info.sigmas[-1] == sigmas[-1]
    assert torch.isfinite(x).all()


# progress


@pairs
@ways
def test_progress_never_runs_backwards_and_ends_at_the_last_step(
    way: str, algorithm: str, order: int
) -> None:
    schedule, (first, last, *zero) = WAYS[way]
    for total in (*range(1 + len(zero), 8), 13, 20, 30):
        sigmas = log_snr(schedule, first, last, total - len(zero), sigma_first=0.99) + zero
        seen: list[dict[str, Any]] = []
        model = Mixture(schedule)
        adaptive(
            model,
            state(schedule),
            sigmas,
            callback=seen.append,
            schedule=schedule,
            algorithm=algorithm,
            order=order,
        )
        indices = [report["i"] for report in seen]
        assert len(sigmas) == total + 1
        assert len(seen) == len(model.sigmas)
        assert indices == sorted(indices)
        assert indices[0] >= 0
        assert indices[-1] == total - 1


# the ends of the list


@pytest.mark.parametrize(
    ("sigma_min", "last"),
    [(None, 0.1), (0.03, 0.03), (0.5, 0.1)],
    ids=["unknown", "below", "above"],
)
@pytest.mark.parametrize("kind", [VarianceExploding, RectifiedFlow])
def test_denoises_at_the_smaller_of_sigma_min_and_the_last_sigma_above_zero(
    kind: Any, sigma_min: float | None, last: float
) -> None:
    schedule = kind(sigma_min)
    model = Mixture(schedule)
    sigmas = [0.9, 0.4, 0.1, 0.0]
    _, info = adaptive(model, state(FLOW), sigmas, schedule=schedule, return_info=True)
    assert model.sigmas[-1] == last
    assert info.sigmas[-2:] == [last, 0.0]


@pytest.mark.parametrize("sigma_min", [None, 0.03])
def test_a_list_that_ends_above_zero_ends_there_exactly(sigma_min: float | None) -> None:
    schedule = VarianceExploding(sigma_min)
    settings: dict[str, Any] = {"schedule": schedule, "return_info": True}
    _, info = adaptive(Mixture(), start(), [SIGMA_MAX, 1.0, 0.1], **settings)
    assert info.sigmas[-1] == 0.1


@pairs
def test_from_one_sigma_to_zero_is_one_denoising_unless_the_models_sigma_min_is_below(
    algorithm: str, order: int
) -> None:
    settings: dict[str, Any] = {"algorithm": algorithm, "order": order}
    model = Mixture()
    result = adaptive(model, start(), [2.0, 0.0], **settings)
    assert model.sigmas == [2.0]
    assert torch.equal(result, Mixture()(start(), start().new_full((3,), 2.0)))
    below = Mixture()
    adaptive(below, start(), [2.0, 0.0], schedule=VarianceExploding(SIGMA_MIN), **settings)
    assert below.sigmas[0] == 2.0
    assert below.sigmas[-1] == SIGMA_MIN


@pairs
@pytest.mark.parametrize("schedule", [VE, FLOW], ids=["ve", "flow"])
def test_rising_lists_lead_back_to_the_start(
    schedule: NoiseSchedule, algorithm: str, order: int
) -> None:
    high, low = (SIGMA_MAX, 0.5) if schedule is VE else (0.95, 0.5)
    settings: dict[str, Any] = {"algorithm": algorithm, "order": order, "rtol": 1e-5, "atol": 1e-5}
    run = partial(adaptive, schedule=schedule, max_calls=10_000, return_info=True, **settings)
    down, _ = run(Mixture(schedule), state(schedule), [high, low])
    up, info = run(Mixture(schedule), down, [low, high])
    assert info.sigmas == sorted(info.sigmas)
    assert info.sigmas[-1] == high
    assert difference(up, state(schedule)) < 1e-3 * schedule.scale(high)


@pytest.mark.parametrize("end", [math.nextafter(1.0, 0.0), 1.0 - 1e-12, 0.999, 1.0])
@pairs
def test_the_shortest_ways_are_gone(algorithm: str, order: int, end: float) -> None:
    settings: dict[str, Any] = {"algorithm": algorithm, "order": order, "return_info": True}
    result, info = adaptive(Mixture(), start(), [1.0, end], **settings)
    assert info.sigmas[-1] == end
    assert difference(result, start()) <= (1.0 - end) * difference(start(), 0 * start()) * 2


# info


def test_info_reads_as_a_dict_and_as_attributes() -> None:
    model = Mixture()
    settings: dict[str, Any] = {"rtol": 0.01, "order": 2, "return_info": True}
    _, info = adaptive(model, start(), [SIGMA_MAX, SIGMA_MIN], **settings)
    assert set(info) == {"nfe", "accepted", "rejected", "sigmas"}
    assert {name: getattr(info, name) for name in info} == info
    assert info.nfe == len(model.sigmas) == 2 * (info.accepted + info.rejected)
    assert info.rejected > 0
    assert info.accepted == len(info.sigmas) - 1
    assert info.sigmas == sorted(set(info.sigmas), reverse=True)
    assert (info.sigmas[0], info.sigmas[-1]) == (SIGMA_MAX, SIGMA_MIN)
    with pytest.raises(AttributeError):
        _ = info.steps


def test_a_single_sigma_took_no_calls() -> None:
    result, info = adaptive(Mixture(), start(), [SIGMA_MAX], return_info=True)
    assert info == {"nfe": 0, "accepted": 0, "rejected": 0, "sigmas": [SIGMA_MAX]}
    assert torch.equal(result, start())
