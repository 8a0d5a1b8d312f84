"""The recommended sampler: its row by calls and kind, its sigmas, and what it runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dpm_solver_nodes.benchmarks.problems import PROCESSES, Problem, Process
from dpm_solver_nodes.benchmarks.problems.problems import digits, fields
from dpm_solver_nodes.lab.metrics import distance
from dpm_solver_nodes.samplers import (
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    sample_multistep,
)
from dpm_solver_nodes.samplers.grid import Grid
from dpm_solver_nodes.samplers.options import Options
from dpm_solver_nodes.samplers.sample import sample, sample_recommended
from dpm_solver_nodes.samplers.solvers import recommended
from dpm_solver_nodes.samplers.solvers.any_list import plan_list
from dpm_solver_nodes.samplers.solvers.multistep import Multistep
from dpm_solver_nodes.samplers.solvers.recommended import Recommended
from dpm_solver_nodes.samplers.solvers.recommended_lists import later_sigmas, recommended_sigmas
from dpm_solver_nodes.samplers.solvers.recommended_parts import Part, part_of
from dpm_solver_nodes.samplers.solvers.rows import (
    KINDS,
    LARGEST,
    ROWS_KEPT,
    SIZES,
    SMALLEST,
    kind_of,
    levels_of_row,
    positions_of,
    row_of,
    rows,
    share_of,
)
from dpm_solver_nodes.tests.support.mixture import Mixture, difference, start

VE, FLOW = VarianceExploding(), RectifiedFlow()
both_kinds = pytest.mark.parametrize("schedule", [VE, FLOW], ids=["diffusion", "flow"])
RANGES = {
    "SD": (VE, 14.6146, 0.0292),
    "EDM": (VE, 80.0, 0.002),
    "zsnr": (VE, 4518.0, 0.0292),
    "cascade": (VE, 500.0, 0.01),
    "flow 1": (FLOW, 1.0, 0.001),
    "flow 3": (FLOW, 1.0, 0.003),
    "flow 12": (FLOW, 1.0, 0.0119),
    "flow below 1": (FLOW, 0.999, 0.0005),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_a_solver(kind: str, size: str) -> None:
    for calls, row in rows(kind, size).items():
        assert row.calls == len(row.slope) == len(row.curvature) == calls
        assert all(later < sooner for sooner, later in itertools.pairwise(row.s))
        assert all(map(math.isfinite, (*row.slope, *row.curvature)))
        assert row.slope[0] == 0.0 and row.curvature[:2] == (0.0, 0.0)


@pytest.mark.parametrize(("schedule", "first", "last"), RANGES.values(), ids=RANGES)
def test_sigmas_fall_from_the_first_to_zero(
    schedule: NoiseSchedule, first: float, last: float
) -> None:
    for calls, positions in itertools.product(range(1, 61), (SMALLEST, 400, LARGEST)):
        sigmas = recommended_sigmas(schedule, first, last, calls, positions)
        assert len(sigmas) == calls + 1
        assert sigmas[0] == first and sigmas[-1] == 0.0
        assert all(a > b for a, b in itertools.pairwise(sigmas))
        assert sigmas[-2] >= last * (1.0 - 1e-9)


@pytest.mark.parametrize(("schedule", "first", "last"), RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("calls", [1, 2, 3, 5, 8, 11, 20, 33, 60])
def test_a_constant_image_is_reached_exactly(
    schedule: NoiseSchedule, first: float, last: float, calls: int
) -> None:
    """The weights of each step leave such an image where it is: they sum to what alpha says."""
    plan = Recommended().plan(Grid.of(recommended_sigmas(schedule, first, last, calls), schedule))
    assert len(plan.steps) == calls
    for step in plan.steps:
        before, after = schedule.alpha(step.sigma), schedule.alpha(step.sigma_next)
        assert after == pytest.approx(step.state * before + sum(step.outputs), abs=1e-12)
        assert step.state * step.sigma == pytest.approx(step.sigma_next, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in RANGES if name != "flow below 1"])
@pytest.mark.parametrize("calls", [3, 5, 8, 11, 20, 33, 60])
def test_its_own_sigmas_are_known_again_whole_and_in_parts(name: str, calls: int) -> None:
    schedule, first, last = RANGES[name]
    schedule = replace(schedule, sigma_min=last)
    own = torch.tensor(recommended_sigmas(schedule, first, last, calls), dtype=torch.float32)
    whole = part_of(Grid.of(own, schedule))
    assert whole == Part(row_of(kind_of(schedule, first), calls), 0, True)
    middle = calls // 2
    head = part_of(Grid.of(own[: middle + 1], schedule))
    if middle > 2:  # the first few sigmas of neighbouring numbers of calls may be the same places
        assert head is not None and (head.row.calls, head.first) == (calls, 0)
    if calls > 5 and not squeezed(schedule, first, calls):
        tail = part_of(Grid.of(own[middle:], schedule))
        assert tail is not None and (tail.row.calls, tail.first) == (calls, middle)


@pytest.mark.parametrize("name", [name for name in RANGES if name != "flow below 1"])
@pytest.mark.parametrize("calls", [1, 2, 3, 10, 60])
@pytest.mark.parametrize("left", [0.95, 0.5, 0.01])
def test_a_list_from_a_later_start(name: str, calls: int, left: float) -> None:
    """It falls, is known again, and leaves a constant image where it is."""
    schedule, top, low = RANGES[name]
    schedule = replace(schedule, sigma_min=low)
    start = low * (top / low) ** left if schedule == VE else max(left, 1.5 * low)
    own = later_sigmas(schedule, start, low, calls, LARGEST)
    assert len(own) == calls + 1 and own[0] == start and own[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(own))
    grid = Grid.of(torch.tensor(own, dtype=torch.float32), schedule)
    part = part_of(grid)
    if calls > 2:
        assert part is not None and part.row.calls - part.first == calls
    plan = Recommended().plan(grid)
    for step in plan.steps:
        before, after = schedule.alpha(step.sigma), schedule.alpha(step.sigma_next)
        assert after == pytest.approx(step.state * before + sum(step.outputs), abs=1e-12)
    assert [len(step.outputs) for step in plan.steps[:3]] == [1, 2, 3][:calls]


def test_later_lists_change_little_with_their_start() -> None:
    """No jump where another row has the calls: so images change smoothly with the denoise."""
    starts = [0.5 + 0.002 * i for i in range(150)]
    lists = [later_sigmas(FLOW, start, 0.003, 10, LARGEST) for start in starts]
    for before, after in itertools.pairwise(lists):
        moved = max(abs(math.log(a / b)) for a, b in zip(after[:-1], before[:-1], strict=True))
        assert moved < 0.2


def squeezed(schedule: NoiseSchedule, first: float, calls: int) -> bool:
    """Whether the model's range is too narrow for the row, so that a part can't be told again."""
    second = row_of(kind_of(schedule, first), calls).s[1]
    return first < schedule.sigma_limit and second * schedule.alpha(first) >= first


def test_parts_of_a_run_take_the_same_steps_as_the_whole() -> None:
    """But for the end of a run by itself: it lacks the outputs from before it."""
    sigmas = recommended_sigmas(FLOW, 1.0, 0.003, 12)
    whole = Recommended().plan(Grid.of(sigmas, FLOW)).steps
    assert Recommended().plan(Grid.of(sigmas[:7], FLOW)).steps == whole[:6]
    assert Recommended().plan(Grid.of(sigmas[2:9], FLOW)).steps[2:] == whole[4:8]
    later = Recommended().plan(Grid.of(sigmas[6:], FLOW)).steps
    assert [len(step.outputs) for step in later[:3]] == [1, 2, 3]


@both_kinds
def test_parts_of_a_list_for_large_images_run_on_small_ones(schedule: NoiseSchedule) -> None:
    """Their sigmas don't lie between those of the small image's row."""
    ends = (1.0, 0.003) if schedule == FLOW else (14.6, 0.0292)
    schedule = replace(schedule, sigma_min=ends[1])
    sigmas = recommended_sigmas(schedule, *ends, 12)
    for k in range(1, 12):
        for part in (sigmas[: k + 1], sigmas[k:], sigmas[k : k + 4]):
            plan = Recommended(positions=200).plan(Grid.of(part, schedule))
            assert all(abs(w) < 5.0 for step in plan.steps for w in step.outputs), (k, part)


def test_a_small_image_has_rows_of_its_own() -> None:
    """Its weights are taken on its own list and on the one that hosts make for large images."""
    schedule = replace(FLOW, sigma_min=0.003)
    share = share_of(16 * 16)
    row = row_of("flow", 12, share)
    for positions in (16 * 16, LARGEST):
        grid = Grid.of(recommended_sigmas(schedule, 1.0, 0.003, 12, positions), schedule)
        assert part_of(grid, share) == Part(row, 0, True)
    assert row.s[1] < row_of("flow", 12).s[1]
    assert Recommended(positions=256).plan(grid) != Recommended().plan(grid)
    assert "small images (256 positions)" in Recommended(positions=256).describe(grid)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_sees_the_levels_of_the_rows(kind: str) -> None:
    for calls, share in itertools.product((1, 2, 7, 17, 31, 200), (0.0, 0.37, 1.0)):
        expected = [math.log(s) for s in row_of(kind, calls, share).s]
        assert levels_of_row(kind, calls, share) == pytest.approx(expected, abs=1e-9)


@both_kinds
def test_many_sizes_of_images_fill_no_memory(schedule: NoiseSchedule) -> None:
    """As crops and tiles have them."""
    grid = Grid.of([*torch.logspace(-0.1, -1.4, 12).tolist(), 0.0], schedule)
    for positions in range(70, 100):
        Recommended(positions=positions).plan(grid)
    assert row_of.cache_info().currsize <= ROWS_KEPT


def test_the_size_of_an_image() -> None:
    assert [share_of(n * n) for n in (1, 8, 64, 160)] == [0.0, 0.0, 1.0, 1.0]
    assert share_of(16 * 16) == pytest.approx(1.0 / 3.0)
    shapes = [(2, 4, 64, 32), (1, 16, 5, 8, 8), (3, 2, 7), (2, 30)]
    assert list(map(positions_of, shapes)) == [2048, 320, 7, 30]


def whole_times() -> torch.Tensor:
    """The sigmas of Stable Diffusion's times."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1.0 - betas).cumprod(0)
    return ((1.0 - kept) / kept).sqrt()


