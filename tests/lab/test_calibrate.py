"""Calibration without a host: what it finds, what it costs, what it keeps, and its files."""

from __future__ import annotations

import itertools
import json
import math
import weakref
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpm_solver_nodes.benchmarks.digits import FLOW_SHIFT, denoiser, noise
from dpm_solver_nodes.benchmarks.overhead import Alive
from dpm_solver_nodes.lab.calibration import calibrate, cost, files, fit, surrogate, teacher
from dpm_solver_nodes.lab.calibration.model import Model, NotFiniteError
from dpm_solver_nodes.lab.calibration.teacher import POINTS, TEACHER, teacher_sigmas
from dpm_solver_nodes.lab.metrics import Meter, distance
from dpm_solver_nodes.samplers import (
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    sample_multistep,
)
from dpm_solver_nodes.samplers.grid import Grid
from dpm_solver_nodes.samplers.plan import Weights
from dpm_solver_nodes.samplers.sample import sample_calibrated, sample_recommended
from dpm_solver_nodes.samplers.schedules.sigma_lists import log_snr
from dpm_solver_nodes.samplers.solvers.fitted import (
    POWER,
    Calibration,
    Fitted,
    exact_weights,
)
from dpm_solver_nodes.samplers.solvers.recommended_lists import recommended_sigmas
from dpm_solver_nodes.tests.support.like_mps import LikeMPS, only_waiting_copies
from dpm_solver_nodes.tests.support.plans import plan_multistep

VE, FLOW = VarianceExploding(), RectifiedFlow()
CALLS, SEEDS, HELD_OUT = 6, 8, 6
ENDS = {VE: (14.6146, 0.0292), FLOW: (1.0, FLOW_SHIFT / (1000.0 + FLOW_SHIFT - 1.0))}
LISTS = teacher.refinements(teacher_sigmas(VE, *ENDS[VE]))
TEACHER_CALLS = (SEEDS + HELD_OUT) * (len(LISTS[0]) + len(LISTS[1]))
TRIAL, CHECK = SEEDS * CALLS, 3 * HELD_OUT * CALLS
BUDGET = TEACHER_CALLS + CHECK + 20 * TRIAL
both_kinds = pytest.mark.parametrize("schedule", [VE, FLOW], ids=["diffusion", "flow"])


class Interrupt(BaseException):
    pass


def starts(schedule: NoiseSchedule, images: int, seed: int = 0) -> torch.Tensor:
    sigma = ENDS[schedule][0]
    return noise(images, seed) * (math.hypot(sigma, 1.0) if schedule == VE else sigma)


def rivals(calls: int = CALLS, schedule: NoiseSchedule = VE) -> dict[str, calibrate.Rival]:
    own = recommended_sigmas(schedule, *ENDS[schedule], calls)
    even = [*log_snr(schedule, *ENDS[schedule], calls - 1, 0.95), 0.0]
    given: dict[str, Any] = {"schedule": schedule, "disable": True}
    return {
        "recommended": lambda model, x: sample_recommended(model, x, own, **given),
        "2M": lambda model, x: sample_multistep(model, x, even, **given),
    }


def run(
    schedule: NoiseSchedule, model: Any = None, calls: int = CALLS, **settings: Any
) -> calibrate.Result:
    asked = settings_of(schedule, [calls], **settings)
    return results(asked, [model or denoiser(schedule == FLOW, guidance=2.0, classes=[3])])[0]


def settings_of(
    schedule: NoiseSchedule, calls: Sequence[int], **settings: Any
) -> calibrate.Settings:
    given = {"budget": BUDGET, "batch": 8, **settings}
    return calibrate.Settings(schedule, teacher_sigmas(schedule, *ENDS[schedule]), calls, **given)


def results(asked: calibrate.Settings, models: Sequence[Any]) -> tuple[calibrate.Result, ...]:
    schedule = asked.schedule
    return calibrate.calibrate(
        models,
        starts(schedule, SEEDS),
        starts(schedule, HELD_OUT, seed=1),
        partial(rivals, schedule=schedule),
        asked,
    )


