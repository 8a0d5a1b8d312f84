"""The stochastic solvers: eta above 0 in the multistep and singlestep samplers.

Orders are those of convergence to the reverse SDE on even steps of the log-SNR: strong ones on a
shared Brownian path, weak ones by carrying mean and covariance through linear steps, not by chance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import k_diffusion.sampling
import pytest
import torch
from scipy.integrate import quad

from dpm_solver_nodes.samplers import (
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    sample_adaptive,
    sample_ancestral,
    sample_er_sde,
    sample_multistep,
    sample_singlestep,
)
from dpm_solver_nodes.samplers.catalog import CATALOG, Entry
from dpm_solver_nodes.samplers.coefficients import EXACT, Algorithm, Level, Transition
from dpm_solver_nodes.samplers.noise import NoiseSampler
from dpm_solver_nodes.samplers.sample import sample
from dpm_solver_nodes.samplers.schedules.sigma_lists import log_snr
from dpm_solver_nodes.samplers.solvers.ancestral import Ancestral
from dpm_solver_nodes.samplers.solvers.er_sde import ErSde
from dpm_solver_nodes.samplers.solvers.multistep import Multistep
from dpm_solver_nodes.samplers.thresholding import dynamic_threshold
from dpm_solver_nodes.tests.support.gaussian import (
    ENDS,
    WITHIN,
    Gaussian,
    propagate,
    pure_noise,
    slope,
    weak_order,
)
from dpm_solver_nodes.tests.support.mixture import (
    SIGMA_MAX,
    SIGMA_MIN,
    Mixture,
    Sampler,
    difference,
    start,
)

ALGORITHMS: tuple[Algorithm, ...] = ("dpmsolver++", "dpmsolver")
VE, FLOW = VarianceExploding(), RectifiedFlow()
SIGMAS = {VE: (14.6, 9.0, 5.0, 2.0, 1.0, 0.6, 0.3, 0.1), FLOW: (0.98, 0.9, 0.8, 0.6, 0.4, 0.2, 0.1)}
ROUNDING = 1e-11  # of float64, over some steps of numbers up to 60

multistep = partial(sample_multistep, lower_order_final="off", disable=True)
singlestep = partial(sample_singlestep, disable=True)
STOCHASTIC: dict[str, partial[torch.Tensor]] = {
    f"{name}-{order}-{kind}": partial(sampler, order=order, solver_type=kind)
    for name, sampler, order, kind in [
        ("multistep", multistep, 1, "dpmsolver"),
        ("multistep", multistep, 2, "dpmsolver"),
        ("multistep", multistep, 2, "taylor"),
        ("multistep", multistep, 3, "dpmsolver"),
        ("multistep", multistep, 3, "taylor"),
        ("multistep", multistep, 3, "exact"),
        ("singlestep", singlestep, 1, "dpmsolver"),
        ("singlestep", singlestep, 2, "dpmsolver"),
        ("singlestep", singlestep, 2, "taylor"),
    ]
}

stochastic = pytest.mark.parametrize("sampler", STOCHASTIC.values(), ids=STOCHASTIC)
either = pytest.mark.parametrize("sampler", [multistep, singlestep], ids=["multi", "single"])
algorithms = pytest.mark.parametrize("algorithm", ALGORITHMS)
schedules = pytest.mark.parametrize("schedule", [VE, FLOW], ids=["ve", "flow"])
zero_ends = pytest.mark.parametrize("zero", [False, True], ids=["above zero", "final zero"])
zeros = pytest.mark.parametrize("zero", [(), (0.0,)], ids=["above zero", "final zero"])


def state(schedule: NoiseSchedule) -> torch.Tensor:
    return start() if schedule == VE else start() / SIGMA_MAX


def never(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
    raise AssertionError("noise was drawn")


def drawn(x: torch.Tensor, intervals: list[tuple[float, float]] | None = None) -> NoiseSampler:
    """Other noise at each call, the same in each run; it keeps the intervals it was asked for."""
    generator = torch.Generator().manual_seed(0)

    def noise(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        if intervals is not None:
            intervals.append((sigma.item(), sigma_next.item()))
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)

    return noise


# the weights of a step


@algorithms
@schedules
@pytest.mark.parametrize("eta", [0.3, 1.0, 2.5])
def test_a_step_integrates_the_sde_exactly_for_a_quadratic_output(
    eta: float, schedule: NoiseSchedule, algorithm: Algorithm
) -> None:
    begin, end = (Level(s, schedule.alpha(s), schedule.lambda_(s)) for s in (0.8, 0.3))
    h = end.lambda_ - begin.lambda_
    step = Transition.between(algorithm, begin, end, eta)

    def output(tau: float) -> float:
        return 0.7 + 0.4 * tau - 0.9 * tau**2

    if algorithm == "dpmsolver++":
        decay, factor, state_weight = (1.0 + eta), end.alpha, end.sigma / begin.sigma
        noise_decay, state_weight = eta, state_weight * math.exp(-eta * h)
    else:
        decay, factor, state_weight = -1.0, -end.sigma, end.alpha / begin.alpha
        noise_decay = -1.0
    drift, _ = quad(lambda tau: math.exp(-decay * (h - tau)) * output(tau), 0.0, h)
    variance, _ = quad(lambda tau: math.exp(-2.0 * noise_decay * (h - tau)), 0.0, h)
    nodes = (-0.6, -1.1)
    weights = step.weights(nodes, EXACT)
    total = sum(w * output(tau) for w, tau in zip(weights, (0.0, *nodes), strict=True))
    assert step.state == pytest.approx(state_weight, rel=1e-12)
    assert total == pytest.approx((1.0 + eta) * factor * drift, rel=1e-9)
    assert step.noise == pytest.approx(end.sigma * math.sqrt(2.0 * eta * variance), rel=1e-9)


# parity with k-diffusion


def karras(n: int, zero: bool) -> torch.Tensor:
    """n + 1 sigmas."""
    sigmas = k_diffusion.sampling.get_sigmas_karras(n + 1 - zero, SIGMA_MIN, SIGMA_MAX).double()
    return sigmas if zero else sigmas[:-1]


def their_noise() -> NoiseSampler:
    tree = k_diffusion.sampling.BrownianTreeNoiseSampler(
        start(), SIGMA_MIN / 2, SIGMA_MAX * 2, seed=3
    )
    return lambda sigma, sigma_next: tree(sigma, sigma_next)


def theirs_and_ours(
    their_sampler: str,
    our_sampler: Sampler,
    eta: float,
    sigmas: torch.Tensor,
    our_sigmas: Sequence[float] | torch.Tensor | None = None,
    **settings: Any,
) -> float:
    """The largest difference, in parts of the state at the start."""
    function = getattr(k_diffusion.sampling, their_sampler)
    shared = {"eta": eta, "s_noise": 0.9, "disable": True}
    theirs = function(Mixture(), start(), sigmas, noise_sampler=their_noise(), **shared, **settings)
    our_sigmas = sigmas if our_sigmas is None else our_sigmas
    ours = our_sampler(Mixture(), start(), our_sigmas, noise_sampler=their_noise(), **shared)
    return difference(theirs, ours) / start().abs().max().item()


@zero_ends
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 1.7])
def test_multistep_is_k_diffusions_2m_and_3m_sde(eta: float, zero: bool) -> None:
    sigmas = karras(15, zero)
    for theirs, ours in (("midpoint", "dpmsolver"), ("heun", "taylor")):
        ours_2m = partial(multistep, solver_type=ours)
        error = theirs_and_ours("sample_dpmpp_2m_sde", ours_2m, eta, sigmas, solver_type=theirs)
        assert error < 1e-13
    ours_3m = partial(multistep, order=3, solver_type="taylor")
    # its phi_3 loses digits where steps are short
    assert theirs_and_ours("sample_dpmpp_3m_sde", ours_3m, eta, sigmas) < 1e-11


def with_midpoints(sigmas: torch.Tensor) -> list[float]:
    """The sigmas of k-diffusion's inner calls put in; its last step, to zero, has none."""
    values = sigmas.tolist()
    pairs = [[a, math.sqrt(a * b)] if b else [a] for a, b in itertools.pairwise(values)]
    return [*itertools.chain.from_iterable(pairs), values[-1]]