@pytest.mark.parametrize("positions", [64, 256, LARGEST])
@pytest.mark.parametrize("time", [200, 300, 400, 500, 600, 750, 900])
def test_later_lists_that_a_host_moved_to_whole_times_are_known_again(
    time: int, positions: int
) -> None:
    table = whole_times()
    schedule = VarianceExploding(float(table[0]))
    for calls in range(4, 26):
        own = later_sigmas(schedule, float(table[time - 1]), float(table[0]), calls, positions)
        logs = torch.tensor(own[:-1], dtype=torch.float64).log()
        moved = table[(table.log() - logs[:, None]).abs().argmin(1)].tolist()
        if len(set(moved)) < calls:  # hosts then leave them
            continue
        part = part_of(Grid.of([*moved, 0.0], schedule), share_of(positions))
        assert part is not None and part.later and part.whole, calls


def test_sigmas_that_a_host_moved_to_whole_times_are_known_again() -> None:
    table = whole_times()
    schedule = VarianceExploding(float(table[0]))
    for calls in (5, 8, 12, 20, 30):
        own = recommended_sigmas(schedule, float(table[-1]), float(table[0]), calls)
        nearest = [
            float(table[(table.log() - math.log(sigma)).abs().argmin()]) for sigma in own[:-1]
        ]
        part = part_of(Grid.of([*nearest, 0.0], schedule))
        assert part is not None and (part.row.calls, part.first) == (calls, 0)


