"""Lists with steps far longer in lambda_ than those before: what hosts offer, and flipped lists.

On exact models no solver of the catalogue is farther from the converged image than Euler on the same
list, nor 2M than dpmpp_2m, k-diffusion's. Under strong guidance solvers of higher order are farther
than Euler on a few lists without a long step too, which no rule of step lengths can know.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from k_diffusion.sampling import sample_dpmpp_2m

from dpm_solver_nodes.samplers import NoiseSchedule, RectifiedFlow, VarianceExploding
from dpm_solver_nodes.samplers.catalog import CATALOG
from dpm_solver_nodes.samplers.coefficients import Level
from dpm_solver_nodes.samplers.grid import Grid
from dpm_solver_nodes.samplers.options import Options
from dpm_solver_nodes.samplers.sample import sample
from dpm_solver_nodes.samplers.solvers.long_steps import groups, grows, reach, reach_2m
from dpm_solver_nodes.samplers.solvers.multistep import Multistep
from dpm_solver_nodes.samplers.solvers.singlestep import Singlestep
from dpm_solver_nodes.tests.support.exact_models import (
    Fields,
    Model,
    TwoValues,
    converged,
    distance,
    noise,
)
from dpm_solver_nodes.tests.support.plans import plan_multistep, plan_singlestep

LISTS: dict[str, dict[str, dict[str, list[float]]]] = json.loads(
    (Path(__file__).parents[1] / "data" / "comfyui_sigmas.json").read_text()
)["sigmas"]
MODELS: dict[tuple[str, str], Model] = {
    ("sd", "two values"): TwoValues(flow=False),
    ("flow1", "two values"): TwoValues(flow=True),
    ("flow3", "two values"): TwoValues(flow=True),
    ("sd", "fields"): Fields(flow=False, size=12, power=2.4, guidance=0.0),
    ("flow3", "fields"): Fields(flow=True, size=12, power=2.0, guidance=0.0),
    ("flow6", "fields"): Fields(flow=True, size=12, power=2.6, guidance=0.0),
}
FIXED = {
    entry.id: entry.options
    for entry in CATALOG
    if isinstance(entry.options, Multistep | Singlestep) and not (entry.stochastic or entry.cfg_pp)
}


def schedule_of(model: Model) -> NoiseSchedule:
    return RectifiedFlow() if model.flow else VarianceExploding()


@lru_cache
def image(model: Model, sigma: float) -> torch.Tensor:
    return converged(model, sigma)


def error(model: Model, sigmas: Sequence[float], options: Options) -> float:
    """Of a run as hosts make it."""
    schedule = schedule_of(model)
    start = model.start(sigmas[0])
    result = sample(options.on(schedule), model, start, sigmas, disable=True, schedule=schedule)
    return distance(result, image(model, sigmas[0]))


@lru_cache
def yardstick(model: Model, sigmas: tuple[float, ...]) -> float:
    """Euler's error, or that of the last step to 0, which comes to all solvers, if that is larger."""
    fine = [a + (b - a) * j / 16 for a, b in pairwise(sigmas[:-1]) for j in range(16)]
    settled = Multistep(order=2, lower_order_final="off")
    return max(
        error(model, sigmas, Multistep(order=1)), error(model, [*fine, *sigmas[-2:]], settled)
    )


def ratios(model: Model, kind: str, options: Options) -> dict[str, float]:
    """scheduler and steps -> error in units of the yardstick."""
    return {
        f"{scheduler} {steps}": error(model, sigmas, options) / yardstick(model, tuple(sigmas))
        for scheduler, lists in LISTS[kind].items()
        for steps, sigmas in lists.items()
    }


def farther(values: Mapping[str, float], bound: float) -> dict[str, float]:
    return {name: ratio for name, ratio in values.items() if not ratio <= bound}