class Counted:
    """A model that counts the images of its calls, and raises where it is told to."""

    def __init__(self, schedule: NoiseSchedule = VE, stop: float = math.inf) -> None:
        self.model = denoiser(schedule == FLOW, guidance=2.0, classes=[3])
        self.stop, self.meter = stop, Meter()
        self.batches: list[int] = []

    @property
    def images(self) -> int:
        return self.meter.images

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert sigma.shape == x.shape[:1] and len(set(sigma.tolist())) == 1
        self.meter(len(x))
        self.batches.append(len(x))
        if self.images > self.stop:
            raise Interrupt
        return self.model(x, sigma)


@cache
def result(schedule: NoiseSchedule) -> calibrate.Result:
    return run(schedule)


# --- what it finds -------------------------------------------------------------------------------


@both_kinds
def test_it_is_by_far_closer_on_noises_it_has_not_seen(schedule: NoiseSchedule) -> None:
    found, best = result(schedule)
    errors = found.fitted.errors
    assert best == calibrate.CALIBRATED == min(errors, key=errors.__getitem__)
    assert list(errors) == ["calibrated", "recommended", "2M"]
    assert errors["calibrated"] < 0.7 * errors["recommended"]
    assert errors["calibrated"] < 0.3 * errors["2M"]
    # Others again, of another class, and with another guidance.
    for digit, guidance in ((3, 2.0), (8, 2.0), (3, 2.6), (3, 1.4)):
        model, x = denoiser(schedule == FLOW, guidance, [digit]), starts(schedule, 12, seed=2)
        fine = teacher_sigmas(schedule, *ENDS[schedule], 200)
        exact = TEACHER(model, x, [*fine, 0.0], schedule=schedule)
        ours = sample_calibrated(model, x, found.sigmas, calibration=found, disable=True)
        assert distance(ours, exact) < 0.5 * distance(
            rivals(schedule=schedule)["2M"](model, x), exact
        )


@both_kinds
def test_what_is_found_is_a_solver_of_so_many_calls(schedule: NoiseSchedule) -> None:
    found = result(schedule).calibration
    assert found.calls == CALLS
    assert found.sigmas[0] == ENDS[schedule][0] and found.sigmas[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(found.sigmas))
    counted = Counted(schedule)
    sample_calibrated(counted, starts(schedule, 2), found.sigmas, calibration=found, disable=True)
    assert counted.images == 2 * CALLS


@both_kinds
@pytest.mark.parametrize("points", [20, 80, 200])
def test_the_teachers_list(schedule: NoiseSchedule, points: int) -> None:
    for first, last in (ENDS[schedule], (ENDS[schedule][0], 1e-4)):
        sigmas = teacher_sigmas(schedule, first, last, points)
        assert 0.7 * points <= len(sigmas) <= points
        assert (sigmas[0], sigmas[-1]) == pytest.approx((first, last))
        assert all(a > b for a, b in itertools.pairwise(sigmas))


# --- what it costs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "batch"), [(TEACHER_CALLS + CHECK + 5 * TRIAL - 1, 3), (BUDGET, 8)]
)
def test_the_budget_is_kept_and_counted(budget: int, batch: int) -> None:
    model, told = Counted(), list[tuple[int, str]]()
    found = run(VE, model, budget=budget, batch=batch, tick=lambda n, what: told.append((n, what)))
    plan = cost.cost(budget, [CALLS], SEEDS, HELD_OUT, LISTS, 2)
    assert model.images <= plan.total <= budget
    assert model.images == found.calibration.fitted.model_calls == sum(n for n, _ in told)
    assert max(model.batches) <= batch
    spent = {what: sum(n for n, doing in told if doing == what) for _, what in told}
    assert list(spent) == [
        "solving finely",
        f"choosing sigmas and weights for {CALLS} calls",
        "measuring on other noises",
    ]
    assert spent["solving finely"] == plan.teacher == TEACHER_CALLS
    assert spent[f"choosing sigmas and weights for {CALLS} calls"] <= plan.trials * plan.trial
    assert spent["measuring on other noises"] == plan.check == CHECK


def test_a_budget_that_is_too_small_says_which_would_do() -> None:
    model = Counted()
    with pytest.raises(ValueError, match="too small") as caught:
        run(VE, model, budget=500)
    least = int(str(caught.value).split("at least ")[1].split(",")[0])
    assert model.images == 0
    assert least == TEACHER_CALLS + CHECK + cost.FIRST_TRIALS * TRIAL
    assert cost.cost(least, [CALLS], SEEDS, HELD_OUT, LISTS, 2).total <= least
    with pytest.raises(ValueError, match="too small"):
        cost.cost(least - 1, [CALLS], SEEDS, HELD_OUT, LISTS, 2)


