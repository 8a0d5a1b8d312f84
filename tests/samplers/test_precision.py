"""Models and states of less precision than float32, compiled models, unusual memory, devices.

Whatever the model returns, the state is float32 or better, and an output of lower precision counts as
the numbers that it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dpm_solver_nodes.samplers import VarianceExploding, sample_adaptive
from dpm_solver_nodes.samplers.catalog import CATALOG, Entry
from dpm_solver_nodes.samplers.devices import as_float64
from dpm_solver_nodes.samplers.grid import Grid
from dpm_solver_nodes.samplers.sample import sample
from dpm_solver_nodes.samplers.solvers.ancestral import Ancestral, kept_share
from dpm_solver_nodes.tests.support.mixture import Mixture, Sampler, difference, start

# Sampling with CFG++ takes a host's guider, as the tests in `host` do.
ENTRIES = [entry for entry in CATALOG if not entry.id.endswith("_cfg_pp")]
SAMPLERS: dict[str, Sampler] = {
    entry.id: partial(entry.function(), extra_args={"seed": 1}, disable=True) for entry in ENTRIES
}
FIXED = {entry.id: SAMPLERS[entry.id] for entry in ENTRIES if not entry.adaptive}
HALVES = [torch.float16, torch.bfloat16]
QUARTERS = [torch.float8_e4m3fn, torch.float8_e5m2]
SIGMAS = [4.0, 2.5, 1.5, 1.0, 0.6, 0.4, 0.25, 0.15, 0.08, 0.03, 0.0]
CALLS = len(SIGMAS) - 1

all_samplers = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
fixed_grids = pytest.mark.parametrize("sampler", FIXED.values(), ids=FIXED)


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


low_precision = pytest.mark.parametrize("dtype", HALVES + QUARTERS, ids=named)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA"),
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def state(device: torch.device | str = "cpu") -> torch.Tensor:
    """float32 [3, 4, 4, 4] at SIGMAS[0]."""
    return (start() * (SIGMAS[0] / 14.6)).float().to(device)


class Denoiser(torch.nn.Module):
    """Exact where every number is +1 or -1 with a standard deviation of 0.5; works on any device."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, **_extra: Any) -> torch.Tensor:
        level = sigma.reshape(-1, *[1] * (x.ndim - 1))
        variance = 0.25 + level**2
        mean = torch.tanh(x / variance)
        denoised = mean + 0.25 / variance * (x - mean)
        return denoised if self.dtype is None else denoised.to(self.dtype)


# precision


@all_samplers
@low_precision
def test_an_output_counts_as_the_numbers_it_holds(
    dtype: torch.dtype, sampler: Sampler, device: torch.device
) -> None:
    """As if the model had returned them in float32, but for the order of the additions."""

    # It doesn't look at x: a rounding there that tips one of its own would hide what is tested.
    def low(x: torch.Tensor, sigma: torch.Tensor, **_extra: Any) -> torch.Tensor:
        assert x.dtype == sigma.dtype == torch.float32
        pattern = state(x.device).sign() * torch.linspace(0.5, 1.5, 64).to(x).reshape(4, 4, 4)
        return (pattern / (1.0 + sigma.reshape(-1, 1, 1, 1))).to(dtype)

    def single(x: torch.Tensor, sigma: torch.Tensor, **extra: Any) -> torch.Tensor:
        return low(x, sigma, **extra).float()

    seen: list[dict[str, Any]] = []
    result = sampler(low, state(device), SIGMAS, callback=seen.append)
    assert result.dtype == torch.float32
    assert result.device.type == device.type
    assert torch.isfinite(result).all()
    # The adaptive solver chooses its sigmas from what it measures, to rounding.
    limit = 2e-5 if sampler in FIXED.values() else 2 * torch.finfo(dtype).eps
    assert difference(result, sampler(single, state(device), SIGMAS)) < limit
    assert all(report["x"].dtype == torch.float32 for report in seen)