@pytest.mark.slow
@pytest.mark.parametrize("id_", FIXED)
@pytest.mark.parametrize("key", MODELS, ids=" ".join)
def test_no_solver_is_farther_than_euler_on_any_list_of_the_host(
    key: tuple[str, str], id_: str
) -> None:
    assert farther(ratios(MODELS[key], key[0], FIXED[id_]), 1.05) == {}


# 2M beside the host's dpmpp_2m

FIELDS = ((12, 1.8, 0.0), (12, 1.8, 7.0), (16, 2.2, 4.0), (20, 2.8, 0.0), (20, 2.8, 7.0))
DEVIATIONS = (0.2, 0.3, 0.45)
BESIDE: dict[tuple[str, str], Model] = {
    (kind, f"fields {n} {p} guidance {g:g}"): Fields("flow" in kind, n, p, g)
    for kind in LISTS
    for n, p, g in FIELDS
} | {(kind, f"two values {d}"): TwoValues("flow" in kind, d) for kind in LISTS for d in DEVIATIONS}
KNOWN_FARTHER = {
    ("sd", "fields 16 2.2 guidance 4"): {"ddim_uniform 5": 1.15},
    ("sd", "fields 20 2.8 guidance 0"): {
        "ddim_uniform 8": 1.06,
        "ddim_uniform 11": 1.08,
        "normal 11": 1.13,
    },
    ("sd", "fields 20 2.8 guidance 7"): {"ddim_uniform 5": 1.14, "beta 11": 1.17},
    ("sd", "two values 0.2"): {"ddim_uniform 30": 1.42},
    ("zsnr", "fields 16 2.2 guidance 4"): {"ddim_uniform 5": 1.06},
    ("zsnr", "two values 0.2"): {"ddim_uniform 30": 1.32},
    ("flow3", "fields 20 2.8 guidance 0"): {"simple 5": 1.08},
    ("flow1", "two values 0.45"): {"linear_quadratic 8": 1.11},
    ("flow3", "two values 0.45"): {"linear_quadratic 8": 1.11},
    ("flow6", "two values 0.45"): {"linear_quadratic 8": 1.11},
}
"""Model -> list -> how much farther at most. Other models are farther off the more of these lists'
steps is read, so that no rule of step lengths alone can be right on all."""


def beside_dpmpp_2m(kind: str, model: Model, options: Options) -> dict[str, float]:
    """scheduler and steps, from 5 to 30 -> error in units of dpmpp_2m's."""
    values = {}
    for scheduler, lists in LISTS[kind].items():
        for steps, sigmas in lists.items():
            if int(steps) <= 30:
                at = torch.tensor(sigmas, dtype=torch.float64)
                theirs = sample_dpmpp_2m(model, model.start(sigmas[0]), at, disable=True)
                unit = distance(theirs, image(model, sigmas[0]))
                values[f"{scheduler} {steps}"] = error(model, sigmas, options) / unit
    return values


@pytest.mark.parametrize("key", BESIDE, ids=" ".join)
def test_2m_is_not_farther_than_dpmpp_2m_on_any_list_of_the_host(key: tuple[str, str]) -> None:
    values = beside_dpmpp_2m(key[0], BESIDE[key], FIXED["dpm_solver++_2m"])
    known = KNOWN_FARTHER.get(key, {})
    assert {name: r for name, r in values.items() if not r <= known.get(name, 1.05)} == {}


@pytest.mark.parametrize("kind", ["flow3", "sd"])
def test_with_lowering_off_2m_is_dpmpp_2m(kind: str) -> None:
    off = Multistep(lower_order_final="off")
    values = beside_dpmpp_2m(kind, TwoValues("flow" in kind), off)
    assert values == pytest.approx(dict.fromkeys(values, 1.0), rel=1e-9)


# stochastic solvers


