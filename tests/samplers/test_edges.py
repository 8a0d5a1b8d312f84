"""The edge cases of the samplers' conventions, one sampler for each path through the code."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import k_diffusion.sampling
import pytest
import torch

from dpm_solver_nodes.samplers import (
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    sample_adaptive,
    sample_multistep,
    sample_recommended,
    sample_singlestep,
)
from dpm_solver_nodes.samplers.catalog import CATALOG, Entry, entry
from dpm_solver_nodes.samplers.solvers.ancestral import Ancestral
from dpm_solver_nodes.tests.support.code_paths import (
    ADAPTIVE,
    ALL,
    CALIBRATED,
    CHOSEN,
    CHOSEN_IDS,
    FIXED,
    ODE,
    OFF_THE_LIST,
)
from dpm_solver_nodes.tests.support.mixture import Mixture, Sampler, difference, start

PLAIN: dict[str, Sampler] = {
    "multistep": partial(sample_multistep, disable=True),
    "singlestep": partial(sample_singlestep, disable=True),
    "recommended": partial(sample_recommended, disable=True),
    "adaptive": partial(sample_adaptive, disable=True),
}
PAIRS = [FIXED[name] for name in OFF_THE_LIST]
WITH_SETTINGS = {name: sampler for name, sampler in PLAIN.items() if name != "recommended"}
FLOW = RectifiedFlow()
VE_SIGMAS = (14.6, 9.0, 5.0, 2.0, 1.0, 0.6, 0.3, 0.1)
FLOW_SIGMAS = (1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)
ROUNDING = 1e-11  # of float64, over some steps of numbers up to 60


def each_of(samplers: dict[str, Sampler]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("sampler", samplers.values(), ids=samplers)


def falling(n: int, zero: bool) -> list[float]:
    """n + 1 sigmas."""
    above = n - zero
    return [14.6 * 0.6**i for i in range(above + 1)] + [0.0] * zero


def state(schedule: NoiseSchedule = VarianceExploding()) -> torch.Tensor:  # noqa: B008
    return start() if schedule.sigma_limit > 1.0 else start() / 14.6


def test_the_chosen_samplers_stand_for_the_catalogue() -> None:
    """A new way through the code, or a new value of a setting, needs one of its own."""

    def paths(entries: Iterable[Entry]) -> set[object]:
        return {
            path
            for e in entries
            for path in ((type(e.options), e.stochastic, e.cfg_pp), *vars(e.options).items())
        }

    assert paths(map(entry, CHOSEN_IDS)) == paths(CATALOG)


# calls and callbacks


@each_of(FIXED | CHOSEN | CALIBRATED)
def test_n_plus_1_sigmas_are_n_calls_and_n_callbacks(sampler: Sampler) -> None:
    ends = [True] if sampler in CALIBRATED.values() else [False, True]
    for zero, n in itertools.product(ends, range(1, 15)):
        model = Mixture()
        seen: list[dict[str, Any]] = []
        sigmas = falling(n, zero)
        sampler(model, state(), sigmas, callback=seen.append)
        assert [report["i"] for report in seen] == list(range(n))
        assert [report["sigma"].item() for report in seen] == model.sigmas
        which = slice(0, n, 2 if sampler in PAIRS else 1)
        assert model.sigmas[which] == sigmas[:-1][which]


@each_of(ALL)
def test_callback_gets_what_the_model_saw_and_said(sampler: Sampler) -> None:
    model = Mixture()
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    seen: list[dict[str, Any]] = []

    def recorded(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        calls.append((x, model(x, sigma)))
        return calls[-1][1]

    sampler(recorded, state(), [14.6, 5.0, 1.0, 0.0], callback=seen.append)
    assert len(seen) == len(calls)
    for report, (x, denoised), sigma in zip(seen, calls, model.sigmas, strict=True):
        assert set(report) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        assert torch.equal(report["x"], x)
        assert torch.equal(report["denoised"], denoised)
        assert float(report["sigma"]) == float(report["sigma_hat"]) == sigma


@each_of(ALL)
def test_model_gets_one_sigma_per_image_and_the_extra_args(sampler: Sampler) -> None:
    seen = []

    def model(x: torch.Tensor, sigma: torch.Tensor, *, cond: str, scale: int) -> torch.Tensor:
        seen.append((cond, scale, tuple(sigma.shape), sigma.dtype))
        return 0.5 * x

    extra_args = {"cond": "a cat", "scale": 7}
    sampler(model, state(), [2.0, 1.0, 0.5], extra_args)
    assert set(seen) == {("a cat", 7, (3,), torch.float64)}
    assert extra_args == {"cond": "a cat", "scale": 7}


@each_of(FIXED | ADAPTIVE)  # fitted weights may extrapolate in the last step too
@pytest.mark.parametrize("schedule", [VarianceExploding(), FLOW], ids=["ve", "flow"])
def test_final_zero_gives_the_denoised_output_of_the_last_call(
    schedule: NoiseSchedule, sampler: Sampler
) -> None:
    for above in ((0.9,), (0.9, 0.4), (0.9, 0.6, 0.4, 0.2)):
        seen: list[dict[str, Any]] = []
        result = sampler(
            Mixture(schedule), state(schedule), [*above, 0.0], None, seen.append, schedule=schedule
        )
        assert torch.equal(result, seen[-1]["denoised"])
        assert seen[-1]["sigma"] == above[-1]


# lists of sigmas


@each_of(FIXED)
@pytest.mark.parametrize("zero", [(), (0.0,)], ids=["above zero", "final zero"])
@pytest.mark.parametrize("schedule", [VarianceExploding(), FLOW], ids=["ve", "flow"])
def test_a_repeated_sigma_is_one_more_call_and_no_change(
    schedule: NoiseSchedule, zero: tuple[float, ...], sampler: Sampler
) -> None:
    sigmas = [*(VE_SIGMAS if schedule.sigma_limit > 1.0 else FLOW_SIGMAS), *zero]
    run = partial(sampler, schedule=schedule)
    expected = run(Mixture(schedule), state(schedule), sigmas)
    for again in (*([sigma] for sigma in sigmas), 2 * sigmas):
        repeated = sorted([*sigmas, *again], reverse=True)
        model = Mixture(schedule)
        assert torch.equal(run(model, state(schedule), repeated), expected), repeated
        assert len(model.sigmas) == len(repeated) - 1
        assert sampler in PAIRS or model.sigmas == repeated[:-1]


@each_of(PLAIN)
@pytest.mark.parametrize(
    ("sigma", "schedule"),
    [(14.6, None), (0.0, None), (0.5, FLOW), (1.0, FLOW), (0.0, FLOW)],
)
def test_a_single_sigma_gives_x_back(
    sigma: float, schedule: NoiseSchedule | None, sampler: Sampler
) -> None:
    model = Mixture()
    seen: list[dict[str, Any]] = []
    result = sampler(model, state(), [sigma], callback=seen.append, schedule=schedule)
    assert torch.equal(result, state())
    assert model.sigmas == seen == []


@pytest.mark.parametrize("name", ["multistep", "singlestep"])
@pytest.mark.parametrize(("sigma", "schedule"), [(14.6, None), (0.0, None), (1.0, FLOW)])
def test_a_list_of_one_repeated_sigma_gives_x_back_after_its_calls(
    sigma: float, schedule: NoiseSchedule | None, name: str
) -> None:
    model = Mixture(schedule)
    result = PLAIN[name](model, state(), [sigma] * 3, schedule=schedule)
    assert torch.equal(result, state())
    assert model.sigmas == [sigma] * 2


BAD_SIGMAS: dict[str, tuple[Any, NoiseSchedule]] = {
    "down then up": ([5.0, 1.0, 2.0], VarianceExploding()),
    "up then down": ([1.0, 5.0, 2.0], VarianceExploding()),
    "up after zero": ([5.0, 0.0, 1.0], VarianceExploding()),
    "negative": ([5.0, 1.0, -0.1], VarianceExploding()),
    "nan": ([5.0, math.nan, 0.1], VarianceExploding()),
    "nan at the end": ([5.0, math.nan], VarianceExploding()),
    "a single nan": ([math.nan], VarianceExploding()),
    "infinity": ([math.inf, 1.0], VarianceExploding()),
    "too large for float32's weights": ([1e30, 1.0], VarianceExploding()),
    "too small for float32's weights": ([1.0, 1e-30], VarianceExploding()),
    "empty": ([], VarianceExploding()),
    "2-D": (torch.ones(2, 2), VarianceExploding()),
    "0-D": (torch.tensor(1.0), VarianceExploding()),
    "rising from 0": ([0.0, 1.0, 5.0], VarianceExploding()),
    "above 1 on a flow": ([1.5, 1.0, 0.5], FLOW),
    "rising to 1 on a flow": ([0.1, 0.5, 1.0], FLOW),
    "rising from 0 on a flow": ([0.0, 0.5], FLOW),
}


@each_of(PLAIN)
@pytest.mark.parametrize(("sigmas", "schedule"), BAD_SIGMAS.values(), ids=BAD_SIGMAS)
def test_bad_sigmas_are_refused_in_one_sentence_before_the_first_call(
    sigmas: Any, schedule: NoiseSchedule, sampler: Sampler
) -> None:
    model = Mixture()
    for given in (sigmas, torch.as_tensor(sigmas)):
        with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
            sampler(model, state(), given, schedule=schedule)
    assert model.sigmas == []


BAD_SETTINGS: dict[str, tuple[Sampler, dict[str, Any]]] = {
    f"{name}: {setting}={value!r}": (PLAIN[name], {setting: value})
    for name, setting, value in [
        *itertools.product(WITH_SETTINGS, ["algorithm"], ["dpmsolver+++", None]),
        *itertools.product(WITH_SETTINGS, ["order"], [0, 4, None]),
        *itertools.product(WITH_SETTINGS, ["solver_type"], ["euler", None]),
        *itertools.product(PLAIN, ["thresholding"], [(0.0, 1.0), (1.5, 1.0), (0.9, 0.0)]),
        *itertools.product(WITH_SETTINGS, ["eta"], [-1.0, math.nan]),
        *itertools.product(["multistep"], ["lower_order_final"], ["yes", True]),
        ("singlestep", "grouping", "slow"),
        ("adaptive", "order", 1),
        ("adaptive", "max_calls", 0),
        ("adaptive", "rtol", -0.1),
        ("adaptive", "atol", math.nan),
        ("adaptive", "h_init", 0.0),
    ]
}


@pytest.mark.parametrize(("sampler", "setting"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_a_setting_out_of_range_is_named_in_one_sentence(
    sampler: Sampler, setting: dict[str, Any]
) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"^{name} [^\n]+\.$"):
        sampler(Mixture(), state(), [2.0, 1.0], **setting)


@pytest.mark.parametrize(
    "settings",
    [
        {"corrector": "unic", "eta": 1.0},
        {"corrector": "unic", "unconditional": state},
        {"algorithm": "adams", "eta": 0.5},
    ],
    ids=["corrector, eta", "corrector, CFG++", "adams, eta"],
)
def test_settings_that_do_not_go_together_are_refused_in_one_sentence(
    settings: dict[str, Any],
) -> None:
    model = Mixture()
    with pytest.raises(ValueError, match=rf"^{next(iter(settings))} [^\n]+\.$"):
        sample_multistep(model, state(), [2.0, 1.0], **settings)
    assert not model.sigmas


@pytest.mark.parametrize("x", [torch.ones(2, 3, dtype=torch.int64), torch.tensor(1.0)])
@each_of(PLAIN)
def test_x_that_is_no_batch_of_floats_is_refused(sampler: Sampler, x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^x [^\n]+\.$"):
        sampler(Mixture(), x, [2.0, 1.0])


# defaults and aliases


@pytest.mark.parametrize(("alias", "name"), [("midpoint", "dpmsolver"), ("heun", "taylor")])
@each_of(WITH_SETTINGS)
def test_solver_type_aliases(sampler: Sampler, alias: str, name: str) -> None:
    results = {
        kind: sampler(Mixture(), state(), VE_SIGMAS, solver_type=kind)
        for kind in (alias, "dpmsolver", "taylor")
    }
    assert torch.equal(results[alias], results[name])
    assert not torch.equal(results["dpmsolver"], results["taylor"])


@each_of(PLAIN)
def test_default_schedule_is_variance_exploding(sampler: Sampler) -> None:
    sigmas = [0.9, 0.5, 0.2, 0.05]
    result = sampler(Mixture(), state(), sigmas)
    expected = sampler(Mixture(), state(), sigmas, schedule=VarianceExploding())
    assert torch.equal(result, expected)
    assert not torch.equal(result, sampler(Mixture(), state(), sigmas, schedule=FLOW))


@each_of(WITH_SETTINGS)
def test_default_algorithm_is_plus_plus_with_the_published_weights(sampler: Sampler) -> None:
    explicit = {"algorithm": "dpmsolver++", "solver_type": "dpmsolver", "s_noise": 1.0, "eta": 0.0}
    result = sampler(Mixture(), state(), VE_SIGMAS)
    assert torch.equal(
        result, sampler(Mixture(), state(), VE_SIGMAS, noise_sampler=None, **explicit)
    )
    assert not torch.equal(result, sampler(Mixture(), state(), VE_SIGMAS, algorithm="dpmsolver"))


@each_of(PLAIN)
def test_sigmas_may_be_a_float32_tensor(sampler: Sampler) -> None:
    sigmas = torch.tensor(VE_SIGMAS)
    result = sampler(Mixture(), state(), sigmas)
    assert torch.equal(result, sampler(Mixture(), state(), sigmas.tolist()))


# flow models


@each_of(ODE | CHOSEN)
def test_a_flows_first_step_from_1_is_an_euler_step(sampler: Sampler) -> None:
    x = state(FLOW)
    model = Mixture(FLOW)
    denoised = model(x, x.new_ones(len(x)))
    euler = x + (0.8 - 1.0) * (x - denoised)
    assert difference(sampler(model, x, [1.0, 0.8], schedule=FLOW), euler) < ROUNDING
    assert torch.equal(sampler(model, x, [1.0, 0.0], schedule=FLOW), denoised)
    for n in range(2, 8):
        seen: list[dict[str, Any]] = []
        sigmas = [1.0, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2, 0.0][: n + 1]
        sampler(model, x, sigmas, callback=seen.append, schedule=FLOW)
        assert difference(seen[1]["x"], euler) < ROUNDING


@each_of(FIXED | CHOSEN | ADAPTIVE)
def test_a_flows_1_may_be_rounded(sampler: Sampler) -> None:
    exact = sampler(Mixture(FLOW), state(FLOW), FLOW_SIGMAS, schedule=FLOW)
    for rounded in (1.0 - 2.0**-24, 1.0 + 2.0**-23):
        sigmas = (rounded, *FLOW_SIGMAS[1:])
        assert torch.equal(sampler(Mixture(FLOW), state(FLOW), sigmas, schedule=FLOW), exact)


@pytest.mark.parametrize("sampler", ADAPTIVE.values(), ids=ADAPTIVE)
def test_the_adaptive_solver_starts_a_flow_from_1_with_an_euler_step(sampler: Sampler) -> None:
    x = state(FLOW)
    seen: list[dict[str, Any]] = []
    sampler(Mixture(FLOW), x, [1.0, 0.5, 0.0], callback=seen.append, schedule=FLOW)
    sigma = seen[1]["sigma"].item()
    assert 0.9 < sigma < 1.0
    assert difference(seen[1]["x"], x + (sigma - 1.0) * (x - seen[0]["denoised"])) < ROUNDING
    assert torch.equal(sampler(Mixture(FLOW), x, [1.0, 0.0], schedule=FLOW), seen[0]["denoised"])


# tensors


@each_of(ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_no_tensor_that_was_handed_over_ever_changes(dtype: torch.dtype, sampler: Sampler) -> None:
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tensor, tensor.clone()))
        return tensor

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        keep(x), keep(sigma)
        return keep(0.3 * x)

    def callback(report: dict[str, Any]) -> None:
        for name in ("x", "sigma", "sigma_hat", "denoised"):
            keep(report[name])

    sigmas = keep(torch.tensor([*VE_SIGMAS, 0.0]))
    keep(sampler(model, keep(state().to(dtype)), sigmas, callback=callback))
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)


@each_of(PLAIN)
def test_thresholding_changes_no_output_of_the_model(sampler: Sampler) -> None:
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        kept.append((denoised := 0.3 * x, denoised.clone()))
        return denoised

    sampler(model, state().float(), [2.0, 1.0, 0.5], thresholding=(0.9, 0.5))
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)


@each_of(PLAIN)
@pytest.mark.parametrize(
    "sigmas", [[2.0], [0.0], [2.0, 2.0], [2.0, 1.0, 1.0], [2.0, 1.0, 0.0, 0.0], [2.0, 0.0]]
)
def test_the_result_may_be_changed_without_harm(sigmas: list[float], sampler: Sampler) -> None:
    """It shares no memory with what the caller, the model and the callback hold."""
    held = [state()]

    def model(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
        held.extend((x, 0.3 * x))
        return held[-1]

    def callback(report: dict[str, Any]) -> None:
        held.extend((report["x"], report["denoised"]))

    result = sampler(model, held[0], sigmas, callback=callback, disable=True)
    assert result.data_ptr() not in {tensor.data_ptr() for tensor in held}


@each_of(ALL)
def test_the_result_is_not_the_models_own_tensor(sampler: Sampler) -> None:
    outputs: list[torch.Tensor] = []

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        outputs.append(0.3 * x)
        return outputs[-1]

    result = sampler(model, state(), [2.0, 1.0, 0.0])
    assert result.data_ptr() != outputs[-1].data_ptr()


@each_of(ALL)
def test_half_precision_output_moves_a_float32_state(sampler: Sampler) -> None:
    """Other precisions, on the catalogue's samplers: test_precision.py."""
    model = Mixture(dtype=torch.float32)

    def half(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert x.dtype == sigma.dtype == torch.float32
        return model(x, sigma).half()

    sigmas = [14.6, 9.0, 5.0, 2.0, 1.0, 0.3, 0.0]
    x = state().half()
    result = sampler(half, x, sigmas)
    assert result.dtype == torch.float32
    assert torch.equal(result, sampler(half, x.float(), sigmas))
    # the rounding of some outputs of about 2, each weighed by up to about 4
    assert difference(result, sampler(model, x.float(), sigmas)) < 16 * torch.finfo(x.dtype).eps
    assert sampler(half, x, sigmas[-2:]).dtype == torch.float32


@each_of(FIXED)
def test_float32_follows_float64(sampler: Sampler) -> None:
    single = sampler(Mixture(dtype=torch.float32), state().float(), [*VE_SIGMAS, 0.0])
    double = sampler(Mixture(), state(), [*VE_SIGMAS, 0.0])
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    # rounding of a state of up to 60, over some calls
    assert 0.0 < difference(single, double) < 60 * 16 * torch.finfo(torch.float32).eps


@each_of(ALL)
@pytest.mark.parametrize("shape", [(64,), (2, 4, 4, 2)], ids=["2-D", "5-D"])
def test_latents_of_any_rank_are_sampled_alike(shape: tuple[int, ...], sampler: Sampler) -> None:
    result = sampler(Mixture(), state().reshape(3, *shape), VE_SIGMAS)
    assert result.shape == (3, *shape)
    assert torch.equal(result.flatten(), sampler(Mixture(), state(), VE_SIGMAS).flatten())


@each_of(FIXED)
def test_an_image_of_a_batch_is_that_image_sampled_alone(sampler: Sampler) -> None:
    run = partial(sampler, thresholding=(0.9, 0.5))  # which looks at the whole image
    together = run(Mixture(), state(), VE_SIGMAS)
    for k in range(3):
        alone = run(Mixture(), state()[k : k + 1], VE_SIGMAS)
        assert alone.shape == (1, 4, 4, 4)
        assert difference(alone, together[k : k + 1]) < ROUNDING


# the loop


def on_meta(sampler: Sampler, **settings: Any) -> torch.Tensor:
    """Run without values: the meta device refuses whatever would wait for a real one."""
    x = torch.empty(2, 4, 4, device="meta")
    return sampler(lambda x, sigma: 0.5 * x, x, [*VE_SIGMAS, 0.0], **settings)


@each_of(FIXED | CHOSEN)
def test_fixed_grids_never_wait_for_the_device(sampler: Sampler) -> None:
    seen: list[dict[str, Any]] = []
    result = on_meta(sampler, callback=seen.append, thresholding=(0.9, 1.0))
    assert result.shape == (2, 4, 4)
    assert len(seen) == len(VE_SIGMAS)


def test_meta_device_notices_a_wait() -> None:
    with pytest.raises(RuntimeError):
        on_meta(PLAIN["adaptive"])


class Interrupt(BaseException):
    """As both hosts raise it."""


@each_of(ALL)
@pytest.mark.parametrize("where", ["model", "callback"])
def test_an_interrupt_passes_through(where: str, sampler: Sampler) -> None:
    model = Mixture()

    def stop(*_: Any) -> None:
        if len(model.sigmas) == 2:
            raise Interrupt

    def stopping(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        denoised = model(x, sigma)
        stop()
        return denoised

    with pytest.raises(Interrupt):
        if where == "model":
            sampler(stopping, state(), VE_SIGMAS)
        else:
            sampler(model, state(), VE_SIGMAS, callback=stop)
    # a group of the adaptive solver reports its last call once its error is known
    assert len(model.sigmas) == 2


@each_of(ALL)
def test_works_in_inference_mode_and_keeps_no_graph(sampler: Sampler) -> None:
    expected = sampler(Mixture(), state(), VE_SIGMAS)
    with torch.inference_mode():
        assert torch.equal(sampler(Mixture(), state(), VE_SIGMAS), expected)
    assert not sampler(Mixture(), state().requires_grad_(), VE_SIGMAS).requires_grad


# parity with k-diffusion


def k_3m(model: Any, x: torch.Tensor, sigmas: torch.Tensor, **settings: Any) -> torch.Tensor:
    sampler: Callable[..., torch.Tensor] = k_diffusion.sampling.sample_dpmpp_3m_sde
    return sampler(model, x, sigmas, eta=0.0, noise_sampler=lambda a, b: 0.0, **settings)


@pytest.mark.parametrize("zero", [False, True], ids=["above zero", "final zero"])
@pytest.mark.parametrize(
    ("theirs", "settings"),
    [
        (k_diffusion.sampling.sample_euler, {"order": 1}),
        (k_diffusion.sampling.sample_dpmpp_2m, {}),
        (k_3m, {"order": 3, "solver_type": "taylor"}),
    ],
    ids=["euler", "2m", "3m"],
)
def test_parity_with_k_diffusion_where_no_order_is_lowered(
    theirs: Sampler, settings: dict[str, Any], zero: bool
) -> None:
    for n in (11, 12, 20, 30):
        sigmas = k_diffusion.sampling.get_sigmas_karras(n + 1 - zero, 0.03, 14.6).double()
        sigmas = sigmas if zero else sigmas[:-1]
        assert len(sigmas) == n + 1
        expected = theirs(Mixture(), state(), sigmas, disable=True)
        result = sample_multistep(Mixture(), state(), sigmas, disable=True, **settings)
        assert difference(result, expected) < 1e-12


def test_schedules_of_ones_own_are_told_apart() -> None:
    class Scaled(VarianceExploding):
        """lambda_ by a factor; equal to any other by what the base class compares."""

        def __init__(self, factor: float) -> None:
            super().__init__()
            object.__setattr__(self, "factor", [factor])

        def lambda_(self, sigma: float) -> float:
            return self.factor[0] * super().lambda_(sigma)  # type: ignore[attr-defined]

        def sigma(self, lambda_: float) -> float:
            return super().sigma(lambda_ / self.factor[0])  # type: ignore[attr-defined]

    one, three = (
        sample_multistep(Mixture(), state(), VE_SIGMAS, schedule=Scaled(k)) for k in (1.0, 3.0)
    )
    assert not torch.equal(one, three)


@pytest.mark.parametrize(
    ("settings", "held"),
    [({"order": 1}, 0), ({"order": 2}, 1), ({"order": 2, "algorithm": "dpmsolver"}, 0)],
    ids=["order 1", "order 2", "noise form"],
)
def test_no_more_outputs_are_held_during_a_call_than_are_needed(
    settings: dict[str, Any], held: int
) -> None:
    """In the noise form it is the noise that is held, and no denoised output."""
    given: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        alive.append(sum(output() is not None for output in given))
        denoised = 0.5 * x
        given.append(weakref.ref(denoised))
        return denoised

    sample_multistep(model, state(), VE_SIGMAS, **settings)
    assert max(alive) == held


# what other packs do within a run

WITHIN = {entry.id: entry for entry in CATALOG if not entry.options.needs_unconditional}


@pytest.mark.parametrize("entry", WITHIN.values(), ids=WITHIN)
@pytest.mark.parametrize("change", ["sigma of the model", "guidance", "model", "sigmas"])
def test_a_change_within_a_run_breaks_nothing(change: str, entry: Entry) -> None:
    """Detail Daemon moves the list, or the sigma the model is told; others guidance or model."""
    sigmas = [*VE_SIGMAS, 0.0]
    if change == "sigmas":
        sigmas = [sigma * (1.0 + 0.3 * (-1) ** i * (0 < i < 7)) for i, sigma in enumerate(sigmas)]
        sigmas = sorted(sigmas, reverse=True)
    model, other = Mixture(), Mixture()
    seen: list[float] = []

    def changing(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
        seen.append(sigma[0].item())
        late = len(seen) > 4
        if change == "sigma of the model":
            return model(x, sigma * (1.0 - 0.1 * late))
        if change == "guidance":
            return model(x, sigma) * (4.0 - 3.0 * late)
        return -other(x, sigma) if change == "model" and late else model(x, sigma)

    extra_args = {"seed": 1}
    result = entry.function()(changing, state(), sigmas, extra_args, disable=True)
    if entry.adaptive:
        assert seen[0] == sigmas[0]
    elif isinstance(entry.options, Ancestral):
        assert seen[::2] == sigmas[:-1:2] and len(seen) == len(sigmas) - 1
    else:
        assert seen == sigmas[:-1]
    assert result.abs().max() < 100.0