@all_samplers
@low_precision
def test_a_state_counts_as_the_numbers_it_holds(dtype: torch.dtype, sampler: Sampler) -> None:
    x = state().to(dtype)
    result = sampler(Denoiser(), x, SIGMAS)
    assert result.dtype == torch.float32
    assert torch.equal(result, sampler(Denoiser(), x.float(), SIGMAS))
    both = sampler(Denoiser(dtype), x, SIGMAS)
    assert both.dtype == torch.float32
    assert torch.isfinite(both).all()
    alone = sampler(Denoiser(), x, [1.0])
    assert alone.dtype == torch.float32
    assert torch.equal(alone, x.float())


@pytest.mark.parametrize("dtype", QUARTERS, ids=named)
@pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if not entry.adaptive], ids=lambda entry: entry.id
)
def test_thresholding_of_a_float8_output(entry: Entry, dtype: torch.dtype) -> None:
    low = Denoiser(dtype)
    options = replace(entry.options, thresholding=(0.9, 0.5))
    run = partial(sample, options, extra_args={"seed": 1}, disable=True)
    expected = run(lambda x, sigma, **_: low(x, sigma).float(), state(), SIGMAS)
    result = run(low, state(), SIGMAS)
    assert result.dtype == torch.float32
    assert difference(result, expected) < 2e-5
    assert difference(result, SAMPLERS[entry.id](low, state(), SIGMAS)) > 0.1


class Script:
    """A model that says what was written down, whatever it is shown."""

    def __init__(self, outputs: list[torch.Tensor]) -> None:
        self.outputs = iter(outputs)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_extra: Any) -> torch.Tensor:
        return next(self.outputs)


def quiet(*_sigmas: Any) -> torch.Tensor:
    return torch.zeros(())


def sensitivity(sampler: Sampler, sigmas: list[float]) -> list[float]:
    """How far the result moves with the output of each call: fixed-grid solvers are linear in them."""
    calls = len(sigmas) - 1
    moved = []
    for i in range(calls):
        outputs = [torch.full((1, 1), float(j == i), dtype=torch.float64) for j in range(calls)]
        x = torch.zeros(1, 1, dtype=torch.float64)
        moved.append(abs(sampler(Script(outputs), x, sigmas, noise_sampler=quiet).item()))
    return moved


@pytest.mark.parametrize("end", [0.0, 0.02], ids=["final zero", "above zero"])
@low_precision
@fixed_grids
def test_the_rounding_of_the_outputs_is_all_that_is_lost(
    dtype: torch.dtype, end: float, sampler: Sampler
) -> None:
    """Against float64: within the rounding of every output times its weight in the result."""
    sigmas = [*SIGMAS[:-1], end]
    generator = torch.Generator().manual_seed(7)
    outputs = [
        torch.empty(2, 500, dtype=torch.float64).uniform_(-1.0, 1.0, generator=generator)
        for _ in range(CALLS)
    ]
    x = 4.0 * torch.randn(2, 500, dtype=torch.float64, generator=generator).float().double()
    exact = sampler(Script(outputs), x, sigmas, noise_sampler=quiet)
    low = Script([output.to(dtype) for output in outputs])
    result = sampler(low, x.float(), sigmas, noise_sampler=quiet)
    weights = sensitivity(sampler, sigmas)
    rounding = torch.finfo(dtype).eps / 2
    # and what float32 adds in every call to numbers up to max|x|, of which none grows on the way
    single = 4 * CALLS * torch.finfo(torch.float32).eps * (x.abs().max().item() + sum(weights))
    error = difference(result.double(), exact)
    assert error <= sum(weights) * rounding + single
    extrapolates = sampler is SAMPLERS["dpm_solver++_recommended"]
    if end == 0.0 and not extrapolates:  # the last output is the result
        assert weights[-1] == pytest.approx(1.0)
        assert error == difference(outputs[-1].to(dtype).double(), outputs[-1])
    assert error > 0.2 * rounding * max(weights)  # the bound is not an empty one


@pytest.mark.parametrize("dtype", HALVES, ids=named)
@all_samplers
def test_a_half_precision_model_is_near_the_float64_one(
    dtype: torch.dtype, sampler: Sampler
) -> None:
    exact = sampler(Denoiser(), state().double(), SIGMAS)
    result = sampler(Denoiser(dtype), state(), SIGMAS)
    # The adaptive solver may choose other steps; its default tolerance is far wider than this.
    limit = 0.05 if sampler not in FIXED.values() else 8 * torch.finfo(dtype).eps
    assert difference(result.double(), exact) < limit * exact.abs().max().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, *QUARTERS], ids=named)