@zero_ends
@pytest.mark.parametrize(
    ("eta", "within"),
    # above 1 theirs keeps nothing of the state, and ours the root of float64's resolution
    [(0.0, 1e-13), (0.3, 1e-13), (1.0, 1e-13), (1.7, 2.0**-26)],
)
def test_singlestep_is_k_diffusions_sde_and_euler_ancestral(
    eta: float, within: float, zero: bool
) -> None:
    for n in (7, 12):
        sigmas = karras(n, zero)
        pairs = with_midpoints(sigmas)
        assert len(pairs) - 1 == 2 * n - zero
        assert theirs_and_ours("sample_dpmpp_sde", singlestep, eta, sigmas, pairs) < within
        first = partial(singlestep, order=1)
        assert theirs_and_ours("sample_euler_ancestral", first, eta, sigmas) < within


# eta = 0 and small


@stochastic
@algorithms
@schedules
@zeros
def test_eta_0_is_the_ode_solver_and_draws_no_noise(
    zero: tuple[float, ...], schedule: NoiseSchedule, algorithm: str, sampler: Sampler
) -> None:
    run = partial(sampler, Mixture(schedule), state(schedule), algorithm=algorithm)
    sigmas = (*SIGMAS[schedule], *zero)
    ode = run(sigmas, schedule=schedule)
    for eta in (0.0, -0.0, 0):
        assert torch.equal(run(sigmas, schedule=schedule, eta=eta, noise_sampler=never), ode)
    # and it is where the SDE tends to, so that 0 is no branch of its own
    near = run(sigmas, schedule=schedule, eta=1e-10, s_noise=0.0)
    far = run(sigmas, schedule=schedule, eta=1e-1, s_noise=0.0)
    assert difference(near, ode) < 1e-7 < difference(far, ode)