@pytest.mark.parametrize(
    ("schedule", "sigmas"),
    [
        (VE, (0.0281, 0.0075, 0.0)),
        (VarianceExploding(0.0292), (0.1548, 0.0656, 0.0)),
        (RectifiedFlow(0.003), (0.0409, 0.0149, 0.0)),
        (RectifiedFlow(0.003), (0.2727, 0.1351, 0.0)),
        (VarianceExploding(0.002), (0.79, 0.48, 0.23, 0.002)),
        (VarianceExploding(0.0292), (14.43, 14.25, 10.6)),
    ],
)
def test_the_end_of_another_list_is_no_run_of_its_own(
    schedule: NoiseSchedule, sigmas: tuple[float, ...]
) -> None:
    """Its gains are for a first step from noise, and for steps as long as the row's."""
    grid = Grid.of(sigmas, schedule)
    part = part_of(grid)
    assert part is None or part.later or part.first > 0
    for step in Recommended().plan(grid).steps:
        assert sum(map(abs, step.outputs)) < 6.0


@both_kinds
def test_lists_that_are_not_its_own(schedule: NoiseSchedule) -> None:
    even = [1.0 - i / 14 for i in range(14)]
    lists = [[*even, 0.0], [*[14.6 * (0.03 / 14.6) ** (i / 19) for i in range(20)], 0.0]]
    grid = Grid.of(lists[schedule == VE], schedule)
    assert part_of(grid) is None
    assert Recommended().plan(grid) == plan_list(grid)
    rising = Grid.of(recommended_sigmas(schedule, 0.99, 0.01, 10)[-2::-1], schedule)
    assert part_of(rising) is None
    assert Recommended().plan(rising) == plan_list(rising)


