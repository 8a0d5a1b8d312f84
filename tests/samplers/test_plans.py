"""Plans are right as numbers: identities of their weights, integrals, groups and orders."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from scipy.integrate import quad

from dpm_solver_nodes.samplers import (
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    sample_multistep,
)
from dpm_solver_nodes.samplers.coefficients import Algorithm, phi
from dpm_solver_nodes.samplers.grid import Grid
from dpm_solver_nodes.samplers.plan import Plan
from dpm_solver_nodes.samplers.solvers.singlestep import group_sizes
from dpm_solver_nodes.tests.support.plans import plan_multistep, plan_singlestep

FALLING = {
    VarianceExploding(): (14.6, 9.0, 6.5, 2.0, 1.1, 0.9, 0.3, 0.2),
    RectifiedFlow(): (0.98, 0.9, 0.83, 0.5, 0.41, 0.3, 0.1, 0.02),
}
Weights = Callable[[Grid, Algorithm], Plan]


def multistep(kind: str, order: int) -> Weights:
    return lambda grid, algorithm: plan_multistep(grid, algorithm, order, kind, "off")


def singlestep(kind: str, order: int) -> Weights:
    return lambda grid, algorithm: plan_singlestep(grid, algorithm, order, kind, "fixed")


PLANS = {
    f"{plan.__name__}-{kind}-{order}": plan(kind, order)
    for plan, kinds in (
        (multistep, ("dpmsolver", "taylor", "exact")),
        (singlestep, ("dpmsolver", "taylor")),
    )
    for kind in kinds
    for order in (1, 2, 3)
}
algorithms = pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
schedules = pytest.mark.parametrize("schedule", FALLING, ids=lambda s: type(s).__name__)
rising = pytest.mark.parametrize("rising", [False, True], ids=["falling", "rising"])


RISING = (1.0, 0.9, 0.7, 0.55, 0.4, 0.3, 0.1, -0.05)
"""In lambda_: the other way groups are made only of steps that are short for both algorithms."""


def grid_of(schedule: NoiseSchedule, rising: bool = False) -> Grid:
    sigmas = tuple(map(schedule.sigma, RISING)) if rising else FALLING[schedule]
    return Grid.of(sigmas, schedule)


def bases(plan: Plan) -> list[int]:
    """For every step, the index of the step whose sigma its base state has."""
    starts, start = [], 0
    for i, step in enumerate(plan.steps):
        starts.append(start)
        if not step.inner:
            start = i + 1
    return starts


def dot(weights: tuple[float, ...], outputs: list[float]) -> float:
    return sum(weight * output for weight, output in zip(weights, outputs, strict=False))


CONSTANT = 1.7


@pytest.mark.parametrize("name", PLANS)
@algorithms
@schedules
@rising
def test_constant_x0_is_followed_exactly(
    rising: bool, schedule: NoiseSchedule, algorithm: Algorithm, name: str
) -> None:
    plan = PLANS[name](grid_of(schedule, rising), algorithm)
    x = base = 3.0
    outputs: list[float] = []
    for step, start in zip(plan.steps, bases(plan), strict=True):
        outputs.insert(0, step.prediction[0] * x + step.prediction[1] * CONSTANT)
        x = step.state * base + dot(step.outputs, outputs)
        # noise = (x - alpha x0) / sigma stays
        sigma_s, sigma_t = plan.steps[start].sigma, step.sigma_next
        noise = (base - schedule.alpha(sigma_s) * CONSTANT) / sigma_s
        assert x == pytest.approx(schedule.alpha(sigma_t) * CONSTANT + sigma_t * noise, rel=1e-12)
        base = base if step.inner else x


def exact_step(
    schedule: NoiseSchedule,
    algorithm: Algorithm,
    ends: tuple[float, float],
    x: float,
    output: Callable[[float], float],
) -> float:
    """Equations 8 of DPM-Solver++ and 3.4 of DPM-Solver by quadrature, output a function of lambda."""
    (sigma_s, sigma_t) = ends
    start, end = schedule.lambda_(sigma_s), schedule.lambda_(sigma_t)
    if algorithm == "dpmsolver++":
        integral, _ = quad(lambda v: math.exp(v - end) * output(v), start, end, epsabs=1e-13)
        return sigma_t / sigma_s * x + schedule.alpha(sigma_t) * integral
    integral, _ = quad(lambda v: math.exp(end - v) * output(v), start, end, epsabs=1e-13)
    return schedule.alpha(sigma_t) / schedule.alpha(sigma_s) * x - sigma_t * integral


# name -> the degree that its last step of a full order integrates exactly
DEGREES = {
    "multistep-dpmsolver-1": 0,
    "multistep-taylor-2": 1,
    "multistep-exact-2": 1,
    "multistep-exact-3": 2,
    "singlestep-dpmsolver-1": 0,
    "singlestep-dpmsolver-3": 1,  # its last node alone
    "singlestep-taylor-2": 1,
    "singlestep-taylor-3": 2,
}


@pytest.mark.parametrize("name", DEGREES)
@algorithms
@schedules
@rising
def test_outputs_polynomial_in_lambda_are_integrated_exactly(
    rising: bool, schedule: NoiseSchedule, algorithm: Algorithm, name: str
) -> None:
    plan = PLANS[name](grid_of(schedule, rising), algorithm)
    degree, order = DEGREES[name], int(name[-1])

    def output(lambda_: float) -> float:
        return sum((0.7 - 0.4 * k) * lambda_**k for k in range(degree + 1))

    called = [output(schedule.lambda_(step.sigma)) for step in plan.steps]
    checked = 0
    for i, start in enumerate(bases(plan)):
        step = plan.steps[i]
        if step.inner or step.order < order:
            continue
        ends = plan.steps[start].sigma, step.sigma_next
        x = step.state * 2.0 + dot(step.outputs, called[i::-1])
        assert x == pytest.approx(exact_step(schedule, algorithm, ends, 2.0, output), rel=1e-9)
        checked += 1
    assert checked >= 2


@algorithms
@schedules
def test_published_3m_is_not_exact_for_a_quadratic(
    schedule: NoiseSchedule, algorithm: Algorithm
) -> None:
    grid = grid_of(schedule)
    published = plan_multistep(grid, algorithm, 3, "taylor", "off").steps[4]
    exact = plan_multistep(grid, algorithm, 3, "exact", "off").steps[4]
    assert sum(published.outputs) == pytest.approx(sum(exact.outputs))
    assert published.outputs != pytest.approx(exact.outputs, rel=1e-3)


@schedules
@rising
def test_2m_weights_are_the_papers(rising: bool, schedule: NoiseSchedule) -> None:
    # DPM-Solver++, algorithm 2: D = (1 + 1 / (2 r)) x0 - 1 / (2 r) x0_before, r = h_before / h;
    # x_t = sigma_t / sigma_s x_s - alpha_t (e^-h - 1) D
    grid = grid_of(schedule, rising)
    for i, step in enumerate(plan_multistep(grid, "dpmsolver++", 2, "dpmsolver", "off").steps):
        h = grid.levels[i + 1].lambda_ - grid.levels[i].lambda_
        full = -schedule.alpha(step.sigma_next) * math.expm1(-h)
        assert step.state == pytest.approx(step.sigma_next / step.sigma, rel=1e-13)
        if i == 0:
            assert step.outputs == pytest.approx((full,), rel=1e-12)
        else:
            r = (grid.levels[i].lambda_ - grid.levels[i - 1].lambda_) / h
            expected = (full * (1 + 1 / (2 * r)), -full / (2 * r))
            assert step.outputs == pytest.approx(expected, rel=1e-12)


def test_dpm_solver_2_weights_are_the_papers() -> None:
    # DPM-Solver, algorithm 1, r1 = 1/2: u = alpha_m / alpha_s x - sigma_m (e^(h / 2) - 1) noise_s,
    # x_t = alpha_t / alpha_s x - sigma_t (e^h - 1) noise_m
    schedule = RectifiedFlow()
    sigmas = [schedule.sigma(lambda_) for lambda_ in (-1.0, -0.6, -0.2)]
    first, second = plan_singlestep(
        Grid.of(sigmas, schedule), "dpmsolver", 2, "dpmsolver", "fast"
    ).steps
    alphas = [schedule.alpha(sigma) for sigma in sigmas]
    assert first.inner
    assert not second.inner
    assert first.state == pytest.approx(alphas[1] / alphas[0])
    assert first.outputs == pytest.approx((-sigmas[1] * math.expm1(0.4),))
    assert second.state == pytest.approx(alphas[2] / alphas[0])
    assert second.outputs == pytest.approx((-sigmas[2] * math.expm1(0.8), 0.0), abs=1e-14)


# phi


def phi_reference(k: int, z: float) -> float:
    """sum_j z^j / (j + k)! with 120 digits."""
    with localcontext() as context:
        context.prec = 120
        term = total = Decimal(1) / math.factorial(k)
        j = 0
        while abs(term) > abs(total) * Decimal("1e-40"):
            j += 1
            term *= Decimal(z) / (j + k)
            total += term
        return float(total)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_phi_is_accurate_at_every_size_of_step(sign: float, k: int) -> None:
    sizes = [10.0**e for e in range(-8, 0)] + [0.5, 0.999, 1.0, 1.001, 2.0, 7.0, 20.0, 50.0]
    for z in (sign * size for size in sizes):
        assert phi(k, z) == pytest.approx(phi_reference(k, z), rel=1e-13), z


@pytest.mark.parametrize("k", [1, 2, 3])
def test_phi_at_zero_is_one_over_k_factorial(k: int) -> None:
    assert phi(k, 0.0) == 1 / math.factorial(k)


# schedules


@pytest.mark.parametrize("schedule", FALLING, ids=lambda s: type(s).__name__)
def test_sigma_inverts_lambda(schedule: NoiseSchedule) -> None:
    for sigma in (*FALLING[schedule], 1e-4, 0.999):
        assert schedule.sigma(schedule.lambda_(sigma)) == pytest.approx(sigma, rel=1e-13)
    assert schedule.lambda_(0.0) == math.inf


def test_lambda_is_half_the_log_snr_of_each_schedule() -> None:
    assert VarianceExploding().lambda_(5.0) == pytest.approx(-math.log(5.0))
    assert RectifiedFlow().lambda_(0.2) == pytest.approx(math.log(0.8 / 0.2))
    assert RectifiedFlow().lambda_(1.0) == -math.inf


@pytest.mark.parametrize("sigma_min", [0.0, -1.0, math.nan, 1.0])
def test_schedule_refuses_an_impossible_sigma_min(sigma_min: float) -> None:
    with pytest.raises(ValueError, match=r"sigma_min.*\.$"):
        RectifiedFlow(sigma_min)


# groups and orders


@pytest.mark.parametrize(
    ("intervals", "order", "grouping", "sizes"),
    [
        (9, 3, "fast", [3, 3, 2, 1]),
        (10, 3, "fast", [3, 3, 3, 1]),
        (11, 3, "fast", [3, 3, 3, 2]),
        (3, 3, "fast", [2, 1]),
        (2, 3, "fast", [2]),
        (1, 3, "fast", [1]),
        (6, 2, "fast", [2, 2, 2]),
        (7, 2, "fast", [2, 2, 2, 1]),
        (3, 1, "fast", [1, 1, 1]),
        (9, 3, "fixed", [3, 3, 3]),
        (10, 3, "fixed", [3, 3, 3, 1]),
        (11, 3, "fixed", [3, 3, 3, 2]),
        (7, 2, "fixed", [2, 2, 2, 1]),
        (0, 3, "fast", []),
        (0, 3, "fixed", []),
    ],
)
def test_group_sizes(intervals: int, order: int, grouping: str, sizes: list[int]) -> None:
    assert group_sizes(intervals, order, grouping) == sizes


@pytest.mark.parametrize("zero", [(), (0.0,)], ids=["above zero", "final zero"])
@pytest.mark.parametrize("intervals", range(1, 13))
def test_groups_cover_the_intervals_above_zero(intervals: int, zero: tuple[float, ...]) -> None:
    sigmas = (*(10.0 / (i + 1) for i in range(intervals + 1)), *zero)
    plan = plan_singlestep(Grid.of(sigmas, VarianceExploding()), "dpmsolver++", 3, "taylor", "fast")
    orders = [step.order for step in plan.steps if not step.inner]
    assert orders == group_sizes(intervals, 3, "fast") + [1] * len(zero)


@pytest.mark.parametrize("zero", [(), (0.0,)], ids=["above zero", "final zero"])
@pytest.mark.parametrize("kind", ["dpmsolver", "taylor"])
@pytest.mark.parametrize(
    ("intervals", "lowering", "orders"),
    [
        (6, "off", [1, 2, 3, 3, 3, 3]),
        (6, "on", [1, 2, 3, 3, 2, 1]),
        (6, "auto", [1, 2, 3, 3, 2, 1]),
        (9, "auto", [1, 2, 3, 3, 3, 3, 3, 2, 1]),
        (10, "auto", [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]),
        (10, "on", [1, 2, 3, 3, 3, 3, 3, 3, 2, 1]),
        (3, "auto", [1, 2, 1]),
        (2, "auto", [1, 1]),
        (1, "auto", [1]),
    ],
)
def test_the_kth_interval_from_the_end_has_at_most_order_k_when_lowered(
    intervals: int, lowering: str, orders: list[int], kind: str, zero: tuple[float, ...]
) -> None:
    sigmas = (*(10.0 / (i + 1) for i in range(intervals + 1)), *zero)
    plan = plan_multistep(Grid.of(sigmas, VarianceExploding()), "dpmsolver++", 3, kind, lowering)
    assert [step.order for step in plan.steps] == orders + [1] * len(zero)


@pytest.mark.parametrize("lowering", ["on", "off"])
@pytest.mark.parametrize("intervals", range(1, 7))
def test_exact_3m_starts_with_a_second_order_group_where_lowering_leaves_room(
    intervals: int, lowering: str
) -> None:
    sigmas = [10.0 * 0.65**i for i in range(intervals + 1)]
    plan = plan_multistep(Grid.of(sigmas, VarianceExploding()), "dpmsolver", 3, "exact", lowering)
    assert len(plan.steps) == intervals
    room = intervals >= (3 if lowering == "on" else 2)
    assert [step.inner for step in plan.steps] == [room] + [False] * (intervals - 1)
    for k, step in enumerate(reversed(plan.steps), 1):
        assert step.order <= (k if lowering == "on" else 3)


# plans as data


@pytest.mark.parametrize("name", PLANS)
@algorithms
def test_plans_are_frozen_python_floats(algorithm: Algorithm, name: str) -> None:
    grid = Grid.of((*FALLING[VarianceExploding()], 0.0), VarianceExploding())
    plan = PLANS[name](grid, algorithm)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.steps = ()  # type: ignore[misc]
    for step in plan.steps:
        with pytest.raises(AttributeError):
            step.state = 0.0  # type: ignore[misc]
        numbers = (step.sigma, step.sigma_next, step.state, *step.outputs, *step.prediction)
        assert all(type(number) is float and math.isfinite(number) for number in numbers)
    assert isinstance(plan.steps, tuple)
    assert all(isinstance(step.outputs, tuple) for step in plan.steps)


def test_equal_settings_give_equal_plans_and_others_do_not() -> None:
    grid = grid_of(VarianceExploding())
    plans = {name: weights(grid, "dpmsolver++") for name, weights in PLANS.items()}
    assert all(weights(grid, "dpmsolver++") == plans[name] for name, weights in PLANS.items())
    assert plans["multistep-taylor-2"] == plans["multistep-exact-2"]
    assert plans["multistep-taylor-2"] != plans["multistep-dpmsolver-2"]


def test_a_printed_plan_has_one_row_per_call() -> None:
    plan = plan_singlestep(grid_of(VarianceExploding()), "dpmsolver++", 3, "taylor", "fixed")
    _, *rows = str(plan).splitlines()
    assert [int(row.split()[0]) for row in rows] == list(range(len(plan.steps)))
    assert [float(row.split()[1]) for row in rows] == [step.sigma for step in plan.steps]


def test_memory_is_what_the_longest_step_needs() -> None:
    grid = grid_of(VarianceExploding())
    assert [plan_multistep(grid, "dpmsolver", n, "taylor", "off").memory for n in (1, 2, 3)] == [
        1,
        2,
        3,
    ]
    assert Plan(()).memory == 0


# correctors


@schedules
@algorithms
@rising
@pytest.mark.parametrize("order", [1, 2, 3])
def test_corrections_keep_the_sum_rules(
    schedule: NoiseSchedule, algorithm: Algorithm, order: int, rising: bool
) -> None:
    """What is constant along the way stays: on VE, x0 and x alike."""
    plan = plan_multistep(
        grid_of(schedule, rising), algorithm, order, "taylor", "off", corrector=True
    )
    assert [step.correction is not None for step in plan.steps] == [False] + [True] * 6
    before = plan.steps[0].sigma
    for made, step in zip(plan.steps, plan.steps[1:], strict=False):
        assert step.correction is not None
        weights = step.correction
        assert len(weights.outputs) == made.order + 1
        start, end = (schedule.alpha(sigma) for sigma in (before, step.sigma))
        if algorithm == "dpmsolver++":
            total = weights.state * start + sum(weights.outputs)
            assert total == pytest.approx(end, abs=1e-12)
        else:
            total = weights.state * before + sum(weights.outputs)
            assert total == pytest.approx(step.sigma, abs=1e-12)
            assert weights.state == pytest.approx(end / start, rel=1e-12)
        before = step.sigma


def test_a_correction_is_the_step_with_the_new_output_known() -> None:
    """Of order 2 on VE: UniC's integral of the line through the outputs at both ends."""
    sigmas = (5.0, 2.0, 1.0)
    plan = plan_multistep(
        Grid.of(sigmas, VarianceExploding()), "dpmsolver++", 1, "exact", "off", corrector=True
    )
    (correction,) = [step.correction for step in plan.steps if step.correction]
    h = math.log(5.0 / 2.0)
    newest, _ = quad(lambda tau: math.exp(tau - h) * tau / h, 0.0, h)
    base, _ = quad(lambda tau: math.exp(tau - h) * (1.0 - tau / h), 0.0, h)
    assert correction.state == pytest.approx(2.0 / 5.0)
    assert correction.outputs == pytest.approx((newest, base), abs=1e-12)