def drift(model: TwoValues, made: torch.Tensor) -> float:
    """How far, in the mean, numbers must move to be distributed as the model's."""
    ranked = made.flatten().sort().values
    quantile = (torch.arange(len(ranked), dtype=made.dtype) + 0.5) / len(ranked)
    # By symmetry the upper half of the quantiles has the value near +1, but for a tail of e^-6.
    upper = quantile >= 0.5
    normal = torch.distributions.Normal(1.0, model.deviation)
    expected = torch.where(
        upper, normal.icdf(2.0 * quantile - 1.0), -normal.icdf(1.0 - 2.0 * quantile)
    )
    return (ranked - expected).abs().mean().item()


@pytest.mark.parametrize("scheduler", ["normal", "ddim_uniform", "karras"])
@pytest.mark.parametrize("steps", ["11", "20", "30"])
@pytest.mark.parametrize("kind", ["sd", "flow3"])
def test_no_stochastic_solver_is_farther_in_distribution(
    kind: str, steps: str, scheduler: str
) -> None:
    model = TwoValues(flow=kind != "sd")
    schedule = schedule_of(model)
    sigmas = LISTS[kind][scheduler][steps]
    start = noise(1000, 64) * sigmas[0]

    def off(options: Options) -> float:
        generator = torch.Generator().manual_seed(5)

        def draw(*_: object) -> torch.Tensor:
            return torch.randn(start.shape, generator=generator, dtype=start.dtype)

        as_host = options.on(schedule)
        run = partial(sample, as_host, schedule=schedule, noise_sampler=draw, disable=True)
        return drift(model, run(model, start, sigmas))

    euler = off(Multistep(order=1, eta=1.0))
    seen = {
        entry.id: off(entry.options) / euler
        for entry in CATALOG
        if entry.stochastic and not entry.cfg_pp and "++" in entry.id
    }
    # Pairs of steps see half as many noise levels: on every list they are some way behind.
    assert farther(seen, 1.05).keys() <= {"sde_dpm_solver++_2s", "dpm_solver++_2s_ancestral"}
    assert farther(seen, 1.4) == {}


# flipped lists

ADAMS = [("adams", order, "exact") for order in (1, 2, 3, 4)]
KINDS = [
    *itertools.product(("dpmsolver++", "dpmsolver"), (1, 2, 3), ("dpmsolver", "taylor", "exact")),
    *[(algorithm, 4, "exact") for algorithm in ("dpmsolver++", "dpmsolver")],
]
INVERTED: dict[str, Options] = {
    f"multistep {a} {o} {t} {c}": Multistep(algorithm=a, order=o, solver_type=t, corrector=c)
    for (a, o, t), c in itertools.product([*KINDS, *ADAMS], (None, "unic"))
} | {
    f"singlestep {a} {o} {t} {g}": Singlestep(algorithm=a, order=o, solver_type=t, grouping=g)
    for (a, o, t), g in itertools.product(KINDS, ("fast", "fixed"))
    if o < 4
}


@pytest.mark.parametrize(
    ("kind", "scheduler", "steps", "as_host"),
    [
        ("sd", "karras", "20", True),
        ("sd", "normal", "20", True),
        ("flow1", "simple", "11", True),
        ("flow3", "beta", "20", True),
        ("sd", "karras", "20", False),
        ("flow1", "simple", "11", False),
    ],
)
@pytest.mark.parametrize("name", INVERTED)
def test_a_flipped_list_leads_to_noise_and_back(
    name: str, kind: str, scheduler: str, steps: str, as_host: bool
) -> None:
    """A falling list ends with 0, which the host's FlipSigmas makes 0.0001 when it flips it."""
    model = TwoValues(flow=kind != "sd")
    falling = [
        sigma for sigma in LISTS[kind][scheduler][steps] if not (model.flow and sigma == 1.0)
    ]
    rising = [0.0001, *falling[-2::-1]]
    schedule = schedule_of(model)
    options = INVERTED[name].on(schedule) if as_host else INVERTED[name]
    run = partial(sample, options, schedule=schedule, disable=True)
    image = noise(8, 64).sign() + model.deviation * noise(8, 64, 1)
    up = run(model, image * schedule.alpha(1e-4), rising)
    back = run(model, up, falling)
    assert (back - image).square().mean().sqrt() < 0.25


