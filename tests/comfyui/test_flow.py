"""Models of other kinds: the host's own patches change what the demo model's noise levels mean.

The digits are then nonsense, which the numbers don't mind.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpm_solver_nodes.tests.support.digits import (
    FIXED,
    MENU,
    STOCHASTIC,
    Node,
    complaint,
    custom,
    custom_advanced,
    ksampler,
    listed,
    loaded,
    menu,
    node,
    sample,
    scheduled,
    sigmas_of,
    spaced,
)
from dpm_solver_nodes.tools.server import Server

EDM = {"sigma_max": 80.0, "sigma_min": 0.002}
FLUX = {"max_shift": 1.15, "base_shift": 0.5, "width": 1024, "height": 1024}
SD3 = node("ModelSamplingSD3", shift=3.0)
FLOWS = {
    "sd3": SD3,
    "auraflow": node("ModelSamplingAuraFlow", shift=1.73),
    "flux": node("ModelSamplingFlux", **FLUX),
}
EXPLODING = {
    "v": node("ModelSamplingDiscrete", sampling="v_prediction", zsnr=False),
    "zsnr": node("ModelSamplingDiscrete", sampling="v_prediction", zsnr=True),
    "cascade": node("ModelSamplingStableCascade", shift=2.0),
    "edm": node("ModelSamplingContinuousEDM", sampling="edm", **EDM),
    "cosmos": node("ModelSamplingContinuousEDM", sampling="cosmos_rflow", **EDM),
    "continuous": node(
        "ModelSamplingContinuousV", sampling="v_prediction", sigma_max=500.0, sigma_min=0.03
    ),
}
KINDS = FLOWS | EXPLODING
SPACINGS = {
    "logSNR": "dpm_solver_log_snr",
    "time_uniform": "dpm_solver_time_uniform",
    "time_quadratic": "dpm_solver_time_quadratic",
    "recommended": "dpm_solver_recommended",
}
TABLE_IS_NO_TIME = ("cascade", "cosmos", "continuous")
"""The host's `simple` is even in these kinds' tables of sigmas, and those are not even in time."""

IMAGE_TO_IMAGE = node("ModelSamplingDiscrete", sampling="img_to_img_flow", zsnr=False)


@pytest.mark.parametrize("scheduler", ["simple", "dpm_solver_log_snr"])
@pytest.mark.parametrize("name", MENU)
def test_menu_on_a_flow(host: Server, name: str, scheduler: str) -> None:
    for denoise in (1.0, 0.5):
        graph = ksampler(name, patches=[SD3], scheduler=scheduler, steps=10, denoise=denoise)
        result = sample(host, graph)
        assert result.calls == 10 if name in FIXED else result.calls > 0
        assert torch.isfinite(result.latent).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_sigmas(host: Server, spacing: str, kind: str) -> None:
    patches = [KINDS[kind]]
    sigmas = sigmas_of(host, spaced(10, spacing=spacing), patches)
    first = sigmas_of(host, scheduled("karras", 10), patches)[0]
    assert len(sigmas) == len(set(sigmas)) == 11
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[0] == (1.0 if kind in FLOWS else first)
    assert sigmas[-1] == 0.0
    assert sigmas_of(host, scheduled(SPACINGS[spacing], 10), patches) == sigmas
    rising = sigmas_of(host, spaced(10, spacing=spacing, direction="rising"), patches)
    assert len(rising) == len(set(rising)) == 11
    assert rising == sorted(rising)
    assert rising[0] > 0.0
    assert rising[-1] < 1.0 if kind in FLOWS else rising[-1] == first
    partly = sigmas_of(host, spaced(10, spacing=spacing, denoise=0.5), patches)
    assert partly == sigmas_of(host, scheduled(SPACINGS[spacing], 10, 0.5), patches)
    longer = sigmas_of(host, spaced(20, spacing=spacing), patches)
    if spacing == "recommended":  # a list of its own, from where half of the time is left
        if kind not in TABLE_IS_NO_TIME:
            simple = sigmas_of(host, scheduled("simple", 10, 0.5), patches)
            assert partly[0] == pytest.approx(simple[0], rel=0.01)
        assert partly[0] < longer[10]
        assert partly == sorted(partly, reverse=True) and len(set(partly)) == 11
    else:  # shown with five digits of the largest
        assert partly == pytest.approx(longer[-11:], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_sampling(host: Server, kind: str, spacing: str) -> None:
    graph = custom_advanced(
        node("DPMSolver_2M"), spaced(10, spacing=spacing), patches=[KINDS[kind]]
    )
    result = sample(host, graph)
    assert result.calls == 10
    assert torch.isfinite(result.latent).all()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_starts_at_exactly_one(host: Server, kind: str, spacing: str) -> None:
    """With the first sigma set to 1 once more, nothing changes, to the last bit."""
    sampler, patches = node("DPMSolver_2M"), [FLOWS[kind]]
    plain = sample(host, custom(sampler, spaced(8, spacing=spacing), patches=patches))
    set_again = node("SetFirstSigma", sigmas=["list", 0], sigma=1.0)
    graph = custom(sampler, set_again, patches=patches, list=spaced(8, spacing=spacing))
    assert torch.equal(plain.latent, sample(host, graph).latent)
    close = node("SetFirstSigma", sigmas=["list", 0], sigma=0.9999)
    graph = custom(sampler, close, patches=patches, list=spaced(8, spacing=spacing))
    assert not torch.equal(plain.latent, sample(host, graph).latent)


@pytest.mark.parametrize("name", [name for name in FIXED if name not in STOCHASTIC])
def test_the_first_step_of_a_flow_is_eulers(host: Server, name: str) -> None:
    """At sigma 1 the log-SNR is infinite, and the exact step is an Euler step.

    The stochastic ones make all of the noise anew there: see test_stochastic_nodes.py.
    """
    results = [
        sample(host, custom(menu(kind), listed("1, 0.6"), patches=[SD3])).latent
        for kind in (name, "euler")
    ]
    torch.testing.assert_close(*results, rtol=0.0, atol=1e-5)


def test_inversion_on_a_flow_ends_below_one(host: Server) -> None:
    start = loaded(host, torch.linspace(-1.0, 1.0, 256).reshape(1, 1, 16, 16))
    plain: dict[str, Any] = {"patches": [SD3], "latent": start, "add_noise": False, "cfg": 1.0}
    up = spaced(10, direction="rising")
    result = sample(host, custom(node("DPMSolver_2M"), up, **plain))
    assert result.calls == 10
    assert torch.isfinite(result.latent).all()


@pytest.mark.parametrize("name", MENU)
def test_sigmas_above_a_flows_one(host: Server, name: str) -> None:
    message, calls = complaint(host, custom(menu(name), listed("3, 0.5, 0"), patches=[SD3]))
    assert "3" in message and "1" in message
    assert calls == 0


@pytest.mark.parametrize("name", MENU)
def test_inversion_up_to_a_flows_one(host: Server, name: str) -> None:
    message, calls = complaint(
        host, custom(menu(name), listed("0.1, 0.5, 1"), patches=[SD3], add_noise=False)
    )
    assert "1" in message
    assert calls == 0


@pytest.mark.parametrize(
    ("sampler", "sigmas"),
    [
        (node("DPMSolver_2M"), listed("1, 0.5, 0")),
        (menu("dpm_solver++_adaptive_23"), listed("1, 0.5, 0")),
        (menu("euler"), spaced(5)),
        (menu("euler"), scheduled("dpm_solver_log_snr", 5)),
    ],
    ids=["node", "menu", "sigmas", "scheduler"],
)
def test_image_to_image_models_are_refused(host: Server, sampler: Node, sigmas: Node) -> None:
    message, calls = complaint(host, custom(sampler, sigmas, patches=[IMAGE_TO_IMAGE]))
    assert "IMG_TO_IMG_FLOW" in message
    assert calls == 0