@pytest.mark.parametrize("schedule", FALLING, ids=lambda s: type(s).__name__)
def test_drive_corrects_as_unic_of_order_2_in_a_few_lines(schedule: NoiseSchedule) -> None:
    sigmas = FALLING[schedule]

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / (1.0 + sigma[:, None] ** 2))

    def step(
        x: torch.Tensor, start: float, end: float, nodes: list[tuple[float, torch.Tensor]]
    ) -> torch.Tensor:
        """x from start to end with x0 the line (or constant) through the nodes in lambda_."""
        h = schedule.lambda_(end) - schedule.lambda_(start)
        constant, slope = nodes[0][1], torch.zeros_like(x)
        if len(nodes) > 1:
            (first, a), (second, b) = nodes
            slope = (b - a) / (schedule.lambda_(second) - schedule.lambda_(first))
            constant = a + slope * (schedule.lambda_(start) - schedule.lambda_(first))
        flat, rising = 1.0 - math.exp(-h), h - 1.0 + math.exp(-h)
        return end / start * x + schedule.alpha(end) * (flat * constant + rising * slope)

    x = base = torch.linspace(-9.0, 9.0, 12, dtype=torch.float64).reshape(2, 6)
    corrected, last = base, None
    for sigma, after in itertools.pairwise(sigmas):
        output = model(x, x.new_full((2,), sigma))
        if last is not None:  # x was made from `base` at the sigma of `last`
            corrected = step(base, last[0], sigma, [last, (sigma, output)])
        base, last = corrected, (sigma, output)
        x = step(base, sigma, after, [last])  # the predictor has order 1
    ours = sample_multistep(
        model,
        torch.linspace(-9.0, 9.0, 12, dtype=torch.float64).reshape(2, 6),
        sigmas,
        disable=True,
        order=1,
        corrector="unic",
        schedule=schedule,
    )
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


