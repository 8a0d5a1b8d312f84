"""ER-SDE and the ancestral solvers: orders, what their settings mean, CFG++.

That they are ComfyUI's at the same noise is shown in a real ComfyUI, by inside_solvers.py.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from scipy.integrate import quad

from dpm_solver_nodes.samplers import (
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    sample_ancestral,
    sample_er_sde,
    sample_multistep,
    sample_singlestep,
)
from dpm_solver_nodes.samplers.grid import Grid
from dpm_solver_nodes.samplers.solvers.er_sde import ErSde
from dpm_solver_nodes.tests.support.gaussian import (
    ENDS,
    WITHIN,
    Gaussian,
    propagate,
    pure_noise,
    weak_order,
)
from dpm_solver_nodes.tests.support.mixture import Mixture, Sampler, difference, start

VE, FLOW = VarianceExploding(), RectifiedFlow()
SIGMAS = {VE: (14.6, 9.0, 5.0, 2.0, 1.0, 0.6, 0.3, 0.1), FLOW: (0.98, 0.9, 0.8, 0.6, 0.4, 0.2, 0.1)}
er_sde: Sampler = partial(sample_er_sde, disable=True)
ancestral: Sampler = partial(sample_ancestral, disable=True)

schedules = pytest.mark.parametrize("schedule", [VE, FLOW], ids=["ve", "flow"])


def state(schedule: NoiseSchedule) -> torch.Tensor:
    return start() if schedule == VE else start() / 14.6


def noise_for(x: torch.Tensor) -> Any:
    """Other noise at each call, the same in each run."""
    generator = torch.Generator().manual_seed(0)
    return lambda *_: torch.randn(x.shape, dtype=x.dtype, generator=generator)


# ER-SDE


def rate(lambda_: float) -> float:
    """The eta of the SDE that the published noise function belongs to: d log psi / d log s."""
    power = math.exp(-0.3 * lambda_)
    return 0.3 * power * math.exp(power) / (math.exp(power) + 10.0)


@schedules
@pytest.mark.parametrize("order", [1, 2, 3])
def test_weak_order_of_er_sde_is_1_2_and_2(order: int, schedule: NoiseSchedule) -> None:
    claim = min(order, 2)
    run = partial(er_sde, order=order, integrals="exact")
    assert weak_order(run, schedule, rate) == pytest.approx(claim, abs=WITHIN)
    reverse = partial(run, noise_type="reverse_time", eta=0.8)
    assert weak_order(reverse, schedule, 0.8) == pytest.approx(claim, abs=WITHIN)
    assert weak_order(partial(run, eta=0.0), schedule, 0.0) == pytest.approx(claim, abs=WITHIN)


def test_the_published_sums_differ_by_less_than_the_error_of_short_runs() -> None:
    target, ends = Gaussian(VE), ENDS[VE]
    exact = target.end(*pure_noise(target, ends[0]), ends, rate)

    def error(n: int, integrals: str) -> float:
        sigmas = [ends[0] * (ends[1] / ends[0]) ** (i / n) for i in range(n + 1)]
        run = partial(er_sde, integrals=integrals)
        result = propagate(run, target, sigmas, *pure_noise(target, ends[0]))
        return max(map(difference, result, exact))

    assert error(20, "published") == pytest.approx(error(20, "exact"), rel=0.15)
    assert error(20, "published") != error(20, "exact")


@pytest.mark.parametrize("integrals", ["published", "exact"])
def test_a_step_integrates_the_noise_function(integrals: str) -> None:
    s, t, eta = 5.0, 2.0, 1.0
    grid = Grid.of((9.0, 7.0, s, t), VE)
    step = ErSde(integrals=integrals).plan(grid).steps[-1]

    def phi(x: float) -> float:
        return x * (math.exp(x**0.3) + 10.0) ** eta

    def output(x: float) -> float:
        return 0.7 + 0.4 * (x - s)

    # x_t / phi(t) = x_s / phi(s) + int_t^s D / phi' ... by parts, for a line
    integral, _ = quad(lambda x: 0.4 / phi(x), t, s)
    expected = output(t) - phi(t) / phi(s) * output(s) + phi(t) * integral
    total = sum(w * output(x) for w, x in zip(step.outputs, (s, 7.0, 9.0), strict=True))
    close = 1e-9 if integrals == "exact" else 5e-2
    assert step.state == pytest.approx(phi(t) / phi(s), rel=1e-12)
    assert total == pytest.approx(expected, rel=close)
    assert step.noise == pytest.approx(math.sqrt(t**2 - (s * phi(t) / phi(s)) ** 2), rel=1e-12)


@schedules
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_order_1_in_reverse_time_is_sde_dpm_solver(eta: float, schedule: NoiseSchedule) -> None:
    x, sigmas = state(schedule), (*SIGMAS[schedule], 0.0)
    settings: dict[str, Any] = {"order": 1, "eta": eta, "schedule": schedule}
    ours, same = (
        sampler(Mixture(schedule), x, sigmas, noise_sampler=noise_for(x), disable=True, **settings)
        for sampler in (partial(er_sde, noise_type="reverse_time"), sample_multistep)
    )
    assert difference(ours, same) < 1e-11


# ancestral


@schedules
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("order", [1, 2])
def test_ancestral_steps_have_their_order_from_the_noised_target(
    order: int, eta: float, schedule: NoiseSchedule
) -> None:
    run = partial(ancestral, order=order, eta=eta)
    fitted = weak_order(run, schedule, eta, Gaussian.marginal)
    assert fitted == pytest.approx(order, abs=WITHIN)


@schedules
def test_without_noise_2s_ancestral_is_2s_on_middles(schedule: NoiseSchedule) -> None:
    sigmas, x = SIGMAS[schedule][1:], state(schedule)  # three pairs, or two and one step
    middles = list(sigmas)
    for i in range(1, len(sigmas) - 1, 2):
        ends = (schedule.lambda_(sigma) for sigma in sigmas[i - 1 : i + 2 : 2])
        middles[i] = schedule.sigma(sum(ends) / 2.0)
    plain = sample_singlestep(Mixture(schedule), x, middles, schedule=schedule, disable=True)
    model = Mixture(schedule)
    result = ancestral(model, x, sigmas, schedule=schedule, eta=0.0)
    assert difference(result, plain) < 1e-11
    assert model.sigmas == pytest.approx(middles[:-1])


def test_a_pair_calls_the_model_where_the_hosts_does() -> None:
    model = Mixture()
    ancestral(model, start(), (8.0, 4.0, 2.0, 1.0, 0.5, 0.0), noise_sampler=noise_for(start()))
    assert model.sigmas == pytest.approx([8.0, 2.0, 2.0, 0.5, 0.5])


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_an_ancestral_eta_is_a_share(eta: float) -> None:
    with pytest.raises(ValueError, match=r"^eta [^\n]+ number from 0 to [^\n]+\.$"):
        ancestral(Mixture(), start(), (2.0, 1.0), eta=eta)


# both


BOTH = {
    "er_sde": er_sde,
    "er_sde exact": partial(er_sde, integrals="exact", order=2),
    "2s": ancestral,
    "1s": partial(ancestral, order=1),
}
both = pytest.mark.parametrize("sampler", BOTH.values(), ids=BOTH)


@both
@schedules
def test_constant_outputs_are_followed_exactly(schedule: NoiseSchedule, sampler: Sampler) -> None:
    target = Gaussian(schedule, scale=0.0)
    sigmas = SIGMAS[schedule][::2]
    result = propagate(sampler, target, sigmas, *target.marginal(sigmas[0]))
    assert max(map(difference, result, target.marginal(sigmas[-1]))) < 1e-13


@both
@schedules
def test_rising_sigmas_invert_without_noise_and_are_refused_with_it(
    schedule: NoiseSchedule, sampler: Sampler
) -> None:
    x = torch.tensor([[0.3, -0.8], [1.5, 0.4]], dtype=torch.float64)
    sigmas = [schedule.sigma(lambda_) for lambda_ in torch.linspace(2.0, -2.0, 161).tolist()]
    run = partial(sampler, Gaussian(schedule), schedule=schedule)
    there = run(x, sigmas, eta=0.0)
    assert difference(run(there, sigmas[::-1], eta=0.0), x) < 0.05 < difference(there, x)
    with pytest.raises(ValueError, match="rising"):
        run(x, sigmas)


class Guided:
    """A guided model, and its unconditional output."""

    def __init__(self, schedule: NoiseSchedule, scale: float) -> None:
        self.model, self.scale = Mixture(schedule), scale

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.last = self.model(x, sigma)
        return self.last + self.scale * (torch.tanh(x) - 0.5 * self.last)

    def unconditional(self) -> torch.Tensor:
        return self.last


@both
@schedules
def test_cfg_pp_without_guidance_is_the_plain_solver(
    schedule: NoiseSchedule, sampler: Sampler
) -> None:
    x, sigmas = state(schedule), (*SIGMAS[schedule], 0.0)

    def run(scale: float, pp: bool) -> torch.Tensor:
        model = Guided(schedule, scale)
        unconditional = model.unconditional if pp else None
        noise = noise_for(x)
        settings: dict[str, Any] = {"schedule": schedule, "noise_sampler": noise}
        return sampler(model, x, sigmas, unconditional=unconditional, **settings)

    assert difference(run(0.0, True), run(0.0, False)) < 1e-11
    assert difference(run(0.7, True), run(0.7, False)) > 1e-3


@schedules
def test_order_1_with_cfg_pp_is_the_papers_formula(schedule: NoiseSchedule) -> None:
    model, x, sigmas = Guided(schedule, 0.7), state(schedule), SIGMAS[schedule]
    settings: dict[str, Any] = {"order": 1, "eta": 0.0, "schedule": schedule}
    results = [
        sampler(model, x, sigmas, unconditional=model.unconditional, **settings)
        for sampler in (er_sde, ancestral)
    ]
    for sigma, sigma_next in itertools.pairwise(sigmas):
        guided = model(x, x.new_full((len(x),), sigma))
        noise = (x - schedule.alpha(sigma) * model.last) / sigma
        x = schedule.alpha(sigma_next) * guided + sigma_next * noise
    assert max(difference(result, x) for result in results) < 1e-11


# from a flow's 1


def test_from_a_flows_1_er_sde_takes_all_noise_fresh_and_is_the_limit() -> None:
    x = state(FLOW)

    def run(sigma: float) -> torch.Tensor:
        sigmas = (sigma, 0.9, 0.8, 0.6, 0.4)
        return er_sde(Mixture(FLOW), x, sigmas, schedule=FLOW, noise_sampler=noise_for(x))

    limit = run(1.0)
    distances = [difference(run(1.0 - gap), limit) for gap in (1e-3, 1e-5, 1e-7)]
    assert distances[0] > distances[1] > distances[2] and distances[2] < 1e-3
    assert difference(run(1.0), limit) == 0.0


def test_from_a_flows_1_an_ancestral_step_keeps_comfyuis_share() -> None:
    x, target = state(FLOW), 0.8
    noise = noise_for(x)()
    result = ancestral(Mixture(FLOW), x, (1.0, target), schedule=FLOW, noise_sampler=noise_for(x))
    denoised = Mixture(FLOW)(x, x.new_ones(len(x)))
    down = target**2
    kept = down / (1.0 - down) * (1.0 - target) / target
    fresh = target * math.sqrt(1.0 - kept**2)
    expected = (1.0 - target) * denoised + kept * target * x + fresh * noise
    assert difference(result, expected) < 1e-11