@stochastic
@algorithms
def test_s_noise_multiplies_the_noise(algorithm: str, sampler: Sampler) -> None:
    run = partial(sampler, Mixture(), start(), SIGMAS[VE], algorithm=algorithm, eta=0.7)
    noise = drawn(start())
    half = run(s_noise=0.5, noise_sampler=drawn(start()))
    assert torch.equal(half, run(noise_sampler=lambda a, b: 0.5 * noise(a, b)))
    assert not torch.equal(half, run(noise_sampler=drawn(start())))
    none = run(s_noise=0.0, noise_sampler=never)
    assert torch.equal(none, run(noise_sampler=lambda a, b: torch.zeros_like(start())))


# what is drawn, and when


def seconds_of_pairs(sampler: partial[torch.Tensor]) -> range:
    """The calls made on the inner state of a singlestep group."""
    if sampler.func is sample_singlestep:
        return range(1, 99, 2) if sampler.keywords["order"] == 2 else range(0)
    exact_start = sampler.keywords["order"] == 3 and sampler.keywords["solver_type"] == "exact"
    return range(1, 2) if exact_start else range(0)


@stochastic
@algorithms
@schedules
@zeros
def test_a_stochastic_run_calls_the_model_n_times_and_draws_for_each_state_once(
    zero: tuple[float, ...], schedule: NoiseSchedule, algorithm: str, sampler: partial[torch.Tensor]
) -> None:
    for n in range(1, len(SIGMAS[schedule])):
        sigmas = (*SIGMAS[schedule][: n + 1], *zero)
        model, x = Mixture(schedule), state(schedule)
        seen: list[dict[str, Any]] = []
        drawn_for: list[tuple[float, float]] = []
        result = sampler(
            model,
            x,
            sigmas,
            callback=seen.append,
            noise_sampler=drawn(x, drawn_for),
            algorithm=algorithm,
            schedule=schedule,
            eta=1.0,
        )
        assert model.sigmas == list(sigmas[:-1])
        assert [report["i"] for report in seen] == list(range(len(sigmas) - 1))
        # one draw for each state above zero, up to there from a state that stood
        assert [to for _, to in drawn_for] == list(sigmas[1 : n + 1])
        bases = [i - (i in seconds_of_pairs(sampler)) for i in range(n)]
        assert [since for since, _ in drawn_for] == [sigmas[i] for i in bases]
        if zero:
            assert torch.equal(result, seen[-1]["denoised"])


@stochastic
@schedules
@pytest.mark.parametrize("eta", [0.2, 1.0, 3.0])
def test_noise_replaces_as_much_as_it_adds_where_the_denoised_output_stays(
    eta: float, schedule: NoiseSchedule, sampler: Sampler
) -> None:
    # x = alpha x0 + sigma noise then holds at the end, however long the steps are
    sigmas = SIGMAS[schedule][::2]
    target = Gaussian(schedule, scale=0.0)
    begin = target.marginal(sigmas[0])
    result = propagate(sampler, target, sigmas, *begin, eta=eta)
    assert max(map(difference, result, target.marginal(sigmas[-1]))) < 1e-13