@pytest.mark.parametrize(("sigma_max", "sigma_min"), [(1.0, 0.0), (0.0, 0.0), (5e-324, 17.0)])
def test_a_range_without_steps_is_refused(sigma_max: float, sigma_min: float) -> None:
    with pytest.raises(ValueError, match=r"no steps lie between them: check the node that sets"):
        recommended_sigmas(FLOW, sigma_max, sigma_min, 8)


def test_what_it_takes_is_said_in_words() -> None:
    def said(sigmas: list[float]) -> str:
        return Recommended().describe(Grid.of(sigmas, FLOW))

    own = recommended_sigmas(FLOW, 1.0, 0.003, 12)
    assert said(own) == "flow model, 12 calls: its own sigmas and weights"
    assert said(own[6:]) == "flow model, 6 calls: calls 7 to 12 of 12 of its own sigmas and weights"
    one_step = recommended_sigmas(FLOW, 1.0, 0.003, 1)
    assert said(one_step) == "flow model, 1 calls: its own sigmas and weights"
    later = later_sigmas(FLOW, 0.75, 0.003, 10, LARGEST)
    assert said(later) == "flow model, 10 calls from sigma 0.75: its own sigmas and weights"
    assert "on other sigmas than its own" in said([1.0, 0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize("calls", [5, 10])
def test_the_function_calls_the_model_once_at_each_sigma(calls: int) -> None:
    sigmas = recommended_sigmas(VE, 14.6, 0.03, calls)
    seen: list[int] = []
    model = Mixture()
    ours = sample_recommended(
        model, start(), sigmas, callback=lambda report: seen.append(report["i"]), disable=True
    )
    assert model.sigmas == sigmas[:-1] and seen == list(range(calls))
    theirs = sample_multistep(Mixture(), start(), sigmas, disable=True)
    assert difference(ours, theirs) > 0.0


def test_without_a_schedule_it_is_diffusion() -> None:
    sigmas = recommended_sigmas(VE, 14.6, 0.03, 8)
    results = [
        sample_recommended(Mixture(), start(), sigmas, disable=True, schedule=schedule)
        for schedule in (None, VE)
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize("sigmas", [[], [1.0, 2.0, 0.5], [1.0, -1.0]])
def test_lists_that_lead_nowhere_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="sigma"):
        sample_recommended(Mixture(), start(), sigmas, disable=True)


def test_one_sigma_gives_the_start_back() -> None:
    assert torch.equal(sample_recommended(Mixture(), start(), [14.6], disable=True), start())


SEEN = 2e-3
"""Smaller errors are not seen."""

MODELS = [fields((24, 24), 2.3, 6.0, 3), digits(0.3, 5.0, 3)]
"""Exact ones, that are in no fit."""


def denoiser(problem: Problem, process: Process) -> Callable[..., torch.Tensor]:
    def model(x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        alpha = process.alpha(float(sigma[0]))
        return problem.model(x / alpha, float(sigma[0]) / alpha)

    return model


@pytest.mark.parametrize("name", ["sd", "edm", "flow3", "flow12"])
@pytest.mark.parametrize("problem", MODELS, ids=str)
def test_more_calls_come_closer(problem: Problem, name: str) -> None:
    process = PROCESSES[name]
    schedule = process.schedule
    top = process.alpha(process.sigma_max)
    start = process.start(problem.noise())
    solution = problem.solve(start, process.s_max, process.s_min, 300)

    model = denoiser(problem, process)

    def off(calls: int) -> float:
        ends = process.sigma_max, process.sigma_min
        sigmas = recommended_sigmas(schedule, *ends, calls, problem.positions)
        options = Recommended(positions=problem.positions)
        images = sample(options, model, start * top, sigmas, disable=True, schedule=schedule)
        return distance(images, solution)

    distances = [off(calls) for calls in (3, 5, 8, 10, 12, 20, 30)]
    for sooner, later in itertools.pairwise(distances):
        assert later < max(1.1 * sooner, SEEN), distances
    assert distances[-1] < 0.02 * distances[0], distances
    for calls in (18, 21, 23, 26, 28, 45):
        assert off(calls) < max(1.6 * distances[-2], SEEN), (calls, distances)


@pytest.mark.parametrize("calls", [12, 16, 20])
def test_the_end_of_a_run_does_without_the_outputs_before_it(
    calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of half a list each come closer than with the gains that the whole run has there."""
    problem, process = MODELS[0], PROCESSES["flow3"]
    schedule, model = process.schedule, denoiser(MODELS[0], process)
    start = process.start(problem.noise())
    solution = problem.solve(start, process.s_max, process.s_min, 300)
    sigmas = recommended_sigmas(schedule, 1.0, process.sigma_min, calls, problem.positions)

    def off() -> float:
        x = start * process.alpha(1.0)
        for part in (sigmas[: calls // 2 + 1], sigmas[calls // 2 :]):
            options = Recommended(positions=problem.positions)
            x = sample(options, model, x, part, disable=True, schedule=schedule)
        return distance(x, solution)

    suited = off()
    monkeypatch.setattr(recommended, "DECIDED", 0.0)
    assert suited < 0.8 * off()


@pytest.mark.parametrize("s", [0.5, 1.61, 2.2, 7.0])
@pytest.mark.parametrize("name", ["sd", "flow3", "flow12"])
@pytest.mark.parametrize("problem", MODELS, ids=str)
def test_from_a_later_start_it_is_closer_than_2m(problem: Problem, name: str, s: float) -> None:
    """From the same start, on Karras' spacing; and more calls come closer."""
    process = PROCESSES[name]
    schedule, low = process.schedule, process.sigma_min
    start = process.sigma(s)
    image = problem.solve(process.start(problem.noise()), process.s_max, process.s_min, 300)
    z = image + s * problem.noise().roll(1, 0)
    x, solution = process.alpha(start) * z, problem.solve(z, s, process.s_min, 300)
    model = denoiser(problem, process)

    def off(options: Options, sigmas: list[float]) -> float:
        made = sample(options, model, x, sigmas, disable=True, schedule=schedule)
        return distance(made, solution)

    def ours(calls: int) -> float:
        own = later_sigmas(schedule, start, low, calls, problem.positions)
        return off(Recommended(positions=problem.positions), own)

    def theirs(calls: int) -> float:
        ends = s ** (1.0 / 7.0), process.s_min ** (1.0 / 7.0)
        spaced = [(ends[0] + (ends[1] - ends[0]) * i / (calls - 1)) ** 7 for i in range(1, calls)]
        return off(Multistep(), [start, *map(process.sigma, spaced), 0.0])

    distances = [ours(calls) for calls in (5, 8, 12, 20, 30)]
    for calls, found in zip((5, 8, 12, 20), distances, strict=False):
        assert found < max(theirs(calls), SEEN / 10.0), calls
    for sooner, later in itertools.pairwise(distances):
        assert later < max(1.1 * sooner, SEEN / 10.0), distances
    for calls in (7, 9, 13, 18, 25, 40):
        bound = max(one for n, one in zip((5, 8, 12, 20, 30), distances, strict=True) if n < calls)
        assert ours(calls) < max(1.25 * bound, SEEN / 10.0), calls
