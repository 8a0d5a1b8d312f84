"""Image to noise and back to the image, as users do it: rising sigmas, then the same ones flipped."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dpm_solver_nodes.tests.comfyui.conftest import VERSIONS
from dpm_solver_nodes.tests.comfyui.measured_inside import measured
from dpm_solver_nodes.tests.support.digits import (
    ODE_FIXED,
    STOCHASTIC,
    Graph,
    Node,
    Sampled,
    complaint,
    custom,
    custom_advanced,
    distance,
    ksampler,
    listed,
    loaded,
    menu,
    multistep,
    node,
    sample,
    sde,
    spaced,
)
from dpm_solver_nodes.tools.server import Server

SD3 = node("ModelSamplingSD3", shift=3.0)
PATCHES: dict[str, list[Node]] = {"eps": [], "flow": [SD3]}
QUIET: dict[str, Any] = {"add_noise": False, "cfg": 1.0}
"""Nothing but the ODE: no noise, and no guidance, with which the way back is another one."""


@pytest.fixture(scope="module")
def image(host: Server) -> torch.Tensor:
    return sample(host, ksampler("dpmpp_2m", steps=40)).latent


def there_and_back(
    sampler: Node, calls: int, start: Node, around: Any = custom_advanced, **options: Any
) -> Graph:
    """One graph: the noise of an image, from which its image is made again by the flipped list."""
    graph = around(sampler, spaced(calls, direction="rising"), latent=start, **QUIET, **options)
    inputs = {**graph["sample"]["inputs"], "sigmas": ["down", 0], "latent_image": ["found", 0]}
    back = {**graph["sample"], "inputs": inputs}
    flip = node("FlipSigmas", sigmas=["sigmas", 0])
    return graph | {"found": graph["sample"], "down": flip, "sample": back}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_loss_has_the_solvers_order(version: str) -> None:
    """With an exact model in float64. Both ways err alike, so that some lose less than their order."""
    for kind, solvers in measured("inside_solvers.py", version)["round trips"].items():
        for name, found in solvers.items():
            few, many = found["lost"][1:]
            order = math.log(few / many) / math.log(161 / 41)
            # First order is not yet reached where the steps are as long as the first of a flow. The
            # recommended sampler claims none: it is held to 2.
            assert order > (found["order"] or 2) - 0.35, (kind, name)
            assert many < (0.06 if found["order"] == 1 else 0.005), (kind, name)


@pytest.mark.parametrize("version", VERSIONS)
def test_2m_loses_little_at_20_calls(version: str) -> None:
    for solvers in measured("inside_solvers.py", version)["round trips"].values():
        lost = {name: found["lost"][0] for name, found in solvers.items()}
        assert lost["dpm_solver++_2m"] < min(0.03, 1.5 * min(lost.values()))
        assert lost["dpmsolver++, order 1"] > 5 * lost["dpm_solver++_2m"]


@pytest.fixture(scope="module", params=PATCHES)
def eulers(request: pytest.FixtureRequest, host: Server, image: torch.Tensor) -> tuple[str, float]:
    """A kind of model, and what the host's Euler loses on it."""
    patches = PATCHES[request.param]
    graph = there_and_back(menu("euler"), 30, loaded(host, image), patches=patches)
    return request.param, distance(sample(host, graph), image)


@pytest.mark.parametrize("name", ODE_FIXED)
def test_every_solver(
    host: Server, image: torch.Tensor, name: str, eulers: tuple[str, float]
) -> None:
    kind, by_euler = eulers
    options: dict[str, Any] = {"patches": PATCHES[kind]}
    back = sample(host, there_and_back(menu(name), 30, loaded(host, image), **options))
    assert back.calls == 60
    assert distance(back, image) < 0.5 * by_euler
    assert distance(back, image) < 0.1


def test_sampler_custom_loses_as_little(host: Server, image: torch.Tensor) -> None:
    for patches in PATCHES.values():
        one, other = (
            sample(
                host,
                there_and_back(multistep(), 20, loaded(host, image), around, patches=patches),
            )
            for around in (custom, custom_advanced)
        )
        assert distance(one, other) < 1e-6