# the rule


def level(lambda_: float) -> Level:
    schedule = VarianceExploding()
    return Level(schedule.sigma(lambda_), 1.0, lambda_)


def test_a_step_is_read_whole_up_to_the_length_of_the_one_before() -> None:
    assert reach(0.2, 1.0, 1.0) == 1.0
    assert reach(0.2, 0.01, 0.2) == pytest.approx(1.0)
    assert reach(0.2, 1.0, 2.0) == pytest.approx(0.25)


def test_2m_is_as_published_up_to_steps_half_as_long_again() -> None:
    start, end = level(0.0), level(1.0)
    assert reach_2m(1.0, 1.5, start, end) == 1.0
    assert reach_2m(1.0, 3.0, start, end) == pytest.approx(0.5)
    assert reach_2m(1.0, 6.0, start, end) == 0.0
    assert reach_2m(0.1, 0.7, start, end) == 1.0
    assert reach_2m(0.1, 0.7, level(-3.0), level(-2.3)) == 0.0


def test_a_flows_first_step_of_infinite_length_bounds_nothing() -> None:
    assert reach(0.2, math.inf, 3.0) == 1.0


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "adams"])
def test_errors_grow_in_the_direction_that_is_the_algorithms(algorithm: Any) -> None:
    falling = grows(algorithm, level(0.0), level(3.0))
    assert falling == (algorithm != "dpmsolver++")
    assert grows(algorithm, level(3.0), level(0.0)) != falling


def test_groups_are_cut_before_a_long_interval() -> None:
    levels = tuple(map(level, (0.0, 0.5, 1.0, 4.0)))
    assert groups("dpmsolver++", levels) == [2, 1]
    assert groups("dpmsolver++", levels[1:]) == [1, 1]
    assert groups("dpmsolver", tuple(map(level, (0.0, 0.6, 0.8, 1.0)))) == [1, 2]
    assert groups("dpmsolver++", tuple(map(level, (0.0, 0.6, 0.8, 1.0)))) == [3]


@pytest.mark.parametrize("schedule", [VarianceExploding(), RectifiedFlow()], ids=["ve", "flow"])
@pytest.mark.parametrize("solver_type", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("order", [2, 3])
def test_the_published_weights_stay_reachable(
    order: int, solver_type: str, schedule: NoiseSchedule
) -> None:
    kind = "flow3" if schedule.sigma_limit == 1.0 else "sd"
    grid = Grid.of(LISTS[kind]["normal"]["20"], schedule)
    published = plan_multistep(grid, "dpmsolver++", order, solver_type, "off")
    assert published == plan_multistep(
        grid, "dpmsolver++", order, solver_type, "off", lower_long_steps=True
    )
    assert published != plan_multistep(
        grid, "dpmsolver++", order, solver_type, "auto", lower_long_steps=True
    )
    assert published == plan_multistep(grid, "dpmsolver++", order, solver_type, "auto")


@pytest.mark.parametrize("order", [2, 3])
def test_the_published_groups_stay_reachable(order: int) -> None:
    grid = Grid.of(LISTS["flow3"]["normal"]["20"], RectifiedFlow())
    settings: Any = ("dpmsolver++", order, "dpmsolver", "fixed")
    published, host = (
        [step.order for step in plan_singlestep(grid, *settings, lower_long_steps=asked).steps]
        for asked in (False, True)
    )
    assert published == [1, *range(1, order + 1), *published[order + 1 :]]
    assert published[-order - 1 :] == [*range(1, order + 1), 1]
    assert host[-3:] == [*range(1, order)[-1:], 1, 1]
