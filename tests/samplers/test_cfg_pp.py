"""The CFG++ forms (arXiv 2406.08070, equations 14 and 15): the solver runs on unconditional outputs.

Its second-order term takes the difference of two unconditional outputs, as the authors' code does.
ComfyUI's `dpmpp_2m_cfg_pp` takes that of the guided one to the last unconditional one.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch

from dpm_solver_nodes.samplers import (
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    sample_multistep,
)
from dpm_solver_nodes.samplers.thresholding import dynamic_threshold
from dpm_solver_nodes.tests.support.mixture import SIGMA_MAX, Mixture, Sampler, difference, start

VE, FLOW = VarianceExploding(), RectifiedFlow()
SIGMAS = {VE: (14.6, 9.0, 5.0, 2.0, 1.0, 0.6, 0.3, 0.1), FLOW: (1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.1)}
ROUNDING = 1e-11
multistep: Sampler = partial(sample_multistep, lower_order_final="off", disable=True)

schedules = pytest.mark.parametrize("schedule", [VE, FLOW], ids=["ve", "flow"])
algorithms = pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
zeros = pytest.mark.parametrize("zero", [(), (0.0,)], ids=["above zero", "final zero"])
etas = pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])


def state(schedule: NoiseSchedule) -> torch.Tensor:
    return start() if schedule == VE else start() / SIGMA_MAX


def noise_for(x: torch.Tensor) -> Any:
    """Other noise at each call, the same in each run."""
    generator = torch.Generator().manual_seed(0)
    return lambda *_: torch.randn(x.shape, dtype=x.dtype, generator=generator)


class Guided:
    """A guided model: the unconditional output plus `scale` times what a condition adds to it."""

    def __init__(
        self, schedule: NoiseSchedule, scale: float = 0.7, dtype: torch.dtype = torch.float64
    ) -> None:
        self.model = Mixture(schedule)
        self.scale, self.dtype = scale, dtype
        self.looks: list[float] = []

    def both(self, x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The guided output and the unconditional one."""
        plain = self.model(x.double(), x.new_full((len(x),), sigma, dtype=torch.float64))
        guided = plain + self.scale * (torch.tanh(x.double()) - 0.5 * plain)
        return guided.to(self.dtype), plain.to(self.dtype)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        guided, self.last = self.both(x, sigma[0].item())
        return guided

    def unconditional(self) -> torch.Tensor:
        self.looks.append(self.model.sigmas[-1])
        return self.last


def run(model: Guided, schedule: NoiseSchedule, *zero: float, **settings: Any) -> torch.Tensor:
    x = state(schedule)
    settings = {"noise_sampler": noise_for(x), "schedule": schedule} | settings
    sigmas = (*SIGMAS[schedule], *zero)
    return multistep(model, x, sigmas, unconditional=model.unconditional, **settings)


@pytest.mark.parametrize(
    ("order", "solver_type"),
    [*itertools.product((1, 2, 3), ("dpmsolver", "taylor")), (3, "exact")],
)
@algorithms
@schedules
@zeros
def test_without_guidance_it_is_the_plain_solver(
    zero: tuple[float, ...],
    schedule: NoiseSchedule,
    algorithm: str,
    order: int,
    solver_type: str,
) -> None:
    settings: dict[str, Any] = {"algorithm": algorithm, "order": order, "solver_type": solver_type}
    sigmas = (*SIGMAS[schedule], *zero)
    for eta in (0.0, 1.0):
        x = state(schedule)
        settings["eta"] = eta
        plain = multistep(
            Mixture(schedule), x, sigmas, noise_sampler=noise_for(x), schedule=schedule, **settings
        )
        result = run(Guided(schedule, 0.0), schedule, *zero, **settings)
        assert difference(result, plain) < ROUNDING
        assert difference(run(Guided(schedule), schedule, *zero, **settings), plain) > 1e-3


def by_hand(schedule: NoiseSchedule, eta: float, second_order: bool, *zero: float) -> torch.Tensor:
    """x_next = alpha_next D + (noise part), with DPM-Solver++'s second-order term where asked for.

    Written in sigma space, D being guided and u unconditional: without that term and with eta = 0 or 1
    this is ComfyUI's `sample_euler_ancestral_cfg_pp`.
    """
    model, x = Guided(schedule), state(schedule)
    noise = noise_for(x)
    sigmas, last, h_last = (*SIGMAS[schedule], *zero), x, math.inf
    for sigma, sigma_next in itertools.pairwise(sigmas):
        guided, plain = model.both(x, sigma)
        if sigma_next == 0.0:
            return guided
        alpha, alpha_next = schedule.alpha(sigma), schedule.alpha(sigma_next)
        h = schedule.lambda_(sigma_next) - schedule.lambda_(sigma)
        kept = math.exp(-eta * h) if eta else 1.0  # of the noise; 0 from a flow's 1
        x = alpha_next * guided + kept * sigma_next * (x - alpha * plain) / sigma
        if second_order and math.isfinite(h_last):
            fraction = -math.expm1(-(1.0 + eta) * h) * alpha_next
            x = x + fraction * h / (2.0 * h_last) * (plain - last)
        if eta:
            x = x + sigma_next * math.sqrt(1.0 - kept**2) * noise()
        last, h_last = plain, h
        h_last = math.inf if math.isinf(h) else h
    return x