# noise within a range of sigma

RANGED: dict[str, Sampler] = {
    **STOCHASTIC,
    "singlestep, r": partial(singlestep, r=0.4),
    "er_sde": partial(sample_er_sde, disable=True),
    "2s ancestral": partial(sample_ancestral, disable=True),
}


@pytest.mark.parametrize("sampler", RANGED.values(), ids=RANGED)
@schedules
def test_outside_of_its_range_noise_is_neither_added_nor_made_room_for(
    schedule: NoiseSchedule, sampler: Sampler
) -> None:
    sigmas = SIGMAS[schedule]
    drawn_for: list[tuple[float, float]] = []

    def run(**settings: Any) -> torch.Tensor:
        x, model = state(schedule), Mixture(schedule)
        drawn_for.clear()
        settings = {"eta": 0.8, "noise_sampler": drawn(x, drawn_for)} | settings
        return sampler(model, x, sigmas, schedule=schedule, **settings)

    everywhere = run()
    whole = list(drawn_for)
    assert torch.equal(run(s_tmin=0.0, s_tmax=sigmas[0]), everywhere)
    ode = run(eta=0.0, noise_sampler=never)
    for nowhere in ({"s_tmin": sigmas[0]}, {"s_tmax": sigmas[-1] / 2.0}):
        assert torch.equal(run(**nowhere, noise_sampler=never), ode)
    run(s_tmin=sigmas[5], s_tmax=sigmas[2])
    pairs = len({start for start, _ in whole}) < len(whole)
    if not pairs:
        assert drawn_for == [one for one in whole if sigmas[5] <= one[1] <= sigmas[2]]
    assert 0 < len(drawn_for) < len(whole)


@pytest.mark.parametrize("sampler", [multistep, singlestep, sample_er_sde, sample_ancestral])
def test_an_ode_head_and_a_stochastic_tail_are_two_runs(sampler: Sampler) -> None:
    """Of order 1, which has no history."""
    sigmas = SIGMAS[VE]
    run = partial(sampler, Mixture(), order=1, disable=True)
    middle = run(start(), sigmas[:4], eta=0.0)
    expected = run(middle, sigmas[3:], eta=1.0, noise_sampler=drawn(start()))
    result = run(start(), sigmas, eta=1.0, s_tmax=sigmas[4], noise_sampler=drawn(start()))
    assert difference(result, expected) < ROUNDING


# r


@schedules
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_r_places_the_inner_node(eta: float, schedule: NoiseSchedule) -> None:
    sigmas = SIGMAS[schedule][:5]
    for r in (0.3, 0.5, 1.0):
        placed = list(sigmas)
        for i in (1, 3):
            ends = [schedule.lambda_(sigma) for sigma in (sigmas[i - 1], sigmas[i + 1])]
            placed[i] = schedule.sigma(ends[0] + r * (ends[1] - ends[0]))
        settings: dict[str, Any] = {"eta": eta, "schedule": schedule}
        model, x = Mixture(schedule), state(schedule)
        result = singlestep(model, x, sigmas, r=r, noise_sampler=drawn(x), **settings)
        assert model.sigmas == pytest.approx(placed[:-1])
        if r < 1.0:
            listed = singlestep(Mixture(schedule), x, placed, noise_sampler=drawn(x), **settings)
            assert difference(result, listed) < ROUNDING


# the limit step of a flow