def test_no_correction_where_there_is_nothing_to_correct() -> None:
    """A repeated sigma stays a call of its own; an only step has no state before it."""
    schedule = VarianceExploding()
    repeated = Grid.of((9.0, 4.0, 4.0, 1.0, 0.0), schedule)
    steps = plan_multistep(repeated, "dpmsolver++", 2, "exact", "off", corrector=True).steps
    assert [step.sigma for step in steps] == [9.0, 4.0, 4.0, 1.0]
    assert [step.correction is not None for step in steps] == [False, False, True, True]
    assert steps[1].outputs == () and steps[2].correction
    assert steps[2].correction.outputs[1] == 0.0
    only = plan_multistep(Grid.of((9.0, 0.0), schedule), "adams", 4, "exact", "off", corrector=True)
    assert only.steps[0].correction is None


# Adams' polynomials in a power of sigma

POWERS = [2.0, 1.0, 0.3, 1e-3, 0.0, -0.4, -2.0]


@schedules
@rising
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("power", POWERS)
def test_adams_integrates_polynomials_in_its_power_of_sigma(
    power: float, order: int, rising: bool, schedule: NoiseSchedule
) -> None:
    """A step and a correction alike, for every degree below the number of their outputs."""
    grid = grid_of(schedule, rising)
    steps = plan_multistep(grid, "adams", order, "exact", "off", corrector=True, power=power).steps

    def slope(degree: int, sigma: float) -> float:
        return float((math.log(sigma) if power == 0.0 else sigma**power) ** degree)

    def assert_exact(outputs: tuple[float, ...], i: int, ends: tuple[int, int]) -> None:
        start, end = (grid.levels[j].sigma for j in ends)
        for degree in range(len(outputs)):
            known = [slope(degree, grid.levels[i - age].sigma) for age in range(len(outputs))]
            exact, _ = quad(lambda s, d=degree: slope(d, s), start, end, epsabs=0.0, epsrel=1e-11)
            scale = sum(abs(w * m) for w, m in zip(outputs, known, strict=True))
            assert dot(outputs, known) == pytest.approx(exact, abs=1e-10 * scale)

    for i, step in enumerate(steps):
        assert step.state == 1.0 and len(step.outputs) == step.order == min(i + 1, order)
        assert_exact(step.outputs, i, (i, i + 1))
        if step.correction:
            assert step.correction.state == 1.0
            assert len(step.correction.outputs) == steps[i - 1].order + 1
            assert_exact(step.correction.outputs, i, (i - 1, i))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_adams_in_log_sigma_is_dpm_solver_on_variance_exploding(order: int) -> None:
    grid = grid_of(VarianceExploding())
    adams, noise = (
        plan_multistep(grid, algorithm, order, "exact", "off", power=power).steps[-1]
        for algorithm, power in (("adams", 0.0), ("dpmsolver", 1.0))
    )
    assert adams.outputs == pytest.approx(noise.outputs, rel=1e-12)
    assert (adams.state, adams.prediction) == (noise.state, noise.prediction)


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "dpmsolver", "power": 0.5},
        {"algorithm": "adams", "power": 2.5},
        {"algorithm": "adams", "power": math.nan},
    ],
    ids=["another algorithm", "too high", "nan"],
)
def test_a_power_out_of_place_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="power"):
        sample_multistep(lambda x, sigma: x, torch.ones(1, 2), [2.0, 1.0], **settings)  # type: ignore[arg-type]