@schedules
@etas
@zeros
@pytest.mark.parametrize("order", [1, 2])
def test_orders_1_and_2_are_the_papers_formulas(
    order: int, zero: tuple[float, ...], eta: float, schedule: NoiseSchedule
) -> None:
    expected = by_hand(schedule, eta, order == 2, *zero)
    result = run(Guided(schedule), schedule, *zero, order=order, eta=eta)
    assert difference(result, expected) < ROUNDING
    # and the two differ
    assert difference(result, by_hand(schedule, eta, order == 1, *zero)) > 1e-6


@etas
def test_order_1_is_euler_cfg_pp_in_the_noise_form_too(eta: float) -> None:
    # of the ODE alone: as SDE solvers the forms differ at first order already
    result = run(Guided(VE), VE, order=1, eta=eta, algorithm="dpmsolver")
    assert (difference(result, by_hand(VE, eta, False)) < ROUNDING) == (eta == 0.0)


def test_order_1_is_written_in_k_diffusions_terms() -> None:
    model, x = Guided(VE), state(VE)
    result = run(model, VE, order=1)
    for sigma, sigma_next in itertools.pairwise(SIGMAS[VE]):
        denoised, uncond = model.both(x, sigma)
        d = (x - uncond) / sigma
        x = denoised + d * sigma_next
    assert difference(result, x) < ROUNDING


@schedules
@algorithms
@etas
def test_the_step_to_zero_gives_the_guided_output(
    eta: float, algorithm: str, schedule: NoiseSchedule
) -> None:
    seen: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"algorithm": algorithm, "eta": eta}
    model = Guided(schedule)
    result = run(model, schedule, 0.0, callback=seen.append, **settings)
    assert difference(result, seen[-1]["denoised"]) < ROUNDING
    assert difference(result, model.last) > 1e-3


@schedules
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_unconditional_output_is_looked_at_once_after_each_call(
    order: int, schedule: NoiseSchedule
) -> None:
    """But after the last one to zero, which noises nothing again."""
    for zero in ((), (0.0,)):
        model = Guided(schedule)
        run(model, schedule, *zero, order=order)
        assert model.model.sigmas == list((*SIGMAS[schedule], *zero)[:-1])
        assert model.looks == list(SIGMAS[schedule][:-1])


def test_a_repeated_sigma_does_not_guide_twice() -> None:
    model, repeated = Guided(VE), Guided(VE)
    settings: dict[str, Any] = {"unconditional": model.unconditional}
    expected = multistep(model, start(), [14.6, 5.0, 2.0, 0.5], **settings)
    settings = {"unconditional": repeated.unconditional}
    result = multistep(repeated, start(), [14.6, 14.6, 5.0, 2.0, 2.0, 2.0, 0.5, 0.5], **settings)
    assert difference(result, expected) < ROUNDING
    assert repeated.looks == [14.6, 14.6, 5.0, 2.0, 2.0, 2.0, 0.5]


@schedules
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_move_a_float32_state(
    dtype: torch.dtype, schedule: NoiseSchedule
) -> None:
    x, sigmas = state(schedule).float(), (*SIGMAS[schedule], 0.0)
    results = []
    for of_model in (dtype, torch.float32):
        model = Guided(schedule, dtype=of_model)
        settings: dict[str, Any] = {"schedule": schedule, "unconditional": model.unconditional}
        results.append(multistep(model, x, sigmas, **settings))
    assert results[0].dtype == torch.float32
    # the rounding of some outputs of about 3, each weighed by up to about 4
    assert 0.0 < difference(*results) < 32 * torch.finfo(dtype).eps


def test_predictions_handed_over_are_never_changed() -> None:
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Keeping(Guided):
        def both(self, x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
            pair = super().both(x, sigma)
            kept.extend((tensor, tensor.clone()) for tensor in (x, *pair))
            return pair

    result = run(Keeping(VE), VE, 0.0, order=3, eta=1.0)
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)
    assert all(result.data_ptr() != tensor.data_ptr() for tensor, _ in kept)


def test_thresholding_corrects_both_predictions() -> None:
    class Corrected(Guided):
        def both(self, x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
            guided, plain = super().both(x, sigma)
            return dynamic_threshold(guided, 0.9, 0.5), dynamic_threshold(plain, 0.9, 0.5)

    result = run(Guided(VE), VE, 0.0, thresholding=(0.9, 0.5))
    assert torch.equal(result, run(Corrected(VE), VE, 0.0))
    assert not torch.equal(result, run(Guided(VE), VE, 0.0))