@algorithms
@either
@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("sigmas", [(1.0, 0.8), (1.0, 0.8, 0.0), (1.0, 0.8, 0.5, 0.3)])
def test_from_a_flows_1_multistep_takes_all_noise_fresh_and_singlestep_its_ancestral_part(
    sigmas: tuple[float, ...], eta: float, sampler: Sampler, algorithm: str
) -> None:
    model, x = Mixture(FLOW), state(FLOW)
    denoised = model(x, x.new_ones(len(x)))
    states: list[torch.Tensor] = []

    def recorded(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        states.append(x)
        return model(x, sigma)

    settings: dict[str, Any] = {"algorithm": algorithm, "schedule": FLOW, "eta": eta}
    states.append(sampler(recorded, x, sigmas, noise_sampler=drawn(x), **settings))
    fresh = 1.0 if sampler is multistep else min(eta, 1.0)
    nowhere = x.new_zeros(())
    noise = math.sqrt(1.0 - fresh**2) * x + fresh * drawn(x)(nowhere, nowhere)
    assert difference(states[1], 0.2 * denoised + 0.8 * noise) < ROUNDING


@pytest.mark.parametrize(
    ("sampler", "eta"), [(multistep, 1.0), (singlestep, 1.0), (singlestep, 0.5)]
)
def test_a_flow_from_nearly_1_tends_to_the_limit_step(sampler: Sampler, eta: float) -> None:
    x = state(FLOW)

    def run(sigma: float) -> torch.Tensor:
        settings: dict[str, Any] = {"schedule": FLOW, "eta": eta, "noise_sampler": drawn(x)}
        return sampler(Mixture(FLOW), x, (sigma, 0.8, 0.6, 0.4, 0.2), order=1, **settings)

    limit = run(1.0)
    gaps = (1e-3, 1e-4, 1e-5)
    distances = [difference(run(1.0 - gap), limit) for gap in gaps]
    assert all(distance < 20.0 * gap for gap, distance in zip(gaps, distances, strict=True))
    assert distances[-1] > 0.0


# strong order, on a target whose pixels are +1 or -1 each for itself


class Pixels:
    """The exact denoiser where each number of an image is +1 or -1, give or take SPREAD.

    All of them being independent, one image holds as many samples as it has numbers.
    """

    SPREAD = 0.6

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, seed: int | None = None
    ) -> torch.Tensor:
        level = sigma[0].item()
        alpha = self.schedule.alpha(level)
        variance = alpha**2 * self.SPREAD**2 + level**2
        sign = torch.tanh(x * (alpha / variance))
        return sign + (alpha * self.SPREAD**2 / variance) * (x - alpha * sign)


FINE, STRONG_STEPS = 1024, (32, 64, 128)


class Path:
    """A Brownian path in the log-SNR, made by hand at FINE + 1 points."""

    def __init__(self, schedule: NoiseSchedule, numbers: int = 1024) -> None:
        self.schedule = schedule
        begin, end = (schedule.lambda_(sigma) for sigma in ENDS[schedule])
        self.begin, self.width = begin, (end - begin) / FINE
        generator = torch.Generator().manual_seed(1)
        steps = torch.randn(FINE + 1, numbers, dtype=torch.float64, generator=generator)
        steps[0] = 0.0
        self.values = steps.cumsum(0) * math.sqrt(self.width)

    def index(self, sigma: torch.Tensor) -> int:
        return round((self.schedule.lambda_(sigma.item()) - self.begin) / self.width)

    def __call__(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        i, j = self.index(sigma), self.index(sigma_next)
        return (self.values[j] - self.values[i]).unsqueeze(0) / math.sqrt((j - i) * self.width)


@cache
def path(schedule: NoiseSchedule) -> Path:
    return Path(schedule)


@cache
def strong_start(schedule: NoiseSchedule) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 1024, dtype=torch.float64, generator=generator)
    return x * ENDS[schedule][0]


def on_the_path(sampler: Sampler, schedule: NoiseSchedule, n: int, **settings: Any) -> torch.Tensor:
    x, sigmas = strong_start(schedule), log_snr(schedule, *ENDS[schedule], n)
    return sampler(Pixels(schedule), x, sigmas, schedule=schedule, **settings)


@cache
def strong_solution(schedule: NoiseSchedule, algorithm: str, eta: float) -> torch.Tensor:
    settings: dict[str, Any] = {"algorithm": algorithm, "noise_sampler": path(schedule)}
    return on_the_path(multistep, schedule, FINE, eta=eta, **settings)


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


@stochastic
@algorithms
@schedules
def test_strong_order_is_1_on_a_path_made_by_hand(
    schedule: NoiseSchedule, algorithm: str, sampler: partial[torch.Tensor]
) -> None:
    # the eta of singlestep multiplies the noise's standard deviation, that of multistep its variance
    eta = 0.7
    of_sde = eta**2 if sampler.func is sample_singlestep else eta
    settings: dict[str, Any] = {"algorithm": algorithm, "noise_sampler": path(schedule)}
    solution = strong_solution(schedule, algorithm, of_sde)
    errors = [
        rms(on_the_path(sampler, schedule, n, eta=eta, **settings) - solution) for n in STRONG_STEPS
    ]
    assert slope(STRONG_STEPS, errors) == pytest.approx(1.0, abs=WITHIN)


