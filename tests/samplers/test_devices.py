"""A Mac's GPU, which has no float64 and corrupts copies that are not waited for; default devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch

from dpm_solver_nodes.samplers import RectifiedFlow, sample_calibrated
from dpm_solver_nodes.samplers.catalog import CATALOG
from dpm_solver_nodes.samplers.denoiser import NetworkDenoiser
from dpm_solver_nodes.samplers.grid import read_sigmas
from dpm_solver_nodes.samplers.plan import Weights
from dpm_solver_nodes.samplers.sample import sample
from dpm_solver_nodes.samplers.schedules.networks import (
    ContinuousCosine,
    ContinuousLinear,
    DiscreteSchedule,
    FlowSchedule,
    TrainingSchedule,
)
from dpm_solver_nodes.samplers.schedules.process import VarianceExploding
from dpm_solver_nodes.samplers.solvers.fitted import Calibration
from dpm_solver_nodes.tests.support.like_mps import LikeMPS, only_waiting_copies

SIGMAS = [0.97, 0.8, 0.5, 0.3, 0.1, 0.03, 0.0]
TRAINING = [
    DiscreteSchedule.scaled_linear(),
    DiscreteSchedule.cosine(),
    ContinuousLinear(),
    ContinuousCosine(),
    FlowSchedule(shift=3.0),
]
entries = pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.id)
trainings = pytest.mark.parametrize("training", TRAINING, ids=lambda one: type(one).__name__)


def on_mac(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(LikeMPS)


def state() -> torch.Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), device="cpu")


def model(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
    return x / (1.0 + sigma.reshape(-1, 1, 1, 1) ** 2)


def settings(entry: Any, flow: bool) -> dict[str, Any]:
    chosen: dict[str, Any] = {"schedule": RectifiedFlow() if flow else None, "disable": True}
    return chosen | ({"unconditional": lambda: state() * 0.1} if entry.cfg_pp else {})


@entries
@pytest.mark.parametrize("flow", [False, True], ids=["diffusion", "flow"])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_sampler_runs_on_a_mac_and_gives_what_the_cpu_gives(
    entry: Any, flow: bool, device: str
) -> None:
    chosen = settings(entry, flow)
    sampler = partial(sample, replace(entry.options, noise_device=device))
    sigmas = torch.tensor(SIGMAS)
    expected = sampler(model, state(), sigmas, {"seed": 1}, **chosen)
    with only_waiting_copies():
        seen = sampler(model, on_mac(state()), on_mac(sigmas), {"seed": 1}, **chosen)
    assert isinstance(seen, LikeMPS)
    assert torch.equal(seen.as_subclass(torch.Tensor), expected)


def test_a_calibrated_solver_runs_on_a_mac() -> None:
    steps = tuple(Weights(1.0, (b - a,)) for a, b in pairwise(SIGMAS))
    calibration = Calibration("flow", tuple(SIGMAS), steps)
    with only_waiting_copies():
        sample_calibrated(
            model, on_mac(state()), on_mac(torch.tensor(SIGMAS)), calibration=calibration
        )


@trainings
def test_a_network_denoises_on_a_mac(training: TrainingSchedule) -> None:
    def network(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return z * 0.1

    denoiser = NetworkDenoiser(network, training, prediction="v")
    sigma = torch.full((2,), 0.5)
    expected = denoiser(state(), sigma)
    with only_waiting_copies():
        seen = denoiser(on_mac(state()), on_mac(sigma))
    assert torch.equal(seen.as_subclass(torch.Tensor), expected)


def test_a_schedule_is_read_off_a_mac() -> None:
    alphas_cumprod = torch.linspace(0.99, 0.01, 100)
    expected = DiscreteSchedule.from_alphas_cumprod(alphas_cumprod)
    seen = DiscreteSchedule.from_alphas_cumprod(on_mac(alphas_cumprod))
    assert torch.equal(seen.log_alphas, expected.log_alphas)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sigmas_are_read_off_a_mac_as_they_are(dtype: torch.dtype) -> None:
    sigmas = torch.tensor(SIGMAS, dtype=dtype)
    assert read_sigmas(on_mac(sigmas), VarianceExploding()) == tuple(sigmas.double().tolist())


@pytest.mark.parametrize("convert", [torch.Tensor.double, lambda t: t.to("cpu", torch.float64)])
def test_the_stand_in_refuses_what_a_mac_refuses(
    convert: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    with pytest.raises(TypeError, match="MPS"):
        convert(on_mac(torch.ones(2)))
    with only_waiting_copies(), pytest.raises(AssertionError, match="not waited for"):
        torch.ones(2).to("cpu", non_blocking=True)
    assert on_mac(torch.ones(2)).cpu().double().dtype == torch.float64


@entries
def test_plans_are_made_on_the_cpu_whatever_the_default_device_is(entry: Any) -> None:
    expected = entry.function()(model, state(), SIGMAS, {"seed": 1}, **settings(entry, False))
    with torch.device("meta"):  # on which no number can be read
        seen = entry.function()(model, state(), SIGMAS, {"seed": 1}, **settings(entry, False))
    assert torch.equal(seen, expected)


@trainings
def test_sigmas_and_noise_are_made_on_the_cpu_whatever_the_default_device_is(
    training: TrainingSchedule,
) -> None:
    denoiser = NetworkDenoiser(lambda z, t: z, training, prediction="v")
    expected = denoiser.sigmas(5)
    with torch.device("meta"):
        assert torch.equal(denoiser.sigmas(5), expected)
        assert denoiser.noise((1, 2, 2), 0, device="cpu").isfinite().all()
        if isinstance(training, DiscreteSchedule):
            assert DiscreteSchedule.scaled_linear().log_alphas.isfinite().all()