@pytest.mark.parametrize("calls", [0, POINTS // 2 + 1])
def test_more_calls_than_the_teachers_list_has_room_for(calls: int) -> None:
    with pytest.raises(ValueError, match="calls must be a whole number from 1 to"):
        run(VE, calls=calls, budget=10**6)


def test_one_call_and_one_noise_will_do() -> None:
    (found,) = calibrate.calibrate(
        [denoiser(False)],
        starts(VE, 1),
        starts(VE, 1, 1),
        lambda _: {},
        calibrate.Settings(VE, (14.6, 5.0, 1.0, 0.1), [1]),
    )
    assert found.calibration.sigmas == (14.6, 0.0)


class OnDevice(LikeMPS):
    """A tensor of a device with a memory of its own, whose use is counted.

    What is made of one is another, until it is brought to the CPU.
    """

    alive: ClassVar[dict[int, weakref.ref[torch.Tensor]]] = {}
    peak: ClassVar[int] = 0

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, cls):
            cls.alive[id(result)] = weakref.ref(result)
            found = [one for one in (each() for each in cls.alive.values()) if one is not None]
            storages = {one.data_ptr(): one.untyped_storage().nbytes() for one in found}
            cls.peak = max(cls.peak, sum(storages.values()))
        return result


@pytest.mark.parametrize("batch", [1, 3])
def test_no_more_than_a_batch_is_on_the_device(batch: int) -> None:
    """Nor anything in float64 there."""
    OnDevice.alive.clear()
    OnDevice.peak = 0
    plain = denoiser(False)

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return plain(x.double(), sigma).float().as_subclass(OnDevice) * 1.0

    sigmas = teacher_sigmas(VE, *ENDS[VE], 20)
    seen, others = (starts(VE, n, n).float().as_subclass(OnDevice) for n in (12, 6))
    with only_waiting_copies():
        (found,) = calibrate.calibrate(
            [model],
            seen,
            others,
            rivals,
            calibrate.Settings(VE, sigmas, [3], batch=batch, budget=900),
        )
    assert found.best == calibrate.CALIBRATED
    image = seen.nbytes // 12
    assert 0 < OnDevice.peak <= (12 + 6 + 4 * batch) * image


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, batch, points, shape = 32, 2, 20, (4, 24, 24)
    monkeypatch.setattr(teacher, "MOST_NUMBERS_OF_ALL", 64 * seeds)
    sigmas = teacher_sigmas(VE, *ENDS[VE], points)
    generator = torch.Generator().manual_seed(0)
    seen, others = (ENDS[VE][0] * torch.randn(n, *shape, generator=generator) for n in (seeds, 4))
    size, states = seen[0].nbytes, 4 * (points + 1) * seeds * 64
    with Alive() as alive:
        calibrate.calibrate(
            [gaussian],
            seen,
            others,
            rivals,
            calibrate.Settings(VE, sigmas, [4], batch=batch, budget=1800),
        )
    # The noises were there before.
    few = 2**18 + 16 * batch * size
    assert alive.peak <= seeds * size * (fit.SLOPES + 3) + states + few


def test_a_search_keeps_few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "STATES_BYTES", 2**17)
    model = Model([denoiser(False)], 8, lambda *_: None)
    lists = teacher.refinements(teacher_sigmas(VE, *ENDS[VE], 40))
    records = teacher.teach(model, starts(VE, 6), lists, VE)
    of_model, peaks = surrogate.Surrogate(records, VE, 5), [0]

    def note() -> None:
        arrays = [(one.x, one.unknown, *one.slopes) for one in of_model.states.values()]
        peaks.append(sum(array.nbytes for of_one in arrays for array in of_one))

    surrogate.search(of_model, (0, 8, 16, 24, 32), note)
    assert 2**15 < max(peaks) <= 1.1 * 2**17