@all_samplers
def test_nothing_handed_over_in_low_precision_ever_changes(
    dtype: torch.dtype, sampler: Sampler
) -> None:
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tensor, tensor.clone()))
        return tensor

    def model(x: torch.Tensor, sigma: torch.Tensor, **_extra: Any) -> torch.Tensor:
        keep(x), keep(sigma)
        return keep(Denoiser(dtype)(x, sigma))

    def callback(report: dict[str, Any]) -> None:
        for name in ("x", "sigma", "sigma_hat", "denoised"):
            keep(report[name])

    keep(sampler(model, keep(state().to(dtype)), keep(torch.tensor(SIGMAS)), callback=callback))
    # float8 has no comparison of its own
    assert all(torch.equal(tensor.double(), copy.double()) for tensor, copy in kept)


@all_samplers
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[:], lambda x: x.detach()])
def test_a_model_may_return_its_own_input(
    view: Callable[[torch.Tensor], torch.Tensor], sampler: Sampler
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def model(x: torch.Tensor, sigma: torch.Tensor, **_extra: Any) -> torch.Tensor:
        seen.append((x, x.clone()))
        return view(x)

    x = state()
    result = sampler(model, x, SIGMAS)
    assert torch.equal(result, sampler(lambda x, sigma, **_: x.clone(), state(), SIGMAS))
    assert all(torch.equal(tensor, copy) for tensor, copy in seen)
    assert all(result.data_ptr() != tensor.data_ptr() for tensor, _ in seen)
    assert torch.equal(x, state())


# memory and modes


def in_the_middle(x: torch.Tensor) -> torch.Tensor:
    """A part of a larger tensor."""
    around = torch.full((5, 6, 8, 12), torch.nan)
    around[1:4, 1:5, 2:6, 2:10:2] = x
    return around[1:4, 1:5, 2:6, 2:10:2]


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": in_the_middle,
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "needs a gradient": lambda x: x.clone().requires_grad_(),
    "flipped": lambda x: x.flip(0).flip(0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@all_samplers
def test_the_layout_in_memory_changes_nothing(layout: str, sampler: Sampler) -> None:
    x = LAYOUTS[layout](state())
    plain = x.detach().clone(memory_format=torch.contiguous_format)
    expected = sampler(Denoiser(), plain, SIGMAS)
    result = sampler(Denoiser(), x, SIGMAS)
    assert difference(result, expected) < 1e-5
    assert torch.equal(x, plain)
    assert not result.requires_grad and result.grad_fn is None
    spread = sampler(
        lambda x, sigma, **_: LAYOUTS[layout](Denoiser()(x, sigma)) if x.shape[0] == 3 else x,
        plain,
        SIGMAS,
    )
    assert spread.shape == x.shape
    assert not spread.requires_grad and spread.grad_fn is None
    if layout != "expanded":
        assert difference(spread, expected) < 1e-5


@all_samplers
def test_no_graph_is_kept_of_a_model_that_learns(sampler: Sampler) -> None:
    """Nor of the callback's tensors."""
    weight = torch.nn.Parameter(torch.tensor(0.9))
    held: list[bool] = []

    def model(x: torch.Tensor, sigma: torch.Tensor, **_extra: Any) -> torch.Tensor:
        return weight * Denoiser()(x, sigma)

    def callback(report: dict[str, Any]) -> None:
        held.extend(report[name].grad_fn is not None for name in ("x", "denoised"))

    assert not sampler(model, state().requires_grad_(), SIGMAS, callback=callback).requires_grad
    assert held and not any(held)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=named)
@all_samplers
def test_inference_mode_changes_nothing(dtype: torch.dtype, sampler: Sampler) -> None:
    outside = sampler(Denoiser(dtype), state(), SIGMAS)
    with torch.inference_mode():
        inside = sampler(Denoiser(dtype), state(), SIGMAS)
    assert torch.equal(inside, outside)


# compiled models

EACH_KIND = ["dpm_solver++_2m", "dpm_solver++_adaptive_12"]
COMPILED = [
    *((name, "eager", "contiguous") for name in SAMPLERS),
    *((name, "aot_eager", "contiguous") for name in EACH_KIND),
    *((name, "eager", layout) for name in EACH_KIND for layout in LAYOUTS),
]


@pytest.mark.parametrize(("name", "backend", "layout"), COMPILED)
def test_a_compiled_model_is_compiled_once(name: str, backend: str, layout: str) -> None:
    """Not once per step: what the model gets looks alike in every call but, at most, the first."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    model = torch.compile(Denoiser(), backend=counter)
    seen: dict[Any, list[float]] = {model: [], Denoiser: []}

    def run(denoiser: Any) -> torch.Tensor:
        def counted(x: torch.Tensor, sigma: torch.Tensor, **_extra: Any) -> torch.Tensor:
            seen[denoiser].append(sigma[0].item())
            return (denoiser if denoiser is model else denoiser())(x, sigma)

        x = LAYOUTS[layout](state()) if layout in LAYOUTS else state()
        return SAMPLERS[name](counted, x, SIGMAS)

    expected, result = run(Denoiser), run(model)
    assert difference(result, expected) < 1e-5
    assert seen[model] == seen[Denoiser]
    compilations = counter.frame_count
    assert 1 <= compilations <= 2  # the first x is the caller's, the others are the sampler's
    assert torch.equal(run(model), result)
    assert counter.frame_count == compilations
    torch._dynamo.reset()


# devices


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
@all_samplers
def test_the_same_image_on_every_device(sampler: Sampler) -> None:
    """Noise of its own is drawn on the CPU, too."""
    sigmas = torch.tensor(SIGMAS)
    on_cpu = sampler(Denoiser(), state(), sigmas)
    on_gpu = sampler(Denoiser(), state("cuda"), sigmas.cuda())
    assert on_gpu.is_cuda
    assert difference(on_gpu.cpu(), on_cpu) < (1e-4 if sampler in FIXED.values() else 1e-2)


def test_the_adaptive_solver_measures_in_float32(recwarn: pytest.WarningsRecorder) -> None:
    """In half precision its error would be rounding, and its steps ever smaller."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        settings: dict[str, Any] = {"return_info": True, "disable": True}
        _, info = sample_adaptive(Denoiser(dtype), state().to(dtype), SIGMAS, **settings)
        _, exact = sample_adaptive(Denoiser(), state().double(), SIGMAS, **settings)
        assert info["nfe"] <= 1.5 * exact["nfe"], dtype
    assert not recwarn.list


def test_the_exact_mixture_in_half_precision() -> None:
    """On the tests' own model too, whose numbers are less tame."""
    sigmas = [14.6, 9.0, 5.0, 2.0, 1.0, 0.6, 0.3, 0.1, 0.0]
    for name, sampler in FIXED.items():
        if name.startswith("sde"):
            continue
        exact = sampler(lambda x, sigma, **_: Mixture()(x, sigma), start(), sigmas)
        for dtype in HALVES:
            model = Mixture(dtype=torch.float32)
            result = sampler(
                lambda x, sigma, model=model, dtype=dtype, **_: model(x, sigma).to(dtype),
                start().float(),
                sigmas,
            )
            assert difference(result.double(), exact) < 32 * torch.finfo(dtype).eps, name


def test_a_flipped_array_is_a_list_of_sigmas() -> None:
    """The natural way to turn a list around for inversion."""
    falling = np.geomspace(10.0, 0.1, 6)
    expected = torch.from_numpy(np.ascontiguousarray(falling[::-1]))
    assert torch.equal(as_float64(falling[::-1]), expected)


def test_an_ancestral_step_over_many_orders_of_magnitude() -> None:
    level = Grid.of([14.0, 1e-3, 1e-9, 0.0], VarianceExploding()).levels
    kept = kept_share(VarianceExploding(), level[1], level[2], 1.0)
    assert kept == pytest.approx(1e-6, rel=1e-9)
    assert Ancestral(eta=1.0).plan(Grid.of([14.0, 1e-3, 1e-9, 0.0], VarianceExploding()))