@pytest.mark.parametrize(
    ("schedule", "name"), [(VE, "multistep-2-dpmsolver"), (FLOW, "singlestep-2-dpmsolver")]
)
def test_strong_order_is_1_on_the_path_of_a_seed(schedule: NoiseSchedule, name: str) -> None:
    # so runs of more steps come to the same image
    run = partial(on_the_path, STOCHASTIC[name], schedule, extra_args={"seed": 5}, eta=1.0)
    fine, steps = run(512), (16, 32, 64)
    errors = [rms(run(n) - fine) for n in steps]
    assert slope(steps, errors) == pytest.approx(1.0, abs=WITHIN)
    other = on_the_path(STOCHASTIC[name], schedule, 64, extra_args={"seed": 6}, eta=1.0)
    assert rms(other - fine) > 3.0 * errors[-1]


# weak order, on a Gaussian target


def test_the_closed_form_is_where_fine_runs_end_and_keeps_the_noised_target() -> None:
    # or else the weak orders were those towards something else
    for schedule, eta in itertools.product((VE, FLOW), (0.5, 2.0)):
        target, ends = Gaussian(schedule), ENDS[schedule]
        stays = target.end(*target.marginal(ends[0]), ends, eta)
        assert max(map(difference, stays, target.marginal(ends[1]))) < 1e-14
        begin = pure_noise(target, ends[0])
        fine = propagate(multistep, target, log_snr(schedule, *ends, 400), *begin, eta=eta)
        exact = target.end(*begin, ends, eta)
        assert max(map(difference, fine, exact)) < 1e-4 < difference(exact[0], stays[0])


@stochastic
@algorithms
@schedules
def test_weak_order_is_1_2_and_2(
    schedule: NoiseSchedule, algorithm: str, sampler: partial[torch.Tensor]
) -> None:
    claim = min(sampler.keywords["order"], 2)  # third-order weights bring no third weak order
    run = partial(sampler, algorithm=algorithm, eta=1.0)
    assert weak_order(run, schedule, 1.0) == pytest.approx(claim, abs=WITHIN)


@pytest.mark.parametrize("name", ["multistep-1-dpmsolver", "multistep-2-taylor"])
@pytest.mark.parametrize("eta", [0.3, 1.5])
@algorithms
def test_weak_order_holds_for_other_eta(algorithm: str, eta: float, name: str) -> None:
    sampler = STOCHASTIC[name]
    run = partial(sampler, algorithm=algorithm, eta=eta)
    claim = sampler.keywords["order"]
    assert weak_order(run, VE, eta) == pytest.approx(claim, abs=WITHIN)


@pytest.mark.parametrize("order", [1, 2])
@schedules
def test_ancestral_eta_keeps_the_weak_order_from_the_noised_target(
    schedule: NoiseSchedule, order: int
) -> None:
    # From elsewhere it is 1 between 0 and 1, as an ancestral step of h has an SDE's eta of its own,
    # eta^2 (1 + O(h)); the noised target is every eta's.
    run = partial(singlestep, order=order, eta=0.5)
    from_target = weak_order(run, schedule, 0.25, Gaussian.marginal)
    assert from_target == pytest.approx(order, abs=WITHIN)
    assert weak_order(run, schedule, 0.25) < 1.5


@pytest.mark.parametrize(
    "entry", [e for e in CATALOG if e.stochastic and e.order], ids=lambda entry: entry.id
)
def test_catalogue_claims_the_weak_order(entry: Entry) -> None:
    options = entry.options
    assert options.eta == 1.0
    if isinstance(options, Multistep):
        options = replace(options, lower_order_final="off")
    if isinstance(options, ErSde):
        options = replace(options, integrals="exact")
    # Ancestral steps are no steps of an SDE, and ER-SDE's eta depends on lambda_: see test_er_sde.py.
    # The noised target is every one's.
    own = isinstance(options, Ancestral | ErSde)
    run = partial(sample, options, disable=True)
    fitted = weak_order(run, VE, 1.0, Gaussian.marginal if own else pure_noise)
    assert fitted == pytest.approx(entry.order, abs=WITHIN)