def gaussian(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The exact denoiser of normal data."""
    return x / (1.0 + sigma.reshape(-1, 1, 1, 1) ** 2)


def test_more_noises_than_the_memory_may_hold_are_refused() -> None:
    largest = 16 * 21 * 90 * 160  # numbers of a video's latent
    cost.check_memory(largest, 20, 8)
    with pytest.raises(ValueError, match=r"4 GiB of main memory: take at most \d+ seeds") as caught:
        cost.check_memory(largest, 256, 8)
    most = int(str(caught.value).split("at most ")[1].split()[0])
    cost.check_memory(largest, most, 8)
    with pytest.raises(ValueError, match="main memory"):
        cost.check_memory(largest, most + 1, 8)
    model = Counted()
    huge = torch.empty(1).expand(256, largest)
    with pytest.raises(ValueError, match="main memory"):
        asked = calibrate.Settings(VE, (10.0, 1.0, 0.1), [1], budget=10**6)
        calibrate.calibrate([model], huge, huge[:8], lambda _: {}, asked)
    assert model.images == 0


# --- when something happens ----------------------------------------------------------------------


@pytest.mark.parametrize("images", [100, TEACHER_CALLS + 1, TEACHER_CALLS + TRIAL, BUDGET - CHECK])
def test_an_interrupt_keeps_the_best_so_far(images: int) -> None:
    kept: list[Calibration] = []
    with pytest.raises(Interrupt):
        run(VE, Counted(stop=images), keep=kept.append)
    if images < TEACHER_CALLS + TRIAL:
        assert not kept
        return
    assert kept and kept[-1].calls == CALLS and not kept[-1].fitted.errors
    x, model = starts(VE, HELD_OUT, 1), denoiser(False, 2.0, [3])
    exact = TEACHER(model, x, [*teacher_sigmas(VE, *ENDS[VE]), 0.0])
    ours = sample_calibrated(model, x, kept[-1].sigmas, calibration=kept[-1], disable=True)
    assert distance(ours, exact) < distance(rivals()["2M"](model, x), exact)


@pytest.mark.parametrize("after", [0, 7, 2 * POINTS + 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_breaks_ends_it_at_once(after: int, value: float) -> None:
    calls = 0

    def broken(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.full_like(x, value) if calls > after else 0.5 * x

    with pytest.raises(RuntimeError, match=r"returned NaN or infinity at sigma .*\.$"):
        run(VE, broken)
    assert calls == after + 1


def test_a_rival_that_leads_nowhere_is_infinitely_far() -> None:
    def broken(model: Any, x: torch.Tensor) -> torch.Tensor:
        model(x, x.new_ones(len(x)))
        raise NotFiniteError

    sigmas = teacher_sigmas(VE, *ENDS[VE], 20)
    given = ([denoiser(False)], starts(VE, 4), starts(VE, 4, 1), lambda _: {"broken": broken})
    ((found, best),) = calibrate.calibrate(*given, calibrate.Settings(VE, sigmas, [3]))
    assert best == calibrate.CALIBRATED and found.fitted.errors["broken"] == math.inf


def test_a_rival_that_is_closer_is_named() -> None:
    sigmas = teacher_sigmas(VE, *ENDS[VE], 20)
    same = {"2M": partial(TEACHER, sigmas=[*sigmas, 0.0])}
    given = ([denoiser(False)], starts(VE, 4), starts(VE, 4, 1), lambda _: same)
    (found,) = calibrate.calibrate(*given, calibrate.Settings(VE, sigmas, [3]))
    assert found.best == "2M"


# --- its parts -----------------------------------------------------------------------------------


def products(vectors: torch.Tensor) -> np.ndarray:
    """[images, m, m] of [m, images, numbers]."""
    return (torch.einsum("asd,bsd->sab", vectors, vectors) / vectors.shape[-1]).numpy()


def test_a_fit_recovers_exact_weights_of_a_linear_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "RIDGE", 1e-6)  # the prior here is far off
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(3, 5, 40, generator=generator, dtype=torch.float64)
    true = torch.tensor([0.4, 1.7, -0.9], dtype=torch.float64)
    vectors = torch.cat([parts, (true[:, None, None] * parts).sum(0)[None]])
    weights, errors = fit.reweighted(products(vectors), np.zeros(3))
    assert weights == pytest.approx(true.numpy(), abs=1e-5)
    assert errors.max() < 1e-10


def test_a_fit_keeps_to_the_prior_where_the_data_say_nothing() -> None:
    """Two outputs that are one and the same: only their sum is known."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(5, 40, generator=generator, dtype=torch.float64)
    vectors = torch.stack([one, one, 2.0 * one])
    for prior in ([1.5, 0.5], [3.0, -1.0]):
        weights, _ = fit.reweighted(products(vectors), np.array(prior))
        assert weights == pytest.approx(prior, abs=1e-5)
    nothing = torch.stack([one, 0.0 * one, one])
    weights, _ = fit.reweighted(products(nothing), np.array([1.0, 0.3]))
    assert weights == pytest.approx([1.0, 0.3], abs=1e-5)


def test_one_image_that_goes_astray_does_not_decide() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(8, 40, generator=generator, dtype=torch.float64)
    target = one.clone()
    target[0] *= -3.0
    (weight,), _ = fit.reweighted(products(torch.stack([one, target])), np.ones(1))
    plain = float((one * target).sum() / (one * one).sum())
    assert abs(weight - 1.0) < 0.25 * abs(plain - 1.0)


def test_searched_lists_fall_and_are_better_than_where_they_started() -> None:
    sigmas = teacher_sigmas(VE, *ENDS[VE], 40)
    model = Model([denoiser(False)], 8, lambda *_: None)
    records = teacher.teach(model, starts(VE, 6), teacher.refinements(sigmas), VE)
    ticks = itertools.count()
    for calls in (1, 2, 5, 12):
        of_model = surrogate.Surrogate(records, VE, calls)
        even = tuple(round(40 * i / calls) for i in range(calls))
        found = surrogate.search(of_model, even, lambda: next(ticks))
        assert found[0] == 0 and len(found) == calls and found[-1] < 40
        assert all(a < b for a, b in itertools.pairwise(found))
        assert of_model.error(found) <= of_model.error(even)
    assert next(ticks) > 10  # an interrupt is looked for meanwhile


def test_nearest_takes_another_index_for_each() -> None:
    sigmas = [8.0, 4.0, 2.0, 1.0, 0.5]
    assert surrogate.nearest(sigmas, [8.0, 2.2, 0.5]) == (0, 2, 4)
    assert surrogate.nearest(sigmas, [8.0, 7.0, 6.9]) == (0, 1, 2)
    assert surrogate.nearest(sigmas, [8.0, 0.6, 0.5, 0.4]) == (0, 2, 3, 4)
    assert surrogate.nearest(sigmas, [8.0]) == (0,)


@both_kinds
def test_a_late_start_has_exact_weights_until_the_history_is_full(schedule: NoiseSchedule) -> None:
    found = result(schedule).calibration
    for first in range(found.calls):
        plan = found.plan(schedule, first)
        assert plan.sigmas == found.sigmas[first:-1]
        for k, step in enumerate(plan.steps):
            own = found.steps[first + k]
            if len(own.outputs) <= k + 1:
                assert (step.state, step.outputs) == own
            else:
                exact = exact_weights(schedule, found.sigmas[first : first + k + 2], 1)
                assert (step.state, step.outputs) == exact
        sigmas = list(found.sigmas[first:])
        x = noise(2) * sigmas[0] + 0.1
        model = Counted(schedule)
        end = sample_calibrated(model, x, sigmas, calibration=found, disable=True)
        assert model.images == 2 * (len(sigmas) - 1) and end.isfinite().all()


def test_a_late_start_on_a_list_of_many_calls_enters_at_order_2() -> None:
    sigmas = (*np.geomspace(10.0, 0.1, 9).tolist(), 0.0)
    weights = [Weights(1.0, (-0.1,) * min(i + 1, 4)) for i in range(9)]
    plan = Calibration("diffusion", sigmas, tuple(weights)).plan(VE, 3)
    assert [len(step.outputs) for step in plan.steps] == [1, 2, 2, 4, 4, 4]


@both_kinds
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_exact_weights_are_those_of_adams_solver(order: int, schedule: NoiseSchedule) -> None:
    sigmas = [1.0, 0.6, 0.3, 0.1, 0.0]
    plan = plan_multistep(Grid.of(sigmas, schedule), "adams", order, "exact", "off", power=POWER)
    for end in range(2, 5):
        weights = exact_weights(schedule, sigmas[:end], order)
        step = plan.steps[end - 2]
        assert weights == (pytest.approx(step.state), pytest.approx(step.outputs))
    assert exact_weights(schedule, sigmas, order) == (1.0, (-0.1,))  # the denoised output itself


def other_sigmas(found: Calibration) -> list[Sequence[float]]:
    own = found.sigmas
    return [
        [1.01 * own[0], *own[1:]],
        own[:-1],
        [own[0], *own[2:]],
        [*own, 0.0],
        [own[0], *own],
        own[-1:],
        [5.0, 1.0, 0.0],
    ]


def test_other_sigmas_are_refused() -> None:
    found = result(VE).calibration
    for sigmas in other_sigmas(found):
        with pytest.raises(ValueError, match="sigmas are not those of this calibration"):
            sample_calibrated(Counted(), starts(VE, 1), sigmas, calibration=found)
    rounded = torch.tensor(found.sigmas, dtype=torch.float32)
    sample_calibrated(Counted(), starts(VE, 1), rounded, calibration=found, disable=True)


def test_the_other_kind_of_model_is_refused() -> None:
    for own, other, word in ((VE, FLOW, "noise- or v-prediction"), (FLOW, VE, "a flow model")):
        found = result(own).calibration
        with pytest.raises(ValueError, match=word):
            sample_calibrated(
                Counted(), starts(own, 1), found.sigmas, calibration=found, schedule=other
            )


def test_the_nearest_sigma() -> None:
    found = result(FLOW).calibration
    for i, sigma in enumerate(found.sigmas[:-1]):
        assert found.nearest(sigma) == i
    assert found.nearest(1e-9) == found.calls - 1


# --- files ---------------------------------------------------------------------------------------


@both_kinds
def test_a_file_holds_everything(schedule: NoiseSchedule, tmp_path: Path) -> None:
    found = result(schedule).calibration
    about = Fitted("SDXL", 7.0, 3, 9, {"2M": 0.1}, False, "euler", (4, 8, 8), 3.0, 2, 1, "2", "ab")
    of_sampler = Calibration(found.kind, (1.0, 0.5, 0.0), (), about)
    one_call = Calibration("diffusion", (1.0, 0.0), (Weights(0.5, (0.5,)),))
    for i, some in enumerate(((found,), (one_call,), (found, of_sampler, found))):
        path = tmp_path / "new" / f"{i}.safetensors"
        files.save(some, path)
        assert files.load(path) == some
        with pytest.raises(FileExistsError):
            files.save(some, path)


def test_nothing_is_left_of_a_file_that_does_not_fit_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The menu would show it as a damaged one."""
    resource = pytest.importorskip("resource")  # not on Windows
    found, path = result(VE).calibration, tmp_path / "full.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            files.save([found], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def packed(metadata: dict[str, str] | None = None, **tensors: Any) -> bytes:
    """A good file of two calls, but for what is given."""
    held = {
        "sigmas": torch.tensor([10.0, 1.0, 0.0], dtype=torch.float64),
        "weights": torch.tensor([[0.1, 0.9, 0.0], [0.0, 1.1, -0.1]], dtype=torch.float64),
        **tensors,
    }
    held = {name: value for name, value in held.items() if value is not None}
    about = {"format": files.FORMAT, "version": "1", "kind": "diffusion", "fitted": "{}"}
    return safetensors.torch.save(held, {**about, **(metadata or {})})


def test_a_plain_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed())
    (found,) = files.load(path)
    assert found.steps == (Weights(0.1, (0.9,)), Weights(0.0, (1.1, -0.1)))
    assert found.fitted == Fitted()


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", ""),
    "cut": (packed()[:-8], ""),
    "pickle": (b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.", ""),
    "header": (b"\xff" * 64, ""),
    "large": (packed() + bytes(files.MOST_BYTES), "too large"),
    "format": (packed({"format": "x"}), "something else"),
    "version": (packed({"version": "3"}), "update the pack"),
    "kind": (packed({"kind": "pixels" * 1000}), "model of the type"),
    "fitted": (packed({"fitted": "[" * 100_000}), ""),
    "fitted list": (packed({"fitted": "[]"}), "description"),
    "fitted number": (packed({"fitted": json.dumps({"seeds": math.inf})}), ""),
    "fitted many": (packed({"fitted": json.dumps([{}] * 101)}), "description"),
    "fitted more": (packed({"fitted": "[{}, {}]"}), ""),
    "no weights for a sampler of no name": (packed({"fitted": "[{}]"}, weights=None), ""),
    "axes": (packed({"fitted": json.dumps({"shape": [1] * 99})}), "description"),
    "errors": (packed({"fitted": json.dumps({"errors": {"a": "far"}})}), ""),
    "no sigmas": (packed(sigmas=None), ""),
    "no weights": (packed(weights=None), ""),
    "NaN": (packed(sigmas=torch.tensor([10.0, math.nan, 0.0])), "not finite"),
    "weights of 1e300": (
        packed(weights=torch.full((2, 3), 1e300, dtype=torch.float64)),
        "too large",
    ),
    "weights of 0": (packed(weights=torch.zeros(2, 3)), "all weights of step 1 are 0"),
    "growing": (packed(weights=torch.tensor([[1e6, 1.0, 0.0], [1e6, 1.0, 0.0]])), "without bound"),
    "sigmas near": (
        packed(sigmas=torch.tensor([1.0, 1.0 - 1e-9, 0.0], dtype=torch.float64)),
        "too near",
    ),
    "a tiny sigma": (packed(sigmas=torch.tensor([1.0, 1e-30, 0.0])), "range"),
    "seeds beyond count": (packed({"fitted": json.dumps({"seeds": 10**300})}), "description"),
    "NaN guidance": (packed({"fitted": json.dumps({"guidance": math.nan})}), "description"),
    "many errors": (
        packed({"fitted": json.dumps({"errors": dict.fromkeys(map(str, range(99)), 1.0)})}),
        "description",
    ),
    "float8": (packed(weights=torch.ones(2, 3).to(torch.float8_e4m3fn)), "shape"),
    "infinite": (packed(weights=torch.full((2, 3), math.inf)), "not finite"),
    "rising": (packed(sigmas=torch.tensor([1.0, 10.0, 0.0])), "do not fall"),
    "no zero": (packed(sigmas=torch.tensor([10.0, 1.0, 0.5])), "end at 0"),
    "beyond a flow": (packed({"kind": "flow"}), "range"),
    "more sigmas": (packed(sigmas=torch.tensor([10.0, 5.0, 1.0, 0.0])), "4 sigmas for 2 steps"),
    "one sigma": (packed(sigmas=torch.zeros(1), weights=torch.zeros(0, 2)), ""),
    "no outputs": (packed(weights=torch.ones(2, 1)), ""),
    "a number": (packed(sigmas=torch.tensor(1.0)), "shape"),
    "wide": (packed(weights=torch.zeros(2, 20)), "shape"),
    "long": (packed(sigmas=torch.zeros(2000)), "shape"),
    "whole numbers": (packed(sigmas=torch.tensor([10, 1, 0])), "shape"),
}


@pytest.mark.parametrize(("content", "word"), REFUSED.values(), ids=REFUSED)
def test_other_files_are_refused_in_a_sentence(content: bytes, word: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^x\.safetensors is no calibration that can") as caught:
        files.load(path)
    message = str(caught.value)
    assert word in message and "\n" not in message and len(message) < 300


def test_a_folder_or_nothing_is_refused(tmp_path: Path) -> None:
    dangling = tmp_path / "dangling.safetensors"
    dangling.symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "gone", dangling, tmp_path / "eu\udce9"):
        with pytest.raises(
            ValueError, match="is no calibration that can be used: it can't"
        ) as caught:
            files.load(path)
        str(caught.value).encode()


def test_what_a_file_says_of_its_origin_is_shown_plainly(tmp_path: Path) -> None:
    path = tmp_path / "eu\udce9.safetensors"
    text = "eu\ud800ler\n" * 100
    path.write_bytes(packed({"fitted": json.dumps({"model": text, "errors": {text: 0.1}})}))
    (one,) = files.load(path)
    fitted = one.fitted
    for shown in (fitted.model, *fitted.errors):
        shown.encode()
        assert len(shown.splitlines()) == 1 and len(shown) < 200
    path.write_bytes(packed({"version": "3\u2028" * 100}))
    with pytest.raises(ValueError) as caught:
        files.load(path)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300
    str(caught.value).encode()


def test_errors_beside_many_schedulers_are_read_again(tmp_path: Path) -> None:
    errors = {f"euler {k}": 1.0 / (1 + k % 60) for k in range(60)}
    path = tmp_path / "x.safetensors"
    found = Calibration("diffusion", (1.0, 0.0), (Weights(0.5, (0.5,)),), Fitted(errors=errors))
    files.save([found], path)
    (read,) = files.load(path)
    assert len(read.fitted.errors) == files.MOST_ERRORS
    assert list(read.fitted.errors.values()) == sorted(errors.values())[: files.MOST_ERRORS]


def test_what_was_stopped_says_so(tmp_path: Path) -> None:
    found = Calibration("diffusion", (1.0, 0.0), (Weights(0.5, (0.5,)),), Fitted(stopped=True))
    path = files.free_path(tmp_path, "x" * files.LONGEST_NAME, "_unmeasured")
    files.save([found], path)
    assert path.stem.endswith("_unmeasured") and files.load(path)[0].fitted.stopped
    path.write_bytes(packed({"fitted": json.dumps({"model": "SD"})}))  # as version 1.0 wrote it
    assert not files.load(path)[0].fitted.stopped


@pytest.mark.parametrize(
    "name",
    ["eu\ud800ler", "caf\udce9", "a\u2028b", "a\x1bb", "😀" * 30, "x" * 10**6, "NUL", "..", ""],
)
def test_names_that_will_not_do_are_told_in_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^name is ") as caught:
        files.free_path(tmp_path, name)
    message = str(caught.value)
    message.encode()
    assert len(message.splitlines()) == 1 and len(message) < 300


# --- what loads runs -----------------------------------------------------------------------------

TESTED = settings(max_examples=150, deadline=None, derandomize=True)
SCALES = st.sampled_from(
    [0.0, 1e-300, 1e-12, 1e-3, 1.0, 1.0, 1.0, 10.0, 1e5, 1e30, 1e300, math.inf]
)
GAPS = st.sampled_from([1e-12, 1e-9, 1e-6, 1e-5, 1e-3, 0.1, 0.5, 1.0, 1.0, 3.0, 30.0])


@st.composite
def calibration_files(draw: st.DrawFn) -> bytes:
    """Good weights on any list, or any weights on it, in any of the precisions that files may have."""
    kind = draw(st.sampled_from(["diffusion", "flow"]))
    schedule = VE if kind == "diffusion" else FLOW
    gaps = draw(st.lists(GAPS, min_size=0, max_size=9))
    first = draw(st.sampled_from([1.0, 0.9999999, 0.5, 14.6, 1e5, 1e17]))
    sigmas = [min(first, schedule.sigma_limit)]
    for gap in gaps:
        sigmas.append(sigmas[-1] * math.exp(-gap))
    width = draw(st.integers(1, 5))
    rows = []
    for i in range(len(sigmas)):
        try:
            with np.errstate(invalid="ignore"):
                exact = exact_weights(schedule, [*sigmas, 0.0][: i + 2], min(width, 3))
            row = [exact.state, *exact.outputs]
        except (ValueError, ArithmeticError, IndexError):
            row = [1.0, -sigmas[i]]
        rows.append((row + [0.0] * width)[: width + 1])
    weights = torch.tensor(rows, dtype=torch.float64)
    if draw(st.booleans()):
        changed = st.tuples(st.integers(0, len(rows) - 1), st.integers(0, width), SCALES)
        for i, k, scale in draw(st.lists(changed, max_size=4)):
            weights[i, k] = scale if draw(st.booleans()) else weights[i, k] * scale
    dtype = draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16]))
    held = {"sigmas": torch.tensor([*sigmas, 0.0]).to(dtype), "weights": weights.to(dtype)}
    return packed({"kind": kind}, **held)


def test_what_loads_runs(tmp_path: Path) -> None:
    """On the whole list and on each of its ends, in float32 as hosts hand it over, and is finite."""
    loaded: list[bool] = []
    path = tmp_path / "x.safetensors"

    @TESTED
    @given(content=calibration_files())
    def load_and_run(content: bytes) -> None:
        path.write_bytes(content)
        loaded.append(False)
        try:
            (found,) = files.load(path)
        except ValueError as error:
            assert str(error).startswith("x.safetensors is no calibration that can be used: ")
            return
        loaded[-1] = True
        for first in range(found.calls):
            assert runs(found, first)

    load_and_run()
    assert 20 < sum(loaded) < len(loaded) - 20


def runs(found: Calibration, first: int) -> bool:
    sigmas = torch.tensor(found.sigmas[first:], dtype=torch.float32)
    x = max(1.0, found.sigmas[first]) * torch.tensor([[1.0, -0.5, 0.1]])
    calls = 0

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.tanh(x / (1.0 + sigma[:, None]))

    end = sample_calibrated(model, x, sigmas, calibration=found, disable=True)
    return bool(end.isfinite().all()) and calls == len(sigmas) - 1