def test_more_calls_lose_less(host: Server, image: torch.Tensor) -> None:
    """On a flow; the times of the other demo model are rounded, where no solver has an order."""
    lost = {}
    for order in (1, 2):
        sampler = multistep(order=order)
        few, many = (
            distance(
                sample(host, there_and_back(sampler, n, loaded(host, image), patches=[SD3])), image
            )
            for n in (20, 80)
        )
        lost[order] = math.log(few / many, 4)
    assert lost[1] > 0.7
    assert lost[2] > 1.6


def test_the_host_hands_a_flows_noise_over_as_it_is(host: Server, image: torch.Tensor) -> None:
    """It divides what a run returns by 1 - (last sigma), and multiplies what a run without noise
    starts from by 1 - (first sigma): with the same sigma at both, two runs are one.

    A list that starts elsewhere starts from another state; one from 1, of which the node makes
    lists, from nothing at all.
    """
    rising, options = spaced(20, direction="rising"), {"patches": [SD3], **QUIET}
    start, sampler = loaded(host, image), multistep(order=1)
    whole = sample(host, custom(sampler, rising, latent=start, **options))

    halves = node("SplitSigmas", sigmas=["all", 0], step=10)
    first = sample(host, custom(sampler, halves, all=rising, latent=start, **options))
    graph = custom(sampler, halves, all=rising, latent=loaded(host, first.latent), **options)
    graph["sample"]["inputs"]["sigmas"] = ["sigmas", 1]
    second = sample(host, graph)
    assert distance(second, whole) < 1e-5 * float(whole.latent.std())

    def from_one(latent: torch.Tensor) -> Sampled:
        lists = spaced(20)
        return sample(host, custom(sampler, lists, latent=loaded(host, latent), **options))

    assert torch.equal(from_one(whole.latent).latent, from_one(0.0 * whole.latent + 1.0).latent)


def test_another_prompt_on_the_way_back(host: Server, image: torch.Tensor) -> None:
    """What inversion is for: the digit changes, its stroke does not."""
    graph = there_and_back(multistep(), 20, loaded(host, image))
    same = sample(host, graph)
    other = node("DPMSolverDemo_Digit", digit="8")
    guider = node("CFGGuider", **{**graph["guider"]["inputs"], "positive": ["other", 0]})
    graph["sample"]["inputs"]["guider"] = ["edit", 0]
    edited = sample(host, graph | {"other": other, "edit": guider})
    random = sample(host, ksampler("dpmpp_2m", digit="8", cfg=1.0, seed=9))
    assert distance(same, image) < 0.1
    assert 2 * distance(same, image) < distance(edited, image) < distance(random, image)


def test_up_without_the_noise_node_disabled(host: Server, image: torch.Tensor) -> None:
    """Noise of the smallest sigma is added first: too little to see, but the image is not the same."""
    up = spaced(20, direction="rising")
    options: dict[str, Any] = {"latent": loaded(host, image), "cfg": 1.0}
    quiet = sample(host, custom(multistep(), up, add_noise=False, **options))
    noisy = sample(host, custom(multistep(), up, add_noise=True, **options))
    assert noisy.calls == quiet.calls == 20
    assert distance(quiet, noisy) > 0.01


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_sde_has_no_way_back(host: Server, image: torch.Tensor, name: str) -> None:
    up = custom(menu(name), spaced(5, direction="rising"), latent=loaded(host, image), **QUIET)
    message, calls = complaint(host, up)
    assert "eta" in message and "rising" in message and message.endswith(".")
    assert calls == 0
    # It may take the way down, from noise that an ODE found.
    down = custom(menu(name), listed("14, 5, 1, 0.03"), latent=loaded(host, image), **QUIET)
    assert sample(host, down).calls == 3


def test_the_sde_node_without_noise_has_one(host: Server, image: torch.Tensor) -> None:
    results = [
        sample(host, there_and_back(sampler, 20, loaded(host, image)))
        for sampler in (sde(eta=0.0), multistep())
    ]
    assert distance(*results) < 1e-6
