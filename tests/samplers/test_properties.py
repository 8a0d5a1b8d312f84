"""What holds for every list of sigmas, setting, precision and shape (hypothesis).

Sigmas span ten decades each way, far beyond any model's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dpm_solver_nodes.samplers import (
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    sample_adaptive,
    sample_multistep,
    sample_singlestep,
)
from dpm_solver_nodes.samplers.grid import NEARLY_EQUAL
from dpm_solver_nodes.tests.support.mixture import Sampler, difference

pytestmark = pytest.mark.slow

VE, FLOW = VarianceExploding(), RectifiedFlow()
PER_TEST = 100
# the same examples on every machine, however slow it is
repeatable = settings(
    max_examples=PER_TEST,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Pixels:
    """The exact denoiser where each number of an image is +1 or -1, give or take SPREAD.

    It returns `dtype`, the nearest number that is finite there, and counts its calls.
    """

    SPREAD = 0.3

    def __init__(self, schedule: NoiseSchedule, dtype: torch.dtype | None = None) -> None:
        self.schedule, self.dtype = schedule, dtype
        self.calls = 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, seed: Any = None) -> torch.Tensor:
        self.calls += 1
        level = sigma[0].item()
        alpha = self.schedule.alpha(level)
        variance = alpha**2 * self.SPREAD**2 + level**2
        sign = torch.tanh(x * (alpha / variance))
        denoised = sign + (alpha * self.SPREAD**2 / variance) * (x - alpha * sign)
        dtype = self.dtype or x.dtype
        return denoised.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)


# what to run


SHAPES = [(1,), (3, 5), (2, 1, 1), (1, 2, 3, 2), (2, 3, 1, 2, 2)]
algorithms = st.sampled_from(["dpmsolver++", "dpmsolver"])
solver_types = st.sampled_from(["dpmsolver", "taylor", "exact", "midpoint", "heun"])
schedules = st.sampled_from([VE, FLOW])
both_forms = pytest.mark.parametrize("schedule", [VE, FLOW], ids=["ve", "flow"])


@st.composite
def fixed_grids(
    draw: st.DrawFn, stochastic: bool | None = None, adams: bool = True
) -> tuple[Sampler, dict[str, Any]]:
    """A fixed-grid sampler and settings that go together."""
    chosen: dict[str, Any] = {"algorithm": draw(algorithms), "solver_type": draw(solver_types)}
    if stochastic is None:
        stochastic = draw(st.booleans())
    chosen["eta"] = draw(st.floats(1e-3, 2.0)) if stochastic else 0.0
    if draw(st.booleans()):
        chosen["thresholding"] = (draw(st.floats(0.5, 1.0)), draw(st.floats(0.5, 2.0)))
    if draw(st.booleans()):
        if not stochastic:
            chosen["corrector"] = draw(st.sampled_from([None, "unic"]))
            if adams and draw(st.booleans()):
                chosen["algorithm"] = "adams"
        exact = "exact" in chosen.values() or "adams" in chosen.values()
        chosen["order"] = draw(st.integers(1, 4 if exact else 3))
        chosen["lower_order_final"] = draw(st.sampled_from(["auto", "on", "off"]))
        return partial(sample_multistep, disable=True), chosen
    chosen["order"] = draw(st.integers(1, 2 if stochastic else 3))
    chosen["grouping"] = draw(st.sampled_from(["fast", "fixed"]))
    return partial(sample_singlestep, disable=True), chosen


@st.composite
def falling(
    draw: st.DrawFn,
    widest: float = 23.0,
    zero: bool | None = None,
    repeats: bool = True,
) -> tuple[float, ...]:
    """Falling sigmas in the variance-exploding form, exp(widest) to exp(-widest) and perhaps 0.

    Steps are of ordinary size in lambda_, of any size, nearly none or none at all.
    """
    steps = [st.floats(0.01, 2.0), st.floats(0.01, widest)]
    if repeats:
        steps += [st.floats(1e-12, 1e-5), st.just(0.0)]
    lambda_ = draw(st.floats(-widest, widest / 2.0))
    sigmas = [math.exp(-lambda_)]
    count = draw(st.integers(0, 9))  # or else most lists would be short
    for step in draw(st.lists(st.one_of(steps), min_size=count, max_size=count)):
        lambda_ += step
        if lambda_ > widest:
            break
        sigmas.append(math.exp(-lambda_))
    if draw(st.booleans()) if zero is None else zero:
        sigmas.append(0.0)
    return tuple(sigmas)


def in_form(schedule: NoiseSchedule, sigmas: Sequence[float]) -> list[float]:
    """The same levels of log-SNR in a schedule's own sigmas."""
    return [sigma / (1.0 + sigma) if schedule == FLOW else sigma for sigma in sigmas]