@either
@schedules
def test_end_distribution_of_drawn_images_is_the_target(
    schedule: NoiseSchedule, sampler: Sampler
) -> None:
    # the noise itself: drawn from a seed, on the whole way from the host's start to the image
    samples, eta = 20_000, 0.8
    target = Gaussian(schedule)
    ends = (50.0, 0.02) if schedule == VE else (1.0, 0.02)
    sigmas = log_snr(schedule, *ends, 48, sigma_first=0.98)
    generator = torch.Generator().manual_seed(4)
    x = ends[0] * torch.randn(1, samples, 2, dtype=torch.float64, generator=generator)
    result = sampler(target, x, sigmas, {"seed": 11}, schedule=schedule, eta=eta)[0]
    mean, covariance = target.marginal(ends[1])
    spread = covariance.diagonal()
    of_mean = (spread / samples).sqrt()
    of_covariance = ((spread.outer(spread) + covariance.square()) / samples).sqrt()
    assert ((result.mean(0) - mean).abs() < 5.0 * of_mean).all()
    assert ((result.T.cov() - covariance).abs() < 5.0 * of_covariance).all()


# refusals


@pytest.mark.parametrize(
    ("sampler", "settings", "name"),
    [
        *(
            (sampler, {setting: value}, setting)
            for sampler in (sample_multistep, sample_singlestep)
            for setting in ("eta", "s_noise")
            for value in (-0.1, math.nan, math.inf, "1", None)
        ),
        (sample_multistep, {"noise_device": "cuda"}, "noise_device"),
        (sample_singlestep, {"noise_device": "CPU"}, "noise_device"),
        (sample_singlestep, {"order": 3, "eta": 0.5}, "eta"),
        *((sample_singlestep, {"r": r}, "r") for r in (0.0, 1.1, math.nan, "1")),
        (sample_singlestep, {"r": 0.5, "order": 1}, "r"),
        *((sample_er_sde, {name: -0.1}, name) for name in ("s_tmin", "s_tmax")),
        (sample_er_sde, {"order": 4}, "order"),
        (sample_er_sde, {"noise_type": "ode"}, "noise_type"),
        (sample_er_sde, {"integrals": "sum"}, "integrals"),
        (sample_ancestral, {"order": 3}, "order"),
        (sample_adaptive, {"eta": 0.5}, "eta"),
        (sample_adaptive, {"eta": math.inf}, "eta"),
    ],
)
def test_what_has_no_stochastic_form_is_named_in_one_sentence(
    sampler: Sampler, settings: dict[str, Any], name: str
) -> None:
    model = Mixture()
    with pytest.raises(ValueError, match=rf"^{name} [^\n]+\.$"):
        sampler(model, start(), [2.0, 1.0], disable=True, noise_sampler=never, **settings)
    assert model.sigmas == []


@either
@schedules
def test_rising_sigmas_are_for_the_ode_alone(schedule: NoiseSchedule, sampler: Sampler) -> None:
    model, rising = Mixture(schedule), SIGMAS[schedule][::-1]
    with pytest.raises(ValueError, match=r"^eta [^\n]+rising[^\n]+\.$"):
        sampler(model, state(schedule), rising, schedule=schedule, eta=1e-3, noise_sampler=never)
    assert model.sigmas == []


# with the rest


@either
@algorithms
def test_thresholding_corrects_the_output_of_stochastic_runs_too(
    algorithm: str, sampler: Sampler
) -> None:
    def corrected(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return dynamic_threshold(Mixture()(x, sigma), 0.9, 0.5)

    def run(model: Any, **settings: Any) -> torch.Tensor:
        noise = drawn(start())
        settings |= {"algorithm": algorithm, "eta": 1.0, "noise_sampler": noise}
        return sampler(model, start(), (*SIGMAS[VE], 0.0), **settings)

    result = run(Mixture(), thresholding=(0.9, 0.5))
    assert torch.equal(result, run(corrected))
    assert not torch.equal(result, run(Mixture()))


@stochastic
@zeros
def test_a_repeated_sigma_is_one_more_call_and_no_noise(
    zero: tuple[float, ...], sampler: Sampler
) -> None:
    def run(sigmas: Sequence[float]) -> torch.Tensor:
        return sampler(Mixture(), start(), sigmas, eta=1.0, noise_sampler=drawn(start()))

    expected = run((*SIGMAS[VE], *zero))
    for sigma in (*SIGMAS[VE], *zero):
        repeated = sorted([*SIGMAS[VE], sigma, *zero], reverse=True)
        assert difference(run(repeated), expected) < ROUNDING