def state(
    schedule: NoiseSchedule,
    sigma: float,
    shape: tuple[int, ...] = (2, 6),
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Noise and some signal at sigma, of the schedule."""
    generator = torch.Generator().manual_seed(len(shape))
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    return (sigma * x + schedule.alpha(sigma) * x.sign()).to(dtype)


def in_order(x: torch.Tensor) -> Any:
    """Noise that depends on the number of the draw alone."""
    generator = torch.Generator().manual_seed(9)
    return lambda *_: torch.randn(x.shape, dtype=x.dtype, generator=generator)


# finite, counted, repeatable


@both_forms
@repeatable
@given(
    grid=fixed_grids(),
    sigmas=falling(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    of_model=st.sampled_from([None, torch.float16, torch.bfloat16]),
    shape=st.sampled_from(SHAPES),
    from_one=st.booleans(),
)
def test_finite_in_finite_out_n_calls_and_the_same_again(
    schedule: NoiseSchedule,
    grid: tuple[Sampler, dict[str, Any]],
    sigmas: tuple[float, ...],
    dtype: torch.dtype,
    of_model: torch.dtype | None,
    shape: tuple[int, ...],
    from_one: bool,
) -> None:
    sampler, chosen = grid
    levels = in_form(schedule, sigmas)
    if from_one and schedule == FLOW:
        levels = [1.0, *levels]
    x = state(schedule, levels[0], shape).clamp(-6e4, 6e4).to(dtype)
    before = x.clone()

    def run() -> torch.Tensor:
        model = Pixels(schedule, of_model)
        seen: list[int] = []
        result = sampler(
            model,
            x,
            torch.tensor(levels, dtype=torch.float64),
            {"seed": 5},
            lambda report: seen.append(report["i"]),
            schedule=schedule,
            **chosen,
        )
        assert model.calls == len(levels) - 1
        assert seen == list(range(len(levels) - 1))
        return result

    result = run()
    assert result.shape == x.shape
    assert result.dtype == torch.promote_types(dtype, torch.float32)
    assert result.isfinite().all()
    assert torch.equal(result, run())
    assert torch.equal(x, before)


@both_forms
@repeatable
@given(grid=fixed_grids(stochastic=False), sigmas=falling(widest=7.0, zero=False))
def test_rising_lists_are_finite_and_counted_too(
    schedule: NoiseSchedule, grid: tuple[Sampler, dict[str, Any]], sigmas: tuple[float, ...]
) -> None:
    sampler, chosen = grid
    levels = in_form(schedule, sigmas)[::-1]
    model = Pixels(schedule)
    result = sampler(model, state(schedule, levels[0]), levels, schedule=schedule, **chosen)
    assert model.calls == len(levels) - 1
    assert result.isfinite().all()


# the same in other words


def other_form(model: Pixels) -> Any:
    """A variance-exploding model as that of a flow, whose state is 1 - sigma times its own."""

    def as_flow(x: torch.Tensor, sigma: torch.Tensor, seed: Any = None) -> torch.Tensor:
        alpha = 1.0 - sigma[0].item()
        return model(x / alpha, sigma / alpha)

    return as_flow


@settings(repeatable, max_examples=300)
@given(grid=fixed_grids(adams=False), sigmas=falling(widest=7.0))
def test_a_run_on_a_flow_is_the_variance_exploding_run_scaled(
    grid: tuple[Sampler, dict[str, Any]], sigmas: tuple[float, ...]
) -> None:
    """Adams' solvers, which step in sigma and not in the log-SNR, are others there."""
    steps = [math.log(a / b) for a, b in itertools.pairwise(sigmas) if b]
    # Where rounding decides whether neighbours count as equal, it decides it for each form.
    assume(all(abs(step - NEARLY_EQUAL) > 1e-9 for step in steps))
    sampler, chosen = grid
    x = state(VE, sigmas[0])
    noise = in_order(x)
    ve = sampler(Pixels(VE), x, sigmas, noise_sampler=noise, **chosen)
    result = sampler(
        other_form(Pixels(VE)),
        x / (1.0 + sigmas[0]),
        in_form(FLOW, sigmas),
        noise_sampler=in_order(x),
        schedule=FLOW,
        **chosen,
    )
    scaled = ve / (1.0 + sigmas[-1])
    assert difference(result, scaled) <= 1e-6 * max(1.0, scaled.abs().max().item())


@repeatable
@given(
    algorithm=algorithms,
    order=st.integers(2, 3),
    sigmas=falling(widest=4.0, repeats=False),
    rtol=st.floats(1e-3, 0.1),
)
def test_an_adaptive_run_on_a_flow_is_the_variance_exploding_run_scaled(
    algorithm: str, order: int, sigmas: tuple[float, ...], rtol: float
) -> None:
    ends = (sigmas[0], sigmas[-1])
    run: Sampler = partial(
        sample_adaptive,
        disable=True,
        algorithm=algorithm,
        order=order,
        rtol=rtol,
        atol=rtol / 10.0,
        return_info=True,
    )
    x = state(VE, ends[0])
    ve, ve_info = run(Pixels(VE), x, sigmas)
    flow = partial(run, schedule=FLOW)
    result, info = flow(other_form(Pixels(VE)), x / (1.0 + ends[0]), in_form(FLOW, sigmas))
    assert (info.nfe, info.rejected) == (ve_info.nfe, ve_info.rejected)
    assert difference(result, ve / (1.0 + ends[1])) < 1e-6


@both_forms
@repeatable
@given(grid=fixed_grids(), sigmas=falling(widest=7.0), batch=st.integers(2, 4))
def test_a_batch_is_its_single_images(
    schedule: NoiseSchedule,
    grid: tuple[Sampler, dict[str, Any]],
    sigmas: tuple[float, ...],
    batch: int,
) -> None:
    sampler, chosen = grid
    levels = in_form(schedule, sigmas)
    x = state(schedule, levels[0], (batch, 5))
    seeds = list(range(7, 7 + batch))
    run = partial(sampler, Pixels(schedule), schedule=schedule, **chosen)
    together = run(x, levels, {"seed": seeds})
    for k, seed in enumerate(seeds):
        alone = run(x[k : k + 1], levels, {"seed": seed})
        assert difference(alone, together[k : k + 1]) <= 1e-6 * max(1.0, alone.abs().max().item())


@both_forms
@repeatable
@given(
    algorithm=algorithms,
    order=st.integers(2, 3),
    sigmas=falling(widest=4.0, repeats=False),
    rtol=st.floats(1e-3, 0.1),
    batch=st.integers(2, 4),
)
def test_an_adaptive_batch_is_its_single_images_within_the_tolerance(
    schedule: NoiseSchedule,
    algorithm: str,
    order: int,
    sigmas: tuple[float, ...],
    rtol: float,
    batch: int,
) -> None:
    levels = in_form(schedule, sigmas)
    x = state(schedule, levels[0], (batch, 5))
    run: Sampler = partial(
        sample_adaptive,
        Pixels(schedule),
        disable=True,
        algorithm=algorithm,
        order=order,
        schedule=schedule,
        rtol=rtol,
        atol=rtol / 10.0,
    )
    together = run(x, levels)
    assert together.isfinite().all()
    for k in range(batch):
        alone = run(x[k : k + 1], levels)
        # of the end, although each step may be off by as much
        scale = schedule.scale(levels[-1])
        size = max(1.0, alone.abs().max().item() / scale)
        error = (alone - together[k]).square().mean().sqrt().item() / scale
        assert error <= rtol * size
